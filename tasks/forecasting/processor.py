"""Processor of forecasting: reads files, and converts outputs to forecasts in the units of the
data.

In shapes, L is the look-back, F the horizon, C the number of channels, K the number of calendar
features, S the number of forecast steps, P the number of parameters of an output head, and Q the
number of quantile levels.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.data.tables import EXTENSIONS
from tasks.common.errors import UserError
from tasks.forecasting import timestamps as clock
from tasks.forecasting.data import calendar_of, read_channels
from tasks.forecasting.figures import INTERVALS, LEVELS
from tasks.forecasting.models.heads import HEADS, Head
from tasks.forecasting.timestamps import Step
from tasks.forecasting.user_files import Reading
from tasks.task import ArraySpec, ProcessingSteps, Processor

MOST_STEPS = 100_000
# Numbers of horizons that the exported programs forecast.
_EXPORTED = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class ForecastInput:
    """The last steps of the time series in a file.

    Attributes:
      past: values in the units of the data, float64 [L, C]; NaN if missing or before the first row
        of the file.
      steps: number of steps to forecast.
      start: first time stamp of the file; None without time stamps.
      length: number of times from `start` to the end of the file.
    """

    past: np.ndarray
    steps: int
    start: np.datetime64 | None
    length: int

    def times_ahead(self, step: Step | None) -> list[str]:
        """Returns the time stamps of the forecast; without time stamps, the step numbers."""
        ahead = np.arange(self.steps)
        if step is None:
            return [str(number + 1) for number in ahead]
        return clock.format_times(clock.stamps(self.start, step, self.length + ahead))


class ForecastInputs:
    """Random access to examples as in `tasks.forecasting.data.Windows`, but without a future.

    The calendar features [steps, K] cover the look-back and the longest forecast, whose length is
    rounded up to a multiple of F.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(self, inputs: Sequence[ForecastInput], series: ForecastingProcessor):
        self._inputs, self._series = inputs, series
        horizon = series.data.horizon
        blocks = max((-(-given.steps // horizon) for given in inputs), default=1)
        self._ahead = blocks * horizon

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        given, series = self._inputs[index], self._series
        valid = ~np.isnan(given.past)
        scaled = np.where(valid, (given.past - series.mean) / series.std, 0)
        times = np.arange(given.length - len(given.past), given.length + self._ahead)
        return {
            "past": scaled.astype(np.float32),
            "past_valid": valid,
            "calendar": calendar_of(given.start, series.step, times),
        }


@dataclasses.dataclass(frozen=True)
class ForecastingProcessor(Processor):
    """Processor that reads files with the training columns and returns forecasts in their units.

    Attributes:
      names: names of the channels.
      mean, std: mean and standard deviation of the channels, float64 [C], in the units of the data.
      step: time step; None without time stamps.
      period: number of steps in a season.
      reading: notation of numbers and times in the training file.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    step: Step | None
    period: int
    reading: Reading = dataclasses.field(default_factory=Reading)

    @property
    def input_suffixes(self) -> Sequence[str]:
        """Extensions of tables."""
        return EXTENSIONS

    def assets(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "step": self.step and dataclasses.asdict(self.step),
            "period": self.period,
            "reading": dataclasses.asdict(self.reading),
        }

    @classmethod
    def from_assets(cls, data: Any, model: Any, assets: Mapping[str, Any]) -> ForecastingProcessor:
        """Builds the processor from saved assets; older runs have no "reading"."""
        return cls(
            data,
            model,
            tuple(assets["names"]),
            np.array(assets["mean"], np.float64),
            np.array(assets["std"], np.float64),
            Step(**assets["step"]) if assets["step"] else None,
            assets["period"],
            Reading(**assets.get("reading", {})),
        )

    @property
    def head(self) -> Head:
        """Output head of the model."""
        return HEADS[self.model.head]

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specifications of past, calendar and row weights."""
        size, calendar = (self.data.lookback, len(self.names)), clock.calendar_size(self.step)
        return {
            "past": ArraySpec(("batch", *size), "float32"),
            "past_valid": ArraySpec(("batch", *size), "bool"),
            "calendar": ArraySpec(("batch", "times", calendar), "float32"),
            "weight": ArraySpec(("batch",), "float32"),
        }

    def steps(self) -> ProcessingSteps:
        """Returns the steps before and after an exported model.

        They read tables, and convert outputs to forecasts in the units of the data.
        """
        head, reading = self.head, self.reading
        common = {
            "channels": list(self.names),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "step": self.step and dataclasses.asdict(self.step),
            "horizon": self.data.horizon,
        }
        given = {
            "time": self.data.time_column,
            "lookback": self.data.lookback,
            "steps": max(_EXPORTED) * self.data.horizon,
            "calendar": clock.calendar_size(self.step),
            "clock": reading.clock,
            "grouped": [name for name in self.names if self._has_commas(name)],
        }
        levels = []
        for level in INTERVALS[max(INTERVALS)] if head.probabilistic else ():
            column = head.column(level)
            found = {"level": level, "beyond": LEVELS.index(level)}
            levels.append(found if column is None else {**found, "column": column})
        shape = {"point": head.point_column, "levels": levels}
        return ProcessingSteps(
            "table",
            [{"op": "read_series", **common, **given}],
            [{"op": "forecast", **common, **shape}],
            libraries=() if all("column" in level for level in levels) else ("scipy",),
        )

    def _has_commas(self, name: str) -> bool:
        return "," in (self.data.decimal, self.reading.decimals.get(name))

    def export_sizes(self) -> list[dict[str, int]]:
        """Returns the exported calendar lengths, for forecasts of one, two and four horizons."""
        lookback, horizon = self.data.lookback, self.data.horizon
        return [{"times": lookback + blocks * horizon} for blocks in _EXPORTED]

    @functools.cached_property
    def _inputs(self) -> dict[str, ForecastInput]:
        # A cache, because `decode` and the figures use the inputs that `encode` has read.
        return {}

    def input(self, raw: str) -> ForecastInput:
        """Returns a parsed input; see `read`. Inputs are cached until the next `encode`."""
        if raw not in self._inputs:
            self._inputs[raw] = self.read(raw)
        return self._inputs[raw]

    def read(self, raw: str) -> ForecastInput:
        """Reads an input "FILE", or "FILE,steps=N" to forecast N steps instead of the horizon.

        Raises:
          UserError: N is not a number from 1 to the maximum; or the file cannot be read, lacks a
            channel, has another time step than the training data, or has no value within the
            look-back.
        """
        name, _, steps = re.fullmatch(r"(.*?)(,steps=(.*))?", raw, re.DOTALL).groups()
        if steps is not None and not (steps.isdecimal() and 1 <= int(steps) <= MOST_STEPS):
            raise UserError(
                f"input {raw!r}: got steps={steps}, expected a number from 1 to {MOST_STEPS}"
            )
        data = self.data
        series = read_channels(name, data, self.names, self.step, self.reading)
        past = np.full((data.lookback, len(self.names)), np.nan)
        kept = series.values[-data.lookback :]
        past[data.lookback - len(kept) :] = kept
        if np.isnan(past).all():
            raise UserError(
                f"{name}: has no value within the last {data.lookback} time steps, which are the "
                "model's input"
            )
        return ForecastInput(past, int(steps or data.horizon), series.start, len(series.values))

    def encode(self, raw: Sequence[str]) -> ForecastInputs:
        """Reads files of time series, see `read`."""
        self._inputs.clear()
        return ForecastInputs([self.input(text) for text in raw], self)

    def decode(self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Returns, for each file, the forecast times and a forecast of each channel.

        Values are in the units of the data. A probabilistic forecast has an 80 % interval; beyond
        the horizon, the interval is estimated from sample paths.
        """
        answers = []
        for text, parameters, quantiles in self.forecasts(raw, outputs):
            times = self.input(text).times_ahead(self.step)
            lines = self._lines(parameters, quantiles)
            columns = [f"{name}{mark}" for mark in lines for name in self.names]
            rows = np.concatenate(list(lines.values()), axis=-1)
            answer = {"input": text, "times": times}
            for mark, values in lines.items():
                key = f"level{mark.replace(' ', '_')}" if mark else "forecast"
                by_name = zip(self.names, values.T, strict=True)
                answer[key] = {name: [float(f"{x:.7g}") for x in row] for name, row in by_name}
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(["time" if self.step else "step", *columns])
            for time, row in zip(times, rows, strict=True):
                writer.writerow([time, *(f"{x:.6g}" for x in row)])
            answers.append(answer | {"text": buffer.getvalue().rstrip("\n")})
        return answers

    def forecasts(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
        """Yields the forecast of each input.

        Yields:
          The input; the parameters [S, C, P]; and the quantiles at `LEVELS`, [S, C, Q], or None for
          a point forecast.
        """
        for index, text in enumerate(raw):
            parameters, quantiles = outputs["parameters"][index], None
            steps = self.input(text).steps
            if self.head.probabilistic:
                quantiles = self.head.quantiles(parameters[: self.data.horizon], LEVELS)
                if "beyond" in outputs:
                    quantiles = np.concatenate([quantiles, outputs["beyond"][index]])
                quantiles = quantiles[:steps]
            yield text, parameters[:steps], quantiles

    def _lines(self, parameters: np.ndarray, quantiles: np.ndarray | None) -> dict[str, np.ndarray]:
        """Returns the values of the printed columns, [S, C] each, in the units of the data.

        The key "" has the point forecast. The other keys are levels after a space, such as " 0.1",
        and have the bounds of the interval.
        """
        found = {"": np.asarray(self.head.point(parameters)) * self.std + self.mean}
        if quantiles is not None:
            for level in INTERVALS[max(INTERVALS)]:
                found[f" {level:g}"] = quantiles[..., LEVELS.index(level)] * self.std + self.mean
        return found
