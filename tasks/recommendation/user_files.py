"""Reading of files of events (user, item, time) into flat arrays in the order of their lines.

No Python object is kept per event. Reading and sorting take at most 80 bytes per event, and 4
seconds of one CPU core for a million events with numeric times.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.data.cells import label_value, text_value
from tasks.common.data.own import OwnData, files_of, split_files
from tasks.common.data.tables import Table, open_table
from tasks.common.data.timestamps import TimeColumn, TimeError, Times
from tasks.common.errors import UserError, warn_once
from tasks.recommendation import columns
from tasks.recommendation.columns import EXPECTED, ITEM, RATING, TIME, TITLE, USER, Layout, Wanted

# Number of records that are examined to detect the columns of a file without a header.
_SAMPLE = 1000
# Notations of missing ids in other programs.
_MISSING = frozenset(("nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "#N/A"))
# An id that a spreadsheet has rounded, such as 1.23E+12, so that it may stand for several ids.
_ROUNDED = re.compile(r"\d([.,]\d+)?E\+\d+")


@dataclasses.dataclass(frozen=True)
class Events:
    """The n events of a file, in the order of the lines.

    Attributes:
      user: int32 [n], index of the user of each event.
      item: int32 [n], index of the item of each event.
      seconds: float64 [n], seconds since 1970; None if only the order is known.
      users: names of the users.
      names: names of the items, as published.
      titles: titles of the items, for display; None if the items have only names.
      features: float32 [I, G], G features of I items; None if there are none.
      order: float64 [n], sort keys of the events if only their order is known; None if `seconds` is
        given, or if the lines are in the order of time.
    """

    user: np.ndarray
    item: np.ndarray
    seconds: np.ndarray | None
    users: Sequence[str]
    names: Sequence[str]
    titles: Sequence[str] | None = None
    features: np.ndarray | None = None
    order: np.ndarray | None = None


OWN_DATA = OwnData(
    "a table of events (CSV, TSV or JSON lines), or a folder or glob pattern of tables",
    {"user": "user_column", "item": "item_column", "time": "time_column"},
)


def read_all_events(path: str, wanted: Wanted) -> Events:
    """Reads the events of a file, or of all files of a folder or of a glob pattern.

    Args:
      path: see `tasks.common.data.own.files_of`.
      wanted: settings, as for `read_events`.

    Raises:
      UserError: as for `read_events`; or `path` has a file for each split, or the times of the
        files are not comparable.
    """
    if len(split_files(path)) > 1:
        raise UserError(
            f"--data: got files of train, validation and test in {path!r}, expected one table, "
            f"because the last two events of each user are held out"
        )
    parts = {name: read_events(name, wanted) for name in files_of(path)}
    if len(parts) == 1:
        return next(iter(parts.values()))
    return _merged(path, parts)


def _merged(path: str, parts: Mapping[str, Events]) -> Events:
    """Returns the events of several files, with common indices of users and items."""
    first, *others = parts
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    titles: dict[int, str] = {}
    user, item = [], []
    kinds = {name: (x.seconds is None, x.order is None) for name, x in parts.items()}
    if other := next((name for name in others if kinds[name] != kinds[first]), None):
        raise UserError(
            f"--data: times of {first} and {other} of {path} are not comparable; write them in one "
            f"notation"
        )
    for name, events in parts.items():
        of_user = [users.setdefault(x, len(users)) for x in events.users]
        of_item = [items.setdefault(x, len(items)) for x in events.names]
        for index, title in zip(of_item, events.titles or events.names, strict=True):
            titles.setdefault(index, title)
        user.append(np.array(of_user, np.int32)[events.user])
        item.append(np.array(of_item, np.int32)[events.item])
        warn_once(f"{name}: {len(events.user):,} events")
    joined = {
        column: None if values[0] is None else np.concatenate(values)
        for column in ("seconds", "order")
        if (values := [getattr(events, column) for events in parts.values()])
    }
    named = any(events.titles is not None for events in parts.values())
    return Events(
        np.concatenate(user),
        np.concatenate(item),
        joined["seconds"],
        tuple(users),
        tuple(items),
        tuple(titles[index] for index in range(len(items))) if named else None,
        order=joined["order"],
    )


def read_events(name: str, wanted: Wanted | None = None) -> Events:
    """Reads a user file of events: CSV separated by commas, semicolons or tabs, or JSON lines.

    A line is `user,item,timestamp`, `user,item,timestamp,title` or `user,item,rating,timestamp`.
    With a header, columns may be in any order, and other columns are ignored. Time stamps are
    numbers since 1970 or dates, in one notation for the whole column, see
    `tasks.common.data.timestamps`. Numbers that are too small for times define only the order of
    events. The title of an item is its first title in the file, or else its name. The names 1 and
    1.0 are equal.

    Args:
      name: name of the file.
      wanted: settings; None to detect the columns and read all events.

    Raises:
      UserError: the file cannot be read, is not text or is empty; a column is missing or ambiguous;
        or a line is malformed.
    """
    wanted = wanted or Wanted()
    table = open_table(
        name,
        [USER, ITEM, TIME, *wanted.named.values()],
        extensions=None,
        is_header=lambda row: False,
    )
    layout, skipped = _layout(table, wanted)
    for note in layout.notes:
        warn_once(f"{name}: {note}")
    if RATING in layout.indices and wanted.min_rating is None:
        warn_once(
            f"{name}: column {layout.names[RATING]!r} is ignored; set "
            "config.data.min_rating to leave out events with low ratings"
        )
    if RATING not in layout.indices and wanted.min_rating is not None:
        raise UserError(
            f"{name}: config.data.min_rating is {wanted.min_rating:g}, but no column has "
            "ratings; set config.data.rating_column to the column of ratings"
        )
    return _read(table, layout, skipped, wanted)


def _layout(table: Table, wanted: Wanted) -> tuple[Layout, int]:
    """Returns the columns, and the number of header lines (0 or 1)."""
    name = table.name
    if table.delimiter is None:
        return columns.by_header(name, table.keys(), wanted), 0
    records = list(itertools.islice(table.rows(), _SAMPLE))
    if not records:
        raise UserError(f"{name}: the file contains no events; {EXPECTED}")
    sample = [[cell.strip() for cell in row] for _, row in records]
    if columns.find_header(sample[0], sample[1:], wanted):
        layout = columns.by_header(name, sample[0], wanted)
        if len(sample) == 1:
            raise UserError(f"{name}: the file contains no events; {EXPECTED}")
        return layout, 1
    return columns.by_number(name, len(sample[0]), sample, wanted, records[0][0]), 0


def _records(table: Table, skipped: int) -> Iterator[tuple[int, list[Any]]]:
    if table.delimiter is not None:
        return itertools.islice(table.rows(), skipped, None)
    keys = table.keys()
    return table.select(keys, optional=keys)


def _read(table: Table, layout: Layout, skipped: int, wanted: Wanted) -> Events:
    name, indices, names = table.name, layout.indices, layout.names
    users, items = _Ids(name, names[USER]), _Ids(name, names[ITEM])
    times = TimeColumn(wanted.date_order, stray=True)
    user_index, item_index, time_index = indices[USER], indices[ITEM], indices.get(TIME)
    title_index = indices.get(TITLE)
    required = [index for index in (user_index, item_index, time_index) if index is not None]
    titles: dict[int, str] = {}
    user, item, count = array("i"), array("i"), 0
    for line, row in _records(table, skipped):
        for index in required:
            if row[index] is None or (isinstance(row[index], str) and not row[index].strip()):
                raise UserError(f"{name}: line {line}: a field is empty; {EXPECTED}")
        count += 1
        if _is_low(name, line, row, layout, wanted):
            continue
        if time_index is not None:
            try:
                times.add(row[time_index])
            except TimeError as error:
                if layout.guessed and count == 1 and columns.may_be_name(row[time_index]):
                    raise columns.unknown_header(name, row) from None
                raise _no_time(name, line, names[TIME], row[time_index], error) from None
        user.append(users.number(row[user_index], line))
        number = items.number(row[item_index], line)
        item.append(number)
        if title_index is not None and number not in titles:
            title = _title(row[title_index], f"{name}: line {line}", names[TITLE])
            if title:
                titles[number] = title
    if len(user) < count:
        warn_once(
            f"{name}: {count - len(user):,} of {count:,} events have a rating below "
            f"{wanted.min_rating:g}; they are left out"
        )
    if not len(user):
        raise UserError(f"{name}: the file contains no events; {EXPECTED}")
    events = Events(
        np.asarray(user, np.int32),
        np.asarray(item, np.int32),
        None,
        users.names,
        items.names,
        tuple(titles.get(number, name) for number, name in enumerate(items.names))
        if titles
        else None,
    )
    if time_index is None:
        warn_once(f"{name}: no times; events are in the order of lines")
        return events
    return _timed(table, events, layout, skipped, wanted, times)


def _timed(
    table: Table, events: Events, layout: Layout, skipped: int, wanted: Wanted, column: TimeColumn
) -> Events:
    """Returns the events with their times or sort keys."""
    name, header = table.name, layout.names[TIME]
    try:
        found = column.read()
    except TimeError as error:
        line, cell = _cell(table, layout, skipped, wanted, error.index)
        if layout.guessed and error.index == 0 and columns.may_be_name(cell):
            raise columns.unknown_header(name, next(table.rows())[1]) from None
        raise _no_time(name, line, header, cell, error) from None
    unsure = layout.guessed and found.is_order
    if unsure and columns.looks_like_ratings(found.seconds, events.user):
        raise columns.ratings_for_times(name, str(layout.indices[TIME] + 1))
    _tell(name, header, found)
    if found.is_order:
        return dataclasses.replace(events, order=found.seconds)
    return dataclasses.replace(events, seconds=found.seconds)


def _tell(name: str, header: str, found: Times) -> None:
    for text in (found.assumption, found.remark):
        if text:
            warn_once(f"{name}: {header}: {text}")


def _cell(
    table: Table, layout: Layout, skipped: int, wanted: Wanted, index: int
) -> tuple[int, Any]:
    """Finds the line number and the time cell of an event by reading the file again."""
    for line, row in _records(table, skipped):
        if _is_low(table.name, line, row, layout, wanted):
            continue
        if not index:
            return line, row[layout.indices[TIME]]
        index -= 1
    raise UserError(f"{table.name}: changed while it was read; run the command again")


class _Ids:
    """Assigns consecutive indices to names, in order of first occurrence."""

    def __init__(self, file: str, column: str):
        self._file, self._column = file, column
        self._numbers: dict[str, int] = {}
        # Indices of cells that have occurred before, which need not be parsed again.
        self._known: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._numbers)

    def number(self, cell: Any, line: int) -> int:
        """Returns the index of the name in a cell. A new name gets the next index.

        Raises:
          UserError: the cell is not a name.
        """
        is_text = isinstance(cell, str)
        if is_text and (known := self._known.get(cell)) is not None:
            return known
        where = f"{self._file}: line {line}"
        try:
            label = "" if isinstance(cell, bool) else label_value(cell, where, self._column)
        except UserError:
            label = ""
        if not label or label in _MISSING or (is_text and _ROUNDED.fullmatch(label)):
            raise UserError(
                f"{where}: {self._column} is {_shown(cell)}, expected a name or a whole number"
            )
        number = self._numbers.setdefault(label, len(self._numbers))
        if is_text:
            self._known[cell] = number
        return number


def _title(cell: Any, where: str, column: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, int | float) and not isinstance(cell, bool):
        return str(cell)
    return text_value(cell, where, column).strip()


def _is_low(name: str, line: int, row: Sequence[Any], layout: Layout, wanted: Wanted) -> bool:
    """Returns True if the rating of an event is below the minimum."""
    if wanted.min_rating is None:
        return False
    cell = row[layout.indices[RATING]]
    try:
        value = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        column = layout.names[RATING]
        raise UserError(f"{name}: line {line}: {column} is {_shown(cell)}, expected a number")
    return value < wanted.min_rating


def _no_time(name: str, line: int, column: str, cell: Any, error: TimeError) -> UserError:
    reason = error.reason or (
        "neither a number of seconds nor a date like 2024-05-31 or 2024-05-31T12:00:00"
    )
    remedy = f"; {error.remedy}" if error.remedy else ""
    return UserError(f"{name}: line {line}: {column} {_shown(cell)} is {reason}{remedy}")


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:57]}..."
