"""Multi-head latent attention from the paper's equations, one head at a time."""

import numpy as np

from tests.attention.references.base import attend


def rms_norm(x, scale):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * scale


def turned(x, base, interleaved):
    """Rotates pairs of [B, T, R] by the position, as complex numbers."""
    _, T, R = x.shape
    half = R // 2
    first, second = (
        (np.arange(0, R, 2), np.arange(1, R, 2))
        if interleaved
        else (np.arange(half), np.arange(half, R))
    )
    angles = np.outer(np.arange(T), base ** (-2 * np.arange(half) / R))
    rotated = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles)
    out = np.zeros(x.shape)
    out[..., first], out[..., second] = rotated.real, rotated.imag
    return out


def latent(inputs, allowed, key_value_rank=None, query_rank=None, positions="rope", **sizes):
    p, x = inputs["params"], inputs["x"]
    options = {"rope": (10000, False), "rope(base=50, interleaved=True)": (50, True)}[positions]

    def linear(x, name):
        return x @ p[name]["kernel"] + p[name]["bias"]

    c = rms_norm(linear(x, "latent"), p["latent_norm"]["scale"])
    rotary_key = turned(linear(x, "rotary_key"), *options)
    a = x
    if query_rank is not None:
        a = rms_norm(linear(x, "query_latent"), p["query_norm"]["scale"])
    out = np.zeros(x.shape) + p["out"]["bias"]
    weights = []
    for n in range(p["key"]["kernel"].shape[1]):
        key = np.concatenate([c @ p["key"]["kernel"][:, n], rotary_key], axis=-1)
        query = a @ p["query"]["kernel"][:, n]
        H = p["key"]["kernel"].shape[2]
        query = np.concatenate([query[..., :H], turned(query[..., H:], *options)], axis=-1)
        value = c @ p["value"]["kernel"][:, n]
        head, own = attend(query[:, :, None], key[:, :, None], value[:, :, None], allowed)
        out += head[:, :, 0] @ p["out"]["kernel"][n]
        weights.append(own[:, 0])
    return out, np.stack(weights, axis=1)


REFERENCES = {("mixer", "latent"): latent}
VARIANTS = {
    "latent": {
        "direct": {"key_value_rank": 3},
        "low_rank_query": {
            "key_value_rank": 5,
            "query_rank": 3,
            "head_size": 3,
            "rotary_size": 4,
            "value_head_size": 2,
            "positions": "rope(base=50, interleaved=True)",
        },
    }
}
