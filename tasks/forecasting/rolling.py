"""What can be told from train alone, by rolling origins: fitted to what was first, tried on what
came next (Tashman 2000, "Out-of-sample tests of forecasting accuracy").

n windows, L look-back, F horizon, C channels, P times in a season, M seasons of the look-back, J
seasons of the horizon.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np
from scipy.optimize import nnls

from tasks.forecasting.baselines import fit_linear, level_of, portions
from tasks.forecasting.data import ForecastingData
from tasks.forecasting.models.ridge import RidgeSeasonalConfig

# Tenths of train: fitted up to the first, penalties chosen up to the second, tried up to the third.
_PARTS = tuple((tenth, tenth + 1, tenth + 2) for tenth in range(4, 9))
# Of so many windows one is looked at: neighbours tell much the same. The ridge, with more to fit,
# sees all of them, as it does in the model.
_EVERY = 3
_UNKNOWN = 0.5


def rolling_origins(data: ForecastingData) -> Iterator[ForecastingData]:
    """Series whose three splits lie in train, one after another; those that hold no window are left
    out.
    """
    first, end = data.bounds["train"]
    for tenths in _PARTS:
        ends = [first + (end - first) * tenth // 10 for tenth in tenths]
        bounds = zip(data.bounds, zip([first, *ends], ends, strict=False), strict=True)
        part = dataclasses.replace(data, bounds=dict(bounds))
        if all(len(part.origins(split)) > _EVERY for split in part.bounds):
            yield part


def fit_seasons(data: ForecastingData, season: int, level: str) -> np.ndarray:
    """Fits the weights of `models.seasonal.SeasonalLag` on the training split.

    Non-negative least squares with a sum of at most 1 (Lawson & Hanson 1974); missing values of the
    past are replaced by the level.

    Args:
      data: its training windows are fitted.
      season: P.
      level: "mean" or "last".

    Returns:
      float64 [J, M], the latest season first; one minus the sum of a row is the level's weight.
    """
    M, J = data.lookback // season, -(-data.horizon // season)
    gram, cross = np.zeros((J, M, M)), np.zeros((J, M))
    for _, past, valid, future, future_valid in portions(data, "train", _EVERY):
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
    """[n, L, C] -> level [n, 1, C] and what the seasons are above it, the latest first
    [n, M, P, C].
    """
    n, L, C = past.shape
    M = L // season
    base = level_of(past, valid, level)[:, None]
    over = np.where(valid, past - base, 0).astype(np.float64)
    return base, over[:, L - M * season :].reshape(n, M, season, C)[:, ::-1]


def _on_simplex(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """argmin wᵀ gram w - 2 wᵀ cross where w >= 0 and sum w <= 1."""
    unit = max(float(np.trace(gram)), 1e-12)
    root = np.linalg.cholesky(gram / unit + 1e-9 * np.eye(len(gram)))
    # A last unknown takes what is left of the sum, and a heavy equation says that it is 1.
    equations = np.pad(root.T, ((0, 1), (0, 1)))
    equations[-1] = heavy = 1e3
    answers = np.append(np.linalg.solve(root, cross / unit), heavy)
    return nnls(equations, answers, maxiter=100 * len(answers))[0][:-1]


def fit_share(data: ForecastingData, config: RidgeSeasonalConfig) -> float:
    """λ of `tasks.forecasting.models.ridge.RidgeSeasonal`, with the least squared error over all
    origins within train.

        λ = Σ (y - r) (s - r) / Σ (s - r)²

    with the ridge's forecast r and the seasons' s, both fitted to what was before; held to [0, 1].
    Said on standard error; 0.5 where train is too short to tell.

    Args:
      data: only its train split is looked at.
      config: of the model; its own share is not looked at.
    """
    season = config.season or data.period
    product, square = 0.0, 0.0
    for number, part in enumerate(rolling_origins(data), 1):
        print(f"config.model.share: origin {number} of {len(_PARTS)} in train", file=sys.stderr)
        ridge = fit_linear(part, level=config.ridge_level, individual=config.ridge_individual)
        weights = fit_seasons(part, season, config.level)
        for _, past, valid, future, future_valid in portions(part, "test", _EVERY):
            base, x = _seasons(past, valid, season, config.level)
            ahead = np.einsum("jm,nmpc->njpc", weights, x)
            seasonal = base + ahead.reshape(len(x), -1, x.shape[-1])[:, : data.horizon]
            linear = ridge(past, valid)
            apart = (seasonal - linear) * future_valid
            product += float(np.sum((future - linear) * apart))
            square += float(np.sum(np.square(apart)))
    share = min(max(product / square, 0.0), 1.0) if square else _UNKNOWN
    told = "fitted within train" if square else "train is too short to tell"
    print(f"config.model.share: {share:.2f}, {told}", file=sys.stderr)
    return share
