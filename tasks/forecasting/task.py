"""Forecasting of the next values of a series, or of their distribution.

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, P
the number of parameters of an output head, S the number of forecast steps, and Q the number of
quantile levels."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tasks.common.backbones.transformer import SHARDING_RULES
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.summary import row_codes, segment_codes
from tasks.common.errors import UserError
from tasks.figures import Curves, Figure, FigureGroup, Forecast, SplitResults
from tasks.forecasting import baselines
from tasks.forecasting import timestamps as clock
from tasks.forecasting.data import DataConfig, ForecastingData, load, read_labeled
from tasks.forecasting.explainer import ForecastExplainer
from tasks.forecasting.figures import LEVELS, attention_figures, forecast_figure
from tasks.forecasting.metrics import METRICS, error_sums, forecast_metrics, noise_metric
from tasks.forecasting.models import MODEL_CONFIGS, build
from tasks.forecasting.models.base import Forecaster, WindowSizes
from tasks.forecasting.models.heads import HEADS, Head
from tasks.forecasting.paths import forecast_autoregressively, quantiles_beyond
from tasks.forecasting.processor import ForecastingProcessor
from tasks.forecasting.rolling import fit_share
from tasks.forecasting.user_files import OWN_DATA
from tasks.task import Arrays, Axes, Batch, Columns, ExamplePrediction, Task, seven_digits

Array = jax.Array

# Maximum number of channels in a figure of a report, and maximum length of the drawn look-back as a
# multiple of the horizon.
_CHANNELS, _DRAWN_PAST = 12, 3
# Number of channels whose standard deviation the data summary shows.
_UNITS = 8


class Forecasting(Task):
    """Forecasting of the next values [F, C] of a series, or of their distribution, from the past.

    Missing values are masked in the past, and excluded from loss and metrics in the horizon.
    Metrics are errors of standardized values.
    """

    data_config = DataConfig
    model_configs = MODEL_CONFIGS
    processor_type = ForecastingProcessor
    own_data = OWN_DATA
    primary_metric = "mse"
    higher_is_better = False
    table_metrics = ("mse", "mae", "mase", "crps")
    metric_table = METRICS
    condition_metrics = noise_metric(None) + ".*"
    sharding_rules = SHARDING_RULES
    baseline_version = 2
    drawn_examples = 3
    draws_predictions = True

    # ------------------------------------------------------------------ construction

    load = staticmethod(load)

    @classmethod
    def fit(
        cls, dataset: ForecastingData, data: DataConfig, model: Any, paths: Paths
    ) -> ForecastingProcessor:
        """Builds the processor; fits `config.model.share` if it is None.

        The fitted share is stored in the model config of the processor.
        """
        if getattr(model, "share", 0) is None:
            model = dataclasses.replace(model, share=fit_share(dataset, model))
        scales = (dataset.names, dataset.mean, dataset.std, dataset.step)
        return ForecastingProcessor(data, model, *scales, dataset.period, dataset.reading)

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads a table with the channels of the run; consecutive windows are one step apart.

        MASE is not computed, because its divisor is an error on the training split.
        """
        processor = self.processor
        none = np.zeros((0, len(processor.names)), np.float32)
        fitted = ForecastingData(
            none,
            none.astype(bool),
            none,
            processor.names,
            processor.mean,
            processor.std,
            None,
            processor.step,
            processor.period,
            {},
            self.data.lookback,
            self.data.horizon,
        )
        return self._with_dataset(read_labeled(file, self.data, fitted, processor.reading))

    @property
    def settings(self) -> dict[str, Any]:
        """Look-back and horizon; also the channels if `config.data.targets` selects some."""
        found: dict[str, Any] = {"horizon": self.data.horizon, "lookback": self.data.lookback}
        if self.data.targets:
            names = re.sub(r"[^\w.+-]", "_", "+".join(self.data.targets))
            found["targets"] = names[:60]
        return found

    @property
    def overlap(self) -> int:
        """Number of consecutive windows that share forecast times."""
        return self.data.horizon

    @property
    def head(self) -> Head:
        """Output head of the model."""
        return HEADS[self.model.head]

    def columns(self, split: str) -> Columns:
        """Returns the future values of windows for the data summary.

        Windows whose future values are constant are left out.
        """
        series, origins, ahead = self.dataset, self.dataset.origins(split), self.data.horizon
        codes = row_codes(series.series, series.valid)
        changes = np.concatenate([[0, 0], np.cumsum(codes[1:] != codes[:-1])])
        origins = origins[changes[origins + ahead] > changes[origins + 1]]
        first, end = series.bounds[split]
        units = [
            f"{name} {seven_digits(std):.4g}"
            for name, std in zip(series.names[:_UNITS], series.std, strict=False)
        ]
        more = f", ... {len(series.names) - _UNITS} more" * (len(series.names) > _UNITS)

        def name(index: int) -> str:
            at = origins[index : index + 1]
            if series.step is None:
                return f"the window at step {at[0]}"
            (time,) = clock.format_times(clock.stamps(series.start, series.step, at))
            return f"the window at {time}"

        return Columns(
            len(origins),
            codes=(segment_codes(codes, origins, origins + ahead), None),
            unit="windows",
            name=name,
            facts={
                "time steps": f"{end - first:,}",
                "missing": f"{1 - series.valid[first:end].mean():.1%} of the values",
                "one unit": f"standard deviation in the train split: {', '.join(units)}{more}",
            },
        )

    # ------------------------------------------------------------------ objective

    @functools.cached_property
    def _ridge(self) -> np.ndarray | None:
        # Without data, the matrix is not fitted but restored from a checkpoint.
        model = self.model
        if self.dataset is None or not hasattr(model, "ridge_level"):
            return None
        options = {"level": model.ridge_level, "individual": model.ridge_individual}
        return baselines.fit_linear(self.dataset, **options).weights

    def build_model(self, rngs: nnx.Rngs) -> Forecaster:
        """Builds the forecaster; fits the ridge regression of models that use one.

        Raises:
          UserError: the model does not fit the look-back or the horizon.
        """
        sizes = WindowSizes(
            channels=len(self.processor.names),
            lookback=self.data.lookback,
            horizon=self.data.horizon,
            calendar=clock.calendar_size(self.processor.step),
            period=self.processor.period,
        )
        try:
            return build(self.processor.model, sizes, self._ridge, rngs=rngs)
        except ValueError as error:
            raise UserError(f"config.model.{error}") from None

    def loss(self, model: Forecaster, batch: Batch, dropout_key: Array) -> tuple[Array, dict]:
        """Computes the head's mean loss over valid values, and the MSE, both with dropout."""
        parameters = model(
            batch["past"],
            batch["past_valid"],
            batch["calendar"],
            valid=batch["weight"] > 0,
            training=True,
            dropout_key=dropout_key,
        )
        valid = _counted(batch)
        sums = error_sums(self.head.point(parameters), batch["future"], valid)
        cells = jnp.maximum(jnp.sum(sums["cells"]), 1)
        loss = self.head.loss(parameters, batch["future"], valid)
        return loss, {"mse": jnp.sum(sums["squared"]) / cells}

    def evaluate(self, model: Forecaster, batch: Batch) -> tuple[dict, dict]:
        """Computes errors and forecasts of a batch of windows.

        Returns:
          Statistics, which are sums over the valid values of the batch, and outputs of each window.

          The statistics are those of `error_sums`; "loss"; for a distribution "crps" [C];
          "step_squared" and "step_cells" [F], the squared errors and the number of valid values by
          step ahead; and with noise levels "noisy", the squared errors by noise level.

          The outputs are "mse" and "mae" [B] over the valid values of a window, "cells" [B], the
          number of these values, and "forecast" [B, F, P], the parameters of the last channel.
        """
        valid, future = _counted(batch), batch["future"]

        def forecast(past: Array) -> Array:
            return model(past, batch["past_valid"], batch["calendar"])

        parameters = forecast(batch["past"])
        point = self.head.point(parameters)
        sums = error_sums(point, future, valid)
        sums["loss"] = jnp.sum(self.head.losses(parameters, future) * valid)
        if self.head.probabilistic:
            sums["crps"] = jnp.sum(self.head.crps(parameters, future) * valid, axis=(0, 1))
        squared = jnp.square(point - future) * valid
        sums["step_squared"] = jnp.sum(squared, axis=(0, 2))
        sums["step_cells"] = jnp.sum(valid, axis=(0, 2))
        if "noise" in batch:

            def under(level: Array) -> Array:
                past = batch["past"] + jnp.where(batch["past_valid"], level * batch["noise"], 0)
                return jnp.sum(jnp.square(self.head.point(forecast(past)) - future) * valid)

            sums["noisy"] = jax.lax.map(under, jnp.array(self.data.noise_levels, jnp.float32))
        error = (point - future) * batch["future_valid"]
        cells = jnp.sum(batch["future_valid"], axis=(1, 2))
        return sums, {
            "mse": jnp.sum(jnp.square(error), axis=(1, 2)) / jnp.maximum(cells, 1),
            "mae": jnp.sum(jnp.abs(error), axis=(1, 2)) / jnp.maximum(cells, 1),
            "cells": cells,
            "forecast": parameters[:, :, -1],
        }

    def predict(self, model: Forecaster, inputs: Batch, *, fast: bool = False) -> dict[str, Array]:
        """Forecasts all S steps for which the inputs have calendar features.

        Returns:
          "parameters" [B, S, C, P], see `forecast_autoregressively`. For distributions and S > F
          also "beyond" [B, S - F, C, Q], quantiles at `LEVELS` beyond the horizon, see
          `quantiles_beyond`.
        """
        found = {"parameters": forecast_autoregressively(model, inputs)}
        if self.head.probabilistic and found["parameters"].shape[1] > self.data.horizon:
            found["beyond"] = quantiles_beyond(model, inputs, LEVELS)
        return found

    def attention(self, model: Forecaster, inputs: Batch) -> dict[str, Array]:
        """Returns the attention weights of the forecast of one horizon."""
        calendar = inputs["calendar"][:, : self.data.lookback + self.data.horizon]
        past = (inputs["past"], inputs["past_valid"])
        return model(*past, calendar, return_weights=True)[1]

    # ------------------------------------------------------------------ on the host

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns the metrics of `forecast_metrics`, the loss, and the MSE at each noise level."""
        metrics = forecast_metrics(statistics, self.dataset.seasonal_error)
        cells = np.sum(statistics["cells"])
        metrics["loss"] = float(statistics["loss"] / cells)
        if "noisy" in statistics:
            for level, squared in zip(self.data.noise_levels, statistics["noisy"], strict=True):
                metrics[noise_metric(level)] = float(squared / cells)
        return metrics

    def example_ids(self, split: str) -> np.ndarray:
        """Returns for each window a hash of its first forecast time and its future values."""
        series, origins = self.dataset, self.dataset.origins(split)
        ahead = [slice(origin, origin + series.horizon) for origin in origins]
        return digests.ids(origins, [(series.series[s], series.valid[s]) for s in ahead])

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns the mean squared error of each window, weighted by its number of valid values."""
        cells = outputs["cells"]
        return (outputs["mse"] * (cells / np.mean(cells))).astype(np.float32)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns true and forecast values of the last channel, in the units of the data.

        The input is the first and last time of the look-back. Windows overlap, so only windows
        without common forecast times have values; missing true values are None.
        """
        series, origins = self.dataset, self.dataset.origins(split)
        mean, std = series.mean[-1], series.std[-1]
        found, free = [], 0
        for index, origin in enumerate(origins.tolist()):
            ends = np.array([origin - series.lookback, origin - 1])
            times = [f"step {end}" for end in ends]
            if series.step is not None:
                times = clock.format_times(clock.stamps(series.start, series.step, ends))
            row = ExamplePrediction(" to ".join(times))
            if origin >= free:
                free, ahead = origin + series.horizon, slice(origin, origin + series.horizon)
                point = np.asarray(self.head.point(outputs["forecast"][index])) * std + mean
                true = series.series[ahead, -1] * std + mean
                true = np.where(series.valid[ahead, -1], true, np.nan)
                row = row._replace(
                    target=[*map(seven_digits, true)], prediction=[*map(seven_digits, point)]
                )
            found.append(row)
        return found

    @classmethod
    def rows(cls, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns one row for each forecast time, with a column for each channel and bound."""
        parts = {key: answer[key] for key in answer if key not in ("input", "text", "times")}
        columns = {
            name if key == "forecast" else f"{name}_{key.removeprefix('level_')}": values
            for key, by_name in parts.items()
            for name, values in by_name.items()
        }
        return [
            {"time": time, **{name: values[step] for name, values in columns.items()}}
            for step, time in enumerate(answer["times"])
        ]

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns channels and forecast times as labels."""
        given, names = self.processor.input(raw), list(self.processor.names)
        ahead = given.times_ahead(self.processor.step)[: self.data.horizon]
        ahead += [""] * (self.data.horizon - len(ahead))
        stacked, found = {"layer": None, "head": None}, {}
        if "lags" in attention:
            channels = names if len(attention["lags"]) == len(names) else None
            found["lags"] = {"channel": channels, "ahead": ahead, "time": None}
        if "patches" in attention:
            found["patches"] = {"channel": names, **stacked, "query": None, "key": None}
        if "channels" in attention:
            features = len(attention["channels"][0, 0]) - len(names)
            labels = [*names, *(f"calendar {number}" for number in range(1, features + 1))]
            found["channels"] = {**stacked, "query": labels, "key": labels}
        if "decoder" in attention:
            found["decoder"] = {**stacked, "ahead": ahead, "time": None}
        return found

    def explainer(self) -> ForecastExplainer:
        """Returns the explainer, which attributes predictions to segments of the look-back."""
        return ForecastExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns figures of forecasts, of the error by step ahead, and of attention weights.

        Each window is drawn with all channels, or with the 12 that have the largest errors.
        """
        series, split, statistics = self.dataset, results.split, results.statistics
        origins, drawn = series.origins(split), []
        errors = statistics["squared"] / np.maximum(statistics["cells"], 1)
        channels = list(range(len(series.names)))
        if len(channels) > _CHANNELS:
            channels = sorted(np.argsort(-errors, kind="stable")[:_CHANNELS].tolist())
        for row, example in enumerate(results.shown):
            index, origin = example.index, int(origins[example.index])
            where = ""
            if series.step is not None:
                (first,) = clock.format_times(
                    clock.stamps(series.start, series.step, np.array([origin]))
                )
                where = f" from {first}"
            mse = f"mse {results.outputs['mse'][index]:.3f} of standardized values"
            caption = f"{results.caption(example)}{where}: {mse}"
            if len(channels) < len(series.names):
                caption += f"; the {_CHANNELS} channels of {len(series.names)} with the largest mse"
            panels = [
                self._window(
                    origin,
                    channel,
                    results.predicted["parameters"][row][: series.horizon, channel],
                    f"{series.names[channel]} (mse of the split {errors[channel]:.3f})",
                )
                for channel in channels
            ]
            drawn.append(FigureGroup(caption, panels))
        error = statistics["step_squared"] / np.maximum(statistics["step_cells"], 1)
        line = {f"{split} mse": (range(1, len(error) + 1), error)}
        drawn.append(Curves("error by step ahead", "steps ahead", line))
        calendar = clock.calendar_size(series.step)
        return drawn + attention_figures(results.attention, series.names, calendar)

    def _window(self, origin: int, channel: int, parameters: np.ndarray, caption: str) -> Forecast:
        """Draws the forecast [F, P] of one channel from the time `origin` of the series."""
        series = self.dataset
        mean, std = series.mean[channel], series.std[channel]
        first = origin - min(_DRAWN_PAST * series.horizon, series.lookback)
        span = slice(first, origin + series.horizon)
        own = series.series[span, channel] * std + mean
        own = np.where(series.valid[span, channel], own, np.nan)
        times = None
        if series.step is not None:
            times = clock.stamps(series.start, series.step, np.arange(span.start, span.stop))
        past, future = np.split(own, [origin - first])
        return forecast_figure(
            self.head, parameters, past, future, mean, std, caption, "steps", times=times
        )

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the naive, seasonal naive and linear baselines."""
        return dict(baselines.baselines(self.dataset))

    def input_figures(
        self, raw: Sequence[str], outputs: Arrays, attention: Arrays
    ) -> list[list[Figure]]:
        """Returns a figure of the forecast of each channel of each file."""
        drawn, series = [], self.processor
        for text, parameters, quantiles in series.forecasts(raw, outputs):
            given, figures = series.input(text), []
            past = given.past[-_DRAWN_PAST * given.steps :]
            times = None
            if series.step is not None:
                indices = given.length + np.arange(-len(past), given.steps)
                times = clock.stamps(given.start, series.step, indices)
            for channel in range(len(series.names)):
                figures.append(
                    forecast_figure(
                        self.head,
                        parameters[:, channel],
                        past[:, channel],
                        None,
                        series.mean[channel],
                        series.std[channel],
                        f"{text}: {series.names[channel]}",
                        "steps",
                        None if quantiles is None else quantiles[:, channel],
                        times,
                    )
                )
            drawn.append(figures)
        return drawn


def _counted(batch: Batch) -> Array:
    """Returns bool [B, F, C], False for missing future values and padding rows."""
    return batch["future_valid"] & (batch["weight"] > 0)[:, None, None]


TASK = Forecasting
