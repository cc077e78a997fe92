"""Reading and splitting of user files, and the name under which their results are stored."""

from __future__ import annotations

import dataclasses
import difflib
import glob
import os
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tasks.common.configs import Config
from tasks.common.data.deduplication import text_hash
from tasks.common.errors import UserError, say, warn_once

_T = TypeVar("_T")
# Number of files that a message names.
_SHOWN = 3

OWN = "own"
"""Name that stands for the files of --data, see `tasks.common.data.own`."""

UNSET = "--data"
"""Value of the config key of user files until --data is given."""

HELD_OUT = ("test", "validation")
# Accepted names for the files or the folder of each split.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def results_name(
    name: str, known: Collection[str], path: str | None, rest: str, field: str = "path"
) -> str:
    """Returns the name under which results are stored.

    Args:
      name: `name` of a data config.
      known: names of the built-in data sets.
      path: user file or folder, or None.
      rest: end of the error message for unknown names, which gives alternatives to the built-in
        data sets.
      field: config field that contains `path`.

    Returns:
      `name`; or own_<name of file or folder> if there is a path and `name` is a built-in data set
      or "own".

    Raises:
      ValueError: the name is unknown and there is no path (the message suggests the most similar
        name), or the path is empty.
    """
    if path is not None and not path.strip():
        raise ValueError(f"{field}: is empty, expected the name of a file or folder")
    if path == UNSET:
        return name
    if path is not None:
        if name == OWN:
            path = split_paths(path)[0]
        if name not in (OWN, *known):
            return name
        file = Path(path).expanduser().resolve()
        if glob.has_magic(path) and not _exists(path):
            file = next((each for each in file.parents if not glob.has_magic(str(each))), file)
        return f"own_{file.name if file.is_dir() else file.stem}"
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"name: got {name!r}{hint}, expected one of {', '.join(known)}{rest}")
    return name


@dataclasses.dataclass(frozen=True)
class TextFilesConfig(Config):
    """Config of a built-in data set, or of user text files with one file per split.

    Attributes:
      name: name of a built-in data set. With `train_file`, name under which results are stored,
        own_<file> by default.
      train_file: user file of the training split.
      validation_file: user file of the validation split; None for a tenth of train_file.
      test_file: user file of the test split; None for another tenth.
    """

    name: str
    train_file: str | None = None
    validation_file: str | None = None
    test_file: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for other in ("validation_file", "test_file"):
            complete = self.train_file is not None or getattr(self, other) is None
            self.expect("train_file", complete, f"a file, because {other} is set")

    def set_results_name(self, known: Collection[str], rest: str) -> None:
        """Sets `name` to the name under which results are stored; see `results_name`."""
        name = results_name(self.name, known, self.train_file, rest, "train_file")
        object.__setattr__(self, "name", name)


def split_paths(path: str) -> list[str]:
    """Splits a list of paths at its commas, except at commas that are part of a path.

    If the complete argument exists as a path, it is a single path. Otherwise, if there is exactly
    one way to split the list into existing paths, it is split in this way. If not, it is split at
    every comma.

    Args:
      path: one or more paths, separated by commas and optional spaces.
    """
    pieces = path.split(",")
    if len(pieces) == 1 or _exists(path):
        return [path.strip()]
    # For each suffix of the list of pieces: the number of ways to join its pieces to existing
    # paths, where 2 stands for several, and the first of these ways.
    ways: list[tuple[int, list[str]]] = [(1, [])]
    for start in reversed(range(len(pieces))):
        count, first = 0, []
        for end in range(start + 1, len(pieces) + 1):
            others, rest = ways[len(pieces) - end]
            joined = ",".join(pieces[start:end]).strip()
            if others and joined and _exists(joined):
                first = first or [joined, *rest]
                count = min(count + others, 2)
        ways.append((count, first))
    count, found = ways[-1]
    return found if count == 1 else [piece.strip() for piece in pieces]


def cut_path(argument: str, prefix: str) -> tuple[str, str]:
    """Splits the argument 'DATA,REST' of a config file at a comma.

    Usually this is the first comma. If DATA is a path, it is the first comma that follows an
    existing path, because names of files may contain commas.

    Args:
      argument: DATA, or DATA, a comma and REST.
      prefix: prefix that marks DATA as a path.

    Returns:
      (DATA with its prefix, REST); REST is '' if missing.
    """
    if argument.startswith(prefix):
        pieces = argument.removeprefix(prefix).split(",")
        for count in range(1, len(pieces) + 1):
            path = ",".join(pieces[:count])
            if path.strip() and _exists(path):
                return prefix + path, ",".join(pieces[count:])
    data, _, rest = argument.partition(",")
    return data, rest


def _exists(path: str) -> bool:
    # Unlike `Path.exists`, this returns False for a name that is too long.
    return os.path.exists(os.path.expanduser(path.strip()))


def find_file(folder: Path, name: str) -> Path:
    """Returns the path of the file that a manifest or annotation file refers to.

    Some tools export names with backslashes, percent codes (a%20b.jpg) or other Unicode normal
    forms. The result is the first variant that is an existing file. If there is none, it is the
    name as written, in `folder`.

    Args:
      folder: folder to which the name is relative.
      name: path of the file as written.
    """
    slashes = name.replace("\\", "/")
    decoded = urllib.parse.unquote(slashes)
    spellings = [name, slashes, decoded]
    spellings += [unicodedata.normalize(form, decoded) for form in ("NFC", "NFD")]
    for spelling in spellings:
        file = os.path.join(folder, os.path.expanduser(spelling))
        if os.path.isfile(file):
            return Path(file)
    return folder / name


def is_hidden(name: str) -> bool:
    """Returns True for names with a leading dot and for the metadata folder of macOS archives."""
    return name.startswith(".") or name == "__MACOSX"


def read_each(
    items: Sequence[_T], read: Callable[[_T], np.ndarray], *, skip_broken: bool = False
) -> tuple[list[np.ndarray], list[int]]:
    """Reads each item, and returns arrays and indices of the items that could be read.

    Args:
      items: arguments for `read`, such as paths.
      read: function that reads an item, and raises UserError if it cannot.
      skip_broken: whether to skip unreadable items and report them on standard error.

    Raises:
      UserError: an item cannot be read; the message says how to skip it.
    """
    arrays, numbers, skipped = [], [], []
    for number, item in enumerate(items):
        try:
            arrays.append(read(item))
        except UserError as error:
            if not skip_broken:
                raise UserError(
                    f"{error}; repair or remove the file, or skip broken files with "
                    f"--config.data.skip_broken"
                ) from None
            skipped.append(str(error))
        else:
            numbers.append(number)
    _report_skipped(skipped, len(items))
    return arrays, numbers


def _report_skipped(reasons: Sequence[str], count: int) -> None:
    """Prints the reasons why items were skipped.

    There is one line for each item if they are few, or else a single line with the first ones.
    """
    if len(reasons) > _SHOWN:
        shown = "; ".join(reasons[:_SHOWN])
        reasons = [f"{len(reasons)} of {count} files, such as {shown}"]
    for reason in reasons:
        say(f"skipped {reason}")


def expect_some_files(files: Sequence[Path], where: str, remedy: str) -> None:
    """Checks that at least one of several files exists.

    If none exists, the folder is probably wrong.

    Args:
      files: files that a manifest or annotation file refers to.
      where: the manifest or annotation file, for the message.
      remedy: advice for the message.

    Raises:
      UserError: the list has more than one file, and none of them exists.
    """
    if len(files) > 1 and not any(os.path.isfile(file) for file in files):
        shown = ", ".join(str(file) for file in files[:_SHOWN])
        more = ", ..." if len(files) > _SHOWN else ""
        raise UserError(f"{where}: none of its {len(files)} files exists: {shown}{more}; {remedy}")


def split_names(names: Sequence[str], where: str) -> dict[str, str]:
    """Returns the names that denote splits, by split; other names are ignored.

    Args:
      names: names without extensions; case is ignored.
      where: parent folder, for messages.

    Raises:
      UserError: two names denote the same split.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        for split, words in SPLIT_NAMES.items():
            if name.lower() not in words:
                continue
            if split in found:
                raise UserError(
                    f"{where}: {found[split]!r} and {name!r} both denote the {split} split; "
                    f"keep one of them"
                )
            found[split] = name
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def warn_shared(where: str, files: Mapping[str, Mapping[str, str]], kind: str = "files") -> None:
    """Warns about validation and test files that are also in an earlier split.

    Args:
      where: file or folder of the data, for messages.
      files: for each split with its own files, a dict. Its keys identify the files, such as hashes
        of their contents; its values are file names for messages.
      kind: plural noun for the files in messages.
    """
    before: dict[str, tuple[str, str]] = {}
    for split in SPLIT_NAMES:
        mine = files.get(split, {})
        shared = [key for key in mine if key in before]
        if shared:
            (other, of), name = before[shared[0]], mine[shared[0]]
            warn_once(
                f"{where}: {len(shared)} {kind} of {split} are also in another split, such as "
                f"{name}, which equals {of} of {other}; metrics on them are biased"
            )
        before |= {key: (split, name) for key, name in mine.items()}


def expect_one_of(field: str, value: str, known: Sequence[str]) -> None:
    """Checks that a field of a data config is empty or has a known value.

    Raises:
      ValueError: the field has another value.
    """
    if value not in ("", *known):
        raise ValueError(f"{field}: got {value!r}, expected {' or '.join(map(repr, known))}")


def split_by_hash(
    texts: Sequence[str], given: Sequence[str], where: str, remedy: str, kind: str = "texts"
) -> Mapping[str, list[int]]:
    """Takes the missing splits from the training rows, by the last digit of the text hash.

    Rows whose digit is 0 are the test split, and those whose digit is 1 the validation split. Texts
    that differ only in case and punctuation are in the same split, and rows stay in their split
    when other rows are added.

    Args:
      texts: texts of the training rows.
      given: splits that have their own file and therefore take no training rows.
      where: name of the training file, for messages.
      remedy: advice in the message about an empty split.
      kind: plural noun for the texts in messages; "images" if the texts are hashes of images.

    Returns:
      Row indices of the training split and of each split that is not given.

    Raises:
      UserError: a split would be empty.
    """
    missing = {digit: split for digit, split in enumerate(HELD_OUT) if split not in given}
    found: dict[str, list[int]] = {split: [] for split in ("train", *missing.values())}
    hashes = [text_hash(text, unicode=True) for text in texts]
    for index, value in enumerate(hashes):
        found[missing.get(value % 10, "train")].append(index)
    for split, rows in found.items():
        if not rows:
            cause = too_few(len(texts), len(set(hashes)), f"distinct {kind}", "equal ones")
            raise UserError(f"{where}: {cause}: {split} would be empty; {remedy}")
    return found


def too_few(count: int, units: int, what: str, kept: str) -> str:
    """Returns the reason why examples cannot be split.

    Args:
      count: number of examples.
      units: number of units; all examples of a unit are in the same split.
      what: plural noun for the units.
      kept: description of the examples of a unit.
    """
    reason = f"{count} examples are too few to split"
    if units == count:
        return reason
    return f"{units} {what} in {reason}, because {kept} are kept in the same split"


def split_by_group(
    groups: Sequence[str], given: Sequence[str], where: str, kind: str, remedy: str
) -> Mapping[str, list[int]]:
    """Takes the missing splits from the training rows, such that each group is in a single split.

    A group is, for example, a speaker. The largest group is in the training split. The others, in
    the order of the hashes of their names, fill the test split until it has a tenth of the rows,
    then the validation split. The rest is in the training split.

    Args:
      groups: group name of each training row.
      given: splits that have their own file and therefore take no training rows.
      where: name of the training file, for messages.
      kind: name of the grouping in messages, such as a column.
      remedy: advice in the message about too few groups.

    Returns:
      Row indices of the training split and of each split that is not given.

    Raises:
      UserError: there are fewer groups than splits.
    """
    missing = [split for split in HELD_OUT if split not in given]
    rows: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        rows.setdefault(group, []).append(index)
    if len(rows) <= len(missing):
        raise UserError(
            f"{where}: {kind} has {len(rows)} distinct values in {len(groups)} examples, "
            f"expected at least {len(missing) + 1}, because each value is in a single split; "
            f"{remedy}"
        )
    order = sorted(rows, key=lambda group: (text_hash(group, unicode=True), group))
    largest = max(order, key=lambda group: len(rows[group]))
    order.remove(largest)
    found = {"train": list(rows[largest])}
    for number, split in enumerate(missing):
        found[split] = []
        # At least one group is left for each later split.
        while len(order) > len(missing) - number - 1 and 10 * len(found[split]) < len(groups):
            found[split] += rows[order.pop(0)]
    found["train"] += [index for group in order for index in rows[group]]
    return {split: sorted(indices) for split, indices in found.items()}
