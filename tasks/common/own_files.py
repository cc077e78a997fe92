"""What tasks do with a person's own files, and with the name of a data set that is none of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tasks.common.errors import UserError
from tasks.common.leaks import norm_hash
from tasks.common.tables import read_text

__all__ = ["HELD_OUT", "LATER", "SPLIT_NAMES", "expect_one_of", "filed_as", "hold_out", "read_text"]

# Metadata of a field of a data config that older runs lack: at its default an experiment is the
# same with and without it, see `launch.engine.config.identity`.
LATER = {"later": True}

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


def expect_one_of(field: str, value: str, known: Sequence[str]) -> None:
    """Raises ValueError if a field of a data config is neither empty nor a known value."""
    if value not in ("", *known):
        raise ValueError(f"{field}: got {value!r}, expected {' or '.join(map(repr, known))}")


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
