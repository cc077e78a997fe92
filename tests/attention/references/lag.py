"""Attention over lags, one series, channel and step of the forecast at a time.

`valid` is bool [B, T], or [B, T, C] where channels differ.
"""

import numpy as np


def _softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def _series(inputs, valid):
    """Each series and channel: its values by lag, those of them that are there, and when they
    were."""
    B, T, C = inputs["x"].shape
    lags = inputs["params"]["logits"].shape[-1]
    for b, c in np.ndindex(B, C):
        there = valid[b] if valid.ndim == 2 else valid[b, :, c]
        found = [i for i in range(1, min(lags, T) + 1) if there[T - i]]
        if found:
            times = T - np.array(found)
            yield b, c, np.array(found) - 1, times, inputs["x"][b, times, c]


def _forecast(inputs, valid, individual, row):
    """`row` gives the weights of one step: a function of group, step, lags from 0."""
    (B, T, C), F = inputs["x"].shape, inputs["params"]["logits"].shape[-2]
    y, weights = np.zeros((B, F, C)), np.zeros((B, C, F, T))
    for b, c, found, times, values in _series(inputs, valid):
        for f in range(F):
            weights[b, c, f, times] = row(c if individual else 0, f, found)
            y[b, f, c] = weights[b, c, f, times] @ values
    return y, weights if individual or valid.ndim == 3 else weights[:, :1]


def lag(inputs, valid, individual=False):
    logits = inputs["params"]["logits"]
    return _forecast(inputs, valid, individual, lambda g, f, found: _softmax(logits[g, f, found]))


def lag_residual(inputs, valid, num_heads=2, level="last", individual=False):
    logits, values = inputs["params"]["logits"], inputs["params"]["values"]

    def row(g, f, found):
        """Computes the coefficients of x in c + Σ W w (x - c)."""
        at = np.eye(len(found))[0] if level == "last" else np.full(len(found), 1 / len(found))
        total = at.copy()
        for n in range(num_heads):
            w = _softmax(logits[g, n, f, found])
            total += values[g, n, f] * (w - w.sum() * at)
        return total

    return _forecast(inputs, valid, individual, row)


REFERENCES = {("lags", "lag"): lag, ("lags", "lag_residual"): lag_residual}

VARIANTS = {
    ("lags", "lag"): {"shared": {}, "individual": {"individual": True}},
    ("lags", "lag_residual"): {
        "last": {},
        "mean": {"level": "mean", "num_heads": 3},
        "individual": {"individual": True},
    },
}
