"""Pictures of forecasts and of what a forecaster looks at.

n windows, L look-back, F horizon, C channels, M patches, N heads, P parameters of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.figures import Alignment, Curves, Figure, Forecast
from tasks.forecasting.heads import Head

INTERVALS = {0.8: (0.1, 0.9), 0.4: (0.3, 0.7)}
"""Share of the truth that an interval is to hold -> its levels."""


def forecast_figure(
    head: Head,
    parameters: np.ndarray,
    past: np.ndarray,
    truth: np.ndarray | None,
    mean: float,
    std: float,
    caption: str,
    x_label: str,
) -> Forecast:
    """One channel's forecast in the data's own units.

    Args:
      head: of the model.
      parameters: [F, P], standardised.
      past: [T], in the data's own units, NaN where it is missing.
      truth: [F], likewise.
      mean, std: of the channel.
      caption, x_label: of the figure.
    """
    intervals = {}
    if head.probabilistic:
        for share, levels in INTERVALS.items():
            bounds = head.quantiles(parameters, levels) * std + mean
            intervals[share] = (bounds[..., 0], bounds[..., 1])
    point = np.asarray(head.point(parameters)) * std + mean
    return Forecast(caption, x_label, past, point, intervals, truth)


def attention_figures(
    attention: Mapping[str, np.ndarray], names: Sequence[str], calendar: int
) -> list[Figure]:
    """Means over windows (and heads, and the last of the layers) of the weights that are known:
    "lags" [n, 1 or C, F, L], "patches" [n, C, layers, N, M, M] and "channels" [n, layers, N, C + K,
    C + K], K features of the calendar, which are left out.
    """
    figures: list[Figure] = []
    if "lags" in attention:
        # The last channel, or all where they share their weights.
        lags = attention["lags"][:, -1].mean(axis=0)[:, ::-1]
        F, L = lags.shape
        ahead = sorted({1, (F + 1) // 2, F})
        lines = {f"{step} ahead": (range(1, L + 1), lags[step - 1]) for step in ahead}
        figures.append(Curves("weights of the past", "steps back", lines))
    if "patches" in attention:
        patches = attention["patches"][:, -1, -1].mean(axis=(0, 1, 2))[::-1]
        line = {"mean over patches that look": (range(1, len(patches) + 1), patches)}
        figures.append(Curves(f"{names[-1]}: attention to patches", "patches back", line))
    if "channels" in attention:
        weights = attention["channels"][:, -1].mean(axis=(0, 1))
        C = len(weights) - calendar
        figures.append(Alignment("attention between channels", weights[:C, :C], names, names))
    return figures
