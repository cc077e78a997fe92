"""Held-out splits: class fractions, groups, seeds, and agreement with the split by hash."""

import itertools
import random
from collections import Counter

import pytest

from tasks.common.data.held_out import HeldOutConfig, expect_groups_apart, split_units
from tasks.common.data.user_files import split_by_hash
from tasks.common.errors import UserError

SPLITS = ["train", "validation", "test"]


def split(rows, given=(), labels=None, groups=None, **config):
    return HeldOutConfig(**config).hold_out(
        rows, list(given), "x.csv", "give files", labels=labels, groups=groups
    )


def rows_of(count, seed=0, weights=(80, 15, 5)):
    rng = random.Random(seed)
    labels = rng.choices("abc", weights, k=count)
    return [f"text {index}" for index in range(count)], labels


def test_the_default_is_the_split_by_hash():
    rows, labels = rows_of(300)
    expected = split_by_hash(rows, [], "x.csv", "give files")
    assert split(rows, labels=labels) == expected
    assert split(rows, split_seed=1) != expected


def test_each_class_has_its_tenth_in_both_splits():
    rows, labels = rows_of(400)
    found = split(rows, labels=labels, stratify=True)
    assert sorted(itertools.chain(*found.values())) == list(range(400))
    total = Counter(labels)
    for name in ("validation", "test"):
        counts = Counter(labels[index] for index in found[name])
        for label, count in total.items():
            assert abs(counts[label] - count / 10) <= 0.5, (name, label)


def test_the_order_of_rows_does_not_matter_but_the_seed_does():
    rows, labels = rows_of(200)
    order = list(range(200))
    random.Random(1).shuffle(order)
    found = split(rows, labels=labels, stratify=True)
    shuffled = split([rows[i] for i in order], labels=[labels[i] for i in order], stratify=True)
    for name in SPLITS:
        assert {rows[i] for i in found[name]} == {rows[order[i]] for i in shuffled[name]}
    other = split(rows, labels=labels, stratify=True, split_seed=1)
    assert set(other["test"]) != set(found["test"])


def test_equal_texts_are_in_the_same_split_even_if_their_labels_differ():
    rows = [f"Text {index // 4}" + "!" * (index % 2) for index in range(200)]
    labels = ["a" if index % 3 else "b" for index in range(200)]
    found = split(rows, labels=labels, stratify=True)
    where = {index: name for name, indices in found.items() for index in indices}
    assert all(len({where[4 * text + k] for k in range(4)}) == 1 for text in range(50))
    assert all(found.values())


@pytest.mark.parametrize("stratify", [False, True])
def test_no_group_is_in_two_splits(stratify):
    rows, labels = rows_of(300)
    rng = random.Random(2)
    groups = [f"patient {rng.randrange(25)}" for _ in rows]
    found = split(rows, labels=labels, groups=groups, stratify=stratify)
    seen = [{groups[index] for index in found[name]} for name in SPLITS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    for name in ("validation", "test"):
        assert 15 <= len(found[name]) <= 60


def test_groups_that_share_a_text_are_joined():
    """Two patients with the same text cannot be apart, or the text would be on both sides."""
    rows = [f"text {index}" for index in range(60)]
    groups = [f"g{index // 3}" for index in range(60)]
    rows[3] = "TEXT 0"  # of g1, equal to the first text of g0
    for seed in range(5):
        found = split(rows, groups=groups, split_seed=seed)
        where = {index: name for name, indices in found.items() for index in indices}
        assert len({where[index] for index in range(6)}) == 1


def test_a_rare_class_stays_in_training_and_is_named(capsys):
    rows, labels = rows_of(100, weights=(1, 1, 0))
    labels[7] = labels[8] = "rare"
    found = split(rows, labels=labels, stratify=True)
    assert {7, 8} <= set(found["train"])
    assert "x.csv: too few examples of rare to have some in each split" in capsys.readouterr().err
    # Three are enough for one in each split.
    labels[9] = "rare"
    found = split(rows, labels=labels, stratify=True)
    assert all(sum(labels[i] == "rare" for i in found[name]) == 1 for name in SPLITS)


def test_given_splits_take_no_rows():
    rows, labels = rows_of(100)
    found = split(rows, ["train", "test"], labels=labels, stratify=True)
    assert sorted(found) == ["train", "validation"]
    assert sorted(itertools.chain(*found.values())) == list(range(100))


def test_too_few_groups_are_refused():
    rows, labels = rows_of(20)
    with pytest.raises(UserError, match=r"2 groups in 20 examples are too few to split.*: test"):
        split(rows, groups=["a", "b"] * 10)
    with pytest.raises(UserError, match=r"^x.csv: 2 examples are too few to split: test would"):
        split(["x", "y"], labels=["a", "b"], stratify=True)
    with pytest.raises(UserError, match="2 distinct texts in 20 examples are too few"):
        split(["x", "y"] * 10, labels=["a", "b"] * 10, stratify=True)
    assert labels


def test_the_largest_group_remains_for_training():
    groups = ["big"] * 50 + [f"g{index}" for index in range(20)]
    found = split_units(groups, None, ["test", "validation"], 0)
    assert set(range(50)) <= set(found["train"])
    assert {name: len(found[name]) for name in ("test", "validation")} == {
        "test": 7,
        "validation": 7,
    }


def test_groups_in_two_files_are_named():
    expect_groups_apart("x", {"train": ["a", "b"], "test": ["c", "c"]})
    with pytest.raises(UserError, match=r"^--group: 'b' of x is in train and in test, expected"):
        expect_groups_apart("x", {"train": ["a", "b"], "test": ["c", "b"]})
