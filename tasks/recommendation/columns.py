"""Detection of the columns of an event file: user, item, time, rating and title.

A header is recognized by common column names. Without a header, columns must be in the order user,
item, timestamp, title, or user, item, rating, timestamp. Settings then refer to columns by number,
counted from 1.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.data.cells import join_names, quote
from tasks.common.data.tables import no_column
from tasks.common.data.timestamps import looks_like_times
from tasks.common.errors import UserError

USER, ITEM, TIME, RATING, TITLE = "user", "item", "timestamp", "rating", "title"
EXPECTED = "expected user,item,timestamp[,title] in each line"
_SHOWN = 8
# Value of time_column for files whose lines are in the order of time.
NO_TIMES = "none"
# Flags that set the columns.
_FLAGS = {USER: "user", ITEM: "item", TIME: "time", RATING: "config.data.rating_column"}
# Normalized column names of each role; if a header has several, the first in this list is used.
_NAMES = {
    USER: (
        *("user", "userid", "uid", "usernumber", "username", "reviewerid", "reviewer"),
        *("customerid", "customer", "clientid", "client", "memberid", "member", "visitorid"),
        *("accountid", "account", "personid", "person"),
    ),
    ITEM: (
        *("item", "itemid", "iid", "movieid", "movie", "filmid", "film", "productid", "product"),
        *("asin", "parentasin", "articleid", "article", "bookid", "book", "isbn", "songid"),
        *("song", "trackid", "track", "artistid", "artist", "businessid", "business"),
        *("gameid", "game", "recipeid", "recipe", "newsid", "videoid", "video", "sku"),
    ),
    TIME: (
        *("timestamp", "unixreviewtime", "unixtime", "datetime", "time", "date", "ts"),
        *("eventtime", "eventdate", "createdat", "reviewtime", "purchasedate", "orderdate"),
    ),
    RATING: ("rating", "ratings", "overall", "stars", "score", "rate", "preference"),
    TITLE: (TITLE,),
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Settings for reading a file.

    Attributes:
      user, item, time, rating: names of columns, or numbers from 1 if there is no header; empty to
        detect them. `time` is "none" if the lines are in the order of time.
      min_rating: minimum rating of an event; None for all events.
      date_order: see `tasks.common.data.timestamps.TimeColumn`.
    """

    user: str = ""
    item: str = ""
    time: str = ""
    rating: str = ""
    min_rating: float | None = None
    date_order: str = ""

    @property
    def named(self) -> dict[str, str]:
        """Configured columns by role."""
        found = {USER: self.user, ITEM: self.item, TIME: self.time, RATING: self.rating}
        return {role: name for role, name in found.items() if name and name != NO_TIMES}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Positions of the columns.

    Attributes:
      indices: index of the column of each role; roles without a column are missing.
      names: names of the columns by role, for messages.
      notes: assumptions about the columns, to be printed.
      guessed: whether the file has no header, and the settings name no column.
    """

    indices: Mapping[str, int]
    names: Mapping[str, str]
    notes: tuple[str, ...] = ()
    guessed: bool = False


def find_header(first: Sequence[str], below: Sequence[Sequence[Any]], wanted: Wanted) -> bool:
    """Returns True if the first record is a header.

    Args:
      first: cells of the first record.
      below: some records below it.
      wanted: settings; a record that contains the name of a configured column is a header.
    """
    if any(name in first for name in wanted.named.values() if not name.isdecimal()):
        return True
    roles = [role for role in _NAMES if _found(role, first)]
    if len(roles) >= 2:
        return True
    kinds = [_kind([row[index] for row in below]) for index in range(len(first))] if below else []
    above = [_kind([cell]) for cell in first]
    return (
        len(first) >= 2
        and all(kind == "text" for kind in above)
        and any(kind != "text" for kind in kinds)
    )


def by_header(name: str, header: Sequence[str], wanted: Wanted) -> Layout:
    """Returns the columns of a file with a header.

    Raises:
      UserError: a column is missing, occurs twice, or is ambiguous.
    """
    if twice := next((cell for cell in header if cell and header.count(cell) > 1), None):
        raise UserError(
            f"{name}: column {quote(twice)} occurs twice in the header; rename one of the columns"
        )
    indices, names = {}, {}
    for role in _NAMES:
        column = wanted.named.get(role)
        if column is None and role == TIME and wanted.time == NO_TIMES:
            continue
        if column is not None and column not in header:
            raise no_column(name, column, header, _FLAGS.get(role))
        if column is None:
            found = _found(role, header)
            if len(found) > 1:
                raise UserError(
                    f"{name}: {' and '.join(map(quote, found))} can both be the column of the "
                    f"{role}; {_choose(role)}"
                )
            column = found[0] if found else None
        if column is not None:
            indices[role], names[role] = header.index(column), column
    for role in (USER, ITEM, TIME):
        if role not in indices and not (role == TIME and wanted.time == NO_TIMES):
            order = f", or to {NO_TIMES!r} if lines are in the order of time"
            order = order if role == TIME else ""
            raise UserError(
                f"{name}: no column {role!r}; the columns are: {join_names(header)}; set "
                f"--{_FLAGS[role]} to the column of the {role}{order}"
            )
    _expect_apart(name, indices, names)
    notes = []
    others = [column or "(without a name)" for column in header if column not in names.values()]
    if others or any(names[role].lower() != role for role in indices):
        used = ", ".join(f"{role} = {names[role]}" for role in _NAMES if role in indices)
        more = join_names(others, _SHOWN)
        notes.append(f"columns: {used}" + (f"; not used: {more}" if others else ""))
    return Layout(indices, names, tuple(notes))


def by_number(
    name: str, width: int, sample: Sequence[Sequence[Any]], wanted: Wanted, line: int
) -> Layout:
    """Returns the columns of a file without a header.

    Args:
      name: name of the file.
      width: number of columns.
      sample: first records of the file.
      wanted: settings with the numbers of columns.
      line: line of the first record.

    Raises:
      UserError: the contents of the columns do not fit any known order of columns.
    """
    timeless = wanted.time == NO_TIMES
    if wanted.named:
        return _numbered(name, width, wanted)
    if width < 3 - timeless:
        text = str(sample[0][0])
        remedy = ""
        if other := re.search(r"::|\||(?<=\S) +(?=\S)", text):
            mark = other[0] if other[0].strip() else " "
            remedy = f"; separate fields by commas, semicolons or tabs instead of {mark!r}"
        raise UserError(f"{name}: line {line}: got {width} fields, {EXPECTED}{remedy}")
    if timeless and width == 2:
        return _guessed({USER: 0, ITEM: 1})
    kinds = [_kind([row[index] for row in sample]) for index in range(min(width, 5))]
    if timeless or width > 4:
        raise _undecided(name, f"has {width} columns and no header")
    if kinds[2] != "time":
        rated = width == 4 and kinds[3] == "time" and kinds[2] == "number"
        if rated and np.all(np.abs([float(row[2]) for row in sample]) <= 100):
            note = f"no header; columns are assumed to be {USER}, {ITEM}, {RATING}, {TIME}"
            return _guessed({USER: 0, ITEM: 1, RATING: 2, TIME: 3}, note)
        if "time" in kinds:
            index = kinds.index("time") + 1
            raise _undecided(name, f"has no header, and times seem to be in column {index}")
    indices = {USER: 0, ITEM: 1, TIME: 2}
    return _guessed(indices if width == 3 else {**indices, TITLE: 3})


def looks_like_ratings(numbers: np.ndarray, user: np.ndarray) -> bool:
    """Returns True if the numbers in the time column are ratings and not an order of events.

    They are taken for ratings if none exceeds 10 in magnitude, and if some have a fraction or occur
    more than once for the same user.

    Args:
      numbers: numbers in the time column, float64 [n].
      user: index of the user of each event, int [n].
    """
    if np.abs(numbers).max() > 10:
        return False
    pairs = np.unique(np.stack([user.astype(np.float64), numbers]), axis=1)
    return bool(np.any(numbers != np.floor(numbers))) or pairs.shape[1] < len(numbers)


def ratings_for_times(name: str, column: str) -> UserError:
    """Returns the error for a column of ratings instead of times."""
    return _undecided(
        name, f"has no header, and column {column} seems to contain ratings, not times"
    )


def may_be_name(cell: Any) -> bool:
    """Returns True if a cell is a text without digits, which may be the name of a column."""
    return isinstance(cell, str) and re.search(r"\d", cell) is None and bool(cell.strip())


def unknown_header(name: str, first: Sequence[Any]) -> UserError:
    """Returns the error for a file whose first line has no time, and may be a header."""
    cells = [str(cell).strip() for cell in first]
    flags = _flags(USER, ITEM, TIME)
    return UserError(
        f"{name}: line 1 is not user,item,timestamp; if it is a header, set {flags} to its "
        f"columns: {join_names(cells)}; else correct the time {quote(cells[2])}"
    )


def _numbered(name: str, width: int, wanted: Wanted) -> Layout:
    indices = {USER: 0, ITEM: 1, TIME: 2}
    if wanted.time == NO_TIMES:
        del indices[TIME]
    for role, column in wanted.named.items():
        if not column.isdecimal() or not 1 <= int(column) <= width:
            raise UserError(
                f"{name}: --{_FLAGS.get(role, role)}: got {column!r}, expected a number from 1 to "
                f"{width}, because the file has no header"
            )
        indices[role] = int(column) - 1
    names = {role: str(index + 1) for role, index in indices.items()}
    _expect_apart(name, indices, names)
    if max(indices.values()) >= width:
        flags = _flags(*(role for role in indices if role not in wanted.named))
        raise UserError(
            f"{name}: has {width} columns, expected {max(indices.values()) + 1}; set {flags} to "
            "the number of a column"
        )
    return Layout(indices, names)


def _choose(role: str) -> str:
    if role not in _FLAGS:
        return "remove one of them"
    return f"remove one of them, or set --{_FLAGS[role]} to one of them"


def _guessed(indices: Mapping[str, int], *notes: str) -> Layout:
    names = {role: role for role in indices}
    return Layout(indices, names, notes, guessed=True)


def _undecided(name: str, what: str) -> UserError:
    flags = _flags(USER, ITEM, TIME)
    return UserError(
        f"{name}: {what}; set {flags} to the numbers of the columns from 1 "
        f"(--{_FLAGS[TIME]} to {NO_TIMES!r} if lines are in the order of time)"
    )


def _expect_apart(name: str, indices: Mapping[str, int], names: Mapping[str, str]) -> None:
    for role, index in indices.items():
        for other, there in indices.items():
            if role < other and index == there:
                raise UserError(
                    f"{name}: column {names[role]!r} is set for both {role} and {other}; set "
                    "different columns"
                )


def _flags(*roles: str) -> str:
    return ", ".join(f"--{_FLAGS[role]}" for role in roles)


def _found(role: str, header: Sequence[str]) -> list[str]:
    """Returns the columns of the header that fit a role.

    These are the columns with the first name of `_NAMES[role]` that occurs in the header. Several
    columns may have this name, since case and punctuation are ignored. Then columns whose name is
    the role itself, apart from case, are preferred.
    """
    plain = [_plain(cell) for cell in header]
    for name in _NAMES[role]:
        if found := [cell for cell, each in zip(header, plain, strict=True) if each == name]:
            return [each for each in found if each.lower() == role] or found
    return []


def _plain(cell: str) -> str:
    # Removes the type that RecBole's files append to names after a colon.
    name = re.sub(r":(token|float)(_seq)?$", "", cell.strip().casefold())
    return re.sub(r"[\W_]", "", name)


def _kind(cells: Sequence[Any]) -> str:
    """Returns "time", "number" or "text", the common kind of cells."""
    if looks_like_times(cells, stray=True):
        return "time"
    try:
        return "number" if np.all(np.isfinite([float(cell) for cell in cells])) else "text"
    except (TypeError, ValueError):
        return "text"
