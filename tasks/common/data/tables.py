"""Tables in user files: CSV, TSV and JSON lines, read strictly, with line numbers.

CSV and TSV follow RFC 4180: a quoted field may contain delimiters, line ends and doubled quotes.
The delimiter (comma, semicolon or tab) is detected from the first lines. A JSON lines file has one
object per line. Files are in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. Each pass over a
table reads the file from disk, so large tables are not held in memory.

A record with more or fewer fields than the first one is an error. Empty lines are skipped; for CSV
and TSV, a warning gives their number.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import itertools
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tasks.common.data.cells import join_names, quote
from tasks.common.data.text_files import decoding_error, open_text
from tasks.common.errors import UserError, warn_once

DELIMITERS = ",;\t"
JSON_LINES = (".jsonl", ".ndjson")
EXTENSIONS = (".csv", ".tsv", ".tab", *JSON_LINES)
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab"}
# Number of lines from which the delimiter is detected.
_SAMPLE = 50
_LONGEST_FIELD = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in a file, which is read again in every pass.

    Attributes:
      name: name of the file, for messages.
      header: names of the columns without surrounding spaces. For JSON lines these are the keys of
        the first object. Empty for a table without a header.
      delimiter: separator of the fields; None for JSON lines.
    """

    name: str
    header: tuple[str, ...]
    delimiter: str | None

    def select(
        self,
        columns: Sequence[str],
        optional: Collection[str] = (),
        keys: Mapping[str, str] | None = None,
    ) -> Iterator[tuple[int, list[Any]]]:
        """Yields the values of some columns for each record.

        Args:
          columns: names of the columns.
          optional: columns that may be missing in JSON objects; their value is then None.
          keys: for each column, the flag or config key that sets its name, for messages.

        Yields:
          Line number, and values of the columns: strings for CSV and TSV, JSON values for JSON
          lines.

        Raises:
          UserError: a record is malformed or lacks a column.
        """
        keys = keys or {}
        if self.delimiter is None:
            for line, row in _objects(self.name):
                for column in columns:
                    if column not in row and column not in optional:
                        where = f"{self.name}: line {line}"
                        raise no_column(where, column, list(row), keys.get(column))
                yield line, [row.get(column) for column in columns]
            return
        self.expect(columns, keys)
        indices = [self.header.index(column) for column in columns]
        for line, row in itertools.islice(_records(self.name, self.delimiter), 1, None):
            yield line, [row[index] for index in indices]

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yields line number and fields of each record after the header.

        Raises:
          UserError: a record is malformed, or the file has JSON lines.
        """
        if self.delimiter is None:
            raise UserError(f"{self.name}: got JSON lines, expected CSV or TSV")
        yield from itertools.islice(
            _records(self.name, self.delimiter), 1 if self.header else 0, None
        )

    def objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields line number and object of each line of a JSON lines file.

        Raises:
          UserError: a line is malformed.
        """
        yield from _objects(self.name)

    def keys(self) -> tuple[str, ...]:
        """Returns the names of all columns.

        For JSON lines, these are the keys of all objects, in the order of their first occurrence.

        Raises:
          UserError: a line is malformed.
        """
        if self.delimiter is not None:
            return self.header
        return tuple(dict.fromkeys(key for _, row in _objects(self.name) for key in row))

    def expect(self, columns: Sequence[str], keys: Mapping[str, str] | None = None) -> None:
        """Checks that the header has all of the given columns.

        Args:
          columns: names of the columns.
          keys: as for `select`.

        Raises:
          UserError: the header lacks a column.
        """
        for column in columns:
            if column not in self.header:
                raise no_column(self.name, column, self.header, (keys or {}).get(column))

    @property
    def column_names(self) -> str:
        """Column names as one string, for messages."""
        return join_names(self.header)


def open_table(
    name: str | Path,
    wanted: Sequence[str] = (),
    *,
    extensions: Sequence[str] | None = EXTENSIONS,
    is_header: Callable[[list[str]], bool] | None = None,
    may_be_empty: bool = False,
) -> Table:
    """Opens a table and reads its header.

    Args:
      name: path of the file.
      wanted: expected column names, used to choose between possible delimiters.
      extensions: accepted extensions, ignoring case; None for all. Files with an extension in
        `JSON_LINES` are read as JSON lines, all others as CSV or TSV.
      is_header: function that returns whether the first record is a header; None if it always is.
      may_be_empty: whether a header without records is accepted.

    Raises:
      UserError: the file cannot be read, has another extension, has no header or no record, or has
        two columns of the same name.
    """
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if os.path.isdir(path):  # os.path.isdir returns False for names that are not valid paths
        raise UserError(f"{str(name) or path}: is a folder, expected a table")
    if extensions is not None and suffix not in extensions:
        raise UserError(
            f"{name}: got extension {path.suffix!r}, expected one of {', '.join(extensions)}"
        )
    name = str(name)
    if suffix == ".json":
        raise UserError(
            f"{name}: got a JSON file, expected a table; write one object per line and name the "
            f"file {path.stem}{JSON_LINES[0]}"
        )
    if suffix in JSON_LINES:
        first = next(_objects(name), None)
        if first is None:
            raise UserError(f"{name}: the file is empty")
        return Table(name, tuple(first[1]), None)
    delimiter = _delimiter(name, wanted, "\t" if suffix in (".tsv", ".tab") else ",")
    records = _records(name, delimiter)
    first = next(records, None)
    if first is None:
        raise UserError(f"{name}: the file is empty")
    header = tuple(cell.strip() for cell in first[1])
    if is_header is not None and not is_header(list(header)):
        return Table(name, (), delimiter)
    if twice := next((cell for cell in header if cell and header.count(cell) > 1), None):
        raise UserError(f"{name}: column {quote(twice)} is in the header twice; rename one of them")
    if not may_be_empty and next(records, None) is None:
        raise UserError(f"{name}: the file has a header and no rows")
    return Table(name, header, delimiter)


def no_column(where: str, column: str, known: Sequence[str], key: str | None = None) -> UserError:
    """Returns the error for a missing column, which suggests the most similar column of the file.

    Args:
      where: file, for the message.
      column: name of the missing column.
      known: names of the columns that the file has.
      key: flag or config key that sets the name of the column; None if there is none.
    """
    near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
    lower = [other for other in known if other.lower() == column.lower()]
    hint = f" (did you mean {(lower or near)[0]!r}?)" if lower or near else ""
    remedy = f"; set --{key} to one of them" if key else ""
    return UserError(
        f"{where}: no column {column!r}{hint}; the columns are: {join_names(known)}{remedy}"
    )


def expect_columns(table: Table, columns: Sequence[str]) -> None:
    """Checks that a table has the columns of the data on which a run was trained.

    Raises:
      UserError: the table lacks a column.
    """
    for column in columns:
        if column not in table.header:
            error = no_column(table.name, column, table.header)
            raise UserError(
                f"{error}; rename the column, because the run was trained on {column!r}"
            )


def _objects(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number and object of each line that is not blank."""
    with open_text(name) as file:
        # Only LF ends a line. Other line separators of TextIO may occur within strings.
        file.reconfigure(newline="\n")
        try:
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text, object_pairs_hook=unique_keys)
                except (ValueError, RecursionError) as error:
                    reason = str(error) or type(error).__name__
                    raise UserError(f"{name}: line {line} is not JSON ({reason})") from None
                if not isinstance(row, dict):
                    raise UserError(f"{name}: line {line} is not a JSON object")
                yield line, row
        except UnicodeDecodeError:
            raise decoding_error(name) from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Converts the pairs of a JSON object to a dict, and checks that no key occurs twice.

    This is an `object_pairs_hook` for `json.loads`.

    Raises:
      ValueError: a key occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"key {twice!r} occurs twice")
    return found


def _delimiter(name: str, wanted: Sequence[str], usual: str) -> str:
    """Detects the delimiter of a table.

    The best delimiter is the one that gives the most wanted columns in the header. Among equals,
    one that gives records of equal width is preferred, and then the one that occurs most often in
    the header. A first line such as "sep=;" declares the delimiter.

    Raises:
      UserError: two delimiters are equally good, or the declared one is not supported.
    """
    with open_text(name) as file:
        try:
            lines = list(itertools.islice(file, _SAMPLE))
        except UnicodeDecodeError:
            raise decoding_error(name) from None
    lines = [line for line in lines if line.strip()] or [""]
    if announced := re.fullmatch(r"sep=(.)\s*", lines[0].lstrip("\ufeff"), re.IGNORECASE):
        if announced[1] not in DELIMITERS:
            raise UserError(
                f"{name}: line 1 declares the delimiter {announced[1]!r}, expected one of "
                f"{', '.join(_NAMES.values())}"
            )
        return announced[1]
    widths: dict[str, int] = {}
    found = []
    for delimiter in DELIMITERS:
        rows = _parsed(lines, delimiter)
        if not rows or len(rows[0]) < 2:
            continue
        widths[delimiter] = len(rows[0])
        known = len(set(wanted) & {cell.strip() for cell in rows[0]})
        # The last record of the sample may be truncated.
        even = all(len(row) == len(rows[0]) for row in rows[1:-1])
        found.append(((known, even, len(rows[0])), delimiter))
    if not found:
        return usual
    found.sort(reverse=True)
    best = [delimiter for score, delimiter in found if score == found[0][0]]
    if len(best) > 1 and usual in best:
        return usual
    if len(best) > 1:
        raise UserError(
            f"{name}: the delimiter of line 1 is ambiguous, "
            f"{' or '.join(_NAMES[each] for each in best)}; quote column names "
            f"that contain a delimiter"
        )
    return best[0]


def _parsed(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Parses lines up to the first error, and returns the fields of each record."""
    rows = []
    try:
        for row in csv.reader(lines, delimiter=delimiter, strict=True):
            if row:
                rows.append(row)
    except csv.Error:
        pass
    return rows


def _records(name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first line and the fields of each record, including the header."""
    empty: list[int] = []
    merged: list[tuple[int, int]] = []
    width = 0
    with open_text(name) as file:
        kept = _Kept(file)
        reader = csv.reader(kept, delimiter=delimiter, strict=True)
        # The default limit of 128 KB is too small for long texts. The limit is global, and it is
        # not restored because concurrent passes need it too.
        csv.field_size_limit(_LONGEST_FIELD)
        line, blank = 1, []
        try:
            for row in reader:
                start, line = line, reader.line_num + 1
                lines = kept.taken()
                if start == 1 and re.fullmatch(r"sep=.\s*", lines[0], re.IGNORECASE):
                    continue
                # A quoted empty field counts as a record; a row of delimiters alone does not.
                if not "".join(lines).strip() or (len(row) > 1 and not any(map(str.strip, row))):
                    blank.append(start)
                    continue
                # Blank lines at the end of the file are not counted.
                empty += blank
                blank = []
                width = width or len(row)
                if len(row) != width:
                    raise UserError(
                        f"{name}: line {start} has {len(row)} fields, expected {width} as in "
                        f"the header; quote fields that contain a {_NAMES[delimiter]} or a line end"
                    )
                if len(lines) > 1 and all(each.count(delimiter) == width - 1 for each in lines):
                    merged.append((start, line - 1))
                yield start, row
        except csv.Error as error:
            raise UserError(f"{name}: line {line} is malformed ({error}){_remedy(error)}") from None
        except UnicodeDecodeError:
            raise decoding_error(name) from None
    if empty:
        warn_once(f"{name}: {len(empty)} empty lines are ignored; the first is line {empty[0]}")
    if merged:
        first, last = merged[0]
        warn_once(
            f"{name}: {len(merged)} rows span several lines, the first one spans lines {first} to "
            f"{last}; if these lines are separate rows, correct the quotes there"
        )


def _remedy(error: csv.Error) -> str:
    if "expected after" in str(error) or "unexpected end" in str(error):
        return '; quote whole fields, and double the quotes within them: ""'
    return ""


class _Kept:
    """Iterator over the lines of a file.

    `taken` returns the lines that were read since the last call of `taken`.
    """

    def __init__(self, file: TextIO):
        self._file, self._lines = file, []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file)
        if "\0" in line:
            raise csv.Error("zero byte")
        self._lines.append(line)
        return line

    def taken(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines
