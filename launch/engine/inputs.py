"""Inputs of predictions, read from flags, lines of a stream or file, or rows of a table."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from launch.engine.output import as_json
from tasks.common.data.cells import text_value
from tasks.common.data.tables import EXTENSIONS, Table, no_column, open_table
from tasks.common.data.text_files import detect_encoding, split_lines
from tasks.common.errors import UserError

STANDARD_INPUT = "-"
PREFIX = "predicted_"


class Input(NamedTuple):
    """One input, and its table row as a dict of columns; the row is None without a table."""

    raw: str
    row: Mapping[str, Any] | None = None


class InputColumns(Protocol):
    """The attributes of `tasks.task.Processor` that are needed to read a table of inputs."""

    @property
    def input_column(self) -> str | None: ...

    def table_input(self, value: str, folder: Path) -> str: ...


def read_inputs(given: Sequence[str], file: str | None, columns: InputColumns) -> Iterator[Input]:
    """Yields the inputs of --input, then those of --input_file.

    Args:
      given: input texts; "-" stands for the lines of standard input.
      file: a table, recognized by its extension, with the `input_column` of the task's processor;
        or a text file with one input per line.
      columns: processor of the task, or an object that describes the input column of an export.

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
        yield Input(text)
    if file is None:
        return
    # `open_table` raises an error that describes the expected JSON format.
    if Path(file).suffix.lower() in (*EXTENSIONS, ".json"):
        yield from _table_inputs(file, columns)
        return
    try:
        with Path(file).expanduser().open("rb") as stream:
            for line in read_lines(stream, f"--input_file={file}"):
                yield Input(line)
    except OSError as error:
        raise UserError(f"--input_file={file}: cannot be read ({error.strerror})") from None


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
                # This is the complete file: a single line, or lines that end in CR.
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


class Answers:
    """Printer of predictions, as text, as JSON lines, or with the rows of the input table.

    For tables the text format is CSV: the columns of the table, then a column predicted_<key> for
    each key of a prediction. JSON lines contain the table row under the key "row".
    """

    def __init__(self, form: str):
        """Args: form: "text" or "json"."""
        self._form = form
        self._header: list[str] | None = None

    def write(self, inputs: Iterable[Input], answers: Iterable[Mapping[str, Any]]) -> None:
        """Prints one prediction for each input.

        Raises:
          UserError: a row already has a column predicted_<key>.
        """
        for given, answer in zip(inputs, answers, strict=True):
            if self._form == "json":
                row = {} if given.row is None else {"row": given.row}
                print(as_json({**row, **answer}))
            elif given.row is None:
                print(answer["text"])
            else:
                self._write_row(given.row, answer)
        sys.stdout.flush()

    def _write_row(self, row: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
        found = {
            f"{PREFIX}{key}": cell(value)
            for key, value in answer.items()
            if key not in ("input", "text") or len(answer) <= 2
        }
        if both := [key for key in found if key in row]:
            raise UserError(
                f"--input_file: the table already has a column {both[0]!r}; rename it, or set "
                "--format=json"
            )
        header = [*row, *found]
        if self._header is None:
            self._header = header
            print(_line(header))
        cells = {**{key: cell(value) for key, value in row.items()}, **found}
        if strange := [key for key in cells if key not in self._header]:
            raise UserError(
                f"--input_file: a row has the key {strange[0]!r}, which the first row lacks; set "
                "--format=json"
            )
        print(_line([cells.get(key, "") for key in self._header]))


def cell(value: Any) -> str:
    """Returns a cell of a table: None as "", a text as it is, and other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()
