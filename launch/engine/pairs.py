"""Paired comparisons by example: the mean of differences and its interval."""

from __future__ import annotations

import math

import numpy as np


def interval(difference: np.ndarray, overlap: int = 1) -> tuple[float, float]:
    """Mean of differences, and half its 95 % interval, the normal one.

    Examples that overlap, as the windows of a series do, err together: with an overlap of h the
    variance of the mean is that of Newey & West (1987), with 2 (h - 1) lags, for the test of
    Diebold & Mariano (1995).

        Var = (γ_0 + 2 Σ_k (1 - k / (m + 1)) γ_k) / n,      k = 1 ... m = 2 (h - 1)

    Args:
      difference: [n], in the order of the examples.
      overlap: h, how many examples in a row have a part of their truth in common; 1: none.

    Returns:
      Mean and half the interval; the half is 0 for one example.
    """
    mean, n = float(difference.mean()), len(difference)
    if n < 2:
        return mean, 0.0
    centred = difference.astype(np.float64) - mean
    lags = min(2 * (overlap - 1), n - 1)
    variance = float(centred @ centred) / (n - 1)
    for lag in range(1, lags + 1):
        covariance = float(centred[lag:] @ centred[:-lag]) / (n - 1)
        variance += 2 * (1 - lag / (lags + 1)) * covariance
    return mean, 1.96 * math.sqrt(max(variance, 0.0) / n)


def spell(mean: float, half: float) -> str:
    """'+0.0120 ± 0.0031'."""
    return f"{mean:+.4f} ± {half:.4f}"
