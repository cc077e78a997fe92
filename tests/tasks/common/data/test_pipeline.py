"""Batches: nothing lost, exact resume, rows by process, fixed shapes, exact last batch."""

import time

import numpy as np
import pytest

from tasks.common.data.pipeline import (
    bucket_lengths,
    epoch_length,
    evaluation_batches,
    train_iterator,
)

BUCKETS = (4, 8, 16)


class Toy:
    """Example i is `i` repeated, so that the values in a batch identify their examples."""

    padded = {"tokens": -7}  # noqa: RUF012

    def __init__(self, lengths, padded=True):
        self.lengths = np.asarray(lengths)
        if not padded:
            self.lengths, self.padded, self._n = None, {}, len(lengths)

    def __len__(self):
        return self._n if self.lengths is None else len(self.lengths)

    def __getitem__(self, index):
        length = 3 if self.lengths is None else self.lengths[index]
        return {"tokens": np.full(length, index, np.int32), "label": np.int32(10 * index)}


def toy(n=53, seed=0):
    return Toy(np.random.default_rng(seed).integers(1, 17, n))


def ids(batches):
    return np.concatenate([batch["id"] for batch in batches])


def check_rows(examples, batch):
    """Checks that each real row contains its own example, padded with the padding value."""
    bucket = batch["tokens"].shape[1]
    for row in np.flatnonzero(batch["weight"]):
        index = batch["id"][row]
        length = examples.lengths[index]
        expected = [index] * length + [-7] * (bucket - length)
        assert batch["tokens"][row].tolist() == expected
        assert batch["label"][row] == 10 * index
    assert (batch["id"][batch["weight"] == 0] == -1).all()


@pytest.mark.parametrize("n", [1, 3, 16, 53])
@pytest.mark.parametrize("batch_size", [1, 4, 16, 64])
def test_each_epoch_holds_every_example_once_in_batches_of_fixed_shapes(n, batch_size):
    examples = toy(n)
    length = epoch_length(examples, batch_size)
    assert length == int(np.ceil(n / batch_size))
    iterator = train_iterator(examples, batch_size=batch_size, seed=3, buckets=BUCKETS)
    for _ in range(3):
        batches = [next(iterator) for _ in range(length)]
        got = ids(batches)
        assert sorted(got[got >= 0]) == list(range(n))
        assert sum((batch["weight"] == 0).any() for batch in batches) == (n % batch_size > 0)
        for batch in batches:
            assert batch["tokens"].shape[0] == batch_size
            assert batch["tokens"].shape[1] in BUCKETS
            assert batch["tokens"].dtype == batch["id"].dtype == np.int32
            assert batch["weight"].dtype == np.float32
            check_rows(examples, batch)


def test_most_rows_are_in_their_own_bucket():
    examples = toy(1000)
    batches = list(evaluation_batches(examples, batch_size=10, buckets=BUCKETS))
    for batch in batches:
        own = np.array(BUCKETS)[np.searchsorted(BUCKETS, examples.lengths[batch["id"]])]
        promoted = (own < batch["tokens"].shape[1]).sum()
        assert promoted < 10
    rows = [
        b["tokens"].shape[1] for b in evaluation_batches(examples, batch_size=10, buckets=BUCKETS)
    ]
    expected = np.bincount(np.searchsorted(BUCKETS, examples.lengths)) / 10
    for bucket, share in zip(BUCKETS, expected, strict=True):
        assert abs(rows.count(bucket) - share) <= 1


def test_epochs_differ_and_seeds_differ_and_the_same_seed_does_not():
    def epochs(seed):
        iterator = train_iterator(toy(), batch_size=8, seed=seed, buckets=BUCKETS)
        return [ids([next(iterator) for _ in range(7)]).tolist() for _ in range(2)]

    first, second = epochs(1)
    assert first != second
    assert epochs(1) == [first, second]
    assert epochs(2)[0] != first


def test_batches_of_all_buckets_are_mixed():
    iterator = train_iterator(toy(400), batch_size=8, seed=0, buckets=BUCKETS)
    widths = [next(iterator)["tokens"].shape[1] for _ in range(50)]
    assert widths != sorted(widths)
    assert set(widths) == set(BUCKETS)


@pytest.mark.parametrize("at", [0, 1, 6, 7, 20])
def test_state_round_trip_gives_the_exact_next_batch(at):
    def make():
        return train_iterator(toy(), batch_size=8, seed=5, buckets=BUCKETS)

    straight = make()
    for _ in range(at):
        next(straight)
    state = straight.get_state()
    expected = [next(straight) for _ in range(10)]
    resumed = make()
    resumed.set_state(state)
    for want in expected:
        got = next(resumed)
        assert got.keys() == want.keys()
        for field, value in want.items():
            np.testing.assert_array_equal(got[field], value)


def test_the_checkpoint_handlers_of_grain_work(tmp_path):
    import grain
    import orbax.checkpoint as ocp

    iterator = train_iterator(toy(), batch_size=8, seed=5, buckets=BUCKETS)
    for _ in range(9):
        next(iterator)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(9, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        again = train_iterator(toy(), batch_size=8, seed=5, buckets=BUCKETS)
        args = ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(again))
        manager.restore(9, args=args)
    np.testing.assert_array_equal(next(again)["id"], next(iterator)["id"])


@pytest.mark.parametrize("shards", [[(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)], [(0, 2), (1, 3)]])
def test_the_rows_of_all_processes_are_the_batches_of_one(shards):
    """The batch size is no multiple of the devices, and the lengths are in three buckets."""
    options = {"batch_size": 6, "buckets": BUCKETS, "multiple": 4}
    order = np.argsort(np.concatenate(shards))

    def whole(parts):
        """Puts the rows of the shards of all processes in the order of the shards."""
        blocks = [b for part, mine in zip(parts, shards, strict=True)
                  for b in np.split(part, len(mine))]  # fmt: skip
        return np.concatenate([blocks[place] for place in order])

    one = train_iterator(toy(), seed=1, **options)
    several = [train_iterator(toy(), seed=1, shards=mine, **options) for mine in shards]
    for _ in range(20):
        want, got = next(one), [next(iterator) for iterator in several]
        for field, value in want.items():
            np.testing.assert_array_equal(whole([batch[field] for batch in got]), value)
    states = [iterator.get_state() for iterator in (one, *several)]
    assert all(state == states[0] for state in states)
    want = list(evaluation_batches(toy(), **options))
    got = [list(evaluation_batches(toy(), shards=mine, **options)) for mine in shards]
    assert len(want) == 9
    for batch, *parts in zip(want, *got, strict=True):
        for field, value in batch.items():
            np.testing.assert_array_equal(whole([part[field] for part in parts]), value)


def test_only_the_examples_of_the_shards_are_read():
    class Counted(Toy):
        read = 0

        def __getitem__(self, index):
            Counted.read += 1
            return super().__getitem__(index)

    list(evaluation_batches(Counted([1] * 16), batch_size=8, multiple=4, shards=(1,)))
    assert Counted.read == 4


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (53, 8), (16, 8), (3, 64)])
def test_evaluation_sees_every_example_once(n, batch_size):
    examples = toy(n)
    batches = list(evaluation_batches(examples, batch_size=batch_size, buckets=BUCKETS))
    assert len(batches) == epoch_length(examples, batch_size)
    got = ids(batches)
    assert sorted(got[got >= 0]) == list(range(n))
    assert sum(batch["weight"].sum() for batch in batches) == n
    for batch in batches:
        check_rows(examples, batch)
    for batch in batches[:-1]:
        assert batch["weight"].all()
    # A padding row is a real example, so that no mechanism gets an empty one.
    last = batches[-1]
    for row in np.flatnonzero(last["weight"] == 0):
        np.testing.assert_array_equal(last["tokens"][row], last["tokens"][0])


def test_without_buckets_all_are_padded_to_the_longest():
    examples = Toy([2, 5, 3])
    (batch,) = evaluation_batches(examples, batch_size=3)
    assert batch["tokens"].tolist() == [[0, 0, -7, -7, -7], [1] * 5, [2, 2, 2, -7, -7]]
    assert next(train_iterator(examples, batch_size=2, seed=0))["tokens"].shape == (2, 5)


def test_examples_of_one_shape_need_no_lengths():
    examples = Toy([0] * 5, padded=False)
    batches = list(evaluation_batches(examples, batch_size=4))
    assert batches[0]["tokens"].tolist() == [[i] * 3 for i in range(4)]
    assert batches[1]["weight"].tolist() == [1, 0, 0, 0]


def test_every_position_of_an_epoch_is_equally_likely():
    """Mean position of each example over many epochs is the middle, within four deviations."""
    n, epochs = 8, 400
    iterator = train_iterator(Toy([1] * n), batch_size=1, seed=0)
    order = ids([next(iterator) for _ in range(n * epochs)]).reshape(epochs, n)
    means = np.argsort(order, axis=1).mean(axis=0)
    deviation = np.sqrt((n**2 - 1) / 12 / epochs)
    assert np.abs(means - (n - 1) / 2).max() < 4 * deviation


@pytest.mark.parametrize(("multiple", "rows"), [(1, 6), (3, 6), (4, 8), (16, 16)])
def test_rows_beyond_the_batch_size_are_padding(multiple, rows):
    """The examples of every batch are those of `multiple=1`, in the same rows."""
    plain = train_iterator(toy(), batch_size=6, seed=1, buckets=BUCKETS)
    longer = train_iterator(toy(), batch_size=6, seed=1, buckets=BUCKETS, multiple=multiple)
    pairs = [(next(plain), next(longer)) for _ in range(20)]
    pairs += zip(
        evaluation_batches(toy(), batch_size=6, buckets=BUCKETS),
        evaluation_batches(toy(), batch_size=6, buckets=BUCKETS, multiple=multiple),
        strict=True,
    )
    for want, got in pairs:
        assert {len(value) for value in got.values()} == {rows}
        for field, value in want.items():
            np.testing.assert_array_equal(got[field][:6], value)
        assert not got["weight"][6:].any()
        assert (got["id"][6:] == -1).all()
        np.testing.assert_array_equal(got["tokens"][6:], got["tokens"][:1].repeat(rows - 6, 0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluation_batches(Toy([3]), batch_size=2, multiple=0), "multiple: got 0"),
        (
            lambda: evaluation_batches(Toy([]), batch_size=1),
            "examples: got none, expected at least one",
        ),
        (
            lambda: evaluation_batches(Toy([3]), batch_size=0),
            "batch_size: got 0, expected at least",
        ),
        (
            lambda: evaluation_batches(Toy([3]), batch_size=2, multiple=2, shards=(2,)),
            r"shards: got \[2\], expected one or more of range\(2\)",
        ),
        (
            lambda: evaluation_batches(Toy([3]), batch_size=2, shards=()),
            r"shards: got \[\], expected one or more of range\(1\)",
        ),
        (
            lambda: evaluation_batches(Toy([3, 9]), batch_size=2, buckets=(4, 8)),
            "example 1: got length 9, expected at most the longest bucket 8",
        ),
        (lambda: evaluation_batches(Toy([3]), batch_size=2, buckets=(8, 4)), "ascending"),
        (lambda: evaluation_batches(Toy([3]), batch_size=2, buckets=()), "positive and ascending"),
        (
            lambda: evaluation_batches(Toy([3], padded=False), batch_size=2, buckets=(4,)),
            "lengths: got None, expected lengths, because buckets are given",
        ),
    ],
)
def test_impossible_requests_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_field_of_changing_shape_must_be_declared():
    examples = Toy([2, 3])
    examples.padded = {}
    with pytest.raises(ValueError, match="tokens: got shapes"):
        next(evaluation_batches(examples, batch_size=2))


def test_batches_are_cheap():
    examples = Toy(np.random.default_rng(0).integers(5, 65, 5000))
    iterator = train_iterator(examples, batch_size=64, seed=0, buckets=(16, 32, 64))
    next(iterator)
    start = time.process_time()
    for _ in range(200):
        next(iterator)
    assert time.process_time() - start < 1.0


def test_bucket_lengths_are_rounded_quantiles_without_duplicates():
    lengths = np.array([1, 2, 3, 9, 10, 11, 17, 30])
    assert bucket_lengths(lengths, (0.5, 0.8)) == [16, 32]
    assert bucket_lengths(lengths, (0.1, 0.5, 0.5, 1.0), 4, 20) == [4, 12, 20]
    assert bucket_lengths(lengths, (0.99,), 8, 16) == [16]


def test_bucket_lengths_by_field_have_multiples_and_the_greatest_lengths():
    lengths = {"source": np.array([1, 5, 9]), "target": np.array([3, 3, 20])}
    assert bucket_lengths(lengths, (0.5,), {"source": 8, "target": 4}) == [
        {"source": 8, "target": 4},
        {"source": 16, "target": 20},
    ]
    assert bucket_lengths(lengths, (0.0, 0.5), 8, 9) == [
        {"source": 8, "target": 8},
        {"source": 9, "target": 9},
    ]
