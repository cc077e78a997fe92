"""Attention over feature maps from the papers' equations, an example and a position at a time.

Functions of inputs with `params`, `buffers` (running statistics) and `x` [B, Y, X, C], and of
`training` and the module's options; they return the new map and the weights.
"""

import numpy as np

from tests.attention.references.base import attend


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def relu(a):
    return np.maximum(a, 0)


def linear(z, p):
    return z @ p["kernel"] + p.get("bias", 0)


def batch_norm(x, p, running, training):
    """Normalizes by the mean and variance of the batch, or by the running statistics."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = running["mean"], running["variance"]
    if training:
        mean = x.mean(axis=axes)
        variance = ((x - mean) ** 2).mean(axis=axes)
    return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def correlate(x, kernel, stride=1):
    """Computes a cross-correlation position by position, with zero padding."""
    B, Y, X, _ = x.shape
    height, width, _, outputs = kernel.shape
    rows, columns = -(-Y // stride), -(-X // stride)
    # As many zeros as are missing, the odd one at the end.
    down = max((rows - 1) * stride + height - Y, 0)
    right = max((columns - 1) * stride + width - X, 0)
    padded = np.pad(
        x, ((0, 0), (down // 2, down - down // 2), (right // 2, right - right // 2), (0, 0))
    )
    out = np.zeros((B, rows, columns, outputs))
    for i, j in np.ndindex(rows, columns):
        patch = padded[:, i * stride : i * stride + height, j * stride : j * stride + width]
        out[:, i, j] = np.tensordot(patch, kernel, 3)
    return out


def bottleneck(z, p):
    return linear(relu(linear(z, p["reduce"])), p["expand"])


def average(x):
    return np.array([[image[..., c].mean() for c in range(x.shape[3])] for image in x])


def highest(x):
    return np.array([[image[..., c].max() for c in range(x.shape[3])] for image in x])


def se(inputs, training, reduction=16):
    p, x = inputs["params"], inputs["x"]
    gate = sigmoid(bottleneck(average(x), p))[:, None, None, :]
    return x * gate, gate


def eca(inputs, training, kernel_size=None):
    x, kernel = inputs["x"], inputs["params"]["kernel"]
    z, half = average(x), len(kernel) // 2
    logits = np.zeros(z.shape)
    for b, c in np.ndindex(z.shape):
        for j, weight in enumerate(kernel):
            if 0 <= c + j - half < z.shape[1]:
                logits[b, c] += weight * z[b, c + j - half]
    gate = sigmoid(logits)[:, None, None, :]
    return x * gate, gate


def cbam_channel(inputs, training, **options):
    p, x = inputs["params"], inputs["x"]
    gate = sigmoid(bottleneck(average(x), p) + bottleneck(highest(x), p))[:, None, None, :]
    return x * gate, gate


def cbam_spatial(inputs, training, **options):
    p, x = inputs["params"], inputs["x"]
    described = np.stack([x.max(axis=3), x.mean(axis=3)], axis=-1)
    logits = batch_norm(
        correlate(described, p["kernel"]), p["norm"], inputs["buffers"]["norm"], training
    )
    gate = sigmoid(logits)
    return x * gate, gate


def cbam(inputs, training, **options):
    p = inputs["params"]
    refined, channel = cbam_channel({"params": p["channel"], "x": inputs["x"]}, training)
    part = {"params": p["spatial"], "buffers": inputs["buffers"]["spatial"], "x": refined}
    out, spatial = cbam_spatial(part, training)
    return out, channel * spatial


def scse(inputs, training, join="add", **options):
    p, x = inputs["params"], inputs["x"]
    channel = sigmoid(bottleneck(average(x), p))[:, None, None, :]
    spatial = sigmoid(linear(x, p["spatial"]))
    if join == "add":
        return x * channel + x * spatial, channel + spatial
    out = np.maximum(x * channel, x * spatial)
    return out, np.where(x * channel == out, channel, spatial)


def coordinate(inputs, training, **options):
    p, x = inputs["params"], inputs["x"]
    Y = x.shape[1]
    pooled = np.concatenate([x.mean(axis=2), x.mean(axis=1)], axis=1)
    hidden = linear(pooled, p["reduce"])
    hidden = batch_norm(hidden, p["norm"], inputs["buffers"]["norm"], training)
    hidden = hidden * np.clip(hidden + 3, 0, 6) / 6
    rows = sigmoid(linear(hidden[:, :Y], p["rows"]))
    columns = sigmoid(linear(hidden[:, Y:], p["columns"]))
    gate = rows[:, :, None, :] * columns[:, None, :, :]
    return x * gate, gate


def heads(x, p):
    """Reshapes [..., C] to [..., N, H]."""
    return np.tensordot(x, p["kernel"], 1) + p["bias"]


def back(x, p):
    """Reshapes [..., N, H] to [..., C]."""
    return np.tensordot(x, p["kernel"], 2) + p["bias"]


def non_local(inputs, training, similarity="embedded_gaussian", norm=True, **options):
    p, x = inputs["params"], inputs["x"]
    B, Y, X, C = x.shape
    flat = x.reshape(B, Y * X, C)
    query, key, value = (heads(flat, p[name]) for name in ("query", "key", "value"))
    if similarity == "dot_product":
        weights = np.einsum("bpnh,bqnh->bnpq", query, key) / (Y * X)
        mixed = np.einsum("bnpq,bqnh->bpnh", weights, value)
    else:
        allowed = np.ones((1, 1, Y * X, Y * X), bool)
        mixed, weights = attend(query, key, value, allowed, scale=1.0)
    added = back(mixed, p["out"]).reshape(x.shape)
    if norm:
        added = batch_norm(added, p["norm"], inputs["buffers"]["norm"], training)
    return x + added, weights


def along(x, p):
    """Computes self-attention over [T, C]: the result [T, C] and weights [N, T, T]."""
    query, key, value = (heads(x[None], p[name]) for name in ("query", "key", "value"))
    allowed = np.ones((1, 1, len(x), len(x)), bool)
    mixed, weights = attend(query, key, value, allowed)
    return back(mixed, p["out"])[0], weights[0]


def axial(inputs, training, residual=True, **options):
    p, x = inputs["params"], inputs["x"]
    B, Y, X, _ = x.shape
    N = p["rows"]["query"]["kernel"].shape[1]
    place = np.arange(Y * X).reshape(Y, X)
    weights = np.zeros((B, 2 * N, Y * X, Y * X))
    h, out = np.zeros(x.shape), np.zeros(x.shape)
    for b, y in np.ndindex(B, Y):
        h[b, y], found = along(x[b, y], p["rows"])
        weights[b, :N, place[y][:, None], place[y]] = found.transpose(1, 2, 0)
    h = x + h if residual else h
    for b, column in np.ndindex(B, X):
        out[b, :, column], found = along(h[b, :, column], p["columns"])
        places = place[:, column]
        weights[b, N:, places[:, None], places] = found.transpose(1, 2, 0)
    return h + out if residual else out, weights


def shifted_window(inputs, training, window=4, shift=None, residual=True, **options):
    p, x = inputs["params"], inputs["x"]
    B, Y, X, _ = x.shape
    shift = window // 2 if shift is None else shift
    query, key, value = (heads(x, p[name]) for name in ("query", "key", "value"))
    N, H = query.shape[3:]

    def parts(length):
        """Splits each side at the grid lines moved by the shift; a side with one window is not
        split."""
        moved = shift if length > window else 0
        return [(place - moved) // window for place in range(length)]

    rows, columns = parts(Y), parts(X)
    positions = list(np.ndindex(Y, X))
    weights, mixed = np.zeros((B, N, Y * X, Y * X)), np.zeros(query.shape)
    for i, (y, column) in enumerate(positions):
        seen = [
            (j, y2, x2)
            for j, (y2, x2) in enumerate(positions)
            if (rows[y2], columns[x2]) == (rows[y], columns[column])
        ]
        for b, n in np.ndindex(B, N):
            logits = np.array(
                [
                    query[b, y, column, n] @ key[b, y2, x2, n] / np.sqrt(H)
                    + p["bias_table"][y - y2 + window - 1, column - x2 + window - 1, n]
                    for _, y2, x2 in seen
                ]
            )
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            for share, (j, y2, x2) in zip(shares, seen, strict=True):
                weights[b, n, i, j] = share
                mixed[b, y, column, n] += share * value[b, y2, x2, n]
    mixed = back(mixed, p["out"])
    return x + mixed if residual else mixed, weights


def between(length, wanted):
    """Returns weights [wanted, length] of linear interpolation between pixel centers, clipped."""
    matrix = np.zeros((wanted, length))
    for i in range(wanted):
        place = np.clip((i + 0.5) * length / wanted - 0.5, 0, length - 1)
        low = int(np.floor(place))
        matrix[i, low] += 1 - (place - low)
        matrix[i, min(low + 1, length - 1)] += place - low
    return matrix


def resize(x, Y, X):
    return np.einsum("yi,xj,bijc->byxc", between(x.shape[1], Y), between(x.shape[2], X), x)


def attention_gate(inputs, training, stride=2, **options):
    p, x = inputs["params"], inputs["x"]
    seen = correlate(x, p["kernel"], stride)
    asked = resize(linear(inputs["gating_signal"], p["signal"]), *seen.shape[1:3])
    coarse = sigmoid(linear(relu(seen + asked), p["score"]))
    gate = resize(coarse, *x.shape[1:3])
    return x * gate, gate


_MAPS = (
    se,
    eca,
    cbam,
    cbam_channel,
    cbam_spatial,
    scse,
    coordinate,
    non_local,
    axial,
    shifted_window,
)
REFERENCES = {("map_attention", function.__name__): function for function in _MAPS}
REFERENCES["gate", "attention_gate"] = attention_gate
VARIANTS = {
    "se": {"half": {"reduction": 2}, "one": {}},
    "eca": {"default": {}, "five": {"kernel_size": 5}},
    "cbam": {"half": {"reduction": 2}, "small": {"kernel_size": 3}},
    "cbam_channel": {"half": {"reduction": 2}, "no_bias": {"use_bias": False}},
    "scse": {"add": {}, "max": {"join": "max"}},
    "coordinate": {"default": {}, "narrow": {"least": 1}},
    "non_local": {
        "default": {},
        "heads": {"num_heads": 2, "norm": False},
        "dot_product": {"similarity": "dot_product", "num_heads": 2, "head_size": 3},
    },
    "axial": {"default": {"num_heads": 2}, "bare": {"num_heads": 2, "residual": False}},
    "shifted_window": {
        "default": {"num_heads": 2, "window": 2},
        "three": {"num_heads": 2, "window": 3, "shift": 2},
        "unshifted": {"num_heads": 2, "window": 2, "shift": 0, "residual": False},
    },
    "attention_gate": {"default": {}, "fine": {"stride": 1, "hidden_size": 3}},
}
