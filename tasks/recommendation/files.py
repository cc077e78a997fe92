"""Files of events, a user having an item at a time, as flat arrays in the order of their lines.

No Python object is kept of an event: 10 million of them, of 200,000 users and 50,000 items, are
read and put in order in 40 seconds with 0.7 GB at most.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tasks.common.errors import UserError
from tasks.common.own_files import read_text

COLUMNS = ("user", "item", "timestamp")
TITLE = "title"
_EMPTY = "expected user,item,timestamp[,title] in each line"


@dataclasses.dataclass(frozen=True)
class Events:
    """Events in the order of their lines: n of them.

    Attributes:
      user: int32 [n], numbers of users.
      item: int32 [n], numbers of items.
      seconds: float64 [n], since 1970; None where only the order is known.
      users: names of the users, by number.
      names: of the items, by number, as the publisher has them.
      titles: of the items, for people; None where they have but names.
      features: float32 [I, G], what else is known of the items, None if nothing.
    """

    user: np.ndarray
    item: np.ndarray
    seconds: np.ndarray | None
    users: Sequence[str]
    names: Sequence[str]
    titles: Sequence[str] | None = None
    features: np.ndarray | None = None


def read_own(name: str) -> Events:
    """A person's file of events: CSV, or with the ending .tsv separated by tabs, in UTF-8.

    A line is `user,item,timestamp` or `user,item,timestamp,title`; with a header, which has these
    names, columns may stand in any order, and others beside them. A time stamp is a number of
    seconds since 1970, or a date of ISO 8601, with a time or without. The first title of an item
    counts; an item without one is called by its name.

    Raises:
      UserError: the file cannot be read, is not UTF-8 or empty, or a line is malformed: the line is
        named.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"{name}: is a folder, expected a file of user,item,timestamp")
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            events = _read(name, _rows(name, file, separator))
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror})") from error
    for text in (*events.users, *events.names, *(events.titles or ())):
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            read_text(name)  # names the line that is not UTF-8
    if not len(events.user):
        raise UserError(f"{name}: no events are in the file; {_EMPTY}")
    return events


def _rows(name: str, file, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Number of the line and its fields, of lines that are not blank."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    start = 1
    try:
        for row in reader:
            if row and (len(row) > 1 or row[0].strip()):
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}: line {start} is malformed ({error})") from None


def _read(name: str, rows: Iterator[tuple[int, list[str]]]) -> Events:
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    titles: dict[int, str] = {}
    user, item, seconds = array("i"), array("i"), array("d")
    places = title_place = None
    for line, row in rows:
        if places is None:
            header = [field.strip().lower() for field in row]
            if set(COLUMNS[:2]) <= set(header):
                places, title_place = _columns(name, header)
                continue
            places, title_place = (0, 1, 2), 3
        fields = [row[place].strip() for place in places if place < len(row)]
        if len(fields) < 3 or not all(fields):
            what = "a field is empty" if len(fields) == 3 else f"{len(row)} fields"
            raise UserError(f"{name}: line {line}: {what}; {_EMPTY}")
        seconds.append(_seconds(name, line, fields[2]))
        user.append(users.setdefault(fields[0], len(users)))
        number = items.setdefault(fields[1], len(items))
        item.append(number)
        title = "" if title_place is None else "".join(row[title_place : title_place + 1]).strip()
        if title:
            titles.setdefault(number, title)
    return Events(
        np.asarray(user, np.int32),
        np.asarray(item, np.int32),
        np.asarray(seconds, np.float64),
        tuple(users),
        tuple(items),
        tuple(titles.get(number, name) for name, number in items.items()) if titles else None,
    )


def _columns(name: str, header: Sequence[str]) -> tuple[tuple[int, ...], int | None]:
    for column in (*COLUMNS, TITLE):
        if header.count(column) > 1:
            raise UserError(f"{name}: column {column!r} stands in the header twice")
    if COLUMNS[2] not in header:
        raise UserError(f"{name}: no column 'timestamp'; there are: {', '.join(header)}")
    places = tuple(header.index(column) for column in COLUMNS)
    return places, header.index(TITLE) if TITLE in header else None


def _seconds(name: str, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise UserError(
                f"{name}: line {line}: timestamp {text!r} is neither a number of seconds nor a "
                "date like 2024-05-31 or 2024-05-31T12:00:00"
            ) from None
        # A time without a zone is taken for UTC, so that no answer depends on the machine.
        value = moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()
    if not math.isfinite(value):
        raise UserError(f"{name}: line {line}: timestamp {text!r} is no moment")
    return value
