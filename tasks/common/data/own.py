"""User data, which are given in the same way for every task: by a path and names of columns.

The data set "own" in the argument of a config file (configs/TASK.py:own,MODEL) stands for the files
that the flag --data gives. Each task has an `OwnData`, which declares the files and columns that
the task takes, and the config keys that their flags set.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.common.data.tables import EXTENSIONS
from tasks.common.data.user_files import SPLIT_NAMES, is_hidden, split_paths
from tasks.common.errors import UserError

COLUMNS: Mapping[str, str] = {
    "text": "texts; in translation, the source language",
    "label": "classes; in forecasting, the series to forecast; in segmentation, paths of masks; in "
    "translation, the target language",
    "user": "users",
    "item": "items",
    "time": "times",
    "image": "paths of images",
    "audio": "paths of recordings",
    "speaker": "speakers; all recordings of a speaker are in the same split",
    "group": "groups, such as patients or documents; all rows of a group are in the same split",
}
"""Columns by flag, with a description of their content."""


@dataclasses.dataclass(frozen=True)
class OwnData:
    """Declaration of the user data of a task.

    Attributes:
      files: description of the files, which follows "--data=PATH, where PATH is" in messages.
      columns: config key that each column flag sets, such as {"text": "text_column"}.
      path: config key that --data sets.
      held_out: config keys of the validation and test files; empty if `path` takes the files of
        all splits.
      several: flags that may name several columns, separated by commas.
      inferred: function that takes the path and returns the values of further config keys that
        follow from the files, such as languages from file extensions. Flags of columns override
        these values.
    """

    files: str
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    path: str = "path"
    held_out: Sequence[str] = ()
    several: Sequence[str] = ()
    inferred: Callable[[str], Mapping[str, object]] = lambda path: {}

    def changes(
        self, task: str, data: str | None, columns: Mapping[str, str]
    ) -> dict[str, str | tuple[str, ...] | object]:
        """Returns the config keys that the flags set, with their values.

        Args:
          task: name of the task, for messages.
          data: value of --data; None if it is not given.
          columns: name of the column that each given flag sets, by flag.

        Raises:
          UserError: the task has no such column, two flags set the same key, a value is empty, or
            the path cannot be assigned to splits.
        """
        found: dict[str, object] = {}
        if data is not None:
            found |= self._files(data)
            found |= self.inferred(data)
        set_by: dict[str, str] = {}
        for flag, name in columns.items():
            key = self.columns.get(flag)
            if key is None:
                raise UserError(f"--{flag}: {task} has no such column; {self._flags()}")
            if not name.strip():
                raise UserError(f"--{flag}: is empty, expected the name of a column")
            if key in set_by:
                raise UserError(
                    f"--{flag}: got {name!r}, but --{set_by[key]} defines the splits already; give "
                    f"only one of the two flags"
                )
            set_by[key] = flag
            found[key] = name.strip()
            if flag in self.several:
                found[key] = tuple(part.strip() for part in name.split(","))
        return found

    def _files(self, data: str) -> dict[str, object]:
        if not data.strip():
            raise UserError(f"--data: is empty, expected {self.files}")
        if not self.held_out:
            return {self.path: data}
        keys = dict(zip(SPLIT_NAMES, (self.path, *self.held_out), strict=True))
        return {keys[split]: path for split, path in split_files(data).items()}

    def _flags(self) -> str:
        if not self.columns:
            return f"it takes {self.files}, and no columns"
        return f"it takes {' and '.join(f'--{flag}' for flag in self.columns)}"

    def missing(self) -> UserError:
        """Returns the error for a config whose files are not given."""
        flags = ", ".join(f"--{flag}" for flag in self.columns)
        columns = f"; flags for its columns: {flags}" if flags else ""
        return UserError(
            f"--data is missing; write --data=PATH, where PATH is {self.files}{columns}"
        )


def split_files(path: str, extensions: Sequence[str] = EXTENSIONS) -> dict[str, str]:
    """Assigns each file, folder or pattern in a list of paths to a split.

    Args:
      path: a file, a folder or a glob pattern; or several of these, separated by commas. Three
        paths are the training, validation and test split, in this order. If all paths are named
        after splits, such as test.csv, the order is free, and validation or test may be missing. A
        folder that contains files named after splits stands for these files.
      extensions: extensions of the files that are searched in a folder.

    Returns:
      Path or pattern of each split.

    Raises:
      UserError: two paths denote the same split, or the paths cannot be assigned to splits.
    """
    names = split_paths(path)
    if len(names) == 1:
        return _of_folder(names[0], extensions)
    named: dict[str, str] = {}
    splits = [_split_of(name) for name in names]
    for name, split in zip(names, splits, strict=True):
        if split in named:
            raise UserError(
                f"--data: {named[split]} and {name} both denote the {split} split; keep one of them"
            )
        if split is not None:
            named[split] = name
    if all(splits) and "train" in named:
        return {split: named[split] for split in SPLIT_NAMES if split in named}
    in_order = list(SPLIT_NAMES)
    if len(names) == 3 and all(
        split in (None, in_order[index]) for index, split in enumerate(splits)
    ):
        return dict(zip(in_order, names, strict=True))
    other = next((name for name, split in zip(names, splits, strict=True) if not split), "")
    hint = f"; {other} is not named after a split" if other else ""
    raise UserError(
        f"--data: got {len(names)} paths in {path!r}, expected one path, or three: "
        f"TRAIN,VALIDATION,TEST{hint}"
    )


def _of_folder(name: str, extensions: Sequence[str]) -> dict[str, str]:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {"train": name}
    found: dict[str, str] = {}
    for file in _in_folder(folder, extensions):
        split = _split_of(file)
        if split in found:
            raise UserError(
                f"--data: {found[split]} and {file} both denote the {split} split; keep one of them"
            )
        if split is not None:
            found[split] = file
    if "train" not in found:
        return {"train": name}
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _split_of(name: str) -> str | None:
    """Returns the split that a file or folder is named after; None if it has another name."""
    stem = Path(name).stem.lower()
    return next((split for split, words in SPLIT_NAMES.items() if stem in words), None)


def is_pattern(path: str) -> bool:
    """Returns True for a glob pattern, unless a file or folder has this name."""
    return glob.has_magic(path) and not os.path.exists(os.path.expanduser(path))


def files_of(path: str, extensions: Sequence[str] = EXTENSIONS, key: str = "--data") -> list[str]:
    """Returns the files that a path stands for: one file, the files of a folder or of a pattern.

    Args:
      path: file, folder or glob pattern; `**` matches folders of any depth.
      extensions: extensions of the files that are selected in a folder. The extensions of files
        and of the matches of a pattern are not checked here.
      key: flag or key of the path, for messages.

    Raises:
      UserError: a folder or pattern has no file.
    """
    if is_pattern(path):
        found = sorted(glob.glob(os.path.expanduser(path), recursive=True))
        found = [file for file in found if os.path.isfile(file)]
        if not found:
            raise UserError(f"{key}: no file matches {path!r}; correct the pattern")
        return found
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return [path]
    found = _in_folder(folder, extensions)
    if not found:
        raise UserError(
            f"{key}: the folder {path} has no file that ends in one of {', '.join(extensions)}; "
            f"give a file or another folder"
        )
    return found


def _in_folder(folder: Path, extensions: Sequence[str]) -> list[str]:
    return sorted(
        str(file)
        for file in folder.iterdir()
        if file.is_file() and not is_hidden(file.name) and file.suffix.lower() in extensions
    )


def one_file(path: str, reason: str) -> str:
    """Returns the single file that a path stands for, for tasks that read one table.

    Args:
      path: file, folder or pattern, as for `files_of`.
      reason: reason why there can be only one file, which ends the message.

    Raises:
      UserError: there are no files or several.
    """
    found = files_of(path)
    if len(found) > 1:
        raise UserError(f"--data: {path} has {len(found)} files, expected one, {reason}")
    return found[0]
