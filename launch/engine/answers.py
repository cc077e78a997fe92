"""Writing of predictions: as text, as JSON lines, or as columns added to the input table."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from launch.engine.inputs import Input
from launch.engine.output import as_json
from tasks.common.errors import UserError

PREFIX = "predicted_"
# FORMATS: the values of --format. SUFFIXES: the format for each extension of --output.
FORMATS = ("text", "json", "csv", "tsv", "jsonl")
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
}
_DELIMITERS = {"csv": ",", "tsv": "\t"}

Rows = Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]


class Destination:
    """Standard output, or a file. An earlier file is replaced only when the new one is complete.

    It is a context manager. If an exception leaves the context, an earlier file is unchanged.
    """

    def __init__(self, output: str | None, inputs: Sequence[str] = ()):
        """Checks that the file can be written, before anything is computed.

        Args:
          output: path of the file; None for standard output.
          inputs: paths that are read; the file must not be one of them.

        Raises:
          UserError: the file cannot be written, or is an input.
        """
        self.path = None if output is None else Path(output).expanduser()
        self._temporary: Path | None = None
        self._file: TextIO | None = None
        if self.path is None:
            return
        where = f"--output={output}"
        if not output or self.path.is_dir():
            raise UserError(f"{where}: is {'a folder' if output else 'empty'}, expected a file")
        if not self.path.parent.is_dir():
            raise UserError(f"{where}: there is no folder {self.path.parent}; create it")
        for name in inputs:
            with contextlib.suppress(OSError):
                if self.path.samefile(Path(name).expanduser()):
                    raise UserError(f"{where}: is also the input; name another file")
        if self.path.exists() and not os.access(self.path, os.W_OK):
            raise UserError(f"{where}: cannot be written (Permission denied); name another file")
        # A regular file is written under a temporary name and replaced when it is complete. Devices
        # and pipes are opened directly, because they cannot be replaced.
        opened = self.path
        if self.path.is_file() or not self.path.exists():
            opened = self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self._file = opened.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        except OSError as error:
            raise UserError(f"{where}: cannot be written ({error.strerror})") from None

    def __enter__(self) -> Destination:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
            if kind is None and self._temporary is not None:
                os.replace(self._temporary, str(self.path))
        except OSError as error:
            if kind is None:
                raise UserError(
                    f"--output={self.path}: cannot be written ({error.strerror})"
                ) from None
        finally:
            if self._temporary is not None:
                with contextlib.suppress(OSError):
                    self._temporary.unlink(missing_ok=True)

    def json(self, value: Any) -> str:
        """Returns a value as one line of JSON, with escapes for characters the encoding lacks."""
        return as_json(value) if self._file is None else json.dumps(value, ensure_ascii=False)

    def write(self, line: str) -> None:
        """Writes a line.

        Raises:
          UserError: the file cannot be written.
        """
        if self._file is None:
            print(line)
            return
        try:
            self._file.write(f"{line}\n")
        except OSError as error:
            raise UserError(f"--output={self.path}: cannot be written ({error.strerror})") from None

    def flush(self) -> None:
        """Writes buffered lines to standard output."""
        if self._file is None:
            sys.stdout.flush()


def format_of(output: str | None, given: str | None) -> str:
    """Returns the format of predictions.

    Args:
      output: path of the file; None for standard output.
      given: value of --format; None if it is not given.

    Raises:
      UserError: the extension of the file is unknown or contradicts --format.
    """
    if output is None:
        return given or "text"
    suffix = Path(output).suffix.lower()
    found = SUFFIXES.get(suffix)
    if found is None and given is None:
        hint = "; for JSON lines write .jsonl" if suffix == ".json" else ""
        raise UserError(
            f"--output={output}: got the extension {suffix!r}, expected one of "
            f"{', '.join(SUFFIXES)}{hint}"
        )
    # With --format=json, a .jsonl file contains complete predictions; otherwise it contains table
    # rows.
    if given in (None, found) or found is None or (given, found) == ("json", "jsonl"):
        return given or str(found)
    raise UserError(
        f"--format={given}: got --output={output}, whose extension means {found}; "
        f"leave out --format"
    )


def one_row(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns an answer as a list with one table row; see `tasks.task.Task.rows`."""
    keys = [key for key in answer if key not in ("input", "text") or len(answer) <= 2]
    return [{key: answer[key] for key in keys}]


class Answers:
    """Writer of predictions in one of `FORMATS`.

    * text: the text of each prediction; if the inputs are rows of a table, the same as csv.
    * json: one line for each prediction, with all its keys as a JSON object; if the input is a row
      of a table, the key "row" contains this row.
    * csv, tsv, jsonl: the columns of the input table, then a column predicted_<key> for each key of
      a prediction. Inputs that are not from a table are in the single column "input".
    """

    def __init__(
        self,
        form: str,
        destination: Destination | None = None,
        rows: Rows = one_row,
        columns: Sequence[str] | None = None,
    ):
        """Initializes the writer.

        Args:
          form: one of `FORMATS`.
          destination: file; None for standard output.
          rows: function that returns the table rows of a prediction.
          columns: names of columns of the input table; None for those of its first row.
        """
        self._form, self._rows, self._columns = form, rows, columns
        self._destination = Destination(None) if destination is None else destination
        self._header: list[str] | None = None

    def write(self, inputs: Iterable[Input], answers: Iterable[Mapping[str, Any]]) -> None:
        """Writes one prediction for each input.

        Raises:
          UserError: a row already has a column predicted_<key>, or the file cannot be written.
        """
        for given, answer in zip(inputs, answers, strict=True):
            if self._form == "json":
                row = {} if given.row is None else {"row": given.row}
                self._destination.write(self._destination.json({**row, **answer}))
            elif self._form == "text" and given.row is None:
                self._destination.write(answer["text"])
            else:
                row = {"input": given.raw} if given.row is None else given.row
                for found in table_rows(row, self._rows(answer)):
                    self._write_row(row, found)
        self._destination.flush()

    def _write_row(self, row: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        if self._form == "jsonl":
            self._destination.write(self._destination.json(found))
            return
        delimiter = _DELIMITERS.get(self._form, ",")
        if self._header is None:
            own = row if self._columns is None else self._columns
            self._header = [*own, *(key for key in found if key not in row)]
            self._destination.write(_line(self._header, delimiter))
        if strange := [key for key in found if key not in self._header]:
            raise UserError(
                f"--input_file: a row has the key {strange[0]!r}, which the first row lacks; set "
                "--format=json"
            )
        cells = [cell(found.get(key)) for key in self._header]
        self._destination.write(_line(cells, delimiter))


def table_rows(row: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Adds the columns predicted_<key> of a prediction to a row of the input table.

    Args:
      row: row of the input table.
      found: rows of the prediction; the result has one row for each.

    Raises:
      UserError: the input row already has such a column.
    """
    rows = []
    for each in found:
        added = {f"{PREFIX}{key}": value for key, value in each.items()}
        if both := [key for key in added if key in row]:
            raise UserError(
                f"--input_file: the table already has a column {both[0]!r}; rename it, or set "
                "--format=json"
            )
        rows.append({**row, **added})
    return rows


def write_rows(rows: Iterable[Mapping[str, Any]], form: str, destination: Destination) -> None:
    """Writes records as a table with a header, or as JSON lines.

    Args:
      rows: records with equal keys.
      form: "csv", "tsv" or "jsonl".
      destination: file.
    """
    for number, row in enumerate(rows):
        if form == "jsonl":
            destination.write(destination.json(row))
            continue
        if not number:
            destination.write(_line(list(row), _DELIMITERS[form]))
        destination.write(_line([cell(value) for value in row.values()], _DELIMITERS[form]))


def cell(value: Any) -> str:
    """Converts a value to a table cell: text unchanged, None as "", other values as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line(cells: Sequence[str], delimiter: str = ",") -> str:
    buffer = io.StringIO()
    # The csv module quotes cells that contain a character of the line terminator. Because the
    # terminator has both line end characters, every cell with a line break is quoted. The
    # terminator itself is removed below.
    csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue().removesuffix("\r\n")
