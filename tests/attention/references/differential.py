"""Differential attention from the paper's equations, one map at a time."""

import numpy as np

from tests.attention.references.base import attend


def rotary(x):
    """Rotates pairs (i, i + H / 2) of [B, T, N, H] by the position, as complex numbers."""
    T, half = x.shape[1], x.shape[-1] // 2
    turn = np.exp(1j * np.outer(np.arange(T), 10000.0 ** (-np.arange(half) / half)))
    rotated = (x[..., :half] + 1j * x[..., half:]) * turn[:, None]
    return np.concatenate([rotated.real, rotated.imag], axis=-1)


def differential(inputs, allowed, key_value_heads=2, lambda_init=0.8, positions="none"):
    p, x = inputs["params"], inputs["x"]
    query, key, value = (
        np.einsum("btd,dnh->btnh", x, p[name]["kernel"]) + p[name]["bias"]
        for name in ("query", "key", "value")
    )
    assert key.shape[2] == key_value_heads
    H = len(p["lambda_q1"])
    strength = (
        np.exp(p["lambda_q1"] @ p["lambda_k1"])
        - np.exp(p["lambda_q2"] @ p["lambda_k2"])
        + lambda_init
    )
    heads, weights = 0, 0
    for half, factor in ((slice(0, H), 1), (slice(H, None), -strength)):
        q, k = query[..., half], key[..., half]
        if positions == "rope":
            q, k = rotary(q), rotary(k)
        bias = None
        if positions == "alibi":
            distance = np.abs(np.subtract.outer(np.arange(x.shape[1]), np.arange(x.shape[1])))
            bias = -np.array([2**-4, 2**-8])[:, None, None] * distance
            bias = np.broadcast_to(bias, (len(x), *bias.shape))
        out, shares = attend(q, k, value, allowed, bias=bias)
        heads, weights = heads + factor * out, weights + factor * shares
    size = np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-5)
    heads = (1 - lambda_init) * heads / size * p["norm"]["scale"]
    return np.einsum("btnh,nhd->btd", heads, p["out"]["kernel"]) + p["out"]["bias"], weights


REFERENCES = {("mixer", "differential"): differential}
VARIANTS = {
    "differential": {
        "self": {},
        "grouped": {"key_value_heads": 1, "lambda_init": 0.2, "positions": "rope"},
        "alibi": {"positions": "alibi"},
    }
}
