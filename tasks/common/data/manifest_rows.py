"""Reading of user files that have transcripts: from manifests, or from text files beside them.

A manifest is a table with the path and the text of each file.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tasks.common.data.cells import label_value, text_value
from tasks.common.data.own import files_of, is_pattern, split_files
from tasks.common.data.tables import EXTENSIONS, open_table
from tasks.common.data.text_files import decode_text
from tasks.common.data.user_files import find_file, is_hidden, split_paths
from tasks.common.errors import UserError, warn_once

COLUMNS = ("path", "text")


class ManifestRow(NamedTuple):
    """One file of a manifest or folder, with its transcript.

    Attributes:
      where: manifest and line of the row, or the path of the file, for messages.
      file: path of the file.
      text: transcript.
      group: value in the column that groups the rows; '' without such a column.
    """

    where: str
    file: Path
    text: str
    group: str = ""


@dataclasses.dataclass(frozen=True)
class ManifestColumns:
    """Names of the columns of manifests, and of the flags that set them.

    Attributes:
      path, text: columns with the paths and the texts.
      path_flag, group_flag: flags that set `path` and `group`, for messages.
      group: column that groups the rows; None if rows have no groups.
    """

    path: str = COLUMNS[0]
    text: str = COLUMNS[1]
    path_flag: str = "audio"
    group_flag: str = "speaker"
    group: str | None = None


def find(path: str, columns: ManifestColumns | None = None) -> dict[str, list[ManifestRow]]:
    """Returns the manifest rows of each split.

    Args:
      path: a manifest; or a folder in which each file has a text file of the same name, such as
        a.png and a.txt; or a glob pattern of manifests or of such files. The path may also give one
        of these for each split, see `own.split_files`.
      columns: columns of the manifests; None for the columns "path" and "text".

    Raises:
      UserError: a manifest is missing, empty or malformed; a file, a column or the train split is
        missing.
    """
    columns = columns or ManifestColumns()
    found = {}
    for split, name in split_files(path).items():
        mine = columns
        group = columns.group
        if split != "train" and group is not None and not _has_column(name, group):
            warn_once(
                f"{name}: has no column {columns.group!r}, so its groups are not "
                f"compared with those of the other splits"
            )
            mine = dataclasses.replace(columns, group=None)
        found[split] = _rows(name, mine)
    return found


def _has_column(name: str, column: str) -> bool:
    if is_pattern(name) or Path(name).expanduser().is_dir():
        return True
    header = open_table(name, [column], extensions=None, may_be_empty=True).header
    return _spelled(column, header) in header


def find_labeled(path: str, columns: ManifestColumns) -> list[ManifestRow]:
    """Returns the rows of a single manifest or folder, all in one list; see `find`.

    Raises:
      UserError: as for `find`, or there are several manifests.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir() and len(split_paths(path)) > 1:
        raise UserError(f"{path}: got several manifests, expected one manifest or one folder")
    return _folder(folder, columns) if folder.is_dir() else read_manifest(path, columns)


def _rows(name: str, columns: ManifestColumns) -> list[ManifestRow]:
    """Returns the rows of one split, which is given by a manifest, a folder or a pattern."""
    if is_pattern(name):
        files = [Path(file) for file in files_of(name)]
        if all(file.suffix.lower() in EXTENSIONS for file in files):
            return [row for file in files for row in read_manifest(str(file), columns)]
        files = [file for file in files if file.suffix.lower() != ".txt"]
        texts = {text for file in files for text in file.parent.glob(f"{glob.escape(file.stem)}.*")}
        beside = {text for text in texts if text.suffix.lower() == ".txt"}
        return _beside(name, files, {text.with_suffix(""): text for text in beside}, columns)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return read_manifest(name, columns)
    return _folder(folder, columns)


def read_manifest(name: str, columns: ManifestColumns | None = None) -> list[ManifestRow]:
    """Reads a manifest: a table or a JSON lines file with columns of paths and texts.

    Paths are relative to the folder of the manifest. Case is ignored in column names.

    Args:
      name: path of the manifest: JSON lines if it ends in .jsonl or .ndjson, else CSV or TSV.
      columns: columns of the manifest; None for the columns "path" and "text".

    Raises:
      UserError: the manifest is malformed, a column or a file is missing, or a value is invalid;
        the message names the line.
    """
    columns = columns or ManifestColumns()
    flags = {columns.path: columns.path_flag, columns.text: "text"}
    if columns.group is not None:
        flags.setdefault(columns.group, columns.group_flag)
    table = open_table(name, list(flags), extensions=None, may_be_empty=True)
    named = {each: _spelled(each, table.header) for each in flags}
    missing = [each for each in named.values() if each not in table.header]
    if missing and table.delimiter is not None:
        remedy = " and ".join(f"--{flags[each]}" for each in missing)
        raise UserError(
            f"{name}: no column {' and '.join(map(repr, missing))}; the columns are: "
            f"{table.column_names}; set {remedy} to one of them"
        )
    folder, lines = Path(name).expanduser().parent, []
    for number, row in table.select(list(named.values()), keys={named[x]: flags[x] for x in flags}):
        cells = dict(zip(flags, row, strict=True))
        lines.append(_line(f"{name}: line {number}", folder, cells, columns))
    if not lines:
        raise UserError(f"{name}: lists no files")
    return lines


def _line(
    where: str, folder: Path, cells: Mapping[str, Any], columns: ManifestColumns
) -> ManifestRow:
    file = text_value(cells[columns.path], where, columns.path).strip()
    if not file:
        raise UserError(f"{where}: has no {columns.path}")
    found = find_file(folder, file)
    if not os.path.isfile(found):  # unlike `Path.is_file`, this returns False for too long names
        raise UserError(f"{where}: no such file: {found}")
    text = " ".join(text_value(cells[columns.text], where, columns.text).split())
    group = "" if columns.group is None else label_value(cells[columns.group], where, columns.group)
    return ManifestRow(where, found, text, group)


def _spelled(column: str, header: Sequence[str]) -> str:
    """Returns the name of a column in the spelling of the header.

    If the header lacks the name, but has exactly one name that differs from it in case alone, that
    name of the header is returned.
    """
    alike = [name for name in header if name.lower() == column.lower()]
    return alike[0] if column not in header and len(alike) == 1 else column


def _folder(folder: Path, columns: ManifestColumns) -> list[ManifestRow]:
    texts: dict[Path, Path] = {}
    files, others = [], []
    for file in sorted(folder.iterdir()):
        if is_hidden(file.name) or not file.is_file():
            others.append(file)
        elif file.suffix.lower() == ".txt":
            texts[file.with_suffix("")] = file
        else:
            files.append(file)
    lines = _beside(str(folder), files, texts, columns)
    used = {file.with_suffix("") for file in files}
    others += [text for stem, text in texts.items() if stem not in used]
    if others:
        warn_once(
            f"{folder}: {len(others)} entries are left out, such as {others[0].name}: texts "
            f"without a file of the same name, folders, or hidden files"
        )
    return lines


def _beside(
    name: str, files: Sequence[Path], texts: Mapping[Path, Path], columns: ManifestColumns
) -> list[ManifestRow]:
    """Returns the rows of files whose texts are in .txt files of the same names.

    Args:
      name: folder or pattern, for messages.
      files: the files.
      texts: path of each text file, by its path without extension.
      columns: columns of manifests; `columns.group` must be None.
    """
    if columns.group is not None:
        raise UserError(
            f"--{columns.group_flag}: got {columns.group!r}, but {name} is no manifest and "
            f"has no columns; give a manifest, or set config.data.split_by to text or file"
        )
    lines = []
    for file in files:
        text = texts.get(file.with_suffix(""))
        if text is None:
            raise UserError(
                f"{file}: has no transcript, expected a text file {file.with_suffix('.txt')}"
            )
        lines.append(ManifestRow(str(file), file, " ".join(_text(text).split())))
    if not lines:
        raise UserError(f"--data: {name}: has no files")
    return lines


def _text(file: Path) -> str:
    try:
        return decode_text(file.read_bytes(), str(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
