"""Series in three splits and their windows: built-in data sets or user files.

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, and
K the number of calendar features.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.configs import LATER, Config, PositiveInt, at_least, known_names, within
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.sources import fetch
from tasks.common.data.splits import SPLITS, SplitSummary
from tasks.common.data.timestamps import DATE_ORDERS
from tasks.common.data.user_files import expect_one_of, results_name
from tasks.common.errors import UserError, say
from tasks.forecasting import timestamps as clock
from tasks.forecasting.datasets import DATA_SETS, SHARES
from tasks.forecasting.numbers import DECIMALS
from tasks.forecasting.timestamps import Step
from tasks.forecasting.user_files import NO_TIMES, Reading, Series, read_series, read_splits


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Config of the series, the look-back and the horizon.

    Attributes:
      name: name of a built-in data set. With `path`, name under which results are stored,
        own_<file> by default.
      path: user file with a header, a column of times and columns of numbers: CSV separated by
        commas, semicolons or tabs, or JSON lines (.jsonl). Or it is a folder or glob pattern of
        files of consecutive times, or three paths for train, validation and test, separated by
        commas. Times may be written as 2024-05-31T13:00+02:00, 31.05.2024 13:00, 05/31/2024,
        "May 31, 2024", 2024-05, 2024-Q2, 2024-W22 or 20240531, or be numbers since 1970 (seconds to
        nanoseconds). Times with a UTC offset are read in local time if the step is a day or more.
      time_column: time column of the user file. "" means the first column named date, time,
        timestamp, datetime or ds. If there is none, it means the first column of the file, if that
        column has times and no name. "none" means that the file has no times and that its rows are
        one step apart.
      targets: columns to forecast; empty for all columns with numbers.
      lookback: L, number of steps that the model receives.
      horizon: F, number of steps that the model forecasts.
      split: relative sizes of train, validation and test of a user file, in the order of time;
        empty for 7, 1, 2.
      step: seconds between the times of a user file; 0 for their median difference.
      period: steps in a season, for the seasonal naive forecast and MASE; 0 for the period of the
        data set. The period of a user file is a day for steps below a day, a week for steps of a
        day, and a year for steps of weeks or months.
      noise_levels: standard deviations of Gaussian noise that is added to the standardized
        look-backs of the test split; each level gives a metric mse_noise_<level>.
      decimal: decimal mark of the user file, "." or ","; "" to detect it for each column.
      date_order: "dmy" or "mdy", the order of day and month in dates such as 01/02/2024 of the user
        file; "" to detect it from the column. An ambiguous column is then an error.
    """

    name: known_names(*DATA_SETS) = "etth1"
    path: str | None = None
    time_column: str = ""
    targets: tuple[str, ...] = ()
    lookback: PositiveInt = 336
    horizon: PositiveInt = 96
    split: tuple[float, ...] = ()
    step: within("[0, inf)", "seconds, or 0") = 0.0
    period: at_least(0) = 0
    noise_levels: tuple[float, ...] = dataclasses.field(default=(), metadata={"formerly": "noise"})
    decimal: str = dataclasses.field(default="", metadata=LATER)
    date_order: str = dataclasses.field(default="", metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        positive = len(self.split) in (0, 3) and all(part > 0 for part in self.split)
        self.expect("split", positive, "three fractions above 0")
        finite = all(0 < level < math.inf for level in self.noise_levels)
        self.expect("noise_levels", finite, "levels above 0")
        expect_one_of("decimal", self.decimal, DECIMALS)
        expect_one_of("date_order", self.date_order, DATE_ORDERS)
        name = results_name(self.name, DATA_SETS, self.path, "; set path to read a user file")
        object.__setattr__(self, "name", name)
        for field in ("time_column", "split", "step", "decimal", "date_order"):
            if self.path is None and getattr(self, field):
                raise ValueError(
                    f"{field}: got a value, but the data set {name} defines it; "
                    f"set it only together with path"
                )


class Windows:
    """Random access to windows of a series.

    An example has "past" float32 [L, C], 0 where missing, and "past_valid" bool [L, C]; "future"
    and "future_valid" [F, C] likewise; and "calendar" float32 [L + F, K]. If there are noise
    levels, it also has standard normal "noise" float32 [L, C], which is multiplied by a level and
    added to the past.

    Attributes:
      origins: int64 [n], index in the series of the first forecast step of each window.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(self, data: ForecastingData, origins: np.ndarray, noisy: bool):
        self._data, self.origins, self._noisy = data, origins, noisy

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        data, origin = self._data, int(self.origins[index])
        past = slice(origin - data.lookback, origin)
        future = slice(origin, origin + data.horizon)
        example = {
            "past": data.series[past],
            "past_valid": data.valid[past],
            "future": data.series[future],
            "future_valid": data.valid[future],
            "calendar": data.calendar[past.start : future.stop],
        }
        if self._noisy:
            example["noise"] = self.noise(index)
        return example

    def noise(self, index: int) -> np.ndarray:
        """Returns fixed standard normal noise of a window, float32 [L, C]."""
        rng = np.random.default_rng((0, index))
        shape = (self._data.lookback, self._data.series.shape[1])
        return rng.standard_normal(shape, np.float32)


@dataclasses.dataclass(frozen=True)
class ForecastingData(digests.Fingerprinted):
    """A series on a regular grid, standardized by the valid values of its training split.

    Attributes:
      series: standardized values, float32 [time, C], 0 where missing.
      valid: bool [time, C], False where missing.
      calendar: float32 [time, K]; K = 0 without time stamps.
      names: names of the channels.
      mean, std: mean and standard deviation in the training split, float64 [C], in the units of the
        data.
      start, step: start and step of the grid; None without time stamps.
      period: number of steps in a season.
      bounds: start and end index of each split. The look-back of validation and test windows may
        extend into the previous split; the forecast steps of a window are in one split.
      lookback: L, number of steps of the look-back.
      horizon: F, number of forecast steps.
      noise: noise levels; empty for no noise.
      reading: notation of numbers and times in the file.
    """

    series: np.ndarray
    valid: np.ndarray
    calendar: np.ndarray
    names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    start: np.datetime64 | None
    step: Step | None
    period: int
    bounds: Mapping[str, tuple[int, int]]
    lookback: int
    horizon: int
    noise: tuple[float, ...] = ()
    reading: Reading = dataclasses.field(default_factory=Reading)

    def origins(self, split: str) -> np.ndarray:
        """Returns the index of the first forecast step of each window of a split, int64 [n].

        Windows without any value in the look-back or in the horizon are omitted.
        """
        first, end = self.bounds[split]
        every = np.arange(max(first, self.lookback), end - self.horizon + 1)
        counts = np.concatenate([[0], np.cumsum(self.valid.any(axis=1))])
        seen = counts[every] - counts[every - self.lookback]
        ahead = counts[every + self.horizon] - counts[every]
        return every[(seen > 0) & (ahead > 0)]

    @functools.cached_property
    def splits(self) -> dict[str, Windows]:
        """Windows of each split: those with a value in the look-back and a value in the horizon."""
        return {
            split: Windows(self, self.origins(split), bool(self.noise) and split == "test")
            for split in SPLITS
        }

    def summary(self) -> dict[str, SplitSummary]:
        """Returns the number of windows of each split, and the number of omitted windows."""
        found = {}
        for split in SPLITS:
            first, end = self.bounds[split]
            every = end - self.horizon + 1 - max(first, self.lookback)
            used = len(self.origins(split))
            found[split] = SplitSummary(
                used,
                unit="windows",
                ignored=max(every, 0) - used,
                ignored_as="without values in the look-back or in the horizon",
            )
        return found

    @functools.cached_property
    def seasonal_error(self) -> np.ndarray:
        """Mean absolute error of the seasonal naive forecast in the training split, float64 [C].

        It is the divisor of MASE (Hyndman & Koehler 2006), and NaN for a channel without two valid
        values one season apart.
        """
        first, end = self.bounds["train"]
        later = slice(min(first + self.period, end), end)
        earlier = slice(first, max(end - self.period, first))
        both = self.valid[later] & self.valid[earlier]
        error = np.abs(self.series[later].astype(np.float64) - self.series[earlier]) * both
        with np.errstate(invalid="ignore"):
            return error.sum(axis=0) / both.sum(axis=0)

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        # Statistics are rounded, because the last digits of sums depend on the CPU.
        scales = [f"{value:.9e}" for value in (*self.mean, *self.std)]
        windows = (self.bounds, self.lookback, self.horizon, self.noise)
        return {
            "channels": digests.of_rows(self.names),
            "values": digests.of_rows(np.concatenate([self.series, self.valid], axis=1)),
            "scales": digests.of_rows(scales),
            "times": digests.of_rows([(self.start, self.step, self.period)]),
            "splits and windows": digests.of_rows([windows]),
        }


def load(config: DataConfig, paths: Paths) -> ForecastingData:
    """Reads a series and its splits; a built-in series is downloaded first if necessary.

    Raises:
      UserError: a file or source cannot be read, or a split is too short for one window.
    """
    if config.path is not None:
        step = Step(seconds=config.step) if config.step else None
        series, counts = read_splits(
            config.path,
            config.time_column,
            config.targets,
            step,
            decimal=config.decimal,
            date_order=config.date_order,
        )
        if counts is not None and config.split:
            raise UserError(
                f"config.data.split: got {config.split}, but --data has a file for each split; "
                f"remove the setting"
            )
        period = series.step.period if series.step else 1
    else:
        builtin = DATA_SETS[config.name]
        series = builtin.read(fetch(builtin.source, paths) if builtin.source else None)
        series = _select_targets(series, config)
        counts, period = builtin.splits, builtin.period
    if counts is None:
        counts = _split_sizes(len(series.values), config.split or SHARES)
    return _standardize(series, _bounds(counts, config), config.period or period, config)


def read_channels(
    file: str, config: DataConfig, names: Sequence[str], step: Step | None, reading: Reading
) -> Series:
    """Reads the channels of a run from another file.

    Args:
      file: file with the channels.
      config: config of the run.
      names: channels of the run.
      step: time step of the run; None for a series without times.
      reading: notation of numbers and times in the training file.

    Raises:
      UserError: the file cannot be read, lacks a channel, or has another time step.
    """
    return read_series(
        file,
        config.time_column or ("" if step else NO_TIMES),
        names,
        step,
        trained=True,
        decimal=config.decimal,
        date_order=config.date_order,
        likely=reading,
    )


def read_labeled(
    file: str, config: DataConfig, fitted: ForecastingData, reading: Reading
) -> ForecastingData:
    """Reads a series as the test split, standardized by the run's mean and standard deviation.

    Args:
      file: file with the channels of the run.
      config: config of the run.
      fitted: data with the names, scales, step and period of the run; its series is not used.
      reading: notation of numbers and times in the training file.

    Raises:
      UserError: the file cannot be read, or is too short for one window.
    """
    series = read_channels(file, config, fitted.names, fitted.step, reading)
    end, valid = len(series.values), ~np.isnan(series.values)
    data = dataclasses.replace(
        fitted,
        series=np.where(valid, (series.values - fitted.mean) / fitted.std, 0).astype(np.float32),
        valid=valid,
        calendar=calendar_of(series.start, fitted.step, np.arange(end)),
        start=series.start,
        bounds={"train": (0, 0), "validation": (0, 0), "test": (0, end)},
    )
    if not len(data.origins("test")):
        raise UserError(
            f"{file}: has {end} time steps, expected at least {config.lookback + config.horizon} "
            "for look-back and horizon, with a value in the look-back and one in the horizon"
        )
    return data


def _select_targets(series: Series, config: DataConfig) -> Series:
    """Returns a built-in series with the channels in `config.targets`; with all if it is empty."""
    if not config.targets:
        return series
    for name in config.targets:
        if name not in series.names:
            known = ", ".join(series.names)
            raise UserError(
                f"config.data.targets: got {name!r}, expected channels of {config.name}: {known}"
            )
    indices = [series.names.index(name) for name in config.targets]
    return dataclasses.replace(series, values=series.values[:, indices], names=config.targets)


def _split_sizes(count: int, fractions: tuple[float, ...]) -> tuple[int, int, int]:
    """Returns the sizes of the splits, with train and test rounded down (Wu et al. 2021)."""
    train, _, test = (int(count * part / sum(fractions) + 1e-9) for part in fractions)
    return train, count - train - test, test


def _bounds(counts: tuple[int, int, int], config: DataConfig) -> dict[str, tuple[int, int]]:
    ends = np.cumsum([0, *counts]).tolist()
    bounds = {split: (ends[i], ends[i + 1]) for i, split in enumerate(SPLITS)}
    for split, (first, end) in bounds.items():
        needed = config.horizon + config.lookback * (split == "train")
        if end - first < needed:
            of_what = "look-back and horizon take" if split == "train" else "the horizon takes"
            raise UserError(
                f"config.data: the {split} split has {end - first} time steps, but {of_what} "
                f"{needed}; lower config.data.lookback or config.data.horizon, or provide a "
                f"longer series"
            )
    return bounds


def _standardize(
    series: Series, bounds: Mapping[str, tuple[int, int]], period: int, config: DataConfig
) -> ForecastingData:
    end = bounds["test"][1]
    values = series.values[:end]
    valid = ~np.isnan(values)
    train = slice(*bounds["train"])
    for split, (first, last) in bounds.items():
        empty = np.flatnonzero(~valid[first:last].any(axis=0)).tolist()
        if empty and split == "train":
            raise UserError(
                f"config.data: {series.names[empty[0]]!r} has no value in the train split; "
                f"exclude it with --label"
            )
        if empty:
            names = ", ".join(series.names[channel] for channel in empty)
            say(f"config.data: columns without a value in the {split} split: {names}")
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = np.nanmean(values[train], axis=0), np.nanstd(values[train], axis=0)
    if (large := np.flatnonzero(~np.isfinite(mean + std))).size:
        channel = large[0]
        raise UserError(
            f"config.data: {series.names[channel]!r} has values up to "
            f"{np.nanmax(np.abs(values[train, channel])):.3g}, too large to be squared; rescale "
            f"the column"
        )
    # Constant channels. Rounding errors may give them a small standard deviation above 0.
    still = std <= 1e-9 * np.abs(mean)
    if still.any():
        names = ", ".join(np.array(series.names)[still])
        say(f"config.data: columns that are constant in the train split: {names}")
    std = np.where(still, 1.0, std)
    scaled = np.where(valid, (values - mean) / std, 0).astype(np.float32)
    data = ForecastingData(
        series=scaled,
        valid=valid,
        calendar=calendar_of(series.start, series.step, np.arange(end)),
        names=series.names,
        mean=mean,
        std=std,
        start=series.start,
        step=series.step,
        period=period,
        bounds=bounds,
        lookback=config.lookback,
        horizon=config.horizon,
        noise=tuple(config.noise_levels),
        reading=series.reading,
    )
    for split in SPLITS:
        if not len(data.origins(split)):
            raise UserError(
                f"config.data: no window of the {split} split has a value in the look-back and a "
                "value in the horizon; increase config.data.lookback or config.data.horizon, or "
                "provide a series with fewer missing values"
            )
    return data


def calendar_of(start: np.datetime64 | None, step: Step | None, times: np.ndarray) -> np.ndarray:
    """Returns the calendar features of the times at n grid indices.

    Args:
      start: first time of the grid; None without time stamps.
      step: step of the grid; None without time stamps.
      times: indices of times in the grid, int [n].

    Returns:
      float32 [n, K], with K = 0 without time stamps.
    """
    if step is None:
        return np.zeros((len(times), 0), np.float32)
    return clock.calendar(clock.stamps(start, step, times), step)
