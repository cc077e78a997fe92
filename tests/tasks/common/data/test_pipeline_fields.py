"""Batches whose padded fields have different lengths."""

import numpy as np
import pytest

from launch.engine.evaluation import Subset, split_by_length
from tasks.common.data.pipeline import evaluation_batches, train_iterator

BUCKETS = ({"source": 4, "target": 3}, {"source": 4, "target": 8}, {"source": 9, "target": 8})


class Pairs:
    """Example i is `i` repeated in both fields."""

    def __init__(self, source, target=None):
        self.lengths = {"source": np.asarray(source)}
        if target is not None:
            self.lengths["target"] = np.asarray(target)
        self.padded = {"source": -7, "target": -8} if target is not None else {"source": -7}

    def __len__(self):
        return len(self.lengths["source"])

    def __getitem__(self, index):
        return {
            field: np.full(lengths[index], index, np.int32)
            for field, lengths in self.lengths.items()
        }


def pairs(n=41, seed=0):
    random = np.random.default_rng(seed)
    return Pairs(random.integers(1, 10, n), random.integers(1, 9, n))


@pytest.mark.parametrize("batch_size", [1, 4, 16, 64])
def test_every_example_once_each_field_at_the_length_of_its_bucket(batch_size):
    examples = pairs()
    batches = list(evaluation_batches(examples, batch_size=batch_size, buckets=BUCKETS))
    got = np.concatenate([batch["id"] for batch in batches])
    assert sorted(got[got >= 0]) == list(range(len(examples)))
    for batch in batches:
        widths = {field: batch[field].shape[1] for field in ("source", "target")}
        assert widths in BUCKETS
        for row in np.flatnonzero(batch["weight"]):
            index = batch["id"][row]
            for field, padding in examples.padded.items():
                length = examples.lengths[field][index]
                expected = [index] * length + [padding] * (widths[field] - length)
                assert batch[field][row].tolist() == expected


def test_an_example_is_in_the_first_bucket_that_holds_both_fields():
    examples = Pairs([4, 4, 4, 5, 1, 9], [3, 4, 8, 1, 1, 8])
    batches = list(evaluation_batches(examples, batch_size=2, buckets=BUCKETS))
    found = {
        int(i): batch["source"].shape[1:] + batch["target"].shape[1:]
        for batch in batches
        for i in batch["id"]
    }
    assert found == {0: (4, 3), 4: (4, 3), 1: (4, 8), 2: (4, 8), 3: (9, 8), 5: (9, 8)}


def test_the_plan_is_a_function_of_seed_and_number():
    def batches(start):
        iterator = train_iterator(pairs(), batch_size=8, seed=3, buckets=BUCKETS)
        state = iterator.get_state()
        for _ in range(start):
            next(iterator)
            state = iterator.get_state()
        again = train_iterator(pairs(), batch_size=8, seed=3, buckets=BUCKETS)
        again.set_state(state)
        return [next(again) for _ in range(9 - start)]

    for left, right in zip(batches(0)[4:], batches(4), strict=True):
        for field, value in left.items():
            np.testing.assert_array_equal(right[field], value)


def test_without_buckets_each_field_has_its_longest():
    (batch,) = evaluation_batches(Pairs([1, 5], [7, 2]), batch_size=2)
    assert (batch["source"].shape, batch["target"].shape) == ((2, 5), (2, 7))


def test_one_number_stands_for_all_fields_and_fields_that_are_not_there_do_not_count():
    (batch,) = evaluation_batches(Pairs([1, 5], [7, 2]), batch_size=2, buckets=[8])
    assert (batch["source"].shape, batch["target"].shape) == ((2, 8), (2, 8))
    first, second = evaluation_batches(Pairs([1, 9]), batch_size=1, buckets=BUCKETS)
    assert (first["source"].shape, second["source"].shape) == ((1, 4), (1, 9))


def test_the_first_few_examples_keep_their_lengths():
    examples = Subset(pairs(), range(3))
    assert {field: len(lengths) for field, lengths in examples.lengths.items()} == {
        "source": 3,
        "target": 3,
    }
    (batch,) = evaluation_batches(examples, batch_size=4, buckets=BUCKETS[-1:])
    assert sorted(batch["id"]) == [-1, 0, 1, 2]


def test_what_is_much_longer_goes_apart_in_fewer_rows():
    lengths = [500_000, 900, 1000, 400_000, 30_000, 1, 0]
    found = [(chosen.tolist(), rows) for chosen, rows in split_by_length(Pairs(lengths), 50, 2)]
    assert found == [([0, 3], 2), ([4], 2), ([1, 2], 2), ([5, 6], 2)]
    ((everything, rows),) = split_by_length(Pairs([5000] * 30), 50, 2)
    assert (len(everything), rows) == (30, 50)
    ((_, rows),) = split_by_length(Pairs([480_000] * 30), 50, 2)
    assert rows == 4
    ((_, rows),) = split_by_length(Pairs([480_000] * 30), 50, 8)
    assert rows == 8


@pytest.mark.parametrize(
    ("examples", "buckets", "message"),
    [
        (Pairs([3], [9]), BUCKETS, "example 0: got length 9 in field 'target'"),
        (Pairs([3], [2]), [{"source": 4}], r"expected a length for \['target'\] too"),
        (
            Pairs([3], [2]),
            BUCKETS[::-1],
            r"buckets: got \[9, 4, 4\] for 'source', expected positive and ascending",
        ),
        (Pairs([3], [2]), [], "positive and ascending lengths"),
        (Pairs([3, 1], [2]), BUCKETS, r"lengths of 'target': got shape .*, expected \(2,\)"),
    ],
)
def test_impossible_lengths_and_buckets(examples, buckets, message):
    with pytest.raises(ValueError, match=message):
        list(evaluation_batches(examples, batch_size=2, buckets=buckets))


def test_lengths_and_padded_fields_belong_together():
    examples = Pairs([3], [2])
    examples.padded = {"source": 0}
    with pytest.raises(ValueError, match="expected those of `padded`"):
        list(evaluation_batches(examples, batch_size=1))

    class Plain(Pairs):
        lengths = None

        def __init__(self):
            self.padded = {}

        def __len__(self):
            return 1

    plain = Plain()
    plain.lengths = np.array([3])
    with pytest.raises(ValueError, match="expected a dict by field, because buckets are dicts"):
        list(evaluation_batches(plain, batch_size=1, buckets=BUCKETS))
