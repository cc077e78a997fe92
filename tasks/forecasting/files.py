"""A person's own series: a table with a time column, put on a regular grid.

CSV with a header, separated by commas, semicolons or tabs; UTF-8, with or without a mark. What is
missing stays missing, and is named on standard error.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import io
import sys
from collections.abc import Sequence

import numpy as np

from tasks.common.errors import UserError
from tasks.common.own_files import read_text
from tasks.forecasting import times as clock
from tasks.forecasting.times import Step

TIME_COLUMNS = ("date", "time", "timestamp", "datetime", "ds")
NO_TIMES = "none"
_MISSING = ("", "nan", "na", "n/a", "null", "none", "nat", "-", "?")
# Cells of a grid for each row, from which on the step is taken for a mistake.
_SPARSE = 100
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Series:
    """Values at the times of a regular grid.

    Attributes:
      values: float64 [time, C], NaN where there is none.
      names: of the channels.
      start: stamp of the first time; None where there are no stamps.
      step: of the grid; likewise.
    """

    values: np.ndarray
    names: tuple[str, ...]
    start: np.datetime64 | None = None
    step: Step | None = None


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
) -> Series:
    """The series of a file.

    Args:
      name: of the file.
      time_column: its header; "": the first that is called as TIME_COLUMNS, or a first one without
        a name; "none": there is none, and rows are one step apart.
      targets: columns to be forecast; none named: all that hold numbers.
      step: of the grid; None: what most rows are apart.
      trained: whether a model knows this step alone, so that rows must be as far apart.

    Raises:
      UserError: the file cannot be read, a column is missing, a cell is neither a number nor
        missing, or rows contradict each other; the line is named where there is one.
    """
    table = _read_table(name)
    stamped = _time_column(table, time_column)
    values, names = _numbers(table, targets, stamped)
    if stamped is None:
        series = Series(values, names)
    else:
        times = _times(table, stamped)
        values, times = _in_order(table, values, times)
        if trained:
            _expect_step(name, times, step)
        series = _on_grid(name, values, names, times, step)
    _tell_missing(name, series, values, table)
    return series


def _read_table(name: str) -> _Table:
    text = read_text(name)
    first = text.lstrip("\r\n").split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    limit = csv.field_size_limit(len(text) + 1)
    rows, lines = [], []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row in reader:
            if row:
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{name}: line {reader.line_num} is malformed ({error})") from None
    finally:
        csv.field_size_limit(limit)
    header, rows, lines = rows[0], rows[1:], lines[1:]
    if any(np.isfinite(_number(cell) or np.nan) for cell in header):
        raise UserError(f"{name}: line 1 has numbers; expected the names of the columns")
    if twice := next((name for name in header if name and header.count(name) > 1), None):
        raise UserError(f"{name}: column {twice!r} stands in the header twice")
    if not rows:
        raise UserError(f"{name}: the file has a header and no rows")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise UserError(
                f"{name}: line {line} has {len(row)} fields, the header has {len(header)}"
            )
    return _Table(name, header, rows, lines)


def _time_column(table: _Table, wanted: str) -> str | None:
    if wanted == NO_TIMES:
        return None
    if wanted:
        if wanted not in table.header:
            raise UserError(f"{table.name}: no column {wanted!r}{_near(wanted, table.header)}")
        return wanted
    found = next((column for column in table.header if column.lower() in TIME_COLUMNS), None)
    if found is None and not table.header[0] and _is_time(table.rows[0][0]):
        return table.header[0]
    if found is None:
        raise UserError(
            f"{table.name}: no column is called {', '.join(TIME_COLUMNS)}; name the column of the "
            f"times by config.data.time_column ({', '.join(table.header[:8])}), or {NO_TIMES!r} "
            "where rows are one step apart"
        )
    return found


def _is_time(cell: str) -> bool:
    try:
        clock.read_time(cell)
    except (ValueError, OverflowError):
        return False
    return True


def _near(wanted: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{hint}; there are {', '.join(known)}"


def _number(cell: str) -> float | None:
    """The number of a cell, NaN where it is missing or not finite; None: it is a text."""
    if cell.lower() in _MISSING:
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else np.nan


def _numbers(
    table: _Table, targets: Sequence[str], stamped: str | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Values [rows, C] of the columns to be forecast, and their names."""
    names, columns, texts = [], [], []
    for column in targets or [column for column in table.header if column and column != stamped]:
        if column not in table.header:
            known = [other for other in table.header if other != stamped]
            raise UserError(f"{table.name}: no column {column!r}{_near(column, known)}")
        found = [_number(cell) for cell in table.column(column)]
        wrong = [place for place, value in enumerate(found) if value is None]
        if wrong and not targets and 2 * len(wrong) > len(found):
            texts.append(column)
            continue
        if wrong:
            raise UserError(
                f"{table.name}: line {table.lines[wrong[0]]}: {column!r} is "
                f"{table.column(column)[wrong[0]]!r}, expected a number or nothing; mend it, or "
                "name the columns to be forecast by config.data.targets"
            )
        names.append(column)
        columns.append(found)
    if texts:
        _say(f"{table.name}: left out, as they hold no numbers: {', '.join(texts)}")
    if not targets and "" in table.header and stamped != "":
        _say(f"{table.name}: left out, as it has no name: column {table.header.index('') + 1}")
    if not names:
        raise UserError(f"{table.name}: no column holds numbers")
    return np.array(columns, np.float64).T, tuple(names)


def _times(table: _Table, column: str) -> np.ndarray:
    found = []
    for cell, line in zip(table.column(column), table.lines, strict=True):
        try:
            found.append(clock.read_time(cell))
        except (ValueError, OverflowError):
            raise UserError(
                f"{table.name}: line {line}: {column!r} is {cell!r}, expected a time such as "
                "2024-05-31 or 2024-05-31 13:00:00, or seconds since 1970"
            ) from None
    return np.array(found, "datetime64[us]")


def _in_order(
    table: _Table, values: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of their times, and of equal rows one."""
    order = np.argsort(times, kind="stable")
    if np.any(order != np.arange(len(order))):
        late = table.lines[1 + int(np.argmax(np.diff(times) < np.timedelta64(0)))]
        _say(f"{table.name}: not in the order of time (line {late} is the first); sorted")
    values, times = values[order], times[order]
    lines = np.array(table.lines)[order]
    again = np.flatnonzero(times[1:] == times[:-1]) + 1
    for row in again:
        if not np.array_equal(values[row], values[row - 1], equal_nan=True):
            raise UserError(
                f"{table.name}: lines {lines[row - 1]} and {lines[row]} have one time, "
                f"{clock.spell(times[row])[0]}, and different values; remove one"
            )
    if len(again):
        _say(f"{table.name}: {len(again)} rows stand there twice, first line {lines[again[0]]}")
    return np.delete(values, again, axis=0), np.delete(times, again)


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
