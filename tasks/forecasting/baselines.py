"""Baselines: naive and seasonal naive forecasts, and linear maps of the past.

In shapes, n is the number of windows, L the look-back, F the horizon, C the number of channels, G
the number of groups of weights, and P the number of features of a linear map. G is 1 if all
channels share the weights, else C.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tasks.forecasting.data import ForecastingData
from tasks.forecasting.metrics import error_sums, forecast_metrics, noise_metric

# Grid of ridge penalties, as multiples of the mean eigenvalue of the features' Gram matrix.
_STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-12, 9))
# Width of the moving average of DLinear.
_TREND = 25
# Maximum number of values of look-backs and horizons in a batch of windows.
_PORTION = 1 << 20

Forecast = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""forecast(past [n, L, C], valid bool [n, L, C]) -> [n, F, C]; missing values of past are 0."""


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear forecast ŷ = c + (x - c) W + b of the future from the past x.

    Attributes:
      weights: matrices W, float32 [G, L, F].
      bias: offsets b, float32 [G, F].
      level: kind of the level c, which also replaces missing values: "mean" of the look-back,
        "last" value, or "none" for 0.
      strengths: penalty λ of each group, as a multiple of the mean eigenvalue of the Gram matrix of
        the features.
    """

    weights: np.ndarray
    bias: np.ndarray
    level: str
    strengths: tuple[float, ...]

    def __call__(self, past: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Forecasts a batch of windows.

        Args:
          past: look-backs, [n, L, C].
          valid: bool [n, L, C], False where missing.

        Returns:
          The forecast, [n, F, C].
        """
        base = level_of(past, valid, self.level)
        over = np.where(valid, past - base[:, None], 0).astype(np.float32)
        n, L, C = past.shape
        if len(self.weights) == 1:
            ahead = over.swapaxes(1, 2).reshape(n * C, L) @ self.weights[0] + self.bias[0]
            return ahead.reshape(n, C, -1).swapaxes(1, 2) + base[:, None]
        ahead = np.matmul(over.transpose(2, 0, 1), self.weights) + self.bias[:, None]
        return ahead.transpose(1, 2, 0) + base[:, None]


def level_of(past: np.ndarray, valid: np.ndarray, level: str) -> np.ndarray:
    """Returns the level of each look-back and channel, [n, C].

    Args:
      past: look-backs, [n, L, C].
      valid: bool [n, L, C], False where missing.
      level: "mean" for the mean of the valid values, "last" for the last valid value, or "none"
        for 0. Without valid values, the level is 0.
    """
    if level == "mean":
        return (past * valid).sum(axis=1) / np.maximum(valid.sum(axis=1), 1)
    if level == "last":
        return _latest(past, valid)[:, -1]
    return np.zeros((len(past), past.shape[2]), past.dtype)


def _latest(past: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns the latest valid value up to each time, [n, L, C]; 0 before the first valid value."""
    indices = np.where(valid, np.arange(past.shape[1])[None, :, None], 0)
    return np.take_along_axis(past * valid, np.maximum.accumulate(indices, axis=1), axis=1)


def naive(horizon: int) -> Forecast:
    """Returns a function for the naive forecast, which repeats the last value."""

    def forecast(past: np.ndarray, valid: np.ndarray) -> np.ndarray:
        return np.repeat(level_of(past, valid, "last")[:, None], horizon, axis=1)

    return forecast


def seasonal_naive(horizon: int, period: int) -> Forecast:
    """Returns a function for the seasonal naive forecast, which repeats the latest season.

    Each step gets the latest valid value at the same time of a season, or the last value if there
    is none."""

    def forecast(past: np.ndarray, valid: np.ndarray) -> np.ndarray:
        n, L, C = past.shape
        last = level_of(past, valid, "last")
        seasons = -(-L // period)
        before = ((0, 0), (seasons * period - L, 0), (0, 0))
        past, there = np.pad(past * valid, before), np.pad(valid, before)
        values, there = (x.reshape(n, seasons, period * C) for x in (past, there))
        latest = _latest(values, there)[:, -1].reshape(n, period, C)
        known = there.any(axis=1).reshape(n, period, C)
        season = np.where(known, latest, last[:, None])
        return season[:, np.arange(horizon) % period]

    return forecast


# ---------------------------------------------------------------------- linear maps


@dataclasses.dataclass
class _Moments:
    """Sums of products of features x [P] and targets y [F] over all windows of a split.

    The level of each window is subtracted from x and y.

    Attributes:
      gram: Σ x xᵀ, [G, P, P].
      cross: Σ x yᵀ, [G, P, F], over valid y.
      square: Σ y², [G, F].
      valid_fraction: valid fraction of y, [G, F].
    """

    gram: np.ndarray
    cross: np.ndarray
    square: np.ndarray
    valid_fraction: np.ndarray


def fit_linear(
    data: ForecastingData,
    *,
    level: str = "mean",
    individual: bool = False,
    decomposed: bool = False,
) -> Linear:
    """Fits ridge regression (Hoerl & Kennard 1970) of the future on the past, in closed form.

        W = argmin Σ |y - c - (x - c) W|² + λ |W|²

    λ is selected from a fixed grid by the error on validation. The solution is exact if no future
    value is missing. Otherwise it is approximate: each step of the horizon needs the Gram matrix of
    the windows whose value at this step is valid. This matrix is replaced by the Gram matrix of all
    windows, multiplied by the fraction of valid values at this step.

    Args:
      data: series; W is fitted on its training windows, and λ is selected on validation windows.
      level: kind of the level c, see `Linear`.
      individual: whether each channel has its own W and λ.
      decomposed: whether the features are a moving average, the remainder, and 1, as in DLinear
        (Zeng et al. 2023). This changes the penalty and adds the bias b.
    """
    features = _decomposition(data.lookback) if decomposed else None
    train, validation = (
        _moments(data, split, level, individual, features) for split in ("train", "validation")
    )
    weights, strengths = [], []
    for group in range(len(train.gram)):
        found, strength = _solve(train, validation, group)
        weights.append(found if features is None else features.T @ found)
        strengths.append(strength)
    stacked = np.stack(weights).astype(np.float32)
    L = data.lookback
    bias = stacked[:, L] if decomposed else np.zeros_like(stacked[:, 0])
    return Linear(stacked[:, :L], bias, level, tuple(strengths))


def _decomposition(L: int) -> np.ndarray:
    """Returns the matrix that maps a look-back to the features of DLinear, [P, L + 1].

    The input is the look-back and 1. The features are the moving average, the remainder and 1.
    """
    half = _TREND // 2
    padded = np.pad(np.eye(L), ((half, _TREND - 1 - half), (0, 0)), mode="edge")
    average = np.stack([padded[t : t + _TREND].mean(axis=0) for t in range(L)])
    features = np.zeros((2 * L + 1, L + 1))
    features[:L, :L], features[L : 2 * L, :L], features[-1, -1] = average, np.eye(L) - average, 1
    return features


def _moments(
    data: ForecastingData, split: str, level: str, individual: bool, features: np.ndarray | None
) -> _Moments:
    C, F = data.series.shape[1], data.horizon
    groups = C if individual else 1
    P = data.lookback + (features is not None)
    gram, cross = np.zeros((groups, P, P)), np.zeros((groups, P, F))
    square, there = np.zeros((groups, F)), np.zeros((groups, F))
    rows = 0
    for _, past, past_valid, future, valid in window_batches(data, split):
        base = level_of(past, past_valid, level)[:, None]
        over = np.where(past_valid, past - base, 0)
        ahead = np.where(valid, future - base, 0)
        rows += len(past) * (C // groups)
        for channel in range(C):
            group = channel if individual else 0
            x, y = over[..., channel], ahead[..., channel]
            if features is not None:
                x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
            gram[group] += x.T @ x
            cross[group] += x.T @ y
            square[group] += np.square(y).sum(axis=0)
            there[group] += valid[..., channel].sum(axis=0)
    if features is not None:
        gram, cross = features @ gram @ features.T, features @ cross
    return _Moments(gram, cross, square, there / rows)


def _solve(train: _Moments, validation: _Moments, group: int) -> tuple[np.ndarray, float]:
    """Solves the ridge regression of one group with the penalty that is best on validation.

    Returns:
      W [P, F], and the entry of `_STRENGTHS` with the smallest squared error on validation.
    """
    values, vectors = np.linalg.eigh(train.gram[group])
    rotated = vectors.T @ train.cross[group]
    # In the eigenbasis of the training Gram matrix, the solution for a penalty is a division.
    gram = vectors.T @ validation.gram[group] @ vectors
    cross = vectors.T @ validation.cross[group]
    unit = max(float(np.mean(np.maximum(values, 0))), 1e-12)
    best = (np.inf, 0.0, rotated)
    for strength in _STRENGTHS:
        spread = np.maximum(values, 0)[:, None] * train.valid_fraction[group] + strength * unit
        found = rotated / spread
        explained = np.sum(found * (gram @ found), axis=0) * validation.valid_fraction[group]
        error = float(np.sum(explained - 2 * np.sum(found * cross, axis=0)))
        if error < best[0]:
            best = (error, strength, found)
    return vectors @ best[2], best[1]


# ---------------------------------------------------------------------- batches of windows


def window_batches(
    data: ForecastingData, split: str, every: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields batches of every `every`-th window of a split.

    Yields:
      Window indices [n], past and past_valid [n, L, C], future and future_valid [n, F, C].
    """
    L, F, C = data.lookback, data.horizon, data.series.shape[1]
    series, valid = (
        np.lib.stride_tricks.sliding_window_view(array, L + F, axis=0)
        for array in (data.series, data.valid)
    )
    origins = data.origins(split)
    size = max(1, _PORTION // ((L + F) * C))
    for first in range(0, len(origins), size * every):
        numbers = np.arange(first, min(first + size * every, len(origins)), every)
        chosen = origins[numbers] - L
        values, there = (array[chosen].swapaxes(1, 2) for array in (series, valid))
        yield numbers, values[:, :L], there[:, :L], values[:, L:], there[:, L:]


def evaluate_on_test(data: ForecastingData, forecast: Forecast) -> dict[str, Any]:
    """Computes the metrics of a forecast on the test windows.

    Returns:
      The metrics, and "example_scores" [n], the mean squared error of each window, weighted by its
      number of valid values.
    """
    squared, cells = [], []
    totals: dict[str, dict[str, np.ndarray]] = {}
    examples = data.splits["test"]
    for numbers, past, valid, future, future_valid in window_batches(data, "test"):

        def add(name: str, given: np.ndarray) -> None:
            ahead = forecast(given, valid).astype(np.float64)  # noqa: B023
            if not name:
                error = np.square(ahead - future) * future_valid  # noqa: B023
                squared.append(error.sum(axis=(1, 2)))
                cells.append(future_valid.sum(axis=(1, 2)))  # noqa: B023
            sums = error_sums(ahead, future, future_valid)  # noqa: B023
            before = totals.setdefault(name, dict.fromkeys(sums, 0.0))
            totals[name] = {key: before[key] + sums[key] for key in sums}

        add("", past)
        if data.noise:
            noise = np.stack([examples.noise(number) for number in numbers])
            for level in data.noise:
                add(noise_metric(level), np.where(valid, past + np.float32(level) * noise, 0))
    metrics = forecast_metrics(totals.pop(""), data.seasonal_error)
    noisy = {
        name: forecast_metrics(sums, data.seasonal_error)["mse"] for name, sums in totals.items()
    }
    scores = np.concatenate(squared) / np.concatenate(cells).mean()
    return metrics | noisy | {"example_scores": scores}


def baselines(data: ForecastingData) -> Mapping[str, Callable[[], dict[str, Any]]]:
    """Returns a function for each baseline that fits the baseline and returns its test metrics."""
    fits: dict[str, Callable[[], Forecast]] = {
        "repeat": lambda: naive(data.horizon),
        "seasonal_naive": lambda: seasonal_naive(data.horizon, data.period),
        "ridge": lambda: fit_linear(data),
        "ridge_per_channel": lambda: fit_linear(data, level="last", individual=True),
        "nlinear": lambda: fit_linear(data, level="last"),
        "dlinear": lambda: fit_linear(data, level="none", decomposed=True),
    }
    return {name: lambda fit=fit: evaluate_on_test(data, fit()) for name, fit in fits.items()}
