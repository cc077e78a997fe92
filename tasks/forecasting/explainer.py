"""Explanations of forecasts, with segments of the look-back as positions.

A gate g in [0, 1] fades the values x of each segment towards the mean r of their channel:
g x + (1 - g) r. The explainer measures how this changes a score of the forecast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tasks.explainer import AttentionPath, Description, Explainer, Subject, repeated, spans
from tasks.explanation import AttentionMap, Axis, Series
from tasks.forecasting import timestamps as clock
from tasks.processor import Arrays

# Largest number of segments.
_SEGMENTS = 48


class ForecastExplainer(Explainer):
    """Explains the mean of the forecast of the last channel by segments of the look-back.

    A segment has the values of all channels.
    """

    replacement = "the mean of each channel in the look-back"
    quantity = "minus the absolute change of the mean forecast, in standard deviations"
    signed = False

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns no arrays, because the score is a function of the inputs alone."""
        return {}

    @property
    def _starts(self) -> np.ndarray:
        """First step of each segment of the look-back."""
        lookback = self.task.data.lookback
        width = -(-lookback // min(_SEGMENTS, lookback))
        # Counted from the end, so that only the first segment may be shorter than the others.
        return np.maximum(np.arange(lookback - width, -width, -width)[::-1], 0)

    def _segments(self) -> np.ndarray:
        """Returns the segment of each step of the look-back, int [L]."""
        return np.searchsorted(self._starts, np.arange(self.task.data.lookback), "right") - 1

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for every segment."""
        return np.ones(len(self._starts), bool)

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the mean of the forecast of the last channel, for a gated look-back."""
        past, valid = inputs["past"], inputs["past_valid"]
        total = jnp.sum(jnp.where(valid, past, 0), axis=1, keepdims=True)
        mean = total / jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
        shares = gates[:, self._segments()][..., None]
        mixed = shares * jnp.where(valid, past, mean) + (1 - shares) * mean
        ahead = self.task.data.lookback + self.task.data.horizon
        calendar = repeated(inputs["calendar"][:, :ahead], gates)
        found = model(mixed, repeated(valid, gates), calendar)
        return jnp.mean(self.task.head.point(found)[..., -1], axis=1)

    def measure(self, scores: np.ndarray, whole: float) -> np.ndarray:
        """Returns minus the absolute difference from the score of the unchanged look-back."""
        return -np.abs(scores - whole)

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attention weights of lags or of patches, summed within each segment."""
        weights = self._by_step(subject.attention)
        if weights is None:
            return None
        return AttentionPath(np.bincount(self._segments(), weights, len(self._starts)))

    def _by_step(self, attention: Arrays) -> np.ndarray | None:
        """Returns the weight of each of the L steps of the look-back for the last channel, [L]."""
        lookback = self.task.data.lookback
        if "lags" in attention and attention["lags"].shape[-1] == lookback:
            return attention["lags"][-1].mean(axis=0)
        if "patches" in attention:
            weights = attention["patches"][-1, -1].mean(axis=(0, 1))
            # If the queries are the patches of the horizon, the last keys are the same patches.
            # Their weights are dropped.
            queries, keys = attention["patches"].shape[-2:]
            weights = weights[: keys - queries or keys]
            # Patches may overlap. Therefore the look-back is divided into one equal part per patch,
            # and the weight of a patch is spread evenly over the steps of its part.
            owner = np.arange(lookback) * len(weights) // lookback
            return weights[owner] / np.bincount(owner)[owner]
        return None

    def describe(self, subject: Subject) -> Description:
        """Returns past and forecast of the last channel, and the attention weights."""
        task, processor = self.task, self.task.processor
        L, F, channel = task.data.lookback, task.data.horizon, len(processor.names) - 1
        mean, std = processor.mean[channel], processor.std[channel]
        past = subject.inputs["past"][0, :, channel] * std + mean
        past = np.where(subject.inputs["past_valid"][0, :, channel], past, np.nan)
        parameters = subject.outputs["parameters"][0, :F, channel]
        forecast = np.asarray(task.head.point(parameters)) * std + mean
        truth, times, text = None, [str(step) for step in range(1 - L, F + 1)], subject.raw
        if subject.index is not None:
            series = task.dataset
            origin = int(series.origins(subject.split)[subject.index])
            ahead = slice(origin, origin + F)
            truth = series.series[ahead, channel] * std + mean
            truth = np.where(series.valid[ahead, channel], truth, np.nan)
            text = f"{subject.split} example {subject.index}"
            if series.step is not None:
                steps = np.arange(origin - L, origin + F)
                times = clock.format_times(clock.stamps(series.start, series.step, steps))
        starts = self._starts
        ends = np.append(starts[1:], L)
        labels = [
            f"{times[start]} to {times[end - 1]}" if end - start > 1 else times[start]
            for start, end in zip(starts, ends, strict=True)
        ]
        areas = spans(np.append(starts, L), L + F)
        axes, maps = {"segments": Axis("time", labels, areas)}, []
        if "lags" in subject.attention and subject.attention["lags"].shape[-1] == L:
            axes["past"] = Axis("lag", times[:L], spans(np.arange(L + 1), L + F))
            axes["ahead"] = Axis("step", times[L:])
            weights = subject.attention["lags"][-1][None, None]
            maps.append(AttentionMap("lags", weights, "ahead", "past"))
        elif "patches" in subject.attention:
            weights = subject.attention["patches"][-1]
            count = weights.shape[-1]
            axes["patches"] = Axis("patch", [f"patch {number + 1}" for number in range(count)])
            queries = "patches"
            if weights.shape[-2] != count:
                queries = "patches ahead"
                named = [f"patch {number + 1} ahead" for number in range(weights.shape[-2])]
                axes[queries] = Axis("patch", named)
            maps.append(AttentionMap("patches", weights, queries, "patches"))
        if "channels" in subject.attention:
            weights = subject.attention["channels"]
            extra = weights.shape[-1] - len(processor.names)
            named = [*processor.names, *(f"calendar {number + 1}" for number in range(extra))]
            axes["channels"] = Axis("channel", named)
            maps.append(AttentionMap("channels", weights, "channels", "channels"))
        name = processor.names[channel]
        return Description(
            input=text or "",
            prediction=f"mean {forecast.mean():.4g} over {F} steps",
            explained=f"mean of the forecast of {name} over {F} steps, standardized",
            axis="segments",
            axes=axes,
            maps=maps,
            medium=Series(past, forecast, truth, times, name),
            target=None if truth is None else f"mean {np.nanmean(truth):.4g}",
        )
