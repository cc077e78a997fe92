"""Validation and test splits that are taken from the training rows, by hash, class or group."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.configs import LATER, Config, NonNegativeInt
from tasks.common.data.deduplication import normalize_text
from tasks.common.data.user_files import HELD_OUT, SPLIT_NAMES, split_by_hash, too_few
from tasks.common.errors import UserError, warn_once

_SHOWN = 12
# Fraction of the rows that each held-out split takes.
_TENTH = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutConfig(Config):
    """Config of the validation and test splits that are held out of the training rows.

    Attributes:
      stratify: whether the held-out splits of user data are stratified, which means that each has
        about a tenth of the rows of every class. If False, each has about a tenth of all rows,
        regardless of their classes.
      split_seed: random seed of the held-out splits of user data. The hash of
        the content alone selects the rows if the seed is 0, `stratify` is False, and
        `group_column` is empty.
      group_column: column of the user data with the group of each row, such as the patient or the
        document; all rows of a group are in the same split. Empty for no groups.
    """

    stratify: bool = dataclasses.field(default=False, metadata=LATER)
    split_seed: NonNegativeInt = dataclasses.field(default=0, metadata=LATER)
    group_column: str = dataclasses.field(default="", metadata=LATER)

    def hold_out(
        self,
        rows: Sequence[str],
        given: Sequence[str],
        where: str,
        remedy: str,
        kind: str = "texts",
        labels: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
    ) -> Mapping[str, list[int]]:
        """Takes the missing splits from the training rows.

        Rows with equal contents, and rows of the same group, stay in the same split.

        Args:
          rows: content of each training row: its text, or a hash of its file.
          given: splits that have their own file and therefore take no training rows.
          where: name of the training file, for messages.
          remedy: advice in the message about an empty split.
          kind: plural noun for the contents in messages.
          labels: class of each row; None for rows without classes.
          groups: group of each row; None without groups.

        Returns:
          Row indices of the training split and of each split that is not given.

        Raises:
          UserError: a split would be empty.
        """
        stratify = self.stratify and labels is not None
        if not stratify and groups is None and not self.split_seed:
            return split_by_hash(rows, given, where, remedy, kind)
        units = _units([normalize_text(row, unicode=True) or row.strip() for row in rows], groups)
        missing = [split for split in HELD_OUT if split not in given]
        found = split_units(units, labels if stratify else None, missing, self.split_seed)
        for split, indices in found.items():
            if not indices:
                what, kept = f"distinct {kind}", "equal ones"
                if groups is not None:
                    what, kept = "groups", "the examples of a group"
                cause = too_few(len(rows), len(set(units)), what, kept)
                raise UserError(f"{where}: {cause}: {split} would be empty; {remedy}")
        if stratify and missing:
            _name_rare(where, labels or (), found, missing)
        return found


def _units(rows: Sequence[str], groups: Sequence[str] | None) -> list[str]:
    """Returns the name of each row's unit; all rows of a unit must be in the same split.

    Rows with equal contents or equal groups are in the same unit, and so are rows that a chain of
    such rows connects.

    Args:
      rows: content of each row.
      groups: group of each row; None without groups.

    Returns:
      For each row, the content of the row or, with groups, the name of one group of its unit.
    """
    if groups is None:
        return list(rows)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    contents = np.unique(rows, return_inverse=True)[1].reshape(-1)
    names, number = np.unique(groups, return_inverse=True)
    edges = (np.ones(len(rows)), (number.reshape(-1), contents + len(names)))
    size = len(names) + int(contents.max(initial=-1)) + 1
    _, component = connected_components(coo_array(edges, (size, size)), directed=False)
    first: dict[int, str] = {}
    for name, part in zip(names.tolist(), component[: len(names)].tolist(), strict=True):
        first.setdefault(part, name)
    return [first[part] for part in component[number.reshape(-1)].tolist()]


def split_units(
    units: Sequence[str], labels: Sequence[str] | None, missing: Sequence[str], seed: int
) -> dict[str, list[int]]:
    """Splits rows such that all rows of a unit are in the same split, and classes are balanced.

    Units are ordered by a hash of the seed and their name, so that the split is independent of the
    order of the rows. A unit belongs to its most frequent class. The classes are split one after
    another, the rarest first. Each held-out split takes units of a class until it has about a tenth
    of the rows of the class. It takes at least one unit if there are enough for all held-out
    splits. The largest unit of a class always remains for training.

    Args:
      units: name of the unit of each row.
      labels: class of each row; None for a single class.
      missing: names of the held-out splits to take.
      seed: random seed.

    Returns:
      Row indices by split, the training split first.
    """
    names, unit = np.unique(units, return_inverse=True)
    classes = np.zeros(len(units), np.int64)
    if labels is not None:
        classes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    counts = np.zeros((len(names), int(classes.max(initial=0)) + 1), np.int64)
    np.add.at(counts, (unit.reshape(-1), classes), 1)
    rank = [hashlib.sha256(f"{seed}\n{name}".encode(errors="surrogatepass")).digest()
            for name in names.tolist()]  # fmt: skip
    order = sorted(range(len(names)), key=rank.__getitem__)
    sizes = counts.sum(axis=1).tolist()
    units_of: list[list[int]] = [[] for _ in range(counts.shape[1])]
    belongs = counts.argmax(axis=1).tolist()
    for index in order:
        units_of[belongs[index]].append(index)
    taken = {split: np.zeros(counts.shape[1], np.int64) for split in missing}
    chosen: dict[int, str] = {}
    for label in np.argsort(counts.sum(axis=0), kind="stable").tolist():
        mine = units_of[label]
        if not mine:
            continue
        mine.remove(max(mine, key=sizes.__getitem__))
        target = _TENTH * counts[:, label].sum()
        enough = len(mine) >= len(missing)
        for split in missing:
            for index in [index for index in mine if index not in chosen]:
                have, size = taken[split][label], counts[index, label]
                first = enough and not have
                if not first and abs(have + size - target) >= abs(have - target):
                    continue
                chosen[index] = split
                taken[split] += counts[index]
                if taken[split][label] >= target:
                    break
    found: dict[str, list[int]] = {split: [] for split in ("train", *missing)}
    for row, index in enumerate(unit.reshape(-1).tolist()):
        found[chosen.get(index, "train")].append(row)
    return found


def _name_rare(
    where: str, labels: Sequence[str], found: Mapping[str, Sequence[int]], missing: Sequence[str]
) -> None:
    """Warns about classes that are missing in a held-out split."""
    held = {split: {labels[row] for row in found[split]} for split in missing}
    rare = sorted({x for x in set(labels) if any(x not in each for each in held.values())})
    if rare:
        more = ", ..." * (len(rare) > _SHOWN)
        warn_once(
            f"{where}: too few examples of {', '.join(rare[:_SHOWN])}{more} to have some in each "
            f"split; metrics on test do not measure these classes"
        )


def expect_groups_apart(where: str, groups: Mapping[str, Sequence[str]]) -> None:
    """Checks that no group is in two splits.

    Args:
      where: file or folder of the data, for messages.
      groups: groups of the rows by split.

    Raises:
      UserError: a group is in two splits.
    """
    before: dict[str, str] = {}
    for split in SPLIT_NAMES:
        for group in dict.fromkeys(groups.get(split, ())):
            if group in before:
                raise UserError(
                    f"--group: {group!r} of {where} is in {before[group]} and in {split}, expected "
                    f"each group in a single split; move its rows to one split, or give a single "
                    f"file, which is then split by group"
                )
        before |= dict.fromkeys(groups.get(split, ()), split)
