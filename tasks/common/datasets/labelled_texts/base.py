"""Features, examples and splits shared by the labeled texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tasks.common.data.builders import features_of
from tasks.common.data.deduplication import text_hash
from tasks.common.data.splits import SPLITS


def text_features(labels: Sequence[str]) -> Callable[[], Mapping[str, Any]]:
    """Returns a function for `DatasetDefinition.features`, for examples with id, text and label.

    Args:
      labels: names of the classes.
    """

    return features_of(id=str, text=str, label=list(labels))


def example(identity: str, text: str, label: str) -> dict[str, str]:
    """Returns an example with the features of `text_features`."""
    return {"id": identity, "text": text, "label": label}


def split_by_hash(hashes: Iterable[int], examples: Iterable[dict[str, str]]) -> dict[str, list]:
    """Splits examples by their hash modulo 10.

    Examples with the remainder 0 are the test split, those with 1 the validation split, and all
    others the training split.

    Args:
      hashes: hash of each example.
      examples: the examples.
    """
    splits: dict[str, list] = {split: [] for split in SPLITS}
    for value, row in zip(hashes, examples, strict=True):
        splits[{0: "test", 1: "validation"}.get(value % 10, "train")].append(row)
    return splits


def validation_by_hash(
    examples: Iterable[Mapping[str, str]],
) -> tuple[list[Mapping[str, str]], list[Mapping[str, str]]]:
    """Splits training examples into a training and a validation split.

    The validation split consists of the examples whose text hash is divisible by ten.
    """
    train: list[Mapping[str, str]] = []
    validation: list[Mapping[str, str]] = []
    for row in examples:
        (train if text_hash(row["text"]) % 10 else validation).append(row)
    return train, validation
