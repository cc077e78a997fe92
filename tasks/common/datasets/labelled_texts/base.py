"""What the definitions of labelled texts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tasks.common.data.deduplication import text_hash


def text_features(labels: Sequence[str]) -> Callable[[], Mapping[str, Any]]:
    """Features of an example: id, text, label."""

    def features() -> Mapping[str, Any]:
        import tensorflow_datasets as tfds

        return {
            "id": tfds.features.Text(),
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=list(labels)),
        }

    return features


def example(identity: str, text: str, label: str) -> dict[str, str]:
    """One example as the builder takes it."""
    return {"id": identity, "text": text, "label": label}


def validation_by_hash(
    examples: Iterable[Mapping[str, str]],
) -> tuple[list[Mapping[str, str]], list[Mapping[str, str]]]:
    """(train, validation): validation is every text whose hash is divisible by ten."""
    train: list[Mapping[str, str]] = []
    validation: list[Mapping[str, str]] = []
    for row in examples:
        (train if text_hash(row["text"]) % 10 else validation).append(row)
    return train, validation
