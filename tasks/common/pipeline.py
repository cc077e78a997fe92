"""Batches by grain: shuffled, padded to a few lengths, split by process, resumable to the batch.

Which examples batch n holds is a pure function of (seed, n): the plan of an epoch is drawn from
(seed, epoch) alone. So the state of an iterator is a number, and a run that resumes, or that runs
on another number of processes, sees the very batches it would have seen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class Examples(Protocol):
    """Random access to the examples of a split.

    Attributes:
      lengths: [n] lengths by which examples are put into buckets; None where all have one shape.
      padded: field -> value with which its first axis is filled up to the bucket's length.
    """

    lengths: np.ndarray | None
    padded: Mapping[str, int]

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Fields of one example."""


class _Plan:
    """The batches of an epoch: (indices [k], k at most the batch size; padded length)."""

    def __init__(self, examples: Examples, batch_size: int, buckets: Sequence[int] | None):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if len(examples) == 0:
            raise ValueError("examples must hold at least one example, got none")
        self._batch_size = batch_size
        self._buckets = None if buckets is None else sorted(buckets)
        if examples.lengths is None or self._buckets is None:
            self._members = [np.arange(len(examples))]
            self._sizes: list[int | None] = [None]
            return
        lengths = np.asarray(examples.lengths)
        if lengths.max() > self._buckets[-1]:
            raise ValueError(
                f"lengths go up to {lengths.max()}, longer than the longest bucket "
                f"{self._buckets[-1]}"
            )
        places = np.searchsorted(self._buckets, lengths)
        # Leftovers go up to the next length in use; lengths that no example needs stay unused.
        used = np.unique(places)
        self._members = [np.flatnonzero(places == place) for place in used]
        self._sizes = [self._buckets[place] for place in used]

    def batches(self, rng: np.random.Generator | None) -> list[tuple[np.ndarray, int | None]]:
        """Of one epoch, in order; only the last of the longest length may be short of rows."""
        planned, left = [], np.zeros(0, np.int64)
        last = len(self._members) - 1
        for number, (members, size) in enumerate(zip(self._members, self._sizes, strict=True)):
            order = members if rng is None else rng.permutation(members)
            order = np.concatenate([left, order])
            full = (
                len(order) if number == last else len(order) // self._batch_size * self._batch_size
            )
            planned += [
                (order[start : start + self._batch_size], size)
                for start in range(0, full, self._batch_size)
            ]
            left = order[full:]
        if rng is not None:
            planned = [planned[place] for place in rng.permutation(len(planned))]
        return planned

    @functools.cached_property
    def count(self) -> int:
        """Batches an epoch: the same in every epoch."""
        return len(self.batches(None))


class _TrainSource:
    """Batch n for n = 0, 1, 2 ... without end, as far as grain can see."""

    def __init__(self, examples, batch_size, seed, buckets, process_index, process_count):
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._plan = _Plan(examples, batch_size, buckets)
        self._rows = _process_rows(batch_size, process_index, process_count)
        self._epoch = functools.lru_cache(maxsize=2)(self._draw)

    def _draw(self, epoch: int) -> list[tuple[np.ndarray, int | None]]:
        return self._plan.batches(np.random.default_rng([self._seed, epoch]))

    def __len__(self) -> int:
        return 2**31 - 1

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(int(number), self._plan.count)
        indices, length = self._epoch(epoch)[place]
        return _collate(self._examples, indices, length, self._batch_size, self._rows)

    def __repr__(self) -> str:
        # grain keeps this in a checkpoint and compares it: it must not tell of addresses.
        return f"batches(seed={self._seed}, batch_size={self._batch_size}, n={len(self._examples)})"


def _process_rows(batch_size: int, index: int, count: int) -> slice:
    if not 0 <= index < count:
        raise ValueError(f"process_index must be in [0, {count}), got {index}")
    if batch_size % count:
        raise ValueError(f"batch_size must be a multiple of {count} processes, got {batch_size}")
    share = batch_size // count
    return slice(index * share, (index + 1) * share)


def _collate(
    examples: Examples, indices: np.ndarray, length: int | None, batch_size: int, rows: slice
) -> dict[str, np.ndarray]:
    """Stacks rows; missing ones repeat the first with weight 0 and id -1."""
    ids = np.full(batch_size, -1, np.int32)
    ids[: len(indices)] = indices
    mine = ids[rows]
    fallback = int(indices[0])
    drawn: dict[int, dict[str, Any]] = {}
    for index in {int(index) if index >= 0 else fallback for index in mine}:
        drawn[index] = examples[index]
    parts = [drawn[int(index) if index >= 0 else fallback] for index in mine]
    batch = {
        name: _stack([part[name] for part in parts], length, examples.padded.get(name))
        for name in parts[0]
    }
    batch["weight"] = (mine >= 0).astype(np.float32)
    batch["id"] = mine
    return batch


def _stack(values: list[Any], length: int | None, fill: int | None) -> np.ndarray:
    if fill is None or length is None:
        return np.stack([np.asarray(value) for value in values])
    first = np.asarray(values[0])
    out = np.full((len(values), length, *first.shape[1:]), fill, first.dtype)
    for row, value in zip(out, values, strict=True):
        row[: len(value)] = value
    return out


def train_iterator(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    buckets: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
):
    """Endless shuffled batches, a `grain.DatasetIterator` with get_state and set_state.

    In every epoch each example comes exactly once; the last batch of the longest bucket is filled
    up with rows of weight 0.

    Args:
      examples: of the train split.
      batch_size: rows over all processes.
      seed: of the order.
      buckets: lengths to which fields in `examples.padded` are filled; each batch has one of them.
      process_index, process_count: this process takes its contiguous share of the rows.

    Raises:
      ValueError: no examples, one longer than the longest bucket, or rows that do not divide.
    """
    import grain

    source = _TrainSource(examples, batch_size, seed, buckets, process_index, process_count)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def evaluation_batches(
    examples: Examples,
    *,
    batch_size: int,
    buckets: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every example exactly once, ordered by bucket, then by index; the last batch padded.

    Arguments and errors as for `train_iterator`; no examples give no batches.
    """
    if len(examples) == 0:
        return
    rows = _process_rows(batch_size, process_index, process_count)
    for indices, length in _Plan(examples, batch_size, buckets).batches(None):
        yield _collate(examples, indices, length, batch_size, rows)


def epoch_length(examples: Examples, batch_size: int, buckets: Sequence[int] | None = None) -> int:
    """Batches in an epoch of `train_iterator`."""
    return _Plan(examples, batch_size, buckets).count
