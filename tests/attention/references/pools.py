"""Pools: mean, max, attention with a context vector, several queries, several hops."""

import numpy as np

from tests.attention.references.base import attend, softmax_rows, weighted


def mean_pool(inputs, valid):
    states = inputs["states"]
    weights = softmax_rows(np.zeros(valid.shape), valid)
    return weighted(weights, states), weights[:, None]


def max_pool(inputs, valid):
    states = inputs["states"]
    B, T, D = states.shape
    pooled, weights = np.zeros((B, D)), np.zeros((B, 1, T))
    for b, d in np.ndindex(B, D):
        positions = np.flatnonzero(valid[b])
        if len(positions):
            winner = positions[np.argmax(states[b, positions, d])]
            pooled[b, d] = states[b, winner, d]
            weights[b, 0, winner] += 1 / D
    return pooled, weights


def attention_pool(inputs, valid):
    p, states = inputs["params"], inputs["states"]
    hidden = np.tanh(states @ p["hidden"]["kernel"] + p["hidden"]["bias"])
    weights = softmax_rows(hidden @ p["context"], valid)
    return weighted(weights, states), weights[:, None]


def multi_head_pool(inputs, valid, queries=1, **_):
    p, states = inputs["params"], inputs["states"]
    key, value = (
        np.einsum("btd,dnh->btnh", states, p[name]["kernel"]) + p[name]["bias"]
        for name in ("key", "value")
    )
    N, H = key.shape[2:]
    pooled, weights = 0, []
    # A block of `out` for each query and head.
    out = p["out"]["kernel"].reshape(N, queries, H, -1)
    for i in range(queries):
        query = np.broadcast_to(p["seed"][i], (len(states), 1, N, H))
        heads, seen = attend(query, key, value, valid[:, None, None, :])
        pooled = pooled + np.einsum("bnv,nvd->bd", heads[:, 0], out[:, i])
        weights.append(seen[:, :, 0])
    return pooled, np.concatenate(weights, axis=1)


def structured_pool(inputs, valid, hops=4, **_):
    """Computes structured pooling, one hop at a time."""
    p, states = inputs["params"], inputs["states"]
    hidden = np.tanh(states @ p["hidden"]["kernel"])
    pooled, weights = 0, []
    for r in range(hops):
        row = softmax_rows(hidden @ p["hops"]["kernel"][:, r], valid)
        pooled = pooled + weighted(row, states) @ p["out"]["kernel"][r]
        weights.append(row)
    return pooled, np.stack(weights, axis=1)


REFERENCES = {
    ("pool", "mean"): mean_pool,
    ("pool", "max"): max_pool,
    ("pool", "attention"): attention_pool,
    ("pool", "multi_head"): multi_head_pool,
    ("pool", "structured"): structured_pool,
}

VARIANTS = {
    ("pool", "multi_head"): {"": {}, "queries": {"queries": 3, "num_heads": 2}},
    ("pool", "structured"): {"": {}, "narrow": {"hops": 2, "hidden_size": 3}},
}
