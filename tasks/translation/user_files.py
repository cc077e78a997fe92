"""A person's own sentence pairs: two text files in UTF-8, line n of one the translation of line n
of the other.
"""

from __future__ import annotations

from pathlib import Path

from tasks.common.data.text_files import read_text, split_lines
from tasks.common.data.user_files import SPLIT_NAMES, is_hidden, split_paths
from tasks.common.errors import UserError, warn_once

Files = tuple[Path, Path]


def find(path: str, source: str, target: str) -> dict[str, Files]:
    """The files of each split that is there.

    Args:
      path: a folder with STEM.SOURCE and STEM.TARGET, such as train.en and train.de; or two files
        with a comma between, which are the train split.
      source: ending of the files in the language that is read.
      target: of those in the language that is written.

    Raises:
      UserError: there is no train split, one file of two, or two pairs of one split.
    """
    names = split_paths(path)
    if len(names) > 1:
        if len(names) != 2 or not all(names):
            raise UserError(f"path: {path!r} names {len(names)} files; give two, or a folder")
        return {"train": (Path(names[0]).expanduser(), Path(names[1]).expanduser())}
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"path: {path} is not a folder; give one with train.{source} and train.{target}, or "
            "two files with a comma between"
        )
    found: dict[str, Files] = {}
    for split, stems in SPLIT_NAMES.items():
        for stem in stems:
            pair = folder / f"{stem}.{source}", folder / f"{stem}.{target}"
            there = [file.is_file() for file in pair]
            if any(there) and not all(there):
                raise UserError(f"{pair[there[0]]}: is missing beside {pair[not there[0]].name}")
            if all(there) and split in found:
                raise UserError(
                    f"{path}: {found[split][0].name!r} and {pair[0].name!r} are both of the "
                    f"{split} split; keep one"
                )
            if all(there):
                found[split] = pair
    if "train" not in found:
        raise UserError(f"{path}: has no train.{source} and train.{target}")
    _say_left_out(folder, {file for pair in found.values() for file in pair})
    return found


def _say_left_out(folder: Path, used: set[Path]) -> None:
    others = sorted(file.name for file in set(folder.iterdir()) - used)
    others = [name for name in others if not is_hidden(name)]
    if others:
        warn_once(
            f"{folder}: {len(others)} entries are left out, such as {others[0]}; files of a split "
            "are called train, validation or test, with the language after the point"
        )


def read_pairs(files: Files) -> tuple[list[str], list[str], list[str]]:
    """Sources, targets and ids (file name and line) of two files.

    Spaces around a line do not count. Pairs with an empty side are left out, and counted on
    standard error.

    Raises:
      UserError: a file is missing or not UTF-8, the numbers of lines differ, or nothing is left.
    """
    source, target = (_lines(file) for file in files)
    if len(source) != len(target):
        raise UserError(
            f"{files[1]}: has {len(target)} lines, but {files[0]} has {len(source)}; line n of one "
            "must be the translation of line n of the other"
        )
    kept = [i for i in range(len(source)) if source[i] and target[i]]
    if not kept:
        raise UserError(f"{files[0]}: holds no pair")
    if dropped := len(source) - len(kept):
        first = next(i for i in range(len(source)) if not (source[i] and target[i]))
        warn_once(
            f"{files[0]}: {dropped} of {len(source)} pairs have an empty side, the first is line "
            f"{first + 1}; left out"
        )
    ids = [f"{files[0].name}:{i + 1}" for i in kept]
    return [source[i] for i in kept], [target[i] for i in kept], ids


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in split_lines(read_text(file))]
