"""What tasks do with a person's own files, and with the name of a data set that is none of them."""

from __future__ import annotations

import difflib
import os
import sys
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tasks.common.data.deduplication import text_hash
from tasks.common.errors import UserError, warn_once

_T = TypeVar("_T")

# Metadata of a field of a data config that older runs lack: at its default an experiment is the
# same with and without it, see `launch.engine.config.identity`.
LATER = {"later": True}

HELD_OUT = ("test", "validation")
# How a person may call the files or the folder of a split.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def results_name(
    name: str, known: Collection[str], path: str | None, rest: str, field: str = "path"
) -> str:
    """The name under which results stand: results of own files never under a public data set's.

    Args:
      name: of a data config.
      known: names of the project's data sets.
      path: own file or folder; None: there is none.
      rest: how to have others than the known, the end of the message.
      field: of the config that holds `path`.

    Returns:
      The name; own_<name of file or folder> for own files that have that of a known data set.

    Raises:
      ValueError: no own files, and no data set is called so; the nearest known name is told; or the
        path is empty.
    """
    if path is not None and not path.strip():
        raise ValueError(f"{field}: is empty, expected the name of a file or folder")
    if path is not None:
        place = Path(path).expanduser().resolve()
        return f"own_{place.name if place.is_dir() else place.stem}" if name in known else name
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"name: no data set is called {name!r}{hint}; there are {', '.join(known)}{rest}"
        )
    return name


def split_paths(path: str) -> list[str]:
    """Splits a list of paths at its commas, except at those that are part of a path.

    A path that exists as it is given is one path. Otherwise adjacent pieces are joined so that
    every path exists, if there is exactly one way to do so. If there is none, or more than one, the
    list is split at every comma.

    Args:
      path: one path or more, with commas between and spaces around them if any.
    """
    pieces = path.split(",")
    if len(pieces) == 1 or _exists(path):
        return [path.strip()]
    # Ways to split the pieces from each one on: their number, up to 2, and the first of them.
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
    """Cuts 'DATA,REST' of a config at its first comma; where DATA is a path, at the first one whose
    left side exists, so that a name may have commas.

    Args:
      argument: DATA, or DATA, a comma and what follows.
      prefix: with which DATA begins if it is a path.

    Returns:
      DATA with its prefix, and REST, empty if there is none.
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
    # Unlike `Path.exists` it returns False for a name that is too long.
    return os.path.exists(os.path.expanduser(path.strip()))


def find_file(folder: Path, name: str) -> Path:
    """Returns the file that a manifest or annotations name.

    Exporting tools write backslashes, percent codes (a%20b.jpg) and other Unicode normal forms: the
    first spelling that is a file counts. If none is, the path is that of the name as it stands.

    Args:
      folder: to which the name is relative.
      name: path of the file.
    """
    slashes = name.replace("\\", "/")
    decoded = urllib.parse.unquote(slashes)
    spellings = [name, slashes, decoded]
    spellings += [unicodedata.normalize(form, decoded) for form in ("NFC", "NFD")]
    for spelling in spellings:
        place = os.path.join(folder, os.path.expanduser(spelling))
        if os.path.isfile(place):
            return Path(place)
    return folder / name


def is_hidden(name: str) -> bool:
    """Returns whether a name begins with a dot or is the metadata folder of macOS archives."""
    return name.startswith(".") or name == "__MACOSX"


def read_each(
    items: Sequence[_T], read: Callable[[_T], np.ndarray], *, skip_broken: bool = False
) -> tuple[list[np.ndarray], list[int]]:
    """Reads each item, and returns the arrays and the numbers of the items that could be read.

    Args:
      items: paths, or other arguments of `read`.
      read: raises UserError if an item cannot be read.
      skip_broken: skip such items and name them on standard error.

    Raises:
      UserError: an item cannot be read; the message says how to skip it.
    """
    arrays, numbers = [], []
    for number, item in enumerate(items):
        try:
            arrays.append(read(item))
        except UserError as error:
            if not skip_broken:
                raise UserError(
                    f"{error}; mend or remove it, or skip what is broken by "
                    "--config.data.skip_broken"
                ) from None
            print(f"skipped {error}", file=sys.stderr)
        else:
            numbers.append(number)
    return arrays, numbers


def split_names(names: Sequence[str], where: str) -> dict[str, str]:
    """Returns the names of files or folders that are those of splits, by split.

    Args:
      names: any, without endings; case does not count.
      where: the folder that has them, for messages.

    Raises:
      UserError: two names are of one split.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        for split, words in SPLIT_NAMES.items():
            if name.lower() not in words:
                continue
            if split in found:
                raise UserError(
                    f"{where}: {found[split]!r} and {name!r} are both of the {split} split; keep "
                    "one"
                )
            found[split] = name
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def warn_shared(where: str, files: Mapping[str, Mapping[str, str]], kind: str = "files") -> None:
    """Names files of validation and test that are in a split before them too.

    Args:
      where: file or folder of the data, for messages.
      files: for each split with files of its own, hash of the content -> name of the file.
      kind: of the files, a plural for messages.
    """
    before: dict[str, tuple[str, str]] = {}
    for split in SPLIT_NAMES:
        mine = files.get(split, {})
        shared = [key for key in mine if key in before]
        if shared:
            (other, of), name = before[shared[0]], mine[shared[0]]
            warn_once(
                f"{where}: {len(shared)} {kind} of {split} are in another split too, such as "
                f"{name}, which is {of} of {other}; metrics on them are too good"
            )
        before |= {key: (split, name) for key, name in mine.items()}


def expect_one_of(field: str, value: str, known: Sequence[str]) -> None:
    """Raises ValueError if a field of a data config is neither empty nor a known value."""
    if value not in ("", *known):
        raise ValueError(f"{field}: got {value!r}, expected {' or '.join(map(repr, known))}")


def split_by_hash(
    texts: Sequence[str],
    given: Sequence[str],
    where: str,
    remedy: str,
    kind: str = "texts",
) -> Mapping[str, list[int]]:
    """Splits the rows of train: test has those whose text's hash ends in 0, validation in 1.

    By the hash texts that differ only in case and punctuation stay together, and a row stays where
    it is when others come.

    Args:
      texts: of train.
      given: splits that have a file of their own, for which nothing is taken away.
      where: the train file, for messages.
      remedy: what to do where a split would be empty, for messages.
      kind: of the texts, a plural for messages; "images" for their hashes.

    Returns:
      Indices of the rows of train and of each split that is not given.

    Raises:
      UserError: one would be empty.
    """
    missing = {digit: split for digit, split in enumerate(HELD_OUT) if split not in given}
    found: dict[str, list[int]] = {split: [] for split in ("train", *missing.values())}
    hashes = [text_hash(text, unicode=True) for text in texts]
    for index, value in enumerate(hashes):
        found[missing.get(value % 10, "train")].append(index)
    for split, rows in found.items():
        if not rows:
            distinct = len(set(hashes))
            cause = f"{len(texts)} examples are too few to split"
            if distinct < len(texts):
                cause = (
                    f"{distinct} distinct {kind} in {len(texts)} examples are too few to split, "
                    "because equal ones stay in one split"
                )
            raise UserError(f"{where}: {cause}: {split} would be empty; {remedy}")
    return found


def split_by_group(
    groups: Sequence[str], given: Sequence[str], where: str, kind: str, remedy: str
) -> Mapping[str, list[int]]:
    """Splits the rows of train so that each group, such as a speaker, is in one split.

    The largest group is train. The others, in the order of the hash of their names, are test until
    it has a tenth of the rows, then validation likewise, and then train.

    Args:
      groups: name of the group of each row of train.
      given: splits that have a file of their own, for which nothing is taken away.
      where: the train file, for messages.
      kind: of the groups, such as the name of a column, for messages.
      remedy: what to do where the groups are too few, for messages.

    Returns:
      Indices of the rows of train and of each split that is not given.

    Raises:
      UserError: there are fewer groups than splits.
    """
    missing = [split for split in HELD_OUT if split not in given]
    rows: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        rows.setdefault(group, []).append(index)
    if len(rows) <= len(missing):
        raise UserError(
            f"{where}: {kind} has {len(rows)} distinct values in {len(groups)} examples, expected "
            f"at least {len(missing) + 1}, because each is in one split; {remedy}"
        )
    order = sorted(rows, key=lambda group: (text_hash(group, unicode=True), group))
    largest = max(order, key=lambda group: len(rows[group]))
    order.remove(largest)
    found = {"train": list(rows[largest])}
    for number, split in enumerate(missing):
        found[split] = []
        # A group is left for each split that comes after.
        while len(order) > len(missing) - number - 1 and 10 * len(found[split]) < len(groups):
            found[split] += rows[order.pop(0)]
    found["train"] += [index for group in order for index in rows[group]]
    return {split: sorted(indices) for split, indices in found.items()}
