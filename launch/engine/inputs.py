"""Inputs of predictions: flags, lines of a stream or file, rows of a table, files of a folder."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from tasks.common.data.cells import text_value
from tasks.common.data.splits import MISSING
from tasks.common.data.tables import EXTENSIONS, Table, no_column, open_table
from tasks.common.data.text_files import detect_encoding, split_lines
from tasks.common.data.user_files import expect_some_files, is_hidden
from tasks.common.errors import UserError, warn_once

STANDARD_INPUT = "-"


class Input(NamedTuple):
    """One input of a prediction.

    Attributes:
      raw: text, or path of a file.
      row: table row as a dict of columns; None without a table.
      group: folder or glob pattern that the file is from; None for a single input. Unreadable files
        of a group are skipped.
    """

    raw: str
    row: Mapping[str, Any] | None = None
    group: str | None = None


class InputColumns(Protocol):
    """The attributes of `tasks.processor.Processor` that are needed to read a table of inputs."""

    @property
    def input_column(self) -> str | None: ...

    @property
    def input_suffixes(self) -> Sequence[str]: ...

    def table_input(self, value: str, folder: Path) -> str: ...


def read_inputs(given: Sequence[str], file: str | None, columns: InputColumns) -> Iterator[Input]:
    """Yields the inputs of --input, then those of --input_file.

    Args:
      given: input texts; "-" stands for the lines of standard input.
      file: a table, recognized by its extension, with the `input_column` of the task's processor;
        or a text file with one input per line.
      columns: processor of the task, or an object that describes the input column of an exported
        model.

    Raises:
      UserError: an input is not valid text, or the file cannot be read, is malformed or lacks the
        column.
    """
    for text in given:
        if text == STANDARD_INPUT:
            for line in read_lines(sys.stdin.buffer, "standard input"):
                yield Input(line)
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"--input={text!r}: got text that is not UTF-8") from None
        yield from expanded(text, columns.input_suffixes)
    if file is None:
        return
    # A .json file is not supported: `open_table` raises an error that names the supported format.
    if Path(file).suffix.lower() in (*EXTENSIONS, ".json"):
        yield from _table_inputs(file, columns)
        return
    try:
        with Path(file).expanduser().open("rb") as stream:
            for line in read_lines(stream, f"--input_file={file}"):
                yield Input(line)
    except OSError as error:
        raise UserError(f"--input_file={file}: cannot be read ({error.strerror})") from None


def expanded(text: str, suffixes: Sequence[str]) -> Iterator[Input]:
    """Yields the files of a folder or glob pattern, or the input itself.

    Args:
      text: an input.
      suffixes: extensions of the files that the task reads; empty if it reads texts.

    Raises:
      UserError: a folder cannot be read, or there is no file.
    """
    path = os.path.expanduser(text)
    if not suffixes or os.path.isfile(path):
        yield Input(text)
    elif os.path.isdir(path):
        found, others = _files_of(path, suffixes)
        if not found:
            raise UserError(
                f"--input={text}: has no file that ends in one of {', '.join(suffixes)}"
            )
        if others:
            warn_once(
                f"--input={text}: {len(others)} files are left out, such as {others[0]}; files are "
                f"read if they end in one of {', '.join(suffixes)}"
            )
        yield from (Input(file, group=text) for file in found)
    elif glob.has_magic(path):
        found = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not found:
            raise UserError(f"--input={text}: no file matches this pattern")
        yield from (Input(file, group=text) for file in found)
    else:
        yield Input(text)


def _files_of(folder: str, suffixes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the files below a folder with one of the suffixes, and the other files, sorted."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    found, others = [], []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if not is_hidden(name):
                used = os.path.splitext(name)[1].lower() in suffixes
                (found if used else others).append(os.path.join(parent, name))
    return found, others


class FileSummary(NamedTuple):
    """Summary of a file of inputs: the number of inputs, and the columns of a table or None."""

    count: int
    columns: tuple[str, ...] | None


def check_file(file: str, columns: InputColumns) -> FileSummary:
    """Reads a file of inputs once, so that its mistakes are found before anything is computed.

    Warns about empty cells of the input column.

    Args:
      file: as for `read_inputs`.
      columns: as for `read_inputs`.

    Raises:
      UserError: as for `read_inputs`; or the table names files, and one of them does not exist.
    """
    count, empty, missing, keys = 0, [], [], {}
    paths: list[Path] = []
    for count, one in enumerate(read_inputs((), file, columns), 1):
        if one.row is None:
            continue
        keys |= dict.fromkeys(one.row)
        value = str(one.row[str(columns.input_column)]).strip()
        if not value or value in MISSING:
            empty.append(count)
        if columns.input_suffixes:
            path = Path(one.raw)
            if not path.is_file():
                missing.append((count, path))
            paths.append(path)
    if not count:
        raise UserError(f"--input_file={file}: the file is empty")
    if missing:
        expect_some_files(paths, file, "paths are relative to the table")
        number, path = missing[0]
        raise UserError(
            f"{file}: {len(missing)} of {count} files do not exist, such as {path} in row {number}"
        )
    if empty:
        warn_once(
            f"{file}: {len(empty)} of {count} cells of {columns.input_column!r} are empty or NaN, "
            f"the first is in row {empty[0]}; they are used as inputs unchanged"
        )
    return FileSummary(count, tuple(keys) or None)


def in_portions(inputs: Iterator[Input], size: int) -> Iterator[list[Input]]:
    """Yields lists of at most `size` inputs."""
    portion: list[Input] = []
    for one in inputs:
        portion.append(one)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


class Skipped:
    """Unreadable files of folders and patterns, which are skipped and reported at the end."""

    def __init__(self):
        """Initializes an empty list."""
        self._reasons: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def answered(
        self,
        portion: list[Input],
        predict: Callable[[list[str]], Any],
        check: Callable[[str], Any],
    ) -> tuple[list[Input], Any]:
        """Returns the inputs that can be read, and their predictions.

        Args:
          portion: inputs.
          predict: function that returns the predictions of raw inputs.
          check: function that raises UserError if an input cannot be read.

        Raises:
          UserError: an input that is not from a folder or pattern cannot be read.
        """
        for one in portion:
            if one.group is not None:
                self._counts[one.group] = self._counts.get(one.group, 0) + 1
        try:
            return portion, predict([one.raw for one in portion])
        except UserError:
            kept = [one for one in portion if not self._is_broken(one, check)]
            if len(kept) == len(portion):
                raise
        return kept, predict([one.raw for one in kept]) if kept else []

    def _is_broken(self, one: Input, check: Callable[[str], Any]) -> bool:
        if one.group is None:
            return False
        try:
            check(one.raw)
        except UserError as error:
            self._reasons.setdefault(one.group, []).append(str(error))
            return True
        return False

    def report(self) -> None:
        """Prints a line for each folder or pattern with skipped files.

        Raises:
          UserError: no file of a folder or pattern can be read.
        """
        for group, reasons in self._reasons.items():
            count = self._counts[group]
            if len(reasons) == count:
                raise UserError(
                    f"--input={group}: none of its {count} files can be read; the first error: "
                    f"{reasons[0]}"
                )
            print(
                f"--input={group}: {len(reasons)} of {count} files are skipped, such as "
                f"{reasons[0]}",
                file=sys.stderr,
            )


def read_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yields the lines of a stream as they arrive, without line ends or a byte order mark.

    Args:
      stream: byte stream in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.
      name: name of the stream, for messages.

    Raises:
      UserError: a line cannot be decoded.
    """
    start = getattr(stream, "peek", lambda _: b"")(4)[:4]
    encoding = detect_encoding(start)
    if encoding not in ("utf-8", "utf-8-sig"):
        try:
            text = stream.read().decode(encoding)
        except UnicodeDecodeError:
            raise UserError(f"{name}: is not {encoding.upper()}; save it as UTF-8") from None
        yield from split_lines(text)
        return
    for number, line in enumerate(stream, 1):
        if b"\0" in line:
            raise UserError(
                f"{name}: line {number} has a zero byte, expected text in UTF-8; convert the file"
            )
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if number == 1 and not text.endswith("\n"):
                # Without a line feed, this is the complete file: a single line, or lines that end
                # in CR.
                yield from split_lines(text)
            else:
                yield text.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise UserError(f"{name}: line {number} is not UTF-8; convert the file") from None


def _table_inputs(file: str, columns: InputColumns) -> Iterator[Input]:
    column = columns.input_column
    if column is None:
        raise UserError(
            f"--input_file={file}: is a table, but this task reads one input per line; give a "
            "text file, such as inputs.txt"
        )
    table = open_table(file, (column,), extensions=None)
    for line, row in _rows(table):
        where = f"{file}: line {line}"
        if column not in row:
            error = no_column(where if table.delimiter is None else file, column, list(row))
            raise UserError(f"{error}; rename the column with the inputs to {column}")
        text = text_value(row[column], where, column)
        yield Input(columns.table_input(text, Path(file).expanduser().parent), row)


def _rows(table: Table) -> Iterator[tuple[int, dict[str, Any]]]:
    if table.delimiter is None:
        yield from table.objects()
        return
    # Spreadsheet programs may write columns without a name.
    names = [name or _unnamed(number, table) for number, name in enumerate(table.header, 1)]
    for line, row in table.rows():
        yield line, dict(zip(names, row, strict=True))


def _unnamed(number: int, table: Table) -> str:
    name = f"column_{number}"
    while name in table.header:
        name += "_"
    return name
