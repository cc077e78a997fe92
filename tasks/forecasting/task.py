"""Forecasting: the task contract over `data.py` and `models.py`."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.transformer import SHARDING_RULES
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary
from tasks.common.errors import UserError
from tasks.figures import Curves, Figure
from tasks.forecasting import baselines
from tasks.forecasting import timestamps as clock
from tasks.forecasting.data import DataConfig, ForecastingData, Windows, load
from tasks.forecasting.figures import INTERVALS, LEVELS, attention_figures, forecast_figure
from tasks.forecasting.metrics import error_sums, forecast_metrics, noise_metric
from tasks.forecasting.models import MODEL_CONFIGS, build
from tasks.forecasting.models.base import Forecaster, Sizes
from tasks.forecasting.models.heads import HEADS
from tasks.forecasting.paths import quantiles_beyond, rolled
from tasks.forecasting.processor import Histories, History, Known, read_history, times_ahead
from tasks.forecasting.rolling import fit_share
from tasks.task import OldTask

Array = jax.Array
Batch = Mapping[str, Array]

# Windows and channels that are drawn, and look-backs in horizons of a drawing.
_DRAWN, _DRAWN_PAST = 4, 3


class Forecasting(OldTask):
    """The past of a series [L, C] -> what it will be [F, C], or the distribution of that.

    What is missing in the past is not looked at, and what is missing ahead is no part of any loss
    or figure. Errors are of standardised values.
    """

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    primary_metric = "mse"
    higher_is_better = False
    table_metrics = ("mse", "mae", "mase", "crps")
    condition_metrics = noise_metric(None) + ".*"
    sharding_rules = SHARDING_RULES
    baseline_version = 2

    def __init__(
        self,
        data: DataConfig,
        model: Any,
        known: Known,
        period: int,
        series: ForecastingData | None = None,
        ridge: np.ndarray | None = None,
    ):
        """Use `prepare` or `restore`.

        Args:
          data, model: configs.
          known: of the series.
          period: times in a season.
          series: with its splits; None where only predictions are wanted.
          ridge: see `tasks.forecasting.models.build`; likewise.
        """
        self.data, self.model, self.known, self.period = data, model, known, period
        self.head = HEADS[model.head]
        self._series, self._ridge = series, ridge
        self._histories: dict[str, History] = {}

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: Any, paths: Paths) -> Forecasting:
        """See `Task.prepare`; fits the ridge of a model that is built on one."""
        series = load(data, paths)
        known = Known(
            series.names,
            series.mean,
            series.std,
            series.step,
            data.time_column,
            data.decimal,
            data.date_order,
            series.reading,
        )
        ridge = None
        if hasattr(model, "ridge_level"):
            ridge = baselines.fit_linear(
                series, level=model.ridge_level, individual=model.ridge_individual
            ).weights
        if getattr(model, "share", 0) is None:
            model = dataclasses.replace(model, share=fit_share(series, model))
        return cls(data, model, known, series.period, series, ridge)

    @classmethod
    def restore(cls, data: DataConfig, model: Any, assets: Mapping[str, Any]) -> Forecasting:
        """See `Task.restore`."""
        known = Known.from_assets(assets, data)
        return cls(data, model, known, assets["period"])

    def assets(self) -> dict[str, Any]:
        """Names, means and deviations of the channels, and the step and the season."""
        return self.known.assets() | {"period": self.period}

    @property
    def settings(self) -> dict[str, Any]:
        """How far back and ahead; and the channels, where not all are forecast."""
        found: dict[str, Any] = {"horizon": self.data.horizon, "lookback": self.data.lookback}
        if self.data.targets:
            names = re.sub(r"[^\w.+-]", "_", "+".join(self.data.targets))
            found["targets"] = names[:60]
        return found

    @property
    def overlap(self) -> int:
        """Windows in a row have times ahead in common."""
        return self.data.horizon

    @property
    def fingerprint(self) -> str:
        """Of the series, its splits and its windows."""
        return self._series.fingerprint

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self._series.parts

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> Windows:
        """See `Task.examples`."""
        return self._series.examples(split)

    def summary(self) -> dict[str, SplitSummary]:
        """Windows of each split."""
        return self._series.summary()

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: nnx.Rngs) -> Forecaster:
        """See `Task.build_model`.

        Raises:
          UserError: the model does not fit the look-back or the horizon.
        """
        sizes = Sizes(
            channels=len(self.known.names),
            lookback=self.data.lookback,
            horizon=self.data.horizon,
            calendar=clock.calendar_size(self.known.step),
            period=self.period,
        )
        try:
            return build(self.model, sizes, self._ridge, rngs=rngs)
        except ValueError as error:
            raise UserError(f"config.model.{error}") from None

    def loss(self, model: Forecaster, batch: Batch, dropout_key: Array) -> tuple[Array, dict]:
        """The head's loss of a cell, and the squared error; both under dropout."""
        parameters = model(
            batch["past"],
            batch["past_valid"],
            batch["calendar"],
            training=True,
            dropout_key=dropout_key,
        )
        valid = _counted(batch)
        sums = error_sums(self.head.point(parameters), batch["future"], valid)
        cells = jnp.maximum(jnp.sum(sums["cells"]), 1)
        loss = self.head.loss(parameters, batch["future"], valid)
        return loss, {"mse": jnp.sum(sums["squared"]) / cells}

    def batch_statistics(self, model: Forecaster, batch: Batch) -> dict[str, Any]:
        """The sums of `error_sums`, with "loss", and of a distribution "crps", by channel; squared
        errors and cells by step ahead, [F]; and squared errors by level of noise.
        """
        valid = _counted(batch)

        def parameters_of(past: Array) -> Array:
            return model(past, batch["past_valid"], batch["calendar"])

        parameters = parameters_of(batch["past"])
        point = self.head.point(parameters)
        sums = error_sums(point, batch["future"], valid)
        sums["loss"] = jnp.sum(self.head.losses(parameters, batch["future"]) * valid)
        if self.head.probabilistic:
            score = self.head.crps(parameters, batch["future"])
            sums["crps"] = jnp.sum(score * valid, axis=(0, 1))
        squared = jnp.square(point - batch["future"]) * valid
        sums["step_squared"] = jnp.sum(squared, axis=(0, 2))
        sums["step_cells"] = jnp.sum(valid, axis=(0, 2))
        if "noise" in batch:

            def under(level: Array) -> Array:
                past = batch["past"] + jnp.where(batch["past_valid"], level * batch["noise"], 0)
                error = self.head.point(parameters_of(past)) - batch["future"]
                return jnp.sum(jnp.square(error) * valid)

            sums["noisy"] = jax.lax.map(under, jnp.array(self.data.noise, jnp.float32))
        return sums

    def outputs(self, model: Forecaster, batch: Batch) -> dict[str, Array]:
        """Of windows: "mse" and "mae" [B] of their cells, the number of these, "cells", and the
        forecast of the last channel, "forecast" [B, F, P]. Of histories: "parameters" [B, S, C, P],
        rolled on past the horizon: see `rolled`; and of a distribution that goes beyond it "beyond"
        [B, S - F, C, Q], the quantiles there at `drawing.LEVELS`: see `quantiles_beyond`.
        """
        if "future" not in batch:
            found = {"parameters": rolled(model, batch)}
            if self.head.probabilistic and found["parameters"].shape[1] > self.data.horizon:
                found["beyond"] = quantiles_beyond(model, batch, LEVELS)
            return found
        parameters = model(batch["past"], batch["past_valid"], batch["calendar"])
        valid = batch["future_valid"]
        error = (self.head.point(parameters) - batch["future"]) * valid
        cells = jnp.sum(valid, axis=(1, 2))
        return {
            "mse": jnp.sum(jnp.square(error), axis=(1, 2)) / jnp.maximum(cells, 1),
            "mae": jnp.sum(jnp.abs(error), axis=(1, 2)) / jnp.maximum(cells, 1),
            "cells": cells,
            "forecast": parameters[:, :, -1],
        }

    def attention(self, model: Forecaster, batch: Batch) -> dict[str, Array]:
        """What the model returns."""
        calendar = batch["calendar"][:, : self.data.lookback + self.data.horizon]
        past = (batch["past"], batch["past_valid"])
        return model(*past, calendar, return_weights=True)[1]

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """The metrics of `tasks.forecasting.metrics`; `loss`, the head's; and the squared error
        under each level of noise.
        """
        metrics = forecast_metrics(statistics, self._series.seasonal_error)
        cells = np.sum(statistics["cells"])
        metrics["loss"] = float(statistics["loss"] / cells)
        if "noisy" in statistics:
            for level, squared in zip(self.data.noise, statistics["noisy"], strict=True):
                metrics[noise_metric(level)] = float(squared / cells)
        return metrics

    def example_ids(self, split: str) -> np.ndarray:
        """Of the first time ahead and the values ahead, whatever the look-back is."""
        series, origins = self._series, self._series.origins(split)
        ahead = [slice(origin, origin + series.horizon) for origin in origins]
        return digests.ids(origins, [(series.series[s], series.valid[s]) for s in ahead])

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """Squared error of each window's mean cell, by its share of the cells: the mean is the
        primary metric. The lower, the better.
        """
        cells = outputs["cells"]
        return (outputs["mse"] * (cells / np.mean(cells))).astype(np.float32)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """Forecasts of the last channel from all over the split, the error by step ahead, and
        where the model looks.
        """
        series, head = self._series, self.head
        mean, std, name = series.mean[-1], series.std[-1], series.names[-1]
        own = np.where(series.valid[:, -1], series.series[:, -1] * std + mean, np.nan)
        origins, shown = series.origins(split), min(_DRAWN_PAST * series.horizon, series.lookback)
        drawn: list[Figure] = []
        for index in np.unique(np.linspace(0, len(origins) - 1, _DRAWN).astype(int)):
            origin = int(origins[index])
            x_label = "steps"
            if series.step is not None:
                last = clock.spell(clock.stamps(series.start, series.step, np.array([origin - 1])))
                x_label = f"steps of {series.step} after {last[0]}"
            drawn.append(
                forecast_figure(
                    head,
                    outputs["forecast"][index],
                    own[origin - shown : origin],
                    own[origin : origin + series.horizon],
                    mean,
                    std,
                    f"{split} window {index}, {name}: mse {outputs['mse'][index]:.3f}",
                    x_label,
                )
            )
        error = statistics["step_squared"] / np.maximum(statistics["step_cells"], 1)
        line = {f"{split} mse": (range(1, len(error) + 1), error)}
        drawn.append(Curves("error by step ahead", "steps ahead", line))
        calendar = clock.calendar_size(series.step)
        return drawn + attention_figures(attention, series.names, calendar)

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """See `tasks.forecasting.baselines`."""
        return dict(baselines.baselines(self._series))

    # ------------------------------------------------------------------ predict

    def inputs(self, raw: Sequence[str]) -> Histories:
        """Files with the columns of train: "FILE", or "FILE,steps=N" for N steps ahead."""
        data = self.data
        self._histories = {
            text: read_history(text, self.known, data.lookback, data.horizon)
            for text in dict.fromkeys(raw)
        }
        return Histories([self._histories[text] for text in raw], self.known, data.horizon)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """For each file the times ahead, a forecast for each channel in the data's own units, and,
        where the model tells one, an interval that is to hold 80 % of what comes. Past the horizon
        that is over sample paths, which carry on how unsure the model was so far.
        """
        answers = []
        for text, parameters, quantiles in self._forecasts(raw, outputs):
            history = self._histories[text]
            times = times_ahead(history, self.known.step)
            lines = self._lines(parameters, quantiles)
            columns = [f"{name}{mark}" for mark in lines for name in self.known.names]
            rows = np.concatenate(list(lines.values()), axis=-1)
            answer = {"input": text, "times": times}
            for mark, values in lines.items():
                key = f"level{mark.replace(' ', '_')}" if mark else "forecast"
                by_name = zip(self.known.names, values.T, strict=True)
                answer[key] = {name: [float(f"{x:.7g}") for x in row] for name, row in by_name}
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(["time" if self.known.step else "step", *columns])
            for time, row in zip(times, rows, strict=True):
                writer.writerow([time, *(f"{x:.6g}" for x in row)])
            answers.append(answer | {"text": buffer.getvalue().rstrip("\n")})
        return answers

    def _forecasts(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
        """For each file its name, the parameters [S, C, P] of the steps that are wanted, and, of a
        distribution, the quantiles [S, C, Q] at `drawing.LEVELS`.
        """
        for index, (text, parameters) in enumerate(
            zip(raw, outputs.get("parameters", ()), strict=True)
        ):
            quantiles = None
            if self.head.probabilistic:
                quantiles = self.head.quantiles(parameters[: self.data.horizon], LEVELS)
                if "beyond" in outputs:
                    quantiles = np.concatenate([quantiles, outputs["beyond"][index]])
                quantiles = quantiles[: self._histories[text].steps]
            yield text, parameters[: self._histories[text].steps], quantiles

    def _lines(self, parameters: np.ndarray, quantiles: np.ndarray | None) -> dict[str, np.ndarray]:
        """[S, C, P] and [S, C, Q] -> "" and, of a distribution, each level of the wide interval
        -> [S, C].
        """
        mean, std = self.known.mean, self.known.std
        found = {"": np.asarray(self.head.point(parameters)) * std + mean}
        if quantiles is not None:
            for level in INTERVALS[max(INTERVALS)]:
                found[f" {level:g}"] = quantiles[..., LEVELS.index(level)] * std + mean
        return found

    def pictures(
        self,
        raw: Sequence[str],
        outputs: Mapping[str, np.ndarray],
        attention: Mapping[str, np.ndarray],
    ) -> list[list[Figure]]:
        """The forecast of the last channels of each file."""
        drawn = []
        for text, parameters, quantiles in self._forecasts(raw, outputs):
            history, figures = self._histories[text], []
            first = times_ahead(history, self.known.step)[0]
            channels = range(len(self.known.names))[-_DRAWN:]
            for channel in channels:
                figures.append(
                    forecast_figure(
                        self.head,
                        parameters[:, channel],
                        history.past[-_DRAWN_PAST * history.steps :, channel],
                        None,
                        self.known.mean[channel],
                        self.known.std[channel],
                        f"{text}: {self.known.names[channel]}",
                        f"steps, 1 is {first}" if self.known.step else "steps",
                        None if quantiles is None else quantiles[:, channel],
                    )
                )
            drawn.append(figures)
        return drawn


def _counted(batch: Batch) -> Array:
    """Which cells ahead there are: bool [B, F, C]."""
    return batch["future_valid"] & (batch["weight"] > 0)[:, None, None]


TASK = Forecasting
