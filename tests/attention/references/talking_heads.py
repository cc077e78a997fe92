"""Talking-heads attention, a query at a time."""

import numpy as np


def talking_heads(inputs, allowed):
    p, x = inputs["params"], inputs["x"]
    memory = inputs.get("memory", x)
    query, key, value = (
        np.einsum("btd,dnh->bnth", source, p[name]["kernel"]) + p[name]["bias"][:, None]
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    B, N, T, H = query.shape
    weights = np.zeros((B, N, T, memory.shape[1]))
    for b, t in np.ndindex(B, T):
        seen = np.flatnonzero(allowed[b, 0, t])
        if len(seen):
            logits = np.einsum("nh,nsh->ns", query[b, :, t], key[b][:, seen]) / np.sqrt(H)
            exponentials = np.exp(p["logit_mixing"].T @ logits)
            shares = exponentials / exponentials.sum(axis=1, keepdims=True)
            weights[b, :, t, seen] = (p["weight_mixing"].T @ shares).T
    heads = weights @ value
    return np.einsum("bnth,nhd->btd", heads, p["out"]["kernel"]) + p["out"]["bias"], weights


REFERENCES = {("mixer", "talking_heads"): talking_heads}
