"""Alignments of a recurrent decoder, one example and one step at a time, over real states alone.

`inputs["query"]` is [B, Q], one step, or [B, T, Q]: then what a step leaves is carried to the next.
"""

import numpy as np

from tests.attention.references.base import attend


def softmax(scores):
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def steps(align):
    """Runs `align(q, h, params, state, **options) -> context, weights [..., n], state` for the n
    real states h of one example to the whole: contexts and weights of every step."""

    def run(inputs, valid, **options):
        p, states, queries = inputs["params"], inputs["states"], inputs["query"]
        one = queries.ndim == 2
        queries = queries[:, None] if one else queries
        (B, T), (S, D) = queries.shape[:2], states.shape[1:]
        heads = p["query"]["kernel"].shape[1:2] if "out" in p else ()
        contexts, weights = np.zeros((B, T, D)), np.zeros((B, T, *heads, S))
        for b in range(B):
            real, state = np.flatnonzero(valid[b]), None
            for t in range(T if len(real) else 0):
                contexts[b, t], weights[b, t][..., real], state = align(
                    queries[b, t], states[b, real], p, state, **options
                )
        return (contexts[:, 0], weights[:, 0]) if one else (contexts, weights)

    return run


def additive(q, h, p, state, **_):
    W, U, b, v = p["query"]["kernel"], p["key"]["kernel"], p["key"]["bias"], p["score"]
    a = softmax(np.array([v @ np.tanh(q @ W + h_s @ U + b) for h_s in h]))
    return a @ h, a, state


def concat(q, h, p, state, **_):
    v, W = p["score"], p["hidden"]["kernel"]
    a = softmax(np.array([v @ np.tanh(np.concatenate([q, h_s]) @ W) for h_s in h]))
    return a @ h, a, state


def dot(q, h, p, state):
    a = softmax(h @ q)
    return a @ h, a, state


def general(q, h, p, state):
    a = softmax(h @ p["key"]["kernel"] @ q)
    return a @ h, a, state


def none(q, h, p, state):
    a = np.zeros(len(h))
    a[-1] = 1
    return h[-1], a, state


def local_p(q, h, p, state, window=10, score="general"):
    S = len(h)
    centre = S / (1 + np.exp(-p["position_score"] @ np.tanh(q @ p["position"]["kernel"])))
    inside = [s for s in range(S) if abs(s - centre) <= window]
    keys = h @ p["key"]["kernel"] if score == "general" else h
    shares, a = softmax(keys[inside] @ q), np.zeros(S)
    for share, s in zip(shares, inside, strict=True):
        a[s] = share * np.exp(-((s - centre) ** 2) / (2 * (window / 2) ** 2))
    return a @ h, a, state


def location_aware(q, h, p, state, cumulative=False, smooth=False, sharpening=1.0, **_):
    S, F = len(h), p["filters"]
    looked = np.zeros((2, S)) if state is None else state
    W = len(F) // 2
    scores = np.zeros(S)
    for s in range(S):
        f = sum(
            looked[kind, s + j] * F[W + j, kind]
            for kind in range(2 if cumulative else 1)
            for j in range(-W, W + 1)
            if 0 <= s + j < S
        )
        hidden = q @ p["query"]["kernel"] + h[s] @ p["key"]["kernel"] + p["key"]["bias"]
        scores[s] = p["score"] @ np.tanh(hidden + f @ p["location"]["kernel"])
    if smooth:
        a = 1 / (1 + np.exp(-scores))
        a = a / a.sum()
    else:
        a = softmax(sharpening * scores)
    return a @ h, a, np.stack([a, looked[1] + a])


def multi_head(q, h, p, state, **_):
    N, H = p["query"]["kernel"].shape[1:]
    query, key, value = (
        np.einsum("...d,dnh->...nh", x, p[name]["kernel"]) + p[name]["bias"]
        for name, x in (("query", q), ("key", h), ("value", h))
    )
    a = np.stack([softmax(key[:, n] @ query[n] / np.sqrt(H)) for n in range(N)])
    c = sum(a[n] @ value[:, n] @ p["out"]["kernel"][n] for n in range(N))
    return c, a, state


def temporal(inputs, allowed, current=True):
    """Computes attention of each state to its past states."""
    p, x = inputs["params"], inputs["x"]
    query, key, value = (
        np.einsum("btd,dnh->btnh", x, p[name]["kernel"]) + p[name].get("bias", 0)
        for name in ("query", "key", "value")
    )
    T = x.shape[1]
    past = np.tri(T, T, 0 if current else -1, dtype=bool)
    heads, weights = attend(query, key, value, allowed & past)
    return np.einsum("btnv,nvd->btd", heads, p["out"]["kernel"]) + p["out"].get("bias", 0), weights


REFERENCES = {
    ("alignment", "additive"): steps(additive),
    ("alignment", "dot"): steps(dot),
    ("alignment", "general"): steps(general),
    ("alignment", "concat"): steps(concat),
    ("alignment", "local_p"): steps(local_p),
    ("alignment", "location_aware"): steps(location_aware),
    ("alignment", "multi_head"): steps(multi_head),
    ("alignment", "none"): steps(none),
    ("mixer", "temporal"): temporal,
}

VARIANTS = {
    ("alignment", "additive"): {"": {}, "narrow": {"hidden_size": 3}},
    ("alignment", "local_p"): {"": {"window": 2}, "dot": {"score": "dot"}},
    ("alignment", "location_aware"): {
        "": {"num_filters": 3, "width": 3},
        "cumulative": {"num_filters": 2, "width": 5, "cumulative": True, "sharpening": 1.5},
        "smooth": {"num_filters": 2, "width": 1, "hidden_size": 4, "smooth": True},
    },
    ("alignment", "multi_head"): {"": {}, "sized": {"num_heads": 3, "head_size": 2}},
}
