"""Linear attention, Performer, Gated DeltaNet: sums written out, one position at a time."""

import numpy as np


def project(p, name, x):
    kernel, letters = p[name]["kernel"], "dnh"[: p[name]["kernel"].ndim]
    return np.einsum(f"btd,{letters}->bt{letters[1:]}", x, kernel) + p[name].get("bias", 0)


def kernel_attention(similarity, inputs, allowed):
    """Shares in proportion to a similarity of query and key that is at least 0."""
    p, x = inputs["params"], inputs["x"]
    query, key, value = (project(p, name, x) for name in ("query", "key", "value"))
    similarities = np.where(allowed, similarity(query, key), 0)
    total = similarities.sum(axis=-1, keepdims=True)
    weights = similarities / np.where(total == 0, 1, total)
    heads = np.einsum("bnts,bsnv->btnv", weights, value)
    return np.einsum("btnv,nvd->btd", heads, p["out"]["kernel"]) + p["out"]["bias"], weights


def linear(inputs, allowed, **_):
    def phi(x):
        return np.where(x > 0, x, np.expm1(np.minimum(x, 0))) + 1

    return kernel_attention(
        lambda q, k: np.einsum("btnf,bsnf->bnts", phi(q), phi(k)), inputs, allowed
    )


def performer(inputs, allowed, kernel="softmax", **_):
    directions = inputs["buffers"]["directions"]

    def phi(x):
        x = x / x.shape[-1] ** 0.25
        projected = np.einsum("btnh,fh->btnf", x, directions)
        if kernel == "relu":
            return np.maximum(projected, 0) + 1e-3
        return np.exp(projected - np.sum(x**2, axis=-1, keepdims=True) / 2)

    return kernel_attention(
        lambda q, k: np.einsum("btnf,bsnf->bnts", phi(q), phi(k)), inputs, allowed
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def filtered(x, taps, real):
    """Computes silu(Σ_j taps[j] · (x and the real positions before it, latest first))."""
    result = np.zeros(x.shape)
    for b, t in np.ndindex(x.shape[:2]):
        seen = [t, *(s for s in range(t - 1, -1, -1) if real[b, s])][: len(taps)]
        result[b, t] = sum(tap * x[b, s] for tap, s in zip(taps, seen, strict=False))
    return result * sigmoid(result)


def gated_delta_net(inputs, allowed, **_):
    p, x = inputs["params"], inputs["x"]
    B, T, _ = x.shape
    real = np.stack([allowed[:, 0, s, s] for s in range(T)], axis=1)
    query, key, value = (
        filtered(project(p, name, x), p[f"{name}_filter"], real)
        for name in ("query", "key", "value")
    )
    N, V = value.shape[2:]
    K, H = key.shape[2:]
    query, key = (y / np.sqrt(np.sum(y**2, axis=-1, keepdims=True) + 1e-6) for y in (query, key))
    beta = sigmoid(project(p, "beta", x))
    decay = np.exp(-np.exp(p["log_rate"]) * np.log1p(np.exp(project(p, "decay", x))))
    heads, weights = np.zeros((B, T, N, V)), np.zeros((B, N, T, T))
    for b, n in np.ndindex(B, N):
        # How the memory's answer to anything, rows of H, depends on each value: H x T.
        memory = np.zeros((H, T))
        for t in range(T):
            k = key[b, t, n // (N // K)]
            if real[b, t]:
                erase = np.eye(H) - beta[b, t, n] * np.outer(k, k)
                memory = decay[b, t, n] * erase @ memory
                memory[:, t] += beta[b, t, n] * k
            weights[b, n, t] = query[b, t, n // (N // K)] @ memory / np.sqrt(H)
        heads[b, :, n] = weights[b, n] @ value[b, :, n]
    gate = project(p, "gate", x)
    normal = heads / np.sqrt(np.mean(heads**2, axis=-1, keepdims=True) + 1e-6)
    heads = normal * p["norm"]["scale"] * gate * sigmoid(gate)
    return np.einsum("btnv,nvd->btd", heads, p["out"]["kernel"]) + p["out"].get("bias", 0), weights


REFERENCES = {
    ("mixer", "linear"): linear,
    ("mixer", "performer"): performer,
    ("mixer", "gated_delta_net"): gated_delta_net,
}
# Chunks of 2, so that 5 positions fill more than one, and the last one not to its end.
VARIANTS = {
    "linear": {"self": {}, "chunks": {"chunk_size": 2}},
    "performer": {
        "softmax": {"features": 6},
        "chunks": {"features": 4, "chunk_size": 2, "orthogonal": False},
        "relu": {"features": 6, "kernel": "relu", "chunk_size": 3},
    },
    "gated_delta_net": {
        "self": {},
        "chunks": {"chunk_size": 2, "key_heads": 1, "conv_size": 2},
        "sizes": {"key_head_size": 3, "value_head_size": 2, "conv_size": 1, "use_bias": False},
    },
}
