"""Images of lines with their texts in three splits: composed lines, or user files.

An example has the fields

    columns  uint8 [X, Y], the columns of a line of Y = 32 rows, 255 for ink
    length   int32, X
    target   int32 [T], units of the text, then PAD; missing without a text
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.common.configs import PositiveInt, at_least, known_names
from tasks.common.data import builders
from tasks.common.data.builders import DatasetDefinition, features_of
from tasks.common.data.manifests import TranscribedConfig
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS
from tasks.common.data.transcribed import TranscriptionExamples
from tasks.common.errors import UserError
from tasks.common.images.files import read_image, resize
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.handwriting_recognition.datasets import mnist_digits
from tasks.handwriting_recognition.datasets.digit_lines import HEIGHT, Lines, WrittenLines
from tasks.transcription import TranscriptionData

NAMES = ("digit_strings",)
LONG = "long"
_STREAMS = {"train": 0, "validation": 1, "test": 2, LONG: 3}


HANDWRITTEN_DIGITS = DatasetDefinition(
    name="handwritten_digits",
    version="1.0.1",
    features=features_of(image=((mnist_digits.SIDE,) * 2, np.uint8), digit=int),
    sources=(mnist_digits.SOURCE,),
    generate=mnist_digits.generate,
    counts={"train": 7992, "validation": 1003, "test": 1005},
    description="10,000 of MNIST's handwritten digits (LeCun et al. 1998), 28 x 28. Of every ten "
    "successive images of a digit in the file, the first is in test and the second in validation.",
    license="MIT (the package)",
)


def _characters() -> TextConfig:
    return TextConfig(tokenizer="character", lower_case=False, min_count=1)


@dataclasses.dataclass(frozen=True)
class DataConfig(TranscribedConfig):
    """Config of the lines and the units of their texts.

    Attributes:
      lines: composition of the lines of the data set digit_strings from single MNIST digits. No
        digit image occurs in two splits.
      train_lines: composition of the training lines; None for `lines`.
      long_lines: composition of the test condition "long", whose lines are longer than any training
        line.
      dark_ink: True if user files have dark ink on light paper, False for light ink on dark paper.
      max_columns: maximum width of a user image after scaling to 32 rows; wider images raise an
        error.
      For the other attributes see `TranscribedConfig`.
    """

    built_in, unit = NAMES, "lines"
    name: known_names(*NAMES) = NAMES[0]
    lines: Lines = dataclasses.field(default_factory=Lines)
    train_lines: Lines | None = None
    long_lines: Lines = dataclasses.field(default_factory=lambda: Lines(9, 14))
    train_size: at_least(4) = 20_000
    validation_size: at_least(4) = 1_000
    test_size: at_least(4) = 2_000
    text: TextConfig = dataclasses.field(default_factory=_characters)
    dark_ink: bool = True
    max_columns: PositiveInt = 2_000


class HandwritingData(TranscriptionData):
    """A data set of handwritten lines."""

    unit, kind = "lines", "images"


def load(config: DataConfig, paths: Paths) -> HandwritingData:
    """Reads a data set; a built-in data set is prepared first if necessary.

    Raises:
      UserError: a file or source cannot be used.
    """
    if config.path is None:
        return _composed(config, paths)
    return HandwritingData(*config.user_examples(lambda path: read_line(path, config), "columns"))


def _composed(config: DataConfig, paths: Paths) -> HandwritingData:
    sizes = {split: getattr(config, f"{split}_size") for split in SPLITS}
    written = {}
    for split, rows in builders.read_splits(HANDWRITTEN_DIGITS, paths):
        images = [
            np.stack([row["image"] for row in rows if row["digit"] == digit]) for digit in range(10)
        ]
        seed = (config.seed, _STREAMS[split])
        lines = (config.train_lines if split == "train" else None) or config.lines
        written[split] = [WrittenLines(images, sizes[split], lines, seed)]
        if split == "test":
            seed = (config.seed, _STREAMS[LONG])
            count = sizes[split] // 4
            written[split].append(WrittenLines(images, count, config.long_lines, seed))
    tokenizer = Tokenizer.fit(written["train"][0].texts, config.text)
    splits = {split: _examples(written[split], tokenizer) for split in SPLITS}
    return HandwritingData(splits, tokenizer, ("", LONG))


def _examples(parts: Sequence[WrittenLines], tokenizer: Tokenizer) -> TranscriptionExamples:
    """Renders the lines of one or more test conditions, and holds them in memory."""
    columns = [part[index] for part in parts for index in range(len(part))]
    texts = [text for part in parts for text in part.texts]
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int32)
    return TranscriptionExamples.of_arrays("columns", columns, tokenizer, texts, groups)


def read_line(path: str | Path, config: DataConfig) -> np.ndarray:
    """Reads an image, and returns its columns, uint8 [X, 32], 255 for ink.

    Raises:
      UserError: the image cannot be read, or is wider than max_columns after scaling to 32 rows.
    """
    image = read_image(path, mode="L")
    width = max(round(image.shape[1] * HEIGHT / image.shape[0]), 1)
    if width > config.max_columns:
        raise UserError(
            f"{path}: got {width} columns at {HEIGHT} rows, expected at most "
            f"config.data.max_columns={config.max_columns}; cut the image"
        )
    image = resize(image, (HEIGHT, width))
    return np.ascontiguousarray((255 - image if config.dark_ink else image).T)
