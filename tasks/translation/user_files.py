"""User files of sentence pairs: two UTF-8 text files with a sentence per line, aligned by line."""

from __future__ import annotations

from pathlib import Path

from tasks.common.data.cells import text_value
from tasks.common.data.tables import EXTENSIONS, expect_columns, open_table
from tasks.common.data.text_files import read_text, split_lines
from tasks.common.data.user_files import SPLIT_NAMES, is_hidden, split_paths
from tasks.common.errors import UserError, warn_once

Files = tuple[Path, Path]


def find(path: str, source: str, target: str) -> dict[str, Files]:
    """Finds the files of each split.

    Args:
      path: a folder with STEM.SOURCE and STEM.TARGET, such as train.en and train.de; or two files
        of the training split, separated by a comma.
      source: extension of the files in the source language.
      target: extension of the files in the target language.

    Raises:
      UserError: there is no training split, a file has no counterpart in the other language, or two
        pairs of files denote the same split.
    """
    names = split_paths(path)
    if len(names) > 1:
        if len(names) != 2 or not all(names):
            raise UserError(
                f"config.data.path: got {len(names)} files in {path!r}, expected two files or one "
                "folder"
            )
        return {"train": (Path(names[0]).expanduser(), Path(names[1]).expanduser())}
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"config.data.path: got {path!r}, expected a folder with train.{source} and "
            f"train.{target}, or two files, separated by a comma"
        )
    found: dict[str, Files] = {}
    for split, stems in SPLIT_NAMES.items():
        for stem in stems:
            pair = folder / f"{stem}.{source}", folder / f"{stem}.{target}"
            there = [file.is_file() for file in pair]
            if any(there) and not all(there):
                raise UserError(
                    f"{pair[there[0]]}: is missing, but {pair[not there[0]].name} is there; add "
                    "the file with the translations"
                )
            if all(there) and split in found:
                raise UserError(
                    f"{path}: {found[split][0].name!r} and {pair[0].name!r} both denote the "
                    f"{split} split; keep one of them"
                )
            if all(there):
                found[split] = pair
    if "train" not in found:
        raise UserError(f"{path}: has no train.{source} and train.{target}; add both files")
    _say_left_out(folder, {file for pair in found.values() for file in pair})
    return found


def read_labeled(path: str, source: str, target: str) -> tuple[list[str], list[str], list[str]]:
    """Reads the sentence pairs of one split for an evaluation; see `read_pairs`.

    Args:
      path: two files, separated by a comma; a folder with test.SOURCE and test.TARGET; or a table
        with the columns SOURCE and TARGET.
      source, target: languages of the run.

    Raises:
      UserError: as for `read_pairs`, or a column or file is missing.
    """
    names = split_paths(path)
    if len(names) == 2 and all(names):
        return read_pairs((Path(names[0]).expanduser(), Path(names[1]).expanduser()))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return read_pairs((folder / f"test.{source}", folder / f"test.{target}"))
    if len(names) > 1 or folder.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{path}: got one file, expected two files, separated by a comma, a folder with "
            f"test.{source} and test.{target}, or a table with the columns {source} and {target}"
        )
    table = open_table(path, (source, target))
    expect_columns(table, (source, target))
    sources, targets, ids = [], [], []
    for line, cells in table.select((source, target)):
        where = f"{path}: line {line}"
        pair = [
            " ".join(text_value(cell, where, column).split())
            for cell, column in zip(cells, (source, target), strict=True)
        ]
        for cell, column in zip(pair, (source, target), strict=True):
            if not cell:
                raise UserError(f"{where}: {column!r} is empty")
        sources.append(pair[0])
        targets.append(pair[1])
        ids.append(f"{folder.name}:{line}")
    return sources, targets, ids


def _say_left_out(folder: Path, used: set[Path]) -> None:
    others = sorted(file.name for file in set(folder.iterdir()) - used)
    others = [name for name in others if not is_hidden(name)]
    if others:
        warn_once(
            f"{folder}: {len(others)} entries are left out, such as {others[0]}; files of a split "
            "are named train, validation or test, with the language as extension"
        )


def read_pairs(files: Files) -> tuple[list[str], list[str], list[str]]:
    """Reads sources, targets and ids (file name and line) of two files.

    Lines are stripped. Pairs with an empty source or target are omitted; a warning gives their
    number.

    Raises:
      UserError: a file is missing or not UTF-8, the numbers of lines differ, or no pair is left.
    """
    source, target = (_lines(file) for file in files)
    if len(source) != len(target):
        raise UserError(
            f"{files[1]}: got {len(target)} lines, expected {len(source)} as in {files[0]}; put "
            "the translation of each line on the same line"
        )
    kept = [i for i in range(len(source)) if source[i] and target[i]]
    if not kept:
        raise UserError(
            f"{files[0]}: got no sentence pair, expected at least one line that is not empty in "
            f"both files"
        )
    if dropped := len(source) - len(kept):
        first = next(i for i in range(len(source)) if not (source[i] and target[i]))
        warn_once(
            f"{files[0]}: {dropped} of {len(source)} pairs with an empty side are left out, the "
            f"first is line {first + 1}"
        )
    ids = [f"{files[0].name}:{i + 1}" for i in kept]
    return [source[i] for i in kept], [target[i] for i in kept], ids


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in split_lines(read_text(file))]
