"""A person's own recordings: a manifest of sound files with what is said in them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.common.errors import UserError
from tasks.common.own_files import SPLIT_NAMES, read_text

COLUMNS = ("path", "text")


class Line(NamedTuple):
    """A recording: where it is said (file and line), the sound file, and what is said."""

    where: str
    sound: Path
    text: str


def find(path: str) -> dict[str, list[Line]]:
    """Recordings by split.

    Args:
      path: a manifest, the train split; or manifests with commas between, of train, validation and
        test, which are known by their names, as train.csv.

    Raises:
      UserError: a manifest is missing, empty, or not one; a sound file is missing; there is no
        train split.
    """
    names = [name.strip() for name in path.split(",")]
    if len(names) == 1:
        return {"train": read_manifest(names[0])}
    found: dict[str, list[Line]] = {}
    for name in names:
        stem = Path(name).stem.lower()
        split = next((split for split, words in SPLIT_NAMES.items() if stem in words), None)
        if split is None:
            raise UserError(
                f"path: {name}: cannot tell its split; call it train, validation or test"
            )
        if split in found:
            raise UserError(f"path: {name}: there is a {split} split already")
        found[split] = read_manifest(name)
    if "train" not in found:
        raise UserError(f"path: {path}: has no train split")
    return found


def read_manifest(name: str) -> list[Line]:
    """Lines of a CSV or TSV file with a header that names path and text, or of JSON objects.

    Paths are relative to the manifest's folder.
    """
    text = read_text(name)
    rows = _json_rows(name, text) if name.endswith(".jsonl") else _table_rows(name, text)
    folder, lines = Path(name).expanduser().parent, []
    for where, sound, said in rows:
        if not sound:
            raise UserError(f"{where}: names no sound file")
        place = folder / Path(sound).expanduser()
        if not place.is_file():
            raise UserError(f"{where}: no such file: {place}")
        lines.append(Line(where, place, " ".join(said.split())))
    if not lines:
        raise UserError(f"{name}: has no recordings")
    return lines


def _table_rows(name: str, text: str) -> Sequence[tuple[str, str, str]]:
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [column.strip() for column in reader.fieldnames or ()]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UserError(
            f"{name}: no column {' and '.join(missing)}; the header names path and text, got "
            f"{', '.join(header)}"
        )
    reader.fieldnames = header
    rows = []
    for row in reader:
        where = f"{name}: line {reader.line_num}"
        if row["text"] is None:
            raise UserError(f"{where}: has no text")
        rows.append((where, row["path"].strip(), row["text"]))
    return rows


def _json_rows(name: str, text: str) -> Sequence[tuple[str, str, str]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{name}: line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON ({error.msg})") from None
        if not isinstance(row, dict) or any(not isinstance(row.get(key), str) for key in COLUMNS):
            raise UserError(f"{where}: expected an object with path and text, which are strings")
        rows.append((where, row["path"], row["text"]))
    return rows
