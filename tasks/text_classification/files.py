"""A person's own labelled texts: CSV, TSV or JSON lines.

CSV and TSV have a header and quotes by RFC 4180 (a quoted field may hold separators and line ends,
and a quote written twice); JSON lines hold an object each. All is UTF-8, with or without a mark.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from tasks.common.errors import UserError
from tasks.common.own_files import read_text

EXTENSIONS = (".csv", ".tsv", ".jsonl")


def read_labelled(
    name: str, text_column: str, label_column: str
) -> tuple[list[str], list[str], list[str]]:
    """Texts, labels and ids (file name and line) of a file.

    Raises:
      UserError: the file is missing, of another kind, empty, not UTF-8, malformed, without one of
        the columns, or a row has no label; the line is named where there is one.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{name}: unknown kind of file {path.suffix!r}; it must end in {', '.join(EXTENSIONS)}"
        )
    content = read_text(name)
    rows = _json_rows if path.suffix.lower() == ".jsonl" else _table_rows
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    texts, labels, ids = [], [], []
    for line, row in rows(name, content, separator):
        for column in (text_column, label_column):
            if column not in row:
                known = ", ".join(map(str, row))
                raise UserError(f"{name}: line {line}: no column {column!r}; there are: {known}")
        text, label = row[text_column], _label(row[label_column])
        if not isinstance(text, str):
            raise UserError(f"{name}: line {line}: {text_column!r} is {text!r}, expected a text")
        if not label:
            raise UserError(f"{name}: line {line}: {label_column!r} is empty")
        texts.append(text)
        labels.append(label)
        ids.append(f"{path.name}:{line}")
    if not texts:
        raise UserError(f"{name}: the file has a header and no rows")
    return texts, labels, ids


def _label(value: object) -> str:
    """Numbers and truth values of JSON are labels too; 1 and 1.0 are the same one."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: ""}[value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str | int | float):
        return str(value).strip()
    return ""


def _table_rows(name: str, content: str, separator: str) -> Iterator[tuple[int, dict]]:
    limit = csv.field_size_limit(len(content) + 1)  # its default is 128 KB, short of long texts
    try:
        reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
        header = None
        start = 1
        for row in reader:
            line, start = start, reader.line_num + 1
            if not row:
                continue
            if header is None:
                header = row
                if len(set(header)) < len(header):
                    twice = next(column for column in header if header.count(column) > 1)
                    raise UserError(f"{name}: column {twice!r} stands in the header twice")
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{name}: line {line} has {len(row)} fields, the header has {len(header)}; "
                    "a field with a separator or line end in it must stand in quotes"
                )
            yield line, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{name}: line {start} is malformed ({error})") from None
    finally:
        csv.field_size_limit(limit)


def _json_rows(name: str, content: str, separator: str) -> Iterator[tuple[int, dict]]:
    for line, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise UserError(f"{name}: line {line} is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{name}: line {line} is not a JSON object")
        yield line, row
