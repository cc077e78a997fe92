"""Figures of forecasts and of attention weights.

In shapes, n is the number of windows, L the look-back, F the horizon, C the number of channels, M
the number of patches of the look-back, G the number of patches of the horizon, N the number of
attention heads, P the number of parameters of an output head, and Q the number of quantile levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.figures import Alignment, Curves, Figure, Forecast
from tasks.forecasting.models.heads import Head

INTERVALS = {0.8: (0.1, 0.9), 0.4: (0.3, 0.7)}
"""Quantile levels of the bounds of each interval, by nominal coverage of the interval."""
LEVELS = tuple(sorted(level for levels in INTERVALS.values() for level in levels))
"""Quantile levels of all intervals, ascending."""


def forecast_figure(
    head: Head,
    parameters: np.ndarray,
    past: np.ndarray,
    truth: np.ndarray | None,
    mean: float,
    std: float,
    caption: str,
    x_label: str,
    quantiles: np.ndarray | None = None,
    times: np.ndarray | None = None,
) -> Forecast:
    """Returns a figure of the forecast of one channel in the units of the data.

    Args:
      head: head of the model.
      parameters: parameters of the distribution [F, P], of standardized values.
      past: last T values of the past, [T], in the units of the data, NaN where missing.
      truth: true values [F], in the units of the data, NaN where missing.
      mean, std: mean and standard deviation of the channel.
      caption, x_label: caption and axis label of the figure.
      quantiles: standardized quantiles at the Q `LEVELS`, [F, Q]; None to compute them from
        `parameters`.
      times: times of past and forecast, datetime64 [T + F]; None without time stamps.
    """
    intervals = {}
    if head.probabilistic:
        if quantiles is None:
            quantiles = head.quantiles(parameters, LEVELS)
        for coverage, levels in INTERVALS.items():
            low, high = (quantiles[..., LEVELS.index(level)] * std + mean for level in levels)
            intervals[coverage] = (low, high)
    point = np.asarray(head.point(parameters)) * std + mean
    return Forecast(caption, x_label, past, point, intervals, truth, times)


def attention_figures(
    attention: Mapping[str, np.ndarray], names: Sequence[str], calendar: int
) -> list[Figure]:
    """Returns figures of attention weights, averaged over windows and heads of the last layer.

    Args:
      attention: "lags" [n, 1 or C, F, L]; "patches" [n, C, layers, N, M, M], or [n, C, layers, N,
        G, M + G] if the patches of the horizon attend to those of the look-back and to each other;
        "channels" [n, layers, N, C + K, C + K] with K calendar features, which are not drawn. Other
        weights are ignored.
      names: names of the channels. "lags" and "patches" are drawn for the last channel.
      calendar: K, number of calendar features.
    """
    figures: list[Figure] = []
    if "lags" in attention:
        lags = attention["lags"][:, -1].mean(axis=0)[:, ::-1]
        F, L = lags.shape
        ahead = sorted({1, (F + 1) // 2, F})
        lines = {f"{step} ahead": (range(1, L + 1), lags[step - 1]) for step in ahead}
        figures.append(Curves("weights of the past", "steps back", lines))
    if "patches" in attention:
        figures.append(_patches(attention["patches"][:, -1, -1].mean(axis=(0, 1)), names[-1]))
    if "channels" in attention:
        weights = attention["channels"][:, -1].mean(axis=(0, 1))
        C = len(weights) - calendar
        figures.append(
            _relative_weights("attention between channels", weights[:C, :C], names, names)
        )
    return figures


def _patches(weights: np.ndarray, name: str) -> Figure:
    """Draws attention weights between patches, [M, M] or [G, M + G]."""
    G, S = weights.shape
    if G == S:
        line = {"mean over patches": (range(1, S + 1), weights.mean(axis=0)[::-1])}
        return Curves(f"{name}: attention to patches", "patches back", line)
    ahead = [f"{number} ahead" for number in range(1, G + 1)]
    back = [f"{number} back" for number in range(S - G, 0, -1)]
    return _relative_weights(f"{name}: attention of patches ahead", weights, ahead, back + ahead)


def _relative_weights(
    caption: str, weights: np.ndarray, outputs: Sequence[str], inputs: Sequence[str]
) -> Alignment:
    """Draws weights relative to the maximum, which is stated in the caption."""
    most = max(float(weights.max()), 1e-12)
    caption = f"{caption}; white: {most:.3f}"
    return Alignment(caption, weights / most, list(outputs), list(inputs))
