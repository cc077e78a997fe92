"""Linformer, one example and one head at a time."""

import numpy as np


def project(inputs, name):
    p = inputs["params"][name]
    return np.einsum("btd,dnh->btnh", inputs["x"], p["kernel"]) + p.get("bias", 0)


def leave(inputs, heads):
    p = inputs["params"]["out"]
    return np.einsum("btnh,nhd->btd", heads, p["kernel"]) + p["bias"]


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def linformer(inputs, allowed, projected_length, sharing="none"):
    p = inputs["params"]
    query, key, value = (project(inputs, name) for name in ("query", "key", "value"))
    B, T, N, H = query.shape
    weights = np.zeros((B, N, T, T))
    heads = np.zeros(query.shape)
    for b, n in np.ndindex(B, N):
        real = np.diag(allowed[b, 0, 0].astype(float))
        own = n if sharing == "none" else 0
        E = p["key_projection"][own, :T]
        F = E if sharing == "key_value" else p["value_projection"][own, :T]
        assert E.shape == (T, projected_length)
        mixtures = E.T @ real @ key[b, :, n]
        weights[b, n] = softmax(query[b, :, n] @ mixtures.T / np.sqrt(H)) @ F.T @ real
        heads[b, :, n] = weights[b, n] @ value[b, :, n]
    return leave(inputs, heads), weights


REFERENCES = {("mixer", "linformer"): linformer}
VARIANTS = {
    "linformer": {
        "own": {"projected_length": 3},
        "heads": {"projected_length": 3, "sharing": "heads"},
        "key_value": {"projected_length": 12, "sharing": "key_value"},
    }
}
