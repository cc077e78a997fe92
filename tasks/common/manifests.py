"""A person's own files with what they say: manifests of files and texts, or a folder of both."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks.common.errors import UserError
from tasks.common.image_files import read_each
from tasks.common.own_files import HELD_OUT, SPLIT_NAMES, hold_out, read_text
from tasks.common.text import UNKNOWN, TextConfig, TextEncoder
from tasks.common.transcription import TranscribedExamples, units_of
from tasks.task import SPLITS

COLUMNS = ("path", "text")


class Line(NamedTuple):
    """One file: where it is named (manifest and line), its path, and what it says."""

    where: str
    file: Path
    text: str


def own_examples(
    path: str,
    read: Callable[[Path], np.ndarray],
    text: TextConfig,
    field: str,
    skip_broken: bool,
) -> tuple[dict[str, TranscribedExamples], TextEncoder]:
    """A person's own files in three splits, and their texts' encoder, fitted on train.

    Args:
      path: see `find`. A split that is missing is a tenth of train, by the hash of the text.
      read: raises UserError for what cannot be used.
      text: how texts become units.
      field: of an example.
      skip_broken: leave out what cannot be used, and name it.

    Raises:
      UserError: what is wrong, with its file and line.
    """
    lines = find(path)
    if len(lines) < len(SPLITS):
        texts = [line.text for line in lines["train"]]
        remedy = "give validation and test manifests of their own"
        rest = hold_out(texts, list(lines), path, remedy)
        lines |= {split: [lines["train"][i] for i in rows] for split, rows in rest.items()}

    def named(line: Line) -> np.ndarray:
        try:
            return read(line.file)
        except UserError as error:
            raise UserError(f"{line.where}: {error}") from None

    kept, arrays = {}, {}
    for split in SPLITS:
        arrays[split], numbers = read_each(lines[split], named, skip_broken=skip_broken)
        kept[split] = [lines[split][number] for number in numbers]
        if not numbers:
            raise UserError(f"{path}: no file of the {split} split can be used")
    encoder = TextEncoder.fit([line.text for line in kept["train"]], text)
    for split in HELD_OUT:
        _expect_known(kept[split], encoder, [line.text for line in kept["train"]])
    splits = {}
    for split in SPLITS:
        texts = [line.text for line in kept[split]]
        sizes = [len(array) for array in arrays[split]]
        units = units_of(encoder, texts)
        splits[split] = TranscribedExamples(field, arrays[split].__getitem__, sizes, units, texts)
    return splits, encoder


def _expect_known(lines: Sequence[Line], encoder: TextEncoder, train: Sequence[str]) -> None:
    """Names a text that could never be written, since train has no such unit."""
    for line, units in zip(lines, units_of(encoder, [x.text for x in lines]), strict=True):
        if UNKNOWN in units:
            known = {letter for text in train for letter in text.lower()}
            strange = sorted({x for x in line.text.lower() if x not in known and not x.isspace()})
            what = f"characters {''.join(strange)!r}" if strange else "words"
            raise UserError(
                f"{line.where}: has {what} that no text of train has; add such files to train, or "
                "take --config.data.text.tokenizer=bpe"
            )


def find(path: str) -> dict[str, list[Line]]:
    """Files by split.

    Args:
      path: a manifest, or a folder of files with a text of the same name beside each, as a.png and
        a.txt: the train split; or manifests with commas between, of train, validation and test,
        which are known by their names, as train.csv.

    Raises:
      UserError: a manifest is missing, empty, or not one; a file is missing; there is no train
        split.
    """
    names = [name.strip() for name in path.split(",")]
    if len(names) == 1:
        folder = Path(path).expanduser()
        return {"train": _folder(folder) if folder.is_dir() else read_manifest(path)}
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
    for where, file, said in rows:
        if not file:
            raise UserError(f"{where}: names no file")
        place = folder / Path(file).expanduser()
        if not place.is_file():
            raise UserError(f"{where}: no such file: {place}")
        lines.append(Line(where, place, " ".join(said.split())))
    if not lines:
        raise UserError(f"{name}: names no files")
    return lines


def _folder(folder: Path) -> list[Line]:
    lines = []
    for file in sorted(folder.iterdir()):
        if file.suffix == ".txt" or file.name.startswith(".") or not file.is_file():
            continue
        text = file.with_suffix(".txt")
        if not text.is_file():
            raise UserError(f"{file}: has no text beside it; expected {text}")
        said = text.read_bytes().strip()
        lines.append(Line(str(file), file, " ".join(read_text(text).split()) if said else ""))
    if not lines:
        raise UserError(f"path: {folder}: has no files")
    return lines


def _table_rows(name: str, text: str) -> Sequence[tuple[str, str, str]]:
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [column.strip() for column in reader.fieldnames or ()]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise UserError(
            f"{name}: no column {' and '.join(missing)}; its first line names the columns path and "
            f"text, got {', '.join(header)}"
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
