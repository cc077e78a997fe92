"""Examples of speech or handwriting with transcripts, and hashes of their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.data import digests
from tasks.common.text.tokenizer import PAD, UNKNOWN, Tokenizer


class TranscriptionExamples:
    """Examples that consist of an array and its transcript.

    The arrays contain audio samples or image columns, and have variable length.

    Args:
      field: name of the array in an example.
      read: function that takes the index of an example and returns its array, [n, ...].
      lengths: int [examples], length n of each array.
      targets: unit ids of each example; None if unknown.
      texts: transcript of each example.
      groups: int [examples], index of the test condition of each example; None if all are 0.

    Attributes:
      field, texts, groups: the arguments of the same names.
    """

    def __init__(
        self,
        field: str,
        read: Callable[[int], np.ndarray],
        lengths: Sequence[int],
        targets: Sequence[np.ndarray] | None = None,
        texts: Sequence[str] = (),
        groups: np.ndarray | None = None,
    ):
        self.field, self._read, self._targets = field, read, targets
        self.texts = list(texts)
        sizes = np.asarray(lengths, np.int32)
        self.groups = np.zeros(len(sizes), np.int32) if groups is None else groups
        self.padded: Mapping[str, int] = {field: 0}
        # Empty arrays count as length 1, because a bucket has at least one position.
        self.lengths: Mapping[str, np.ndarray] = {field: np.maximum(sizes, 1)}
        if targets is not None:
            self.padded = {field: 0, "target": PAD}
            units = np.array([len(target) for target in targets], np.int32)
            self.lengths = {**self.lengths, "target": np.maximum(units, 1)}

    @classmethod
    def of_arrays(
        cls,
        field: str,
        arrays: Sequence[np.ndarray],
        tokenizer: Tokenizer,
        texts: Sequence[str],
        groups: np.ndarray | None = None,
    ) -> TranscriptionExamples:
        """Returns the examples of arrays in memory; their targets are the encoded texts."""
        lengths = [len(array) for array in arrays]
        units = encode_units(tokenizer, texts)
        return cls(field, arrays.__getitem__, lengths, units, texts, groups)

    def __len__(self) -> int:
        return len(self.lengths[self.field])

    @property
    def unknown_units(self) -> float:
        """Fraction of the units of the transcripts that the tokenizer does not know."""
        units = np.concatenate([np.zeros(0, np.int32), *(self._targets or ())])
        return float(np.mean(units == UNKNOWN)) if len(units) else 0.0

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        given = self._read(index)
        padding = np.zeros((1, *given.shape[1:]), given.dtype)
        example = {self.field: given if len(given) else padding, "length": np.int32(len(given))}
        if self._targets is not None:
            target = self._targets[index].astype(np.int32)
            example["target"] = target if len(target) else np.full(1, PAD, np.int32)
        return example


def transcription_fingerprints(
    splits: Mapping[str, TranscriptionExamples], tokenizer: Tokenizer, kind: str
) -> dict[str, str]:
    """Computes a hash of each part of the data, by name; see `tasks.task.Task.fingerprints`.

    Args:
      splits: examples by split name.
      tokenizer: tokenizer fitted on the training split.
      kind: plural noun for the inputs, used in the names of parts.
    """

    def columns(part: TranscriptionExamples) -> dict[str, Iterable[Any]]:
        examples = (part[index] for index in range(len(part)))
        rows = ((example[part.field], example["length"]) for example in examples)
        return {"texts": part.texts, kind: rows, "conditions": part.groups}

    tokenizer_part = {"tokenizer": digests.of_rows([tokenizer.to_json()])}
    return tokenizer_part | digests.of_splits(splits, columns)


def encode_units(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes each text as unit ids; an empty text gives an empty array."""
    found = tokenizer.encode_batch(texts)
    return [units if text else units[:0] for units, text in zip(found, texts, strict=True)]
