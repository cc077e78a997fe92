"""Batches of a few fixed shapes, from grain.

The plan of an epoch - which examples stand together in which batch - is a pure function of (seed,
epoch), and every epoch has the same number of batches. So batch n is a pure function of (seed, n):
the whole state of an iterator is one number, a run resumes at the exact next batch, and processes
agree on the plan without a word between them, each taking its rows of every batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

# Enough for any run; grain wants a length, and an endless MapDataset would lose its index.
_BATCHES = 2**40
_SHUFFLE_STREAM, _ORDER_STREAM = 0, 1

Bucket = int | Mapping[str, int]
"""Length to which a batch is padded: one for all fields, or one by field."""


class Examples(Protocol):
    """Random access to the examples of a split.

    Attributes:
      lengths: by which examples are put into buckets: [n]; or, for fields of lengths of their own,
        field -> [n], with the fields of `padded`; None: every example has one shape.
      padded: field -> padding value, for the fields padded on axis 0 to the length of the bucket.
    """

    lengths: np.ndarray | Mapping[str, np.ndarray] | None
    padded: Mapping[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class EpochPlan:
    """The batches of one epoch.

    Examples are grouped by the first bucket that holds them. What does not fill a batch of its
    bucket moves on to the next longer one, so nothing is dropped, and only one batch, of the
    longest bucket in use, may have fewer examples than `batch_size`.

    Attributes:
      members: indices of the examples of each batch.
      buckets: bucket of each batch; 0 where there are no buckets.
    """

    def __init__(
        self,
        bucket_of: np.ndarray,
        buckets: Sequence[Bucket],
        batch_size: int,
        seed: tuple[int, int] | None,
    ):
        """Makes the plan.

        Args:
          bucket_of: [n] number of the bucket of each example.
          buckets: ascending.
          batch_size: examples of a batch.
          seed: (seed, epoch); None: no shuffling.
        """
        self.members: list[np.ndarray] = []
        self.buckets: list[Bucket] = []
        order = np.arange(len(bucket_of))
        if seed is not None:
            order = np.random.default_rng((*seed, _SHUFFLE_STREAM)).permutation(order)
        last = bucket_of.max()
        left = order[:0]
        for number, bucket in enumerate(buckets):
            mine = np.concatenate([left, order[bucket_of[order] == number]])
            whole = len(mine) // batch_size * batch_size
            if number == last:
                whole = len(mine)
            self.members += [mine[i : i + batch_size] for i in range(0, whole, batch_size)]
            self.buckets += [bucket] * (len(self.members) - len(self.buckets))
            left = mine[whole:]
            if number == last:
                break
        if seed is not None:
            shuffled = np.random.default_rng((*seed, _ORDER_STREAM)).permutation(len(self.members))
            self.members = [self.members[i] for i in shuffled]
            self.buckets = [self.buckets[i] for i in shuffled]


class _Batcher:
    """Makes batches of examples by the plans of epochs."""

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        buckets: Sequence[Bucket] | None,
        process_index: int,
        process_count: int,
    ):
        if len(examples) < 1:
            raise ValueError("examples must hold at least one example, got none")
        if batch_size < 1 or process_count < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size must be a positive multiple of process_count, got {batch_size} and "
                f"{process_count}"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index must be in [0, {process_count}), got {process_index}")
        self.examples, self.batch_size = examples, batch_size
        self.buckets, self.bucket_of = _buckets(examples, buckets)
        share = batch_size // process_count
        self.rows = slice(process_index * share, (process_index + 1) * share)

    def batch(self, members: np.ndarray, bucket: Bucket) -> dict[str, np.ndarray]:
        """This process' rows of a batch, stacked and padded.

        A missing row repeats the first of the batch, so that no mechanism meets an empty example,
        and has weight 0 and id -1.
        """
        missing = self.batch_size - len(members)
        indices = np.concatenate([members, np.repeat(members[:1], missing)])[self.rows]
        real = (np.arange(self.batch_size) < len(members))[self.rows]
        examples = [self.examples[int(index)] for index in indices]
        batch: dict[str, np.ndarray] = {}
        for field, first in examples[0].items():
            if field in self.examples.padded:
                length = bucket[field] if isinstance(bucket, Mapping) else bucket
                batch[field] = self._pad(field, examples, length)
            else:
                values = [np.asarray(example[field]) for example in examples]
                if any(value.shape != values[0].shape for value in values):
                    raise ValueError(
                        f"field {field!r} has shapes {sorted({v.shape for v in values})}; name it "
                        "in `padded`, or give it one shape"
                    )
                batch[field] = np.stack(values)
            assert batch[field].dtype == np.asarray(first).dtype, field
        batch["weight"] = real.astype(np.float32)
        batch["id"] = np.where(real, indices, -1).astype(np.int32)
        return batch

    def _pad(self, field: str, examples: list[dict], length: int) -> np.ndarray:
        first = np.asarray(examples[0][field])
        shape = (len(examples), length, *first.shape[1:])
        result = np.full(shape, self.examples.padded[field], first.dtype)
        for row, example in enumerate(examples):
            value = example[field]
            if len(value) > length:
                raise ValueError(
                    f"field {field!r} of an example has length {len(value)}, but `lengths` put "
                    f"it into the bucket {length}"
                )
            result[row, : len(value)] = value
        return result


def train_iterator(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    buckets: Sequence[Bucket] | None = None,
    process_index: int = 0,
    process_count: int = 1,
):
    """Endless shuffled batches; batch n depends on (seed, n) and nothing else.

    Args:
      examples: the train split.
      batch_size: examples of a batch over all processes; of an epoch's batches one may have fewer.
      seed: of the plan.
      buckets: lengths to which batches are padded, ascending; None: the greatest of `lengths`.
        Where `lengths` is by field, each may be a mapping from fields to lengths; fields that the
        examples have not do not count.
      process_index: which rows of each batch are given: a contiguous block.
      process_count: number of such blocks.

    Returns:
      A grain.DatasetIterator of dicts of arrays [batch_size / process_count, ...], with "weight"
      float32 (1 real, 0 padding) and "id" int32 (index of the example, -1 padding) added. It works
      with get_state, set_state, and the checkpoint handlers of grain.

    Raises:
      ValueError: no examples, an example longer than the longest bucket, or impossible sizes.
    """
    import grain

    batcher = _Batcher(examples, batch_size, buckets, process_index, process_count)
    epoch_batches = epoch_length(examples, batch_size, buckets)

    # Prefetching threads are at the border of two epochs at most.
    @functools.lru_cache(maxsize=2)
    def plan(epoch: int) -> EpochPlan:
        return EpochPlan(batcher.bucket_of, batcher.buckets, batch_size, (seed, epoch))

    def batch(number: int) -> dict[str, np.ndarray]:
        epoch, position = divmod(int(number), epoch_batches)
        chosen = plan(epoch)
        return batcher.batch(chosen.members[position], chosen.buckets[position])

    dataset = grain.MapDataset.range(_BATCHES).map(batch)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))


def evaluation_batches(
    examples: Examples,
    *,
    batch_size: int,
    buckets: Sequence[Bucket] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every example exactly once, in the order of the buckets; arguments as `train_iterator`.

    The last batch is filled up with rows of weight 0.
    """
    batcher = _Batcher(examples, batch_size, buckets, process_index, process_count)
    plan = EpochPlan(batcher.bucket_of, batcher.buckets, batch_size, None)
    return (batcher.batch(*pair) for pair in zip(plan.members, plan.buckets, strict=True))


def epoch_length(
    examples: Examples, batch_size: int, buckets: Sequence[Bucket] | None = None
) -> int:
    """Number of batches in which every example occurs once; the buckets do not change it."""
    return -(-len(examples) // batch_size)


def bucket_lengths(
    lengths: np.ndarray | Mapping[str, np.ndarray],
    quantiles: Sequence[float],
    multiple: int | Mapping[str, int] = 8,
    longest: int | None = None,
) -> list[Bucket]:
    """Chooses a few bucket lengths with little padding.

    Args:
      lengths: of the examples, [n], or by field.
      quantiles: of the lengths, ascending; each gives a bucket, rounded up.
      multiple: of which the buckets are multiples; an integer, or one per field.
      longest: last bucket, and limit of the others; the greatest length, rounded up, if None.

    Returns:
      Distinct buckets, ascending; by field if `lengths` is.
    """

    def column(values: np.ndarray, multiple: int) -> list[int]:
        found = [-(-int(np.quantile(values, each)) // multiple) * multiple for each in quantiles]
        last = -(-int(values.max()) // multiple) * multiple if longest is None else longest
        return [*(min(length, last) for length in found), last]

    if isinstance(lengths, Mapping):
        multiples = multiple if isinstance(multiple, Mapping) else dict.fromkeys(lengths, multiple)
        columns = [column(values, multiples[field]) for field, values in lengths.items()]
        rows = [dict(zip(lengths, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        rows = column(lengths, multiple)
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


def _buckets(
    examples: Examples, buckets: Sequence[Bucket] | None
) -> tuple[list[Bucket], np.ndarray]:
    """The buckets, and the number of the bucket of each example."""
    if examples.lengths is None:
        if buckets is not None:
            raise ValueError("buckets need examples with lengths, got lengths=None")
        return [0], np.zeros(len(examples), np.int64)
    if isinstance(examples.lengths, Mapping):
        return _buckets_by_field(examples, buckets)
    if buckets is not None and any(isinstance(bucket, Mapping) for bucket in buckets):
        raise ValueError(
            "buckets by field need examples with lengths by field, got one length each"
        )
    lengths = _checked_lengths(examples, examples.lengths, "lengths")
    if buckets is None:
        return [int(lengths.max())], np.zeros(len(examples), np.int64)
    chosen = [int(bucket) for bucket in buckets]
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 1:
        raise ValueError(f"buckets must be positive and ascending, got {chosen}")
    return chosen, _first_that_holds(chosen, lengths, "")


def _buckets_by_field(
    examples: Examples, buckets: Sequence[Bucket] | None
) -> tuple[list[Bucket], np.ndarray]:
    if set(examples.lengths) != set(examples.padded):
        raise ValueError(
            f"lengths must have the fields of padded, {sorted(examples.padded)}, got "
            f"{sorted(examples.lengths)}"
        )
    lengths = {
        field: _checked_lengths(examples, values, f"lengths of {field!r}")
        for field, values in examples.lengths.items()
    }
    if buckets is None:
        longest = {field: int(values.max()) for field, values in lengths.items()}
        return [longest], np.zeros(len(examples), np.int64)
    chosen = []
    for bucket in buckets:
        by_field = bucket if isinstance(bucket, Mapping) else dict.fromkeys(lengths, bucket)
        if missing := sorted(set(lengths) - set(by_field)):
            raise ValueError(f"buckets must name each padded field, got {bucket} without {missing}")
        chosen.append({field: int(by_field[field]) for field in lengths})
    numbers = np.zeros(len(examples), np.int64)
    for field, values in lengths.items():
        row = [bucket[field] for bucket in chosen]
        if not row or row != sorted(row) or row[0] < 1:
            raise ValueError(
                f"buckets must be positive and ascending in every field, got {row} for {field!r}"
            )
        numbers = np.maximum(numbers, _first_that_holds(row, values, f" in field {field!r}"))
    return chosen, numbers


def _checked_lengths(examples: Examples, lengths: np.ndarray, name: str) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.shape != (len(examples),):
        raise ValueError(f"{name} must have shape ({len(examples)},), got {lengths.shape}")
    return lengths


def _first_that_holds(buckets: list[int], lengths: np.ndarray, where: str) -> np.ndarray:
    if lengths.max() > buckets[-1]:
        raise ValueError(
            f"example {int(lengths.argmax())} has length {lengths.max()}{where}, longer than the "
            f"longest bucket {buckets[-1]}"
        )
    return np.searchsorted(buckets, lengths)
