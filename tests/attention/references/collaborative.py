"""Neighbors, histories and profiles, computed by user, candidate and neighbor.

`valid` is bool [B, S], or [B, I, S] where it differs by candidate.
"""

import numpy as np


def _seen(valid, b, i):
    """Returns the valid neighbors of user b for candidate i."""
    return np.flatnonzero(valid[b] if valid.ndim == 2 else valid[b, i])


def _softplus(x):
    return np.log1p(np.exp(x))


def neighbours(similarity, ratings, weight, valid):
    """Computes Σ w sim r / Σ |w sim| and the factors of r, by brute force."""
    B, S, items = ratings.shape
    scores, shares = np.zeros((B, items)), np.zeros((B, 1, items, S))
    for b, i in np.ndindex(B, items):
        over = under = 0.0
        for v in _seen(valid, b, i):
            over += weight[b, v] * similarity[b, v] * ratings[b, v, i]
            under += abs(weight[b, v] * similarity[b, v])
        if under > 0:
            scores[b, i] = over / under
            for v in _seen(valid, b, i):
                shares[b, 0, i, v] = weight[b, v] * similarity[b, v] / under
    return scores, shares


def user_neighbours(inputs, valid, num_users=None):
    p, user, others = inputs["params"], inputs["user"], inputs["neighbours"]
    B, S, _ = others.shape
    similarity, weight = np.zeros((B, S)), np.zeros((B, S))
    for b, v in np.ndindex(B, S):
        e, f = user[b], others[b, v]
        similarity[b, v] = e @ f / (np.sqrt(e @ e) * np.sqrt(f @ f))
        if num_users is None:
            weight[b, v] = _softplus(f @ p["weight"]["kernel"][:, 0] + p["weight"]["bias"][0])
        else:
            weight[b, v] = _softplus(p["weight"][inputs["ids"][b, v]])
    return neighbours(similarity, inputs["ratings"], weight, valid)


def nais(inputs, valid, form="prod", hidden_size=None, beta=0.5, alpha=0.0):
    p, candidates, history = inputs["params"], inputs["candidates"], inputs["history"]

    def weigh(p_i, q):
        """Computes a_ij of one candidate and the items of a history."""
        pairs = p_i * q if form == "prod" else np.concatenate([np.tile(p_i, (len(q), 1)), q], 1)
        hidden = np.maximum(pairs @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
        exponentials = np.exp(hidden @ p["score"])
        return exponentials / exponentials.sum() ** beta

    return _similar(candidates, history, valid, weigh, alpha)


def fism(inputs, valid, alpha=0.5):
    weigh = lambda p_i, q: np.ones(len(q))  # noqa: E731
    return _similar(inputs["candidates"], inputs["history"], valid, weigh, alpha)


def _similar(candidates, history, valid, weigh, alpha):
    B, rows, S = *candidates.shape[:2], history.shape[1]
    scores, weights = np.zeros((B, rows)), np.zeros((B, 1, rows, S))
    for b, i in np.ndindex(B, rows):
        items = _seen(valid, b, i)
        if len(items):
            a = len(items) ** -alpha * weigh(candidates[b, i], history[b, items])
            weights[b, 0, i, items] = a
            scores[b, i] = sum(a * (history[b, items] @ candidates[b, i]))
    return scores, weights


def _softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def item_attention(inputs, valid, content_size=None, hidden_size=None):
    p, user = inputs["params"], inputs["user"]
    keys = ["items", "auxiliary"] + (["content"] if content_size else [])
    B, S, D = inputs["auxiliary"].shape
    profile, weights = np.zeros((B, D)), np.zeros((B, 1, 1, S))
    for b in range(B):
        real = np.flatnonzero(valid[b])
        if len(real):
            hidden = user[b] @ p["user"]["kernel"] + p["user"]["bias"]
            hidden = hidden + sum(inputs[k][b, real] @ p[k]["kernel"] for k in keys)
            weights[b, 0, 0, real] = _softmax(np.maximum(hidden, 0) @ p["score"])
            profile[b] = weights[b, 0, 0, real] @ inputs["auxiliary"][b, real]
    return profile, weights


def component_attention(inputs, valid, hidden_size=None):
    """Components are [B, M, S, C] in the inputs, so that axis 1 is the masked one."""
    p, user = inputs["params"], inputs["user"]
    components = inputs["components"].swapaxes(1, 2)
    B, S, M, C = components.shape
    content, weights = np.zeros((B, S, C)), np.zeros((B, 1, S, M))
    for b, item in np.ndindex(B, S):
        real = np.flatnonzero(valid[b])
        if len(real):
            x = components[b, item, real]
            hidden = user[b] @ p["user"]["kernel"] + p["user"]["bias"]
            hidden = hidden + x @ p["components"]["kernel"]
            weights[b, 0, item, real] = _softmax(np.maximum(hidden, 0) @ p["score"])
            content[b, item] = weights[b, 0, item, real] @ x
    return content, weights


REFERENCES = {
    ("neighbours", "user_neighbours"): user_neighbours,
    ("history", "fism"): fism,
    ("history", "nais"): nais,
    ("profile", "acf"): item_attention,
    ("components", "acf"): component_attention,
}

VARIANTS = {
    ("neighbours", "user_neighbours"): {"features": {}, "numbers": {"num_users": 14}},
    ("history", "nais"): {
        "prod": {},
        "concat": {"form": "concat", "hidden_size": 3, "beta": 0.7, "alpha": 0.5},
        "softmax": {"beta": 1.0},
    },
    ("profile", "acf"): {"items": {}, "content": {"content_size": 3, "hidden_size": 4}},
    ("components", "acf"): {"components": {"hidden_size": 5}},
}
