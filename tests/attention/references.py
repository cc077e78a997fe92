"""What the mechanisms mean, once more, in plain float64 NumPy and written from the equations.

Each takes a dict of inputs and a bool array of what may be seen, and returns the output and the
weights. `REFERENCES` has one for every registry line of a kind that the contract suite knows.
"""

import numpy as np


def attend(query, key, value, allowed, bias=None, scale=None, logit_cap=None, sinks=None):
    """One example, one head at a time: [B, T, N, H], [B, S, K, H], [B, S, K, V], [B, N, T, S]."""
    B, T, N, H = query.shape
    S, K, V = value.shape[1:]
    scale = 1 / np.sqrt(H) if scale is None else scale
    out, weights = np.zeros((B, T, N, V)), np.zeros((B, N, T, S))
    allowed = np.broadcast_to(allowed, weights.shape)
    bias = np.zeros(weights.shape) if bias is None else np.broadcast_to(bias, weights.shape)
    for b, n in np.ndindex(B, N):
        k = n // (N // K)
        logits = scale * query[b, :, n] @ key[b, :, k].T + bias[b, n]
        if logit_cap is not None:
            logits = logit_cap * np.tanh(logits / logit_cap)
        sink = -np.inf if sinks is None else sinks[n]
        highest = np.maximum(logits.max(axis=-1, keepdims=True), sink)
        exponentials = allowed[b, n] * np.exp(logits - highest)
        total = exponentials.sum(axis=-1, keepdims=True) + np.exp(sink - highest)
        weights[b, n] = exponentials / np.where(total == 0, 1, total)
        out[b, :, n] = weights[b, n] @ value[b, :, k]
    return out, weights


def multi_head(inputs, allowed):
    p, x = inputs["params"], inputs["x"]
    memory = inputs.get("memory", x)
    query, key, value = (
        np.einsum("btd,dnh->btnh", source, p[name]["kernel"]) + p[name]["bias"]
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    heads, weights = attend(query, key, value, allowed)
    return np.einsum("btnv,nvd->btd", heads, p["out"]["kernel"]) + p["out"]["bias"], weights


def softmax_rows(scores, valid):
    """[B, T], bool [B, T] -> weights [B, T], 0 for a row of which nothing is valid."""
    weights = np.zeros(scores.shape)
    for b, row in enumerate(valid):
        if row.any():
            exponentials = np.exp(scores[b, row] - scores[b, row].max())
            weights[b, row] = exponentials / exponentials.sum()
    return weights


def weighted(weights, states):
    return np.einsum("bt,btd->bd", weights, states)


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
    ("kernel", "reference"): lambda i, allowed: attend(i["query"], i["key"], i["value"], allowed),
    ("mixer", "dot_product"): multi_head,
    ("alignment", "dot"): dot_alignment,
    ("alignment", "general"): general_alignment,
    ("alignment", "none"): no_alignment,
    ("pool", "mean"): mean_pool,
    ("pool", "max"): max_pool,
    ("pool", "attention"): attention_pool,
    ("pool", "multi_head"): multi_head_pool,
}


def gradient(function, inputs, cotangent, step=1e-5):
    """The gradient of Σ function(inputs) · cotangent by central differences, a dict like inputs."""

    def walk(branch):
        if isinstance(branch, dict):
            return {name: walk(leaf) for name, leaf in branch.items()}
        result = np.zeros(branch.shape)
        for place in np.ndindex(branch.shape):
            kept = branch[place]
            sides = []
            for sign in (1, -1):
                branch[place] = kept + sign * step
                sides.append(np.sum(function(inputs) * cotangent))
            branch[place] = kept
            result[place] = (sides[0] - sides[1]) / (2 * step)
        return result

    return walk(inputs)
