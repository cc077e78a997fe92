"""Time stamps on a regular grid, and calendar features.

A time stamp is a `datetime64[us]` without a time zone. Stamps of a column with a time zone are
converted to UTC. They are converted to local time instead if the step is a day or more, or if they
are regular only in local time; see `on_clock`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tasks.common.data.timestamps import TimeColumn, Times

DAY = 86_400.0
UTC, LOCAL = "utc", "local"
_SHORTEST_MONTH = np.timedelta64(28, "D")
# Shift of midnight due to daylight saving time.
_SAVING = np.timedelta64(1, "h")
# Usual units of steps in seconds, and the maximum difference between the median step and a round
# step, as a fraction of the median step.
_ROUND = (DAY, 3600, 900, 300, 60, 30, 10, 5, 1)
_JITTER = 0.02


@dataclasses.dataclass(frozen=True)
class Step:
    """Step of a regular grid, in seconds or in whole months.

    Attributes:
      seconds: step in seconds; 0 if the step is in months.
      months: step in months; 0 if the step is in seconds.
      ends: whether the stamps are on the last days of months.
    """

    seconds: float = 0.0
    months: int = 0
    ends: bool = False

    def __str__(self) -> str:
        if self.months:
            return "month" if self.months == 1 else f"{self.months} months"
        for name, size in (("d", DAY), ("h", 3600.0), ("min", 60.0)):
            if self.seconds >= size and self.seconds % size == 0:
                return f"{self.seconds / size:g} {name}"
        return f"{self.seconds:g} s"

    @property
    def days(self) -> float:
        """Approximate length of the step in days."""
        return self.months * 30.4 if self.months else self.seconds / DAY

    @property
    def period(self) -> int:
        """Number of steps in a season.

        A season is a day for steps below a day, a week for steps of a day, and a year for steps of
        a week or of months. For other steps the number is 1."""
        if self.months:
            return max(12 // self.months, 1)
        if self.days < 1:
            return max(round(1 / self.days), 1)
        return {1: 7, 7: 52}.get(round(self.days), 1)


def read_time(text: str) -> np.datetime64:
    """Parses a single time stamp in UTC.

    Raises:
      ValueError: the text is not a time, or day and month are ambiguous.
    """
    column = TimeColumn()
    column.add(text)
    found = column.read()
    if found.is_order or found.date_order:
        raise ValueError(f"{text!r} is not a time")
    return found.utc[0]


def on_clock(found: Times, known: str = "", step: Step | None = None) -> tuple[np.ndarray, str]:
    """Returns the stamps of a column in UTC or in local time.

    Local time is chosen if the stamps are more regular in local time than in UTC. An example is
    local midnights across a change to daylight saving time. It is also chosen for steps of a day or
    more unless UTC is more regular, so that calendar features refer to local days.

    Args:
      found: times of the column.
      known: "utc" or "local", the choice for an earlier file; empty to choose by the rules above.
      step: step of the grid; None for the median difference.

    Returns:
      Stamps datetime64[us] [n]; and "utc", "local", or "" for a column without UTC offsets.
    """
    if found.offset is None or not found.offset.any():
        return found.utc, ""
    stamps_of = {UTC: found.utc, LOCAL: found.local}
    if not known:
        off = {clock: _off_grid(stamps, step) for clock, stamps in stamps_of.items()}
        own = step or _step_of(found.local)
        daily = own is not None and own.days > 0.99
        known = LOCAL if off[LOCAL] < off[UTC] + daily else UTC
    return stamps_of[known], known


def _step_of(times: np.ndarray) -> Step | None:
    times = np.unique(times)
    return regular_step(times) if len(times) > 1 else None


def _off_grid(times: np.ndarray, step: Step | None) -> int:
    """Returns the number of stamps that are off the regular grid or repeated."""
    several = np.unique(times)
    if len(several) < 2:
        return 0
    step = step or regular_step(several)
    indices = grid_index(several, several[0], step)
    off = stamps(several[0], step, indices) != several
    return int(off.sum()) + len(times) - len(several)


def regular_step(times: np.ndarray) -> Step:
    """Returns the step of ascending stamps [n], n > 1, which is the lower median difference.

    The step is in months if all stamps are at the same time of their month, within an hour. If
    readings are delayed, the median may be, for example, 3601 s, and the stamps drift from its
    grid. Therefore a round step near the median is used if the stamps are closer to the grid of
    that step.
    """
    gaps = np.diff(times)
    if gaps.min() >= _SHORTEST_MONTH:
        months = _months(times)
        step = int(_median(np.diff(months)))
        for ends in (False, True):
            within = times - _month_starts(months + ends)
            if np.ptp(within) <= _SAVING and within.min() >= -np.timedelta64(1, "D"):
                return Step(months=step, ends=ends)
    median = Step(seconds=float(_median(gaps.astype(np.int64)) / 1e6))
    # The median comes first, so `min` returns it in case of a tie.
    return min([median, *_round_steps(median)], key=lambda step: _distance(times, step))


def _round_steps(step: Step) -> list[Step]:
    near = {round(step.seconds / unit) * unit for unit in _ROUND}
    kept = sorted(each for each in near if abs(each - step.seconds) <= _JITTER * step.seconds)
    return [Step(seconds=float(each)) for each in kept if each]


def _distance(times: np.ndarray, step: Step) -> float:
    """Returns the total distance, in seconds, of stamps to a grid that begins at the first one."""
    grid = stamps(times[0], step, grid_index(times, times[0], step))
    return float(np.abs((times - grid).astype(np.int64)).sum() / 1e6)


def grid_index(times: np.ndarray, start: np.datetime64, step: Step) -> np.ndarray:
    """Returns the index of the grid time nearest to each stamp, int64 [n]; 0 is `start`."""
    if step.months:
        return np.rint((_months(times) - _months(start)) / step.months).astype(np.int64)
    return np.rint((times - start).astype(np.int64) / (step.seconds * 1e6)).astype(np.int64)


def stamps(start: np.datetime64, step: Step, indices: np.ndarray) -> np.ndarray:
    """Returns the time stamps at n indices of a grid, datetime64[us] [n]."""
    indices = np.asarray(indices, np.int64)
    if not step.months:
        return start + np.rint(indices * (step.seconds * 1e6)).astype("timedelta64[us]")
    months = _months(start) + indices * step.months + step.ends
    return _month_starts(months) + (start - _month_starts(_months(start) + step.ends))


def format_times(times: np.ndarray) -> list[str]:
    """Formats stamps as dates, with times to the second or finer if needed."""
    times = np.atleast_1d(times)
    unit = next(
        (unit for unit in "Ds" if np.all(times.astype(f"datetime64[{unit}]") == times)), "us"
    )
    return [str(text).replace("T", " ") for text in np.datetime_as_string(times, unit)]


def calendar_size(step: Step | None) -> int:
    """Returns the number K of features that `calendar` computes for a step."""
    if step is None:
        return 0
    return next(size for size, days in ((5, 1 / 24), (4, 1), (3, 7), (1, 1e9)) if step.days < days)


def calendar(times: np.ndarray, step: Step) -> np.ndarray:
    """Computes positions within hour, day, week, month and year (Zhou et al. 2021, Informer).

    Args:
      times: n time stamps.
      step: step of the grid of stamps. Features with a unit finer than the step are omitted.

    Returns:
      float32 [n, K], each from -0.5 to 0.5. The features are the last K of: minute of the hour,
      hour of the day, day of the week, day of the month, day of the year.
    """
    day = times.astype("datetime64[D]")
    second = (times - day).astype(np.int64) / 1e6
    month, year = times.astype("datetime64[M]"), times.astype("datetime64[Y]")
    columns = [
        second // 60 % 60 / 59,
        second // 3600 / 23,
        # Day 0, 1 January 1970, was a Thursday; weeks start on Monday.
        (day.astype(np.int64) + 3) % 7 / 6,
        (day - month.astype("datetime64[D]")).astype(np.int64) / 30,
        (day - year.astype("datetime64[D]")).astype(np.int64) / 365,
    ]
    return np.stack(columns[-calendar_size(step) :], axis=-1).astype(np.float32) - np.float32(0.5)


def _median(numbers: np.ndarray) -> np.ndarray:
    return np.sort(numbers)[(len(numbers) - 1) // 2]


def _months(times: np.ndarray) -> np.ndarray:
    """Returns months since January 1970."""
    return np.asarray(times).astype("datetime64[M]").astype(np.int64)


def _month_starts(months: np.ndarray) -> np.ndarray:
    return np.asarray(months, np.int64).astype("datetime64[M]").astype("datetime64[us]")
