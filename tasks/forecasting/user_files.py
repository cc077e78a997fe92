"""Reading of series from user files: tables with a time column, put on a regular grid.

CSV with a header, separated by commas, semicolons or tabs, or JSON lines: see
`tasks.common.data.tables`. Times are parsed by `tasks.common.data.timestamps`, numbers by
`tasks.forecasting.numbers`. Missing values remain missing. Assumptions about the notation, and
messages about omitted data, are printed on standard error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.data.own import OwnData, files_of, split_files
from tasks.common.data.splits import SPLITS
from tasks.common.errors import UserError
from tasks.forecasting import timestamps as clock
from tasks.forecasting.cells import (
    NO_TIMES,
    TIME_COLUMNS,
    Cells,
    Reading,
    clocked,
    find_time_column,
    read_cells,
    read_columns,
    read_times,
    say,
)
from tasks.forecasting.timestamps import Step

__all__ = ["NO_TIMES", "TIME_COLUMNS", "Reading", "Series", "read_series"]

# Number of grid times per row above which the step is considered wrong.
_SPARSE = 100
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Series:
    """Values at the times of a regular grid.

    Attributes:
      values: float64 [time, C], NaN where missing.
      names: names of the channels.
      start: first time stamp; None without time stamps.
      step: step of the grid; None without time stamps.
      reading: notation of numbers and times in the file.
    """

    values: np.ndarray
    names: tuple[str, ...]
    start: np.datetime64 | None = None
    step: Step | None = None
    reading: Reading = dataclasses.field(default_factory=Reading)


OWN_DATA = OwnData(
    "a table with a column of times and columns of numbers (CSV, TSV or JSON lines), or a "
    "folder or glob pattern of tables of consecutive times",
    {"time": "time_column", "label": "targets"},
    several=("label",),
)


def read_splits(path: str, *given: Any, **options: Any) -> tuple[Series, tuple[int, ...] | None]:
    """Reads the series of one or more files, and the sizes of splits that have their own files.

    Args:
      path: file, folder or glob pattern, whose files are joined in the order of time. Three of
        them, separated by commas, are train, validation and test.
      *given: further arguments of `read_series`.
      **options: options of `read_series`.

    Returns:
      The series; and the numbers of times of train, validation and test, or None if the splits have
      no files of their own. Times between the files of two splits belong to the earlier split.

    Raises:
      UserError: as for `read_series`; or the files have different columns or steps, or overlap in
        time.
    """
    files = split_files(path)
    parts: dict[str, Series] = {}
    for split, name in files.items():
        mine = {file: read_series(file, *given, **options) for file in files_of(name)}
        by_time = sorted(mine.items(), key=lambda part: _start(part[1]))
        parts[split] = _joined(dict(by_time))[0] if len(mine) > 1 else by_time[0][1]
    if len(parts) == 1:
        return parts["train"], None
    if len(parts) != len(SPLITS):
        raise UserError(
            f"--data: got files of {' and '.join(parts)}, expected files of all three splits"
        )
    series, starts = _joined({files[split]: part for split, part in parts.items()})
    return series, tuple(np.diff([*starts, len(series.values)]).tolist())


def _start(series: Series) -> float:
    return 0.0 if series.start is None else float(series.start.astype("datetime64[us]").astype(int))


def _joined(parts: Mapping[str, Series]) -> tuple[Series, list[int]]:
    """Joins consecutive series.

    Args:
      parts: series by file, in the order of time.

    Returns:
      The joined series, and the index at which each of `parts` begins in it.
    """
    (first, base), *others = parts.items()
    values, starts, names = [base.values], [0], base.names
    for name, series in others:
        length = sum(map(len, values))
        if set(series.names) != set(names):
            raise UserError(
                f"--data: {name} has the columns {', '.join(series.names)}, expected "
                f"{', '.join(names)} as in {first}"
            )
        if series.step != base.step:
            raise UserError(
                f"--data: {name} has the step {series.step}, expected {base.step} as in {first}; "
                f"set config.data.step to the step in seconds"
            )
        begin = length
        if base.start is not None and base.step is not None and series.start is not None:
            begin = int(clock.grid_index(np.array([series.start]), base.start, base.step)[0])
        if begin < length:
            raise UserError(
                f"--data: {name} begins before an earlier file ends; give files of consecutive "
                "times, or one file"
            )
        if begin > length:
            say(
                f"{name}: {begin - length} times between the previous file and this one have no "
                "row; they are masked"
            )
        values.append(np.full((begin - length, len(names)), np.nan))
        values.append(series.values[:, [series.names.index(column) for column in names]])
        starts.append(begin)
    return dataclasses.replace(base, values=np.concatenate(values)), starts


def read_series(
    name: str,
    time_column: str = "",
    targets: Sequence[str] = (),
    step: Step | None = None,
    *,
    trained: bool = False,
    decimal: str = "",
    date_order: str = "",
    likely: Reading | None = None,
) -> Series:
    """Reads the series of a file.

    Args:
      name: name of the file.
      time_column, targets: see `tasks.forecasting.data.DataConfig`.
      step: step of the grid; None for the median difference of the times.
      trained: whether the file is the input of a trained model. Its times must then have the step
        `step`.
      decimal, date_order: see `tasks.forecasting.data.DataConfig`.
      likely: notation of the training file, which resolves ambiguous cells.

    Raises:
      UserError: the file cannot be read, a column is missing, a cell is neither a number nor
        missing, the notation of a column is ambiguous, or rows with the same time have different
        values.
    """
    table = read_cells(name, [*targets, *filter(None, [time_column])])
    stamped = find_time_column(table, time_column, trained)
    before = likely or Reading()
    values, names, decimals = read_columns(table, targets, stamped, decimal, before, trained)
    if stamped is None:
        series = Series(values, names, reading=Reading(decimals))
    else:
        found = read_times(table, stamped, date_order, before.date_order, trained)
        times, on = clocked(table, stamped, found, likely, step)
        values, times = _in_order(table, values, times)
        if trained:
            _expect_step(name, times, step)
        series = _on_grid(name, values, names, times, step)
        reading = Reading(decimals, found.date_order, on)
        series = dataclasses.replace(series, reading=reading)
    _report_missing(name, series, values, table)
    return series


def _in_order(table: Cells, values: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorts rows by time, and removes repeated rows."""
    order = np.argsort(times, kind="stable")
    if np.any(order != np.arange(len(order))):
        late = table.lines[1 + int(np.argmax(np.diff(times) < np.timedelta64(0, "us")))]
        say(f"{table.name}: rows are not in the order of time from line {late} on; they are sorted")
    values, times = values[order], times[order]
    lines = np.array(table.lines)[order]
    again = np.flatnonzero(times[1:] == times[:-1]) + 1
    for row in again:
        if not np.array_equal(values[row], values[row - 1], equal_nan=True):
            raise UserError(
                f"{table.name}: lines {lines[row - 1]} and {lines[row]} have the same time, "
                f"{clock.format_times(times[row])[0]}, but different values; remove one, use a "
                f"separate column for each series, or join date and time in one "
                f"time column{_set_back(times)}"
            )
    if len(again):
        say(
            f"{table.name}: {len(again)} rows are repeated, the first is line {lines[again[0]]}"
            f"{_set_back(times[again])}"
        )
    return np.delete(values, again, axis=0), np.delete(times, again)


def _set_back(times: np.ndarray) -> str:
    """Returns a hint for hours that may be repeated at the end of daylight saving time."""
    hours = (times - times.astype("datetime64[D]")) / np.timedelta64(1, "h")
    night = np.any((hours > 0) & (hours < 4))
    return "; if the clock was set back there, write times with a UTC offset" if night else ""


def _expect_step(name: str, times: np.ndarray, step: Step) -> None:
    # With fewer rows, the median difference may be a gap.
    if len(times) > 3:
        own = clock.regular_step(times)
        if not 0.99 < own.days / step.days < 1.01:
            raise UserError(
                f"{name}: the median difference of times is {own}, expected {step} as in training; "
                "provide rows with this step"
            )


def _on_grid(
    name: str, values: np.ndarray, names: tuple[str, ...], times: np.ndarray, step: Step | None
) -> Series:
    if step is None:
        if len(times) < 2:
            raise UserError(
                f"{name}: got a single time, expected two or more to infer the step; add rows, or "
                "set config.data.step to the step in seconds"
            )
        step = clock.regular_step(times)
    start = times[0]
    indices = clock.grid_index(times, start, step)
    spelled = clock.format_times(times)
    if np.any(same := indices[1:] == indices[:-1]):
        row = int(np.argmax(same))
        raise UserError(
            f"{name}: {spelled[row]} and {spelled[row + 1]} are closer than half a step of "
            f"{step}; set the step in seconds with config.data.step, or provide rows that are a "
            f"step apart"
        )
    cells = int(indices[-1]) + 1
    if cells > _SPARSE * len(times):
        raise UserError(
            f"{name}: got {len(times)} rows, but the times span {cells} steps of {step}; check the "
            "first and the last time, or set config.data.step to the step in seconds"
        )
    grid = np.full((cells, values.shape[1]), np.nan)
    grid[indices] = values
    where = clock.stamps(start, step, indices)
    if uneven := np.flatnonzero(where != times).tolist():
        shown = ", ".join(spelled[row] for row in uneven[:_SHOWN])
        say(
            f"{name}: {len(uneven)} of {len(times)} times are not on a grid with the step {step} "
            f"({shown}{', ...' * (len(uneven) > _SHOWN)}); they are moved to the nearest grid time"
        )
    if gaps := np.flatnonzero(np.diff(indices) > 1).tolist():
        after = ", ".join(spelled[row] for row in gaps[:_SHOWN])
        say(
            f"{name}: {cells - len(times)} of the {cells} times of the grid with the step "
            f"{step} have no row (after {after}{', ...' * (len(gaps) > _SHOWN)}); they are masked"
        )
    return Series(grid, names, start, step)


def _report_missing(name: str, series: Series, rows: np.ndarray, table: Cells) -> None:
    """Prints the number of missing cells of each column."""
    missing = np.isnan(rows).sum(axis=0)
    if not missing.any():
        return
    counts = [
        f"{column} {count}" for column, count in zip(series.names, missing, strict=True) if count
    ]
    say(
        f"{name}: {int(missing.sum())} of {rows.size} values are missing ({', '.join(counts[:8])}"
        f"{', ...' * (len(counts) > 8)}); they are masked"
    )
