"""Pictures of forecasts and of what a forecaster looks at.

n windows, L look-back, F horizon, C channels, M patches, N heads, P parameters of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.figures import Alignment, Curves, Figure, Forecast
from tasks.forecasting.models.heads import Head

INTERVALS = {0.8: (0.1, 0.9), 0.4: (0.3, 0.7)}
"""Share of the truth that an interval is to hold -> its levels."""
LEVELS = tuple(sorted(level for levels in INTERVALS.values() for level in levels))
"""Of all intervals."""


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
) -> Forecast:
    """One channel's forecast in the data's own units.

    Args:
      head: of the model.
      parameters: [F, P], standardised.
      past: [T], in the data's own units, NaN where it is missing.
      truth: [F], likewise.
      mean, std: of the channel.
      caption, x_label: of the figure.
      quantiles: [F, Q] at `LEVELS`, standardised; those of the parameters if None.
    """
    intervals = {}
    if head.probabilistic:
        if quantiles is None:
            quantiles = head.quantiles(parameters, LEVELS)
        for share, levels in INTERVALS.items():
            low, high = (quantiles[..., LEVELS.index(level)] * std + mean for level in levels)
            intervals[share] = (low, high)
    point = np.asarray(head.point(parameters)) * std + mean
    return Forecast(caption, x_label, past, point, intervals, truth)


def attention_figures(
    attention: Mapping[str, np.ndarray], names: Sequence[str], calendar: int
) -> list[Figure]:
    """Means over windows (and heads, of the last layer) of the weights that are known.

    Args:
      attention: "lags" [n, 1 or C, F, L]; "patches" [n, C, layers, N, M, M], or [n, C, layers, N,
        G, M + G] where G patches ahead look at M of the past and at each other; "channels"
        [n, layers, N, C + K, C + K], K features of the calendar, which are left out. Others are
        not drawn.
      names: of the channels; of what each has for itself, the last one's is drawn.
      calendar: K.
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
        figures.append(_shares("attention between channels", weights[:C, :C], names, names))
    return figures


def _patches(weights: np.ndarray, name: str) -> Figure:
    """[M, M] or [G, M + G], of those that look by those that are looked at."""
    G, S = weights.shape
    if G == S:
        line = {"mean over patches": (range(1, S + 1), weights.mean(axis=0)[::-1])}
        return Curves(f"{name}: attention to patches", "patches back", line)
    ahead = [f"{place} ahead" for place in range(1, G + 1)]
    back = [f"{place} back" for place in range(S - G, 0, -1)]
    return _shares(f"{name}: attention of patches ahead", weights, ahead, back + ahead)


def _shares(
    caption: str, weights: np.ndarray, outputs: Sequence[str], inputs: Sequence[str]
) -> Alignment:
    """Weights as shares of the largest, which is told."""
    most = max(float(weights.max()), 1e-12)
    caption = f"{caption}; white: {most:.3f}"
    return Alignment(caption, weights / most, list(outputs), list(inputs))
