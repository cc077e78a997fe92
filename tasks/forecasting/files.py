"""A user's series: a table with a time column, put on a regular grid.

CSV with a header, separated by commas, semicolons or tabs, or JSON lines: see
`tasks.common.tables`. Times are those of `tasks.common.timestamps`, numbers those of
`tasks.forecasting.numbers`. What is missing stays missing; what was assumed or left out is named on
standard error.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.tables import no_column, open_table, say_once, text_value
from tasks.common.timestamps import TimeColumn, TimeError, Times, looks_like_times
from tasks.forecasting import times as clock
from tasks.forecasting.numbers import (
    DECIMAL_KEY,
    Column,
    Convention,
    NumberError,
    grouped_by_points,
    plain_number,
    read_numbers,
)
from tasks.forecasting.times import Step

TIME_COLUMNS = ("date", "time", "timestamp", "datetime", "ds")
NO_TIMES = "none"
# Cells of a grid for each row, from which on the step is taken for a mistake.
_SPARSE = 100
_SHOWN = 3
_CLOCKS = {clock.UTC: "UTC", clock.LOCAL: "local time"}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the cells of a file were read, and how a later file is if it leaves that open.

    Attributes:
      decimals: the decimal mark by column, of columns that are not written as Python does.
      date_order: "dmy" or "mdy" if day and month stand as numbers before the year.
      clock: "utc" or "local" for times with a UTC offset.
    """

    decimals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date_order: str = ""
    clock: str = ""


@dataclasses.dataclass(frozen=True)
class Series:
    """Values at the times of a regular grid.

    Attributes:
      values: float64 [time, C], NaN where there is none.
      names: of the channels.
      start: stamp of the first time; None where there are no stamps.
      step: of the grid; likewise.
      reading: of the file.
    """

    values: np.ndarray
    names: tuple[str, ...]
    start: np.datetime64 | None = None
    step: Step | None = None
    reading: Reading = dataclasses.field(default_factory=Reading)


@dataclasses.dataclass(frozen=True)
class _Table:
    """Rows of text, each with the number of its line."""

    name: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        place = self.header.index(name)
        return [row[place] for row in self.rows]


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
    """The series of a file.

    Args:
      name: of the file.
      time_column: its header; "": the first that is called as TIME_COLUMNS, or a first one without
        a name; "none": there is none, and rows are one step apart.
      targets: columns to be forecast; none named: all that hold numbers.
      step: of the grid; None: what most rows are apart.
      trained: whether a model knows this step alone, so that rows must be as far apart.
      decimal: the decimal mark, "." or ","; empty: found from each column.
      date_order: "dmy" or "mdy" for dates such as 01/02/2024; empty: found from the column.
      likely: how the file was read that the model was trained on, for what this one leaves open.

    Raises:
      UserError: the file cannot be read, a column is missing, a cell is neither a number nor
        missing, a column can be read in two ways, or rows contradict each other; the line is named
        where there is one.
    """
    table = _read_table(name, [*targets, *filter(None, [time_column])])
    stamped = _time_column(table, time_column)
    before = likely or Reading()
    values, names, decimals = _numbers(table, targets, stamped, decimal, before)
    if stamped is None:
        series = Series(values, names, reading=Reading(decimals))
    else:
        found = _times(table, stamped, date_order, before.date_order)
        times, on = _clock(table, stamped, found, likely, step)
        values, times = _in_order(table, values, times)
        if trained:
            _expect_step(name, times, step)
        series = _on_grid(name, values, names, times, step)
        reading = Reading(decimals, found.date_order, on)
        series = dataclasses.replace(series, reading=reading)
    _tell_missing(name, series, values, table)
    return series


def _read_table(name: str, wanted: Sequence[str]) -> _Table:
    first: list[str] = []

    def is_header(row: list[str]) -> bool:
        first[:] = row
        # A file with numbers above is refused below.
        return not any(np.isfinite(plain_number(cell) or np.nan) for cell in row)

    table = open_table(name, [*TIME_COLUMNS, *wanted], extensions=None, is_header=is_header)
    if first and not table.header:
        raise UserError(f"{name}: line 1 has numbers; expected the names of the columns")
    rows, lines = [], []
    if table.delimiter is None:
        header = list(table.keys())
        for line, row in table.select(header, optional=header):
            rows.append([_cell(name, line, *pair) for pair in zip(header, row, strict=True)])
            lines.append(line)
        return _Table(name, header, rows, lines)
    for line, row in table.rows():
        rows.append([cell.strip() for cell in row])
        lines.append(line)
    return _Table(name, list(table.header), rows, lines)


def _cell(name: str, line: int, column: str, value: Any) -> str:
    """Returns a value of JSON as CSV would hold it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return text_value(value, f"{name}: line {line}", column).strip()


def _time_column(table: _Table, wanted: str) -> str | None:
    if wanted == NO_TIMES:
        return None
    if wanted:
        if wanted not in table.header:
            raise no_column(table.name, wanted, table.header)
        return wanted
    found = next((column for column in table.header if column.lower() in TIME_COLUMNS), None)
    if found is None and not table.header[0] and looks_like_times(table.column("")):
        return table.header[0]
    if found is None:
        raise UserError(
            f"{table.name}: no column is called {', '.join(TIME_COLUMNS)}; name the column of the "
            f"times by config.data.time_column ({', '.join(table.header[:8])}), or {NO_TIMES!r} "
            "where rows are one step apart"
        )
    return found


def _numbers(
    table: _Table, targets: Sequence[str], stamped: str | None, decimal: str, likely: Reading
) -> tuple[np.ndarray, tuple[str, ...], dict[str, str]]:
    """Values [rows, C] of the columns to be forecast, their names, and the decimal marks of those
    that Python would not read.
    """
    found: dict[str, Column] = {}
    texts = []
    for column in targets or [column for column in table.header if column and column != stamped]:
        if column not in table.header:
            known = [other for other in table.header if other != stamped]
            raise no_column(table.name, column, known)
        cells = table.column(column)
        try:
            found[column] = read_numbers(cells, decimal, likely.decimals.get(column, ""))
        except NumberError as error:
            if error.is_text and not targets:
                texts.append(column)
                continue
            where = f"{table.name}: line {table.lines[error.index]}: {column!r} is"
            if error.two_readings:
                raise UserError(
                    f"{where} {cells[error.index]!r}, {error}; set {DECIMAL_KEY} to '.' or ','"
                ) from None
            note = f" ({error})" if str(error) else ""
            raise UserError(
                f"{where} {cells[error.index]!r}, expected a number or nothing{note}; mend it, or "
                "name the columns to be forecast by config.data.targets"
            ) from None
    decimals = _conventions(table, found, decimal, likely)
    if texts:
        _say(f"{table.name}: left out, as they hold no numbers: {', '.join(texts)}")
    if not targets and "" in table.header and stamped != "":
        _say(f"{table.name}: left out, as it has no name: column {table.header.index('') + 1}")
    if not found:
        raise UserError(f"{table.name}: no column holds numbers")
    return np.array([each.values for each in found.values()]).T, tuple(found), decimals


def _conventions(
    table: _Table, found: Mapping[str, Column], decimal: str, likely: Reading
) -> dict[str, str]:
    """Names the conventions of numbers on standard error, and returns the decimal mark by column.

    Raises:
      UserError: one column has decimal commas, and in another a point can stand for either.
    """
    named: dict[Convention, list[str]] = {}
    for name, column in found.items():
        if column.convention:
            named.setdefault(column.convention, []).append(name)
    commas = [name for each, names in named.items() if each.decimal == "," for name in names]
    for name, column in found.items():
        if decimal or not commas or column.convention or likely.decimals.get(name):
            continue
        cells = table.column(name)
        if (place := grouped_by_points(cells)) is not None:
            raise UserError(
                f"{table.name}: line {table.lines[place]}: {name!r} is {cells[place]!r}, and "
                f"{commas[0]!r} has decimal commas, so that the point can stand between thousands; "
                f"set {DECIMAL_KEY} to ',', or name the columns by config.data.targets"
            )
    for convention, names in named.items():
        example = found[names[0]].example
        say_once(f"{table.name}: numbers with {convention}: {', '.join(names)} (first: {example})")
    return {name: each.decimal for each, names in named.items() for name in names}


def _times(table: _Table, column: str, date_order: str, likely: str) -> Times:
    cells = table.column(column)
    found = TimeColumn(date_order, likely)
    try:
        for cell in cells:
            found.add(cell)
        times = found.read()
    except TimeError as error:
        place = len(found) if error.index is None else error.index
        note = f"; it is {error.reason}" if error.reason else ""
        note += f"; {error.remedy}" if error.remedy else ""
        raise _no_time(table, column, place, note) from None
    if times.is_order:
        note = f"; set config.data.time_column to {NO_TIMES!r} where rows are one step apart"
        raise _no_time(table, column, 0, note)
    return times


def _no_time(table: _Table, column: str, place: int, note: str) -> UserError:
    return UserError(
        f"{table.name}: line {table.lines[place]}: {column!r} is {table.column(column)[place]!r}, "
        f"expected a time such as 2024-05-31 or 2024-05-31 13:00:00, or seconds since 1970{note}"
    )


def _clock(
    table: _Table, column: str, found: Times, likely: Reading | None, step: Step | None
) -> tuple[np.ndarray, str]:
    """The stamps of the rows and their clock, which is named on standard error."""
    times, on = clock.on_clock(found, likely.clock if likely else "", step)
    if likely and likely.clock and not on:
        say_once(f"{table.name}: {column} has no UTC offset; taken for {_CLOCKS[likely.clock]}")
    if found.unit:
        kept = f", in {_CLOCKS[on]}" if on else ""
        say_once(f"{table.name}: {column}: {found.unit}{kept} (first: {clock.spell(times[0])[0]})")
    return times, on


def _in_order(
    table: _Table, values: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their times, and of equal rows one."""
    order = np.argsort(times, kind="stable")
    if np.any(order != np.arange(len(order))):
        late = table.lines[1 + int(np.argmax(np.diff(times) < np.timedelta64(0, "us")))]
        _say(f"{table.name}: not in the order of time (line {late} is the first); sorted")
    values, times = values[order], times[order]
    lines = np.array(table.lines)[order]
    again = np.flatnonzero(times[1:] == times[:-1]) + 1
    for row in again:
        if not np.array_equal(values[row], values[row - 1], equal_nan=True):
            raise UserError(
                f"{table.name}: lines {lines[row - 1]} and {lines[row]} have one time, "
                f"{clock.spell(times[row])[0]}, and different values; remove one{_set_back(times)}"
            )
    if len(again):
        _say(
            f"{table.name}: {len(again)} rows stand there twice, first line {lines[again[0]]}"
            f"{_set_back(times[again])}"
        )
    return np.delete(values, again, axis=0), np.delete(times, again)


def _set_back(times: np.ndarray) -> str:
    """A hint for the hour that the end of daylight saving repeats."""
    hours = (times - times.astype("datetime64[D]")) / np.timedelta64(1, "h")
    night = np.any((hours > 0) & (hours < 4))
    return ", or, if the clock was set back there, write times with a UTC offset" if night else ""


def _expect_step(name: str, times: np.ndarray, step: Step) -> None:
    # The median of fewer differences may be a gap.
    if len(times) > 3:
        own = clock.regular_step(times)
        if not 0.99 < own.days / step.days < 1.01:
            raise UserError(
                f"{name}: most rows are {own} apart; the model was trained on one every {step}"
            )


def _on_grid(
    name: str,
    values: np.ndarray,
    names: tuple[str, ...],
    times: np.ndarray,
    step: Step | None,
) -> Series:
    if step is None:
        if len(times) < 2:
            raise UserError(f"{name}: has one time; its step cannot be told, give more rows")
        step = clock.regular_step(times)
    start = times[0]
    places = clock.on_grid(times, start, step)
    spelled = clock.spell(times)
    if np.any(same := places[1:] == places[:-1]):
        row = int(np.argmax(same))
        raise UserError(
            f"{name}: {spelled[row]} and {spelled[row + 1]} are nearer than half a step of {step}; "
            "give the step in seconds by config.data.step, or rows that are a step apart"
        )
    cells = int(places[-1]) + 1
    if cells > _SPARSE * len(times):
        raise UserError(
            f"{name}: {len(times)} rows lie on a grid of {cells} times, one every {step}; give the "
            "step in seconds by config.data.step"
        )
    grid = np.full((cells, values.shape[1]), np.nan)
    grid[places] = values
    where = clock.stamps(start, step, places)
    if uneven := np.flatnonzero(where != times).tolist():
        shown = ", ".join(spelled[row] for row in uneven[:_SHOWN])
        _say(
            f"{name}: {len(uneven)} of {len(times)} times are off the grid of one every {step} "
            f"({shown}{', ...' * (len(uneven) > _SHOWN)}); each taken for the nearest"
        )
    if gaps := np.flatnonzero(np.diff(places) > 1).tolist():
        after = ", ".join(spelled[row] for row in gaps[:_SHOWN])
        _say(
            f"{name}: {cells - len(times)} of {cells} times, one every {step}, have no row (after "
            f"{after}{', ...' * (len(gaps) > _SHOWN)}); masked"
        )
    return Series(grid, names, start, step)


def _tell_missing(name: str, series: Series, rows: np.ndarray, table: _Table) -> None:
    """Names the columns with missing cells in rows that are there."""
    missing = np.isnan(rows).sum(axis=0)
    if not missing.any():
        return
    told = [
        f"{column} {count}" for column, count in zip(series.names, missing, strict=True) if count
    ]
    _say(
        f"{name}: {int(missing.sum())} of {rows.size} values are missing ({', '.join(told[:8])}"
        f"{', ...' * (len(told) > 8)}); masked"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)
