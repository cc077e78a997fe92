"""Linformer and Nystromformer, one example and one head at a time."""

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


def inverse(A, iterations):
    Z = A.T / (np.abs(A).sum(axis=0).max() * np.abs(A).sum(axis=1).max())
    one = np.eye(len(A))
    for _ in range(iterations):
        Z = Z @ (13 * one - A @ Z @ (15 * one - A @ Z @ (7 * one - A @ Z))) / 4
    return Z


def nystromformer(inputs, allowed, num_landmarks, kernel_size, inverse_iterations=6):
    query, key, value = (project(inputs, name) for name in ("query", "key", "value"))
    B, T, N, H = query.shape
    weights = np.zeros((B, N, T, T))
    for b in range(B):
        real = np.flatnonzero(allowed[b, 0, 0])
        count = len(real)
        if not count:
            continue
        for n in range(N):
            q, k = query[b, :, n] / np.sqrt(H), key[b, real, n]
            if count <= num_landmarks:
                mixed = softmax(q @ k.T)
            else:
                segment = np.arange(count) * num_landmarks // count
                means = np.stack([segment == m for m in range(num_landmarks)]).astype(float)
                means /= means.sum(axis=1, keepdims=True)
                q_means, k_means = means @ q[real], means @ k
                between = inverse(softmax(q_means @ k_means.T), inverse_iterations)
                mixed = softmax(q @ k_means.T) @ between
                mixed = mixed @ softmax(q_means @ k.T)
            if kernel_size:
                taps, half = inputs["params"]["convolution"][:, n], kernel_size // 2
                for t in range(T):
                    middle = (real < t).sum()
                    for offset in range(-half, half + 1):
                        if 0 <= middle + offset < count:
                            mixed[t, middle + offset] += taps[offset + half]
            weights[b, n][:, real] = mixed
    heads = np.einsum("bnts,bsnh->btnh", weights, value)
    return leave(inputs, heads), weights


REFERENCES = {("mixer", "linformer"): linformer, ("mixer", "nystromformer"): nystromformer}
VARIANTS = {
    "linformer": {
        "own": {"projected_length": 3},
        "heads": {"projected_length": 3, "sharing": "heads"},
        "key_value": {"projected_length": 12, "sharing": "key_value"},
    },
    "nystromformer": {
        # Four of the five positions are real: segments of 2, 1 and 1, or attention itself.
        # Few iterations, because each one amplifies float32 rounding errors, which are not tested
        # here.
        "landmarks": {"num_landmarks": 3, "kernel_size": 3, "inverse_iterations": 3},
        "few": {"num_landmarks": 4, "kernel_size": 5},
    },
}
