"""Metrics of forecasts from sums of errors over batches.

In shapes, B is the number of windows, F the horizon, and C the number of channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tasks.common.metrics.descriptions import lower

METRICS = {
    "mse": lower("mean squared error", "squares of standardized values"),
    "mae": lower("mean absolute error", "standardized values"),
    "mase": lower("mean absolute error / that of the seasonal naive forecast", "ratio"),
    "crps": lower("continuous ranked probability score", "standardized values"),
    "loss": lower("loss of the output head", "per standardized value"),
    "mse_noise_(.+)": lower(
        "mean squared error with noise of {0} standard deviations in the look-back",
        "squares of standardized values",
    ),
}
"""Descriptions of the metrics.

Values are standardized by the mean and the standard deviation of the training split.
"""


def error_sums(forecast: Any, future: Any, valid: Any) -> dict[str, Any]:
    """Sums errors over the valid cells of NumPy or JAX arrays.

    Args:
      forecast: point forecast, [B, F, C].
      future: true values, [B, F, C]; finite, also where missing.
      valid: bool [B, F, C], False where missing.

    Returns:
      "squared" and "absolute", the sums of squared and of absolute errors, and "cells", the number
      of valid cells. Each is [C].
    """
    error = (forecast - future) * valid
    return {
        "squared": (error * error).sum((0, 1)),
        "absolute": abs(error).sum((0, 1)),
        "cells": valid.sum((0, 1)),
    }


def forecast_metrics(sums: Mapping[str, Any], seasonal_error: np.ndarray) -> dict[str, float]:
    """Computes the metrics of a split.

        MASE = mean_c (mean |ŷ - y| of channel c) / q_c             (Hyndman & Koehler 2006)

    Args:
      sums: the sums that `error_sums` returns and, for a distribution, the sum "crps" [C].
      seasonal_error: q, [C]: mean absolute error of the seasonal naive forecast in the training
        split. MASE excludes channels with a q of 0 or NaN.

    Returns:
      "mse", "mae" and, for a distribution, "crps": means over all cells in the units of the
      forecast; and "mase", unless all channels are excluded.
    """
    cells = np.asarray(sums["cells"], np.float64)
    metrics = {
        name: float(np.sum(sums[key]) / cells.sum())
        for name, key in (("mse", "squared"), ("mae", "absolute"), ("crps", "crps"))
        if key in sums
    }
    scaled = (seasonal_error > 0) & (cells > 0)
    if scaled.any():
        mae = np.asarray(sums["absolute"], np.float64)[scaled] / cells[scaled]
        metrics["mase"] = float(np.mean(mae / seasonal_error[scaled]))
    return metrics


def noise_metric(level: float | None) -> str:
    """Returns the name of the MSE metric for an input noise level; for None, the common prefix."""
    return "mse_noise_" + ("" if level is None else f"{level:g}")
