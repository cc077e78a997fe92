"""Generated strings of digits whose targets are the reversed or the same strings.

A string of digits becomes an example with `source`, the ids of its digits, and `target`. The target
has the same ids in reverse ("reversed_digits") or in the same order ("copied_digits"), and then an
end token. Source and target are padded to the same length.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.configs import Config, NonNegativeInt, PositiveInt, one_of
from tasks.common.data import digests
from tasks.common.data.splits import SplitSummary
from tasks.common.errors import UserError

DATA_SETS = ("reversed_digits", "copied_digits")
# Token ids. START is the input of the decoder at its first step.
PAD, START, END, FIRST_DIGIT = 0, 1, 2, 3
VOCABULARY = FIRST_DIGIT + 10
# Number of hash values that belong to each split, out of the ten values in `split_of`.
SHARES = {"test": 1, "validation": 1, "train": 8}


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Config of the strings.

    Attributes:
      name: "reversed_digits" or "copied_digits", which have the same strings and different targets.
      min_length, max_length: minimum and maximum number of digits. All lengths are equally likely.
      train_size, validation_size, test_size: number of strings, all different.
      seed: seed of the strings. The split of a string does not depend on it.
    """

    name: one_of(*DATA_SETS) = "reversed_digits"
    min_length: PositiveInt = 4
    max_length: int = 20
    train_size: PositiveInt = 50_000
    validation_size: PositiveInt = 5_000
    test_size: PositiveInt = 10_000
    seed: NonNegativeInt = 0

    def __post_init__(self):
        super().__post_init__()
        longer = self.max_length >= self.min_length
        self.expect("max_length", longer, f"at least min_length={self.min_length}")
        digits = range(self.min_length, self.max_length + 1)
        for split, share in SHARES.items():
            # `generate` draws random strings until it has enough different ones. It ends soon if at
            # most half of the strings that belong to the split are needed.
            most = sum(10**length for length in digits) * share // 20
            name, lengths = f"{split}_size", f"{self.min_length} to {self.max_length} digits"
            self.expect(name, getattr(self, name) <= most, f"at most {most} with {lengths}")


class DigitStrings:
    """Random access to the examples of strings, with or without `target`.

    Attributes:
      strings: strings of digits.
      name: one of DATA_SETS, which defines the targets.
    """

    padded: Mapping[str, int] = {"source": PAD, "target": PAD}

    def __init__(
        self, strings: Sequence[str], name: str = "reversed_digits", *, with_target: bool = True
    ):
        self.strings, self.name, self._with_target = list(strings), name, with_target
        self.lengths = np.array([len(string) + 1 for string in self.strings], np.int32)
        if not with_target:
            self.padded = {"source": PAD}

    @property
    def answers(self) -> list[str]:
        """Target string of each string."""
        return [answer(string, self.name) for string in self.strings]

    def __len__(self) -> int:
        return len(self.strings)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        source = encode(self.strings[index])
        example = {"source": source, "length": np.int32(len(source))}
        if self._with_target:
            example["target"] = with_end(answer(self.strings[index], self.name))
        return example


def answer(string: str, name: str) -> str:
    """Returns the target string of a string in the data set `name`."""
    return string[::-1] if name == "reversed_digits" else string


def source_position(step: int, length: int, name: str) -> int:
    """Returns the source position of the digit that a decoding step outputs; both count from 0."""
    return length - 1 - step if name == "reversed_digits" else step


def encode(string: str) -> np.ndarray:
    """Returns the ids of the digits, int32 [length]."""
    return np.array([FIRST_DIGIT + int(digit) for digit in string], np.int32)


def with_end(string: str) -> np.ndarray:
    """Returns the ids of the digits and the end token, int32 [length + 1]."""
    return np.append(encode(string), np.int32(END))


def tokens_of(strings: Sequence[str], width: int) -> np.ndarray:
    """Returns the ids of each string with the end token, padded to int32 [n, width]."""
    result = np.full((len(strings), width), PAD, np.int32)
    for row, string in zip(result, strings, strict=True):
        row[: len(string) + 1] = with_end(string)
    return result


def decode(tokens: np.ndarray) -> str:
    """Returns the string of the digits before the first id that is not a digit."""
    digits = []
    for token in np.asarray(tokens).tolist():
        if token < FIRST_DIGIT:
            break
        digits.append(str(token - FIRST_DIGIT))
    return "".join(digits)


def split_of(string: str) -> str:
    """Returns the split of a string, which is selected by its SHA-256 modulo 10.

    A remainder of 0 is test, 1 is validation, and others are train.
    """
    part = int(hashlib.sha256(string.encode("ascii")).hexdigest(), 16) % 10
    return {0: "test", 1: "validation"}.get(part, "train")


def generate(config: DataConfig) -> dict[str, DigitStrings]:
    """Generates the three splits; the strings depend only on the config."""
    random = np.random.Generator(np.random.PCG64(config.seed))
    wanted = {split: getattr(config, f"{split}_size") for split in ("train", "validation", "test")}
    found: dict[str, dict[str, None]] = {split: {} for split in wanted}
    while any(len(found[split]) < size for split, size in wanted.items()):
        lengths = random.integers(config.min_length, config.max_length + 1, size=4096)
        digits = random.integers(0, 10, size=(4096, config.max_length))
        for row, length in zip(digits, lengths, strict=True):
            string = "".join(map(str, row[:length]))
            split = split_of(string)
            if len(found[split]) < wanted[split]:
                found[split][string] = None
    return {split: DigitStrings(list(strings), config.name) for split, strings in found.items()}


@dataclasses.dataclass(frozen=True)
class DigitData:
    """A data set of digit strings, by split."""

    splits: Mapping[str, DigitStrings]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the strings of all splits and of the name of the data set."""
        strings = {split: [part.name, *part.strings] for split, part in self.splits.items()}
        return hashlib.sha256(json.dumps(strings, sort_keys=True).encode()).hexdigest()[:16]

    def summary(self) -> dict[str, SplitSummary]:
        """Returns the number of strings of each split."""
        return {split: SplitSummary(len(part)) for split, part in self.splits.items()}

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of the strings of each split; see `tasks.task.Task.fingerprints`."""
        return digests.of_splits(self.splits, lambda part: {"strings": part.strings})


def read_strings(raw: Sequence[str], max_length: int) -> DigitStrings:
    """Converts raw inputs to examples without targets.

    Raises:
      UserError: an input is empty, has other characters than digits, or is too long.
    """
    strings = [text.strip() for text in raw]
    for text in strings:
        shown = repr(text if len(text) <= 60 else text[:57] + "...")
        # `isascii` is needed too, because `str.isdigit` accepts the digits of all scripts.
        if not (text.isascii() and text.isdigit()):
            raise UserError(f"input {shown}: expected only digits 0 to 9, such as 31415")
        if len(text) > max_length:
            raise UserError(
                f"input {shown}: has {len(text)} digits, expected at most {max_length} as in "
                "training (config.data.max_length)"
            )
    return DigitStrings(strings, with_target=False)
