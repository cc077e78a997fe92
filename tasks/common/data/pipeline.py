"""Batches with a few fixed shapes, based on grain.

The assignment of examples to batches in an epoch is a pure function of (seed, epoch), and all
epochs have the same number of batches. Therefore batch n is a pure function of (seed, n), and the
state of an iterator is a single number. A run resumes at exactly the next batch. Several processes
agree on the batches without communication; each process reads the rows of its own devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

# Number of batches, more than any run needs. A grain.MapDataset needs a finite length: if a shorter
# range were repeated, the batch numbers would start at 0 again.
_BATCHES = 2**40
_SHUFFLE_STREAM, _ORDER_STREAM = 0, 1

Bucket = int | Mapping[str, int]
"""Padded length of a batch: one number for all fields, or a number for each field."""


class Examples(Protocol):
    """Examples of a split, with random access.

    An example is a dict of arrays, whose names are called fields.

    Attributes:
      lengths: length of each example, [n], by which examples are assigned to buckets. If the fields
        of `padded` differ in length, a dict with such an array for each field. None if all examples
        have the same shape.
      padded: fields that are padded on axis 0 to the bucket length, with the padding value of each.
    """

    lengths: np.ndarray | Mapping[str, np.ndarray] | None
    padded: Mapping[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


class EpochPlan:
    """Assignment of examples to the batches of one epoch.

    Each example is assigned to the shortest bucket that is long enough. Examples that do not fill a
    batch of their bucket move to the next longer bucket. Therefore no example is dropped, and only
    one batch, in the longest bucket in use, may have fewer examples than `batch_size`.

    Attributes:
      members: indices of the examples of each batch.
      buckets: padded length of each batch; 0 without buckets.
    """

    def __init__(
        self,
        bucket_of: np.ndarray,
        buckets: Sequence[Bucket],
        batch_size: int,
        seed: tuple[int, int] | None,
    ):
        """Assigns the examples to batches.

        Args:
          bucket_of: bucket index of each example, [n].
          buckets: bucket lengths, ascending.
          batch_size: number of examples per batch.
          seed: random seed and number of the epoch; None for no shuffling.
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
    """Reader that builds the batches of an `EpochPlan` from the examples."""

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        buckets: Sequence[Bucket] | None,
        multiple: int = 1,
        shards: Sequence[int] | None = None,
    ):
        if len(examples) < 1:
            raise ValueError("examples: got none, expected at least one")
        if multiple < 1:
            raise ValueError(f"multiple: got {multiple}, expected at least 1")
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
        chosen = range(multiple) if shards is None else list(shards)
        if not len(chosen) or not set(chosen) <= set(range(multiple)):
            raise ValueError(f"shards: got {chosen}, expected one or more of range({multiple})")
        self.examples, self.total = examples, -(-batch_size // multiple) * multiple
        self.buckets, self.bucket_of = _buckets(examples, buckets)
        rows = np.arange(self.total).reshape(multiple, -1)
        self.rows = rows[list(chosen)].ravel()

    def batch(self, members: np.ndarray, bucket: Bucket) -> dict[str, np.ndarray]:
        """Returns the rows of the chosen shards of a batch, stacked and padded.

        Padding rows repeat the first example, with weight 0 and id -1, so that no model gets an
        empty example.

        Args:
          members: indices of the examples of the batch.
          bucket: padded length of the batch.
        """
        missing = self.total - len(members)
        indices = np.concatenate([members, np.repeat(members[:1], missing)])[self.rows]
        real = (np.arange(self.total) < len(members))[self.rows]
        read = {index: self.examples[index] for index in map(int, dict.fromkeys(indices))}
        examples = [read[int(index)] for index in indices]
        batch: dict[str, np.ndarray] = {}
        for field, first in examples[0].items():
            if field in self.examples.padded:
                length = bucket[field] if isinstance(bucket, Mapping) else bucket
                batch[field] = self._pad(field, examples, length)
            else:
                values = [np.asarray(example[field]) for example in examples]
                if any(value.shape != values[0].shape for value in values):
                    raise ValueError(
                        f"{field}: got shapes {sorted({v.shape for v in values})}, expected a "
                        "single shape; add the field to `padded`"
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
                    f"{field}: got an example of length {len(value)}, expected at most "
                    f"{length}, the length of its bucket; correct `lengths`"
                )
            result[row, : len(value)] = value
        return result


def train_iterator(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    buckets: Sequence[Bucket] | None = None,
    multiple: int = 1,
    shards: Sequence[int] | None = None,
):
    """Returns an infinite iterator over shuffled batches; batch n depends only on (seed, n).

    Args:
      examples: training split.
      batch_size: number of examples per batch, over all shards. One batch per epoch may have fewer.
      seed: random seed of the shuffling.
      buckets: lengths to which batches are padded, ascending; None for the maximum of `lengths`. If
        `lengths` is a dict by field, each bucket may be a dict of lengths by field; fields that are
        not padded are ignored.
      multiple: divisor of the number of rows of every batch, such as the number of devices over
        which batches are sharded. Batches get padding rows if it does not divide `batch_size`.
      shards: numbers of the shards to return, such as those on the devices of a process; None for
        all. A shard is one of `multiple` equal blocks of rows.

    Returns:
      A grain.DatasetIterator over batches, which are dicts of arrays [rows, ...]. Two arrays are
      added: "weight", float32, which is 1, or 0 for padding rows; and "id", int32, which is the
      index of the example, or -1 for padding rows. All shards of a batch together have `batch_size`
      rows, rounded up to a multiple of `multiple`. Only the rows of `shards` are read and returned.
      The iterator supports get_state, set_state, and the checkpoint handlers of grain. Its state
      does not depend on `multiple` and `shards`.

    Raises:
      ValueError: there are no examples, an example exceeds the longest bucket, or sizes are
        invalid.
    """
    import grain

    batch = numbered_batches(
        examples,
        batch_size=batch_size,
        seed=seed,
        buckets=buckets,
        multiple=multiple,
        shards=shards,
    )
    dataset = grain.MapDataset.range(_BATCHES).map(batch)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(dataset.to_iter_dataset(options))


def numbered_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    buckets: Sequence[Bucket] | None = None,
    multiple: int = 1,
    shards: Sequence[int] | None = None,
) -> Callable[[int], dict[str, np.ndarray]]:
    """Returns a function that takes n and returns batch n of `train_iterator`; n starts at 0.

    Arguments: as for `train_iterator`.
    """
    batcher = _Batcher(examples, batch_size, buckets, multiple, shards)
    epoch_batches = epoch_length(examples, batch_size)

    # Two plans are kept, because prefetched batches belong to at most two epochs.
    @functools.lru_cache(maxsize=2)
    def plan(epoch: int) -> EpochPlan:
        return EpochPlan(batcher.bucket_of, batcher.buckets, batch_size, (seed, epoch))

    def batch(number: int) -> dict[str, np.ndarray]:
        epoch, position = divmod(int(number), epoch_batches)
        chosen = plan(epoch)
        return batcher.batch(chosen.members[position], chosen.buckets[position])

    return batch


def evaluation_batches(
    examples: Examples,
    *,
    batch_size: int,
    buckets: Sequence[Bucket] | None = None,
    multiple: int = 1,
    shards: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches that contain every example once, ordered by bucket.

    The last batch is filled up with padding rows of weight 0. Arguments: as for `train_iterator`.
    """
    batcher = _Batcher(examples, batch_size, buckets, multiple, shards)
    plan = EpochPlan(batcher.bucket_of, batcher.buckets, batch_size, None)
    return (batcher.batch(*pair) for pair in zip(plan.members, plan.buckets, strict=True))


def example_batches(
    examples: Examples,
    *,
    batch_size: int,
    buckets: Sequence[Bucket] | None = None,
    multiple: int = 1,
) -> list[dict[str, np.ndarray]]:
    """Returns one batch of each shape that occurs, for compiling functions before they are used.

    The batches are in the order of their buckets. All rows of a batch are the same example.
    Arguments: as for `train_iterator`.
    """
    batcher = _Batcher(examples, batch_size, buckets, multiple)
    plan = EpochPlan(batcher.bucket_of, batcher.buckets, batch_size, None)
    first: dict[int, np.ndarray] = {}
    for members, bucket in zip(plan.members, plan.buckets, strict=True):
        first.setdefault(batcher.buckets.index(bucket), members[:1])
    return [batcher.batch(first[index], batcher.buckets[index]) for index in sorted(first)]


def epoch_length(examples: Examples, batch_size: int) -> int:
    """Returns the number of batches per epoch, which does not depend on the buckets."""
    return -(-len(examples) // batch_size)


def bucket_lengths(
    lengths: np.ndarray | Mapping[str, np.ndarray],
    quantiles: Sequence[float],
    multiple: int | Mapping[str, int] = 8,
    longest: int | None = None,
) -> list[Bucket]:
    """Chooses a few bucket lengths that need little padding.

    Args:
      lengths: length of each example, [n], or a dict of such arrays by field.
      quantiles: fractions, ascending. Each fraction gives a bucket: the corresponding quantile of
        the lengths, rounded up to a multiple of `multiple`.
      multiple: divisor of all bucket lengths: an integer, or a dict by field.
      longest: length of the longest bucket; None for the maximum length, rounded up.

    Returns:
      Distinct buckets, ascending; dicts by field if `lengths` is a dict.
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
    """Returns the buckets, and the index of each example's bucket."""
    if examples.lengths is None:
        if buckets is not None:
            raise ValueError("lengths: got None, expected lengths, because buckets are given")
        return [0], np.zeros(len(examples), np.int64)
    if isinstance(examples.lengths, Mapping):
        return _buckets_by_field(examples, buckets)
    if buckets is not None and any(isinstance(bucket, Mapping) for bucket in buckets):
        raise ValueError(
            "lengths: got one array, expected a dict by field, because buckets are dicts"
        )
    lengths = _checked_lengths(examples, examples.lengths, "lengths")
    if buckets is None:
        return [int(lengths.max())], np.zeros(len(examples), np.int64)
    chosen = [int(bucket) for bucket in buckets]
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 1:
        raise ValueError(f"buckets: got {chosen}, expected positive and ascending lengths")
    return chosen, _first_that_holds(chosen, lengths, "")


def _buckets_by_field(
    examples: Examples, buckets: Sequence[Bucket] | None
) -> tuple[list[Bucket], np.ndarray]:
    if set(examples.lengths) != set(examples.padded):
        raise ValueError(
            f"lengths: got fields {sorted(examples.lengths)}, expected those of `padded`, "
            f"{sorted(examples.padded)}"
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
            raise ValueError(f"buckets: got {bucket}, expected a length for {missing} too")
        chosen.append({field: int(by_field[field]) for field in lengths})
    numbers = np.zeros(len(examples), np.int64)
    for field, values in lengths.items():
        row = [bucket[field] for bucket in chosen]
        if not row or row != sorted(row) or row[0] < 1:
            raise ValueError(
                f"buckets: got {row} for {field!r}, expected positive and ascending lengths"
            )
        numbers = np.maximum(numbers, _first_that_holds(row, values, f" in field {field!r}"))
    return chosen, numbers


def _checked_lengths(examples: Examples, lengths: np.ndarray, name: str) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.shape != (len(examples),):
        raise ValueError(f"{name}: got shape {lengths.shape}, expected ({len(examples)},)")
    return lengths


def _first_that_holds(buckets: list[int], lengths: np.ndarray, where: str) -> np.ndarray:
    if lengths.max() > buckets[-1]:
        raise ValueError(
            f"example {int(lengths.argmax())}: got length {lengths.max()}{where}, expected at most "
            f"the longest bucket {buckets[-1]}"
        )
    return np.searchsorted(buckets, lengths)
