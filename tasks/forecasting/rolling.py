"""Weight for averaging two forecasts, fitted on the training split with rolling origins.

There are several origins in time. For each one, forecasts are fitted to the data before the origin,
and compared on the data after it (Tashman 2000, "Out-of-sample tests of forecasting accuracy").

In shapes, n is the number of windows, L the look-back, F the horizon, C the number of channels, P
the number of times in a season, M the number of seasons of the look-back, and J the number of
seasons of the horizon.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
from scipy.optimize import nnls

from tasks.forecasting.baselines import fit_linear, level_of, window_batches
from tasks.forecasting.data import ForecastingData
from tasks.forecasting.models.ridge import RidgeSeasonalConfig

# For each origin, the ends of three parts of the training split, in tenths of it: for fitting
# weights, for selecting penalties, and for evaluation.
_PARTS = tuple((tenth, tenth + 1, tenth + 2) for tenth in range(4, 9))
# Only every third window is used, because adjacent windows are similar. The ridge regression has
# more parameters and is fitted to all windows, as in the model.
_EVERY = 3
_UNKNOWN = 0.5


def rolling_origins(data: ForecastingData) -> Iterator[ForecastingData]:
    """Yields the series once for each origin, with bounds of three splits in the training split."""
    first, end = data.bounds["train"]
    for tenths in _PARTS:
        ends = [first + (end - first) * tenth // 10 for tenth in tenths]
        bounds = zip(data.bounds, zip([first, *ends], ends, strict=False), strict=True)
        part = dataclasses.replace(data, bounds=dict(bounds))
        if all(len(part.origins(split)) > _EVERY for split in part.bounds):
            yield part


def fit_seasons(data: ForecastingData, season: int, level: str) -> np.ndarray:
    """Fits the weights of `models.seasonal.SeasonalLag` on the training split.

    The weights minimize squared errors; they are non-negative and sum to at most 1 (Lawson & Hanson
    1974). Missing values of the past are replaced by the level.

    Args:
      data: series whose training windows are fitted.
      season: P, number of steps in a season.
      level: level of a look-back: its "mean" or its "last" value.

    Returns:
      Weights, float64 [J, M], the latest season first. One minus the sum of a row is the weight of
      the level.
    """
    M, J = data.lookback // season, -(-data.horizon // season)
    gram, cross = np.zeros((J, M, M)), np.zeros((J, M))
    for _, past, valid, future, future_valid in window_batches(data, "train", _EVERY):
        base, x = _seasons(past, valid, season, level)
        y = future - base
        for ahead in range(J):
            part = slice(ahead * season, (ahead + 1) * season)
            there = future_valid[:, part]
            over = x[:, :, : there.shape[1]].swapaxes(0, 1)[:, there]
            gram[ahead] += over @ over.T
            cross[ahead] += over @ y[:, part][there]
    return np.stack([_on_simplex(*moments) for moments in zip(gram, cross, strict=True)])


def _seasons(
    past: np.ndarray, valid: np.ndarray, season: int, level: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the level of each look-back, and its seasons minus the level.

    Returns:
      Level [n, 1, C], and seasons [n, M, P, C], the latest first.
    """
    n, L, C = past.shape
    M = L // season
    base = level_of(past, valid, level)[:, None]
    over = np.where(valid, past - base, 0).astype(np.float64)
    return base, over[:, L - M * season :].reshape(n, M, season, C)[:, ::-1]


def _on_simplex(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Minimizes wᵀ gram w - 2 wᵀ cross over w >= 0 with sum w <= 1."""
    unit = max(float(np.trace(gram)), 1e-12)
    root = np.linalg.cholesky(gram / unit + 1e-9 * np.eye(len(gram)))
    # A slack variable makes the constraint sum w <= 1 an equality. A heavily weighted equation
    # enforces it.
    equations = np.pad(root.T, ((0, 1), (0, 1)))
    equations[-1] = heavy = 1e3
    answers = np.append(np.linalg.solve(root, cross / unit), heavy)
    return nnls(equations, answers, maxiter=100 * len(answers))[0][:-1]


def fit_share(data: ForecastingData, config: RidgeSeasonalConfig) -> float:
    """Fits λ of `tasks.forecasting.models.ridge.RidgeSeasonal` on the training split.

        λ = Σ (y - r) (s - r) / Σ (s - r)²

    over all origins, with future values y, ridge forecasts r and seasonal forecasts s, both fitted
    before the origin. λ is clipped to [0, 1]; it is 0.5 if the training split is too short. The
    value is printed on standard error.

    Args:
      data: series; only the training split is used.
      config: config of the model; its `share` is ignored.
    """
    season = config.season or data.period
    product, square = 0.0, 0.0
    for number, part in enumerate(rolling_origins(data), 1):
        print(
            f"config.model.share: fitting at origin {number} of {len(_PARTS)} in the train split",
            file=sys.stderr,
        )
        ridge = fit_linear(part, level=config.ridge_level, individual=config.ridge_individual)
        weights = fit_seasons(part, season, config.level)
        for _, past, valid, future, future_valid in window_batches(part, "test", _EVERY):
            base, x = _seasons(past, valid, season, config.level)
            ahead = np.einsum("jm,nmpc->njpc", weights, x)
            seasonal = base + ahead.reshape(len(x), -1, x.shape[-1])[:, : data.horizon]
            linear = ridge(past, valid)
            apart = (seasonal - linear) * future_valid
            product += float(np.sum((future - linear) * apart))
            square += float(np.sum(np.square(apart)))
    share = min(max(product / square, 0.0), 1.0) if square else _UNKNOWN
    how = "fitted within the train split"
    if not square:
        how = "default, as the train split is too short to fit the weight"
    print(f"config.model.share: {share:.2f}, {how}", file=sys.stderr)
    return share
