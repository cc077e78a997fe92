"""Counts that summarize splits, and a check that the splits can be used."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tasks.common.data.cells import join_names
from tasks.common.errors import UserError, warn_once

SPLITS = ("train", "validation", "test")
_SHOWN = 12
# Notations of missing values in databases, spreadsheets and pandas.
MISSING = ("\\N", "NULL", "null", "NaN", "nan", "NA", "N/A", "#N/A", "<NA>", "None")


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """Counts of a split.

    Attributes:
      examples: number of examples.
      classes: counts by class name, in the order of the classes; None for a task without classes.
      unit: plural noun for what `classes` and `ignored` count: "examples", "objects", "pixels" or
        "recordings".
      ignored: number of labels that are not used, such as void pixels, crowd regions or recordings
        without a text.
      ignored_as: description of the ignored labels in messages.
      least_classes: minimum number of classes in the training split.
      note: additional information, such as the number of texts without a known word; may be empty.
    """

    examples: int
    classes: Mapping[str, int] | None = None
    unit: str = "examples"
    ignored: int = 0
    ignored_as: str = "ignored"
    least_classes: int = 1
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.examples:,} examples"
        if self.classes is not None:
            counts = [f"{name} {count:,}" for name, count in self.classes.items()]
            more = f", ... {len(counts) - _SHOWN} more" * (len(counts) > _SHOWN)
            text += f"; {self.unit} by class: {', '.join(counts[:_SHOWN])}{more}"
        if self.ignored:
            total = self.ignored + sum((self.classes or {}).values())
            fraction = f"{self.ignored / total:.1%} of " if total and self.classes else ""
            text += f"; {self.ignored_as}: {self.ignored:,} ({fraction}{self.unit})"
        return f"{text}; {self.note}" if self.note else text


def count_classes(labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Counts the labels of each class.

    Args:
      labels: int [n], class indices.
      names: names of the classes, by index.

    Returns:
      The number of labels by class name.
    """
    return dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))


def check_splits(where: str, splits: Mapping[str, SplitSummary]) -> None:
    """Checks that each split can be used.

    Warns about classes of the validation or test split that the training split lacks, about similar
    class names, and about class names that denote missing values.

    Args:
      where: file or folder of the data, for messages.
      splits: summaries by split name.

    Raises:
      UserError: a split has no examples or only ignored labels, or too few classes occur in the
        training split.
    """
    for name, split in splits.items():
        ignored = ""
        if split.ignored:
            ignored = f" ({split.ignored:,} {split.unit} are {split.ignored_as})"
        if not split.examples:
            raise UserError(f"{where}: the {name} split has no examples{ignored}")
        if split.classes is None:
            continue
        present = [label for label, count in split.classes.items() if count]
        if not present:
            raise UserError(
                f"{where}: none of {split.examples:,} examples of the {name} split has a label"
                f"{ignored}; there is nothing to {'learn' if name == 'train' else 'measure'}"
            )
        if name == "train" and len(present) < split.least_classes:
            raise UserError(
                f"{where}: all labeled {split.unit} of the train split have the class "
                f"{present[0]!r}{ignored}, expected at least {split.least_classes} classes"
            )
    for name, split in splits.items():
        _name_unlearnable(where, name, split, splits.get("train"))
    _name_doubtful(where, splits)


def _name_unlearnable(
    where: str, name: str, split: SplitSummary, train: SplitSummary | None
) -> None:
    if train is None or train.classes is None or split.classes is None:
        return
    known = train.classes
    lacking = [label for label, count in split.classes.items() if count and not known.get(label)]
    if lacking:
        more = ", ..." * (len(lacking) > _SHOWN)
        warn_once(
            f"{where}: the train split has no {split.unit} of {', '.join(lacking[:_SHOWN])}{more}, "
            f"but the {name} split has some; a model cannot learn classes that are missing in the "
            f"train split"
        )


def _name_doubtful(where: str, splits: Mapping[str, SplitSummary]) -> None:
    counts: dict[str, int] = {}
    alike: dict[str, list[str]] = {}
    for split in splits.values():
        for label, count in (split.classes or {}).items():
            counts[label] = counts.get(label, 0) + count
    for label in counts:
        alike.setdefault(_looks(label), []).append(label)
    for names in alike.values():
        if len(names) > 1:
            listed = " and ".join(map(ascii, names))
            message = (
                f"classes {listed} differ only in case, spaces or invisible characters; they "
                f"count as different classes"
            )
            warn_once(f"{where}: {message}", key=message)
    for label in MISSING:
        if counts.get(label):
            message = (
                f"{counts[label]:,} labels are {label}, which counts as a class; remove these "
                "examples if they have no label"
            )
            warn_once(f"{where}: {message}", key=message)


def class_indices(
    where: str, labels: Sequence[str], places: Sequence[str], names: Sequence[str]
) -> np.ndarray:
    """Converts the class names of n examples to class indices, int32 [n].

    Args:
      where: file of the labels, for the message.
      labels: class name of each example.
      places: location of each example, such as "line 3", for the message.
      names: known class names, by index.

    Raises:
      UserError: a label is not a known class; the message names all unknown labels.
    """
    number = {name: index for index, name in enumerate(names)}
    unknown: dict[str, list[str]] = {}
    for label, place in zip(labels, places, strict=True):
        if label not in number:
            unknown.setdefault(label, []).append(place)
    if unknown:
        shown = [
            f"{label!r} ({len(found):,} examples, the first is {found[0]}){alike(label, names)}"
            for label, found in [*unknown.items()][:_SHOWN]
        ]
        more = ", ..." * (len(unknown) > _SHOWN)
        raise UserError(
            f"{where}: got {len(unknown)} classes that the run does not know: {', '.join(shown)}"
            f"{more}; expected the classes of the run: {join_names(names)}"
        )
    return np.array([number[label] for label in labels], np.int32)


def alike(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about a name that is unknown but looks like a known one.

    Args:
      name: the unknown name.
      known: known names.

    Returns:
      '; NAME is not OTHER', or '' if no known name looks like `name`.
    """
    same = [ascii(other) for other in known if _looks(other) == _looks(name)]
    return f"; {name!a} is not {' or '.join(same)}" if same else ""


def _looks(name: str) -> str:
    """Normalizes a name to NFKC in lower case, without spaces and invisible characters."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(
        x for x in text if not x.isspace() and unicodedata.category(x) not in ("Cf", "Cc")
    )
