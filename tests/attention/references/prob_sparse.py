"""ProbSparse, one example and one head at a time."""

import math

import numpy as np

from tests.attention.references.low_rank import leave, project, softmax


def prob_sparse(inputs, allowed, factor):
    query, key, value = (project(inputs, name) for name in ("query", "key", "value"))
    B, T, N, H = query.shape
    count = min(T, factor * math.ceil(math.log(1 + T)))
    tried = np.random.default_rng(0).integers(T, size=(T, count))
    weights = np.zeros((B, N, T, T))
    for b in range(B):
        real = np.flatnonzero(allowed[b, 0, 0])
        if not len(real):
            continue
        weights[b][:, :, real] = 1 / len(real)
        for n in range(N):
            logits, uneven = query[b, :, n] @ key[b, :, n].T, {}
            for i in real:
                seen = [logits[i, j] for j in tried[i] if j in real]
                if seen:
                    uneven[i] = max(seen) - sum(seen) / T
            for i in sorted(uneven, key=uneven.get)[-count:]:
                weights[b, n, i, real] = softmax(logits[i, real] / np.sqrt(H))
    return leave(inputs, np.einsum("bnts,bsnh->btnh", weights, value)), weights


REFERENCES = {("mixer", "prob_sparse"): prob_sparse}
VARIANTS = {"prob_sparse": {"few": {"factor": 1}}}
