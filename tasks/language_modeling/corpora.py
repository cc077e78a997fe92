"""Public texts without labels, by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.common.builders import Definition
from tasks.common.places import Url
from tasks.common.sources import Source

_FILE = "tinyshakespeare/input.txt"


def _features() -> Mapping[str, Any]:
    import tensorflow_datasets as tfds

    return {"text": tfds.features.Text()}


def _generate(files: Mapping[str, Path]) -> dict[str, list[dict[str, str]]]:
    text = files[_FILE].read_text(encoding="utf-8")
    first, last = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    return {"train": [{"text": first}], "validation": [{"text": last}], "test": [{"text": last}]}


TINY_SHAKESPEARE = Definition(
    name="tiny_shakespeare",
    version="1.0.0",
    features=_features,
    sources=(
        Source(
            _FILE,
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            (
                Url(
                    "https://raw.githubusercontent.com/karpathy/char-rnn/"
                    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
                ),
            ),
        ),
    ),
    generate=_generate,
    counts={"train": 1, "validation": 1, "test": 1},
    description="40,000 lines of Shakespeare's plays (Karpathy 2015), 1,115,394 characters. The "
    "first nine tenths are train, the last tenth is validation, as published figures have it; test "
    "is the same text as validation, so its figures are those of the step chosen on it.",
    licence="public domain",
)

CORPORA: dict[str, Definition] = {definition.name: definition for definition in (TINY_SHAKESPEARE,)}
