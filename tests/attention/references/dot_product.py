"""attend and the modules around it: multi-head attention, pools, alignments."""

import numpy as np

from tests.attention.references.base import attend, softmax_rows, weighted


def kernel(inputs, allowed):
    return attend(inputs["query"], inputs["key"], inputs["value"], allowed)


def multi_head(inputs, allowed):
    p, x = inputs["params"], inputs["x"]
    memory = inputs.get("memory", x)
    query, key, value = (
        np.einsum("btd,dnh->btnh", source, p[name]["kernel"]) + p[name]["bias"]
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    heads, weights = attend(query, key, value, allowed)
    return np.einsum("btnv,nvd->btd", heads, p["out"]["kernel"]) + p["out"]["bias"], weights


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


def multi_head_pool(inputs, valid):
    p, states = inputs["params"], inputs["states"]
    key, value = (
        np.einsum("btd,dnh->btnh", states, p[name]["kernel"]) + p[name]["bias"]
        for name in ("key", "value")
    )
    query = np.broadcast_to(p["seed"], (len(states), 1, *p["seed"].shape))
    heads, weights = attend(query, key, value, valid[:, None, None, :])
    return np.einsum("btnv,nvd->bd", heads, p["out"]["kernel"]), weights[:, :, 0]


def dot_alignment(inputs, valid):
    weights = softmax_rows(np.einsum("bq,bsq->bs", inputs["query"], inputs["states"]), valid)
    return weighted(weights, inputs["states"]), weights


def general_alignment(inputs, valid):
    W = inputs["params"]["key"]["kernel"]
    scores = np.einsum("bq,dq,bsd->bs", inputs["query"], W, inputs["states"])
    weights = softmax_rows(scores, valid)
    return weighted(weights, inputs["states"]), weights


def no_alignment(inputs, valid):
    weights = np.zeros(valid.shape)
    for b, row in enumerate(valid):
        if row.any():
            weights[b, np.flatnonzero(row)[-1]] = 1
    return weighted(weights, inputs["states"]), weights


REFERENCES = {
    ("kernel", "reference"): kernel,
    ("mixer", "dot_product"): multi_head,
    ("alignment", "dot"): dot_alignment,
    ("alignment", "general"): general_alignment,
    ("alignment", "none"): no_alignment,
    ("pool", "mean"): mean_pool,
    ("pool", "max"): max_pool,
    ("pool", "attention"): attention_pool,
    ("pool", "multi_head"): multi_head_pool,
}
