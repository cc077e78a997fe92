"""Functions shared by the references: attention by example and head, softmax, gradients."""

import numpy as np


def attend(query, key, value, allowed, bias=None, scale=None, logit_cap=None, sinks=None):
    """Computes attention for [B, T, N, H], [B, S, K, H], [B, S, K, V] and allowed [B, N, T, S]."""
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


def softmax_rows(scores, valid):
    """Computes weights [B, T] from scores [B, T] and bool [B, T]; 0 for rows without valid
    entries."""
    weights = np.zeros(scores.shape)
    for b, row in enumerate(valid):
        if row.any():
            exponentials = np.exp(scores[b, row] - scores[b, row].max())
            weights[b, row] = exponentials / exponentials.sum()
    return weights


def weighted(weights, states):
    return np.einsum("bt,btd->bd", weights, states)


def gradient(function, inputs, cotangent, step=1e-5):
    """Computes the gradient of Σ function(inputs) · cotangent by central differences, by input
    name."""

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
