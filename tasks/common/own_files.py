"""What tasks do with a person's own files, and with the name of a data set that is none of them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tasks.common.errors import UserError
from tasks.common.leaks import norm_hash
from tasks.common.tables import read_text

__all__ = ["HELD_OUT", "SPLIT_NAMES", "filed_as", "hold_out", "read_text", "split_paths"]

HELD_OUT = ("test", "validation")
# How a person may call the files or the folder of a split.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def filed_as(name: str, known: Collection[str], path: str | None, rest: str) -> str:
    """The name under which results stand: results of own files never under a public data set's.

    Args:
      name: of a data config.
      known: names of the project's data sets.
      path: own file or folder; None: there is none.
      rest: how to have others than the known, the end of the message.

    Returns:
      The name; own_<name of file or folder> for own files that have that of a known data set.

    Raises:
      ValueError: no own files, and no data set is called so; the nearest known name is told.
    """
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


def _exists(path: str) -> bool:
    # Unlike `Path.exists` it returns False for a name that is too long.
    return os.path.exists(os.path.expanduser(path.strip()))


def hold_out(
    texts: Sequence[str], given: Sequence[str], where: str, remedy: str
) -> Mapping[str, list[int]]:
    """Splits the rows of train: test has those whose text's hash ends in 0, validation in 1.

    By the hash texts that differ only in case and punctuation stay together, and a row stays where
    it is when others come.

    Args:
      texts: of train.
      given: splits that have a file of their own, for which nothing is taken away.
      where: the train file, for messages.
      remedy: what to do where a split would be empty, for messages.

    Returns:
      Indices of the rows of train and of each split that is not given.

    Raises:
      UserError: one would be empty.
    """
    missing = {digit: split for digit, split in enumerate(HELD_OUT) if split not in given}
    found: dict[str, list[int]] = {split: [] for split in ("train", *missing.values())}
    for index, text in enumerate(texts):
        digit = norm_hash(text, unicode=True) % 10
        found[missing.get(digit, "train")].append(index)
    for split, rows in found.items():
        if not rows:
            raise UserError(
                f"{where}: {len(texts)} examples are too few to split, {split} would be empty; "
                f"{remedy}"
            )
    return found
