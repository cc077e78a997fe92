"""Parsing of the cells of a user file: its time column and its numeric columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.data.cells import join_names, quote, text_value
from tasks.common.data.tables import no_column, open_table
from tasks.common.data.timestamps import (
    DATE_ORDER_KEY,
    TimeColumn,
    TimeError,
    Times,
    looks_like_times,
)
from tasks.common.errors import UserError, say, warn_once
from tasks.forecasting import timestamps as clock
from tasks.forecasting.numbers import (
    DECIMAL_KEY,
    Column,
    Convention,
    NumberError,
    grouped_by_points,
    plain_number,
    read_numbers,
)
from tasks.forecasting.timestamps import Step

TIME_COLUMNS = ("date", "time", "timestamp", "datetime", "ds")
NO_TIMES = "none"
_CLOCKS = {clock.UTC: "UTC", clock.LOCAL: "local time"}


@dataclasses.dataclass(frozen=True)
class Reading:
    """Notation of numbers and times in a file, which resolves ambiguities in later files.

    Attributes:
      decimals: decimal mark by column, for columns that are not in Python notation.
      date_order: "dmy" or "mdy" for numeric dates with the year last.
      clock: "utc" or "local" if times with a UTC offset are read in UTC or in local time; "" for
        times without an offset.
    """

    decimals: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date_order: str = ""
    clock: str = ""


@dataclasses.dataclass(frozen=True)
class Cells:
    """Rows of text cells with line numbers."""

    name: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        index = self.header.index(name)
        return [row[index] for row in self.rows]


def read_cells(name: str, wanted: Sequence[str]) -> Cells:
    first: list[str] = []

    def is_header(row: list[str]) -> bool:
        first[:] = row
        # If the first row contains numbers, there is no header, which raises an error below.
        return not any(np.isfinite(plain_number(cell) or np.nan) for cell in row)

    table = open_table(name, [*TIME_COLUMNS, *wanted], extensions=None, is_header=is_header)
    if first and not table.header:
        raise UserError(
            f"{name}: line 1 contains numbers, expected the names of the columns; add a header"
        )
    rows, lines = [], []
    if table.delimiter is None:
        header = list(table.keys())
        for line, row in table.select(header, optional=header):
            rows.append([_cell(name, line, *pair) for pair in zip(header, row, strict=True)])
            lines.append(line)
        return Cells(name, header, rows, lines)
    for line, row in table.rows():
        rows.append([cell.strip() for cell in row])
        lines.append(line)
    return Cells(name, list(table.header), rows, lines)


def _cell(name: str, line: int, column: str, value: Any) -> str:
    """Converts a JSON value to the text of a CSV cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return text_value(value, f"{name}: line {line}", column).strip()


def find_time_column(table: Cells, wanted: str, trained: bool = False) -> str | None:
    if wanted == NO_TIMES:
        return None
    if wanted:
        if wanted not in table.header:
            # A flag is suggested only before training; the config of a trained model is fixed.
            key = None if trained else "time"
            raise no_column(table.name, wanted, table.header, key)
        return wanted
    found = next((column for column in table.header if column.lower() in TIME_COLUMNS), None)
    if found is None and not table.header[0] and looks_like_times(table.column("")):
        return table.header[0]
    if found is None and trained:
        raise UserError(
            f"{table.name}: no column is called {' or '.join(TIME_COLUMNS)}; the columns are: "
            f"{join_names(table.header, 8)}; rename the column of the times to date"
        )
    if found is None:
        raise UserError(
            f"{table.name}: no column is called {' or '.join(TIME_COLUMNS)}; set "
            f"--time to the column that has the times, one of "
            f"{join_names(table.header, 8)}, or to {NO_TIMES!r} if rows are one step apart"
        )
    return found


def read_columns(
    table: Cells,
    targets: Sequence[str],
    stamped: str | None,
    decimal: str,
    likely: Reading,
    trained: bool,
) -> tuple[np.ndarray, tuple[str, ...], dict[str, str]]:
    """Reads the columns of numbers.

    Returns:
      The values [rows, C], the names of the C columns, and the decimal mark by name of column.
      Columns whose numbers all have Python notation have no decimal mark.
    """
    found: dict[str, Column] = {}
    texts = []
    for column in targets or [column for column in table.header if column and column != stamped]:
        if column not in table.header:
            known = [other for other in table.header if other != stamped]
            raise no_column(table.name, column, known, None if trained else "label")
        cells = table.column(column)
        try:
            found[column] = read_numbers(cells, decimal, likely.decimals.get(column, ""))
        except NumberError as error:
            if error.is_text and not targets:
                texts.append(column)
                continue
            where = f"{table.name}: line {table.lines[error.index]}: {quote(column)} is"
            if error.two_readings:
                # A flag is suggested only before training; the config of a trained model is fixed.
                remedy = (
                    "write numbers with a decimal point and no thousands separator, such as 1234.5"
                    if trained
                    else f"set {DECIMAL_KEY} to '.' or ','"
                )
                raise UserError(f"{where} {quote(cells[error.index])}, {error}; {remedy}") from None
            note = f" ({error})" if str(error) else ""
            raise UserError(
                f"{where} {quote(cells[error.index])}, expected a number or an empty cell{note}; "
                "correct it, or set --label to the columns to forecast"
            ) from None
    decimals = _conventions(table, found, decimal, likely)
    if texts:
        say(f"{table.name}: columns without numbers are left out: {join_names(texts)}")
    if not targets and "" in table.header and stamped != "":
        say(f"{table.name}: column {table.header.index('') + 1} has no name and is left out")
    if not found:
        raise UserError(
            f"{table.name}: no column contains numbers, expected at least one column to forecast"
        )
    return np.array([each.values for each in found.values()]).T, tuple(found), decimals


def _conventions(
    table: Cells, found: Mapping[str, Column], decimal: str, likely: Reading
) -> dict[str, str]:
    """Prints the notation of the numbers, and returns the decimal mark by column.

    Raises:
      UserError: one column has decimal commas, and points in another column may be decimal points
        or thousands separators.
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
        if (index := grouped_by_points(cells)) is not None:
            raise UserError(
                f"{table.name}: line {table.lines[index]}: {quote(name)} is {quote(cells[index])}, "
                f"and {quote(commas[0])} has decimal commas, so the point may separate "
                f"thousands; set {DECIMAL_KEY} to ',' if it does, or set --label to "
                "the columns to forecast"
            )
    for convention, names in named.items():
        example = found[names[0]].example
        warn_once(
            f"{table.name}: numbers with {convention}: {join_names(names)} (first: {example})"
        )
    return {name: each.decimal for each, names in named.items() for name in names}


def read_times(table: Cells, column: str, date_order: str, likely: str, trained: bool) -> Times:
    cells = table.column(column)
    found = TimeColumn(date_order, likely)
    try:
        for cell in cells:
            found.add(cell)
        times = found.read()
    except TimeError as error:
        index = len(found) if error.index is None else error.index
        note = f"; it is {error.reason}" if error.reason else ""
        asks = trained and DATE_ORDER_KEY in error.remedy
        remedy = "write dates as 2024-12-31" if asks else error.remedy
        note += f"; {remedy}" if remedy else ""
        raise _no_time(table, column, index, note) from None
    if times.is_order:
        note = f"; set --time to {NO_TIMES!r} if rows are one step apart"
        raise _no_time(table, column, 0, note)
    return times


def _no_time(table: Cells, column: str, index: int, note: str) -> UserError:
    return UserError(
        f"{table.name}: line {table.lines[index]}: {quote(column)} is "
        f"{quote(table.column(column)[index])}, expected a time such as 2024-05-31 or 2024-05-31 "
        f"13:00:00, or seconds since 1970{note}"
    )


def clocked(
    table: Cells, column: str, found: Times, likely: Reading | None, step: Step | None
) -> tuple[np.ndarray, str]:
    """Returns the time stamps of the rows and their clock: "utc", "local", or "" for no time zone.

    The interpretation of numeric times and the clock are printed on standard error."""
    times, on = clock.on_clock(found, likely.clock if likely else "", step)
    if likely and likely.clock and not on:
        warn_once(
            f"{table.name}: {column} has no UTC offset; it is read as {_CLOCKS[likely.clock]}"
        )
    if found.unit:
        kept = f", in {_CLOCKS[on]}" if on else ""
        warn_once(
            f"{table.name}: {column}: {found.unit}{kept} (first: {clock.format_times(times[0])[0]})"
        )
    return times, on
