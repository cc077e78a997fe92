"""Pictures of lines with their texts in three splits: composed ones, or a person's own.

An example has the fields

    columns  uint8 [X, Y], a line of Y = 32 rows, column by column, 255 where there is ink
    length   int32, X
    target   int32 [T], units of the text, PAD after them; left out where nobody knows it
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

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
"""read, lengths, targets, texts, groups -> examples of lines."""


def _features() -> Mapping[str, object]:
    import tensorflow_datasets as tfds

    return {
        "picture": tfds.features.Tensor(shape=(mnist_digits.SIDE,) * 2, dtype=np.uint8),
        "digit": tfds.features.Scalar(dtype=np.int32),
    }


HANDWRITTEN_DIGITS = DatasetDefinition(
    name="handwritten_digits",
    version="1.0.0",
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
class DataConfig:
    """Which lines.

    Attributes:
      name: digit_strings, composed of MNIST's digits, whose splits share none. With path it only
        names the results, and is own_<its name> unless something else is given.
      path: own lines: a manifest with the columns path and text (CSV or TSV), or with such JSON
        objects (.jsonl), or a folder of pictures with a text file of the same name beside each; or
        three manifests with commas between, called train, validation and test. A split that is
        missing is a tenth of train, see `split_by`.
      lines: of digit_strings: how they are written.
      train_lines: the same of its train split alone, lengths too; as `lines` if None.
      long_lines: of its second test, of lines that are longer than any in train.
      train_size, validation_size, test_size: lines of each split; the second test has a quarter.
      seed: of the lines.
      text: units: tokenizer "character", "word" or "bpe".
      dark_ink: own pictures have dark ink on light paper; False: light on dark.
      max_columns: widest own picture, once it has 32 rows: wider ones are named.
      split_by: own lines that have it in common are in one split: "text": those of one text;
        "file": equal files; or a column of the manifest, such as speaker, of which the largest
        value is train and others fill a tenth of test and of validation. For splits that have no
        manifest of their own. With few distinct texts, such as commands, "text" cannot split.
      skip_broken: leave out own pictures that cannot be used, and name them.
    """

    name: str = NAMES[0]
    path: str | None = None
    lines: Lines = dataclasses.field(default_factory=Lines)
    train_lines: Lines | None = None
    long_lines: Lines = dataclasses.field(default_factory=lambda: Lines(9, 14))
    train_size: int = 20_000
    validation_size: int = 1_000
    test_size: int = 2_000
    seed: int = 0
    text: TextConfig = dataclasses.field(default_factory=_characters)
    dark_ink: bool = True
    max_columns: int = 2_000
    split_by: str = dataclasses.field(default=BY_TEXT, metadata=LATER)
    skip_broken: bool = False

    def __post_init__(self):
        name = results_name(self.name, NAMES, self.path, "; path takes your own lines")
        object.__setattr__(self, "name", name)
        check_split_by(self.split_by, self.path)
        for field in ("train_size", "validation_size", "test_size"):
            if getattr(self, field) < 4:
                raise ValueError(f"{field} must be at least 4, got {getattr(self, field)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.max_columns < 1:
            raise ValueError(f"max_columns must be at least 1, got {self.max_columns}")


class HandwritingData(TranscriptionData):
    """A data set of handwritten lines."""

    unit, kind = "lines", "images"


def load(config: DataConfig, paths: Paths) -> HandwritingData:
    """Reads a data set, preparing one of the project's own first when it is not.

    Raises:
      UserError: what is wrong with a file or a source.
    """
    return _user_data(config) if config.path is not None else _composed(config, paths)


def _composed(config: DataConfig, paths: Paths) -> HandwritingData:
    builders.prepare(HANDWRITTEN_DIGITS, paths)
    sizes = {split: getattr(config, f"{split}_size") for split in SPLITS}
    written = {}
    for split in SPLITS:
        source = builders.load(HANDWRITTEN_DIGITS, split, paths)
        rows = source.__getitems__(range(len(source)))
        pictures = [
            np.stack([row["picture"] for row in rows if row["digit"] == digit])
            for digit in range(10)
        ]
        seed = (config.seed, _STREAMS[split])
        lines = (config.train_lines if split == "train" else None) or config.lines
        written[split] = [WrittenLines(pictures, sizes[split], lines, seed)]
        if split == "test":
            seed = (config.seed, _STREAMS[LONG])
            count = sizes[split] // 4
            written[split].append(WrittenLines(pictures, count, config.long_lines, seed))
    tokenizer = Tokenizer.fit(written["train"][0].texts, config.text)
    splits = {split: _examples(written[split], tokenizer) for split in SPLITS}
    return HandwritingData(splits, tokenizer, ("", LONG))


def _examples(parts: Sequence[WrittenLines], tokenizer: Tokenizer) -> TranscriptionExamples:
    """Lines of one or more conditions, drawn once: a byte a pixel."""
    columns = [part[index] for part in parts for index in range(len(part))]
    texts = [text for part in parts for text in part.texts]
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts]).astype(np.int32)
    sizes = [len(line) for line in columns]
    return lines_of(columns.__getitem__, sizes, encode_units(tokenizer, texts), texts, groups)


def read_line(path: str | Path, config: DataConfig) -> np.ndarray:
    """Columns uint8 [X, 32] of a picture, 255 where there is ink.

    Raises:
      UserError: it cannot be read, or is wider than max_columns.
    """
    picture = read_image(path, mode="L")
    width = max(round(picture.shape[1] * HEIGHT / picture.shape[0]), 1)
    if width > config.max_columns:
        raise UserError(
            f"{path}: is {width} columns wide at {HEIGHT} rows, more than "
            f"config.data.max_columns={config.max_columns}"
        )
    picture = resize(picture, (HEIGHT, width))
    return np.ascontiguousarray((255 - picture if config.dark_ink else picture).T)


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
