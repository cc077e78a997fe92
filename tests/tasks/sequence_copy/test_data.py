"""Digit strings: generation, splits, and user inputs."""

import hashlib

import numpy as np
import pytest

from tasks.common.errors import UserError
from tasks.sequence_copy import data
from tasks.sequence_copy.data import DataConfig

SMALL = DataConfig(min_length=3, max_length=6, train_size=60, validation_size=8, test_size=12)


def test_splits_have_their_sizes_and_share_nothing():
    splits = data.generate(SMALL)
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 60,
        "validation": 8,
        "test": 12,
    }
    every = [string for examples in splits.values() for string in examples.strings]
    assert len(set(every)) == 80
    assert {len(string) for string in every} == {3, 4, 5, 6}


def test_the_rule_of_the_splits_holds_for_every_seed():
    # The rule, written a second time.
    for seed in (0, 1):
        for split, examples in data.generate(
            DataConfig(
                min_length=3,
                max_length=6,
                train_size=60,
                validation_size=8,
                test_size=12,
                seed=seed,
            )
        ).items():
            for string in examples.strings:
                last = int.from_bytes(hashlib.sha256(string.encode()).digest(), "big") % 10
                assert split == ("test" if last == 0 else "validation" if last == 1 else "train")


def test_the_seed_decides_the_strings():
    again, other = data.generate(SMALL), data.generate(DataConfig(**{**vars(SMALL), "seed": 1}))
    assert again["test"].strings == data.generate(SMALL)["test"].strings
    assert again["test"].strings != other["test"].strings
    assert data.DigitData(again).fingerprint != data.DigitData(other).fingerprint


def test_one_example_by_hand():
    example = data.DigitStrings(["3140"])[0]
    np.testing.assert_array_equal(example["source"], [6, 4, 7, 3])
    np.testing.assert_array_equal(example["target"], [3, 7, 4, 6, 2])
    assert example["length"] == 4
    assert data.decode(example["target"]) == "0413"
    assert data.decode(np.array([6, 4, 0, 7])) == "31"


def test_copies_are_of_the_same_strings():
    reverse, copy = (
        data.generate(SMALL),
        data.generate(DataConfig(**{**vars(SMALL), "name": "copied_digits"})),
    )
    assert copy["test"].strings == reverse["test"].strings == copy["test"].answers
    assert reverse["test"].answers == [string[::-1] for string in copy["test"].strings]
    np.testing.assert_array_equal(
        data.DigitStrings(["3140"], "copied_digits")[0]["target"], [6, 4, 7, 3, 2]
    )
    assert data.DigitData(copy).fingerprint != data.DigitData(reverse).fingerprint


def test_places_by_hand():
    assert [data.source_position(t, 4, "reversed_digits") for t in range(4)] == [3, 2, 1, 0]
    assert [data.source_position(t, 4, "copied_digits") for t in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "words", "name: got 'words', expected one of 'reversed_digits', 'copied_digits'"),
        ("min_length", 0, "min_length: got 0, expected at least 1"),
        ("max_length", 3, "max_length: got 3, expected at least min_length=4"),
        ("seed", -1, "seed: got -1, expected at least 0"),
        ("test_size", 0, "test_size: got 0, expected at least 1"),
    ],
)
def test_impossible_configs_begin_with_the_field(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DataConfig(**{field: value})


def test_more_strings_than_can_be_drawn_are_refused():
    # 100 strings of two digits: 10 in expectation are test, and at most half of them may be
    # requested.
    sizes = {"min_length": 2, "max_length": 2, "train_size": 40, "validation_size": 5}
    assert DataConfig(**sizes, test_size=5).test_size == 5
    with pytest.raises(
        ValueError, match=r"^test_size: got 6, expected at most 5 with 2 to 2 digits"
    ):
        DataConfig(**sizes, test_size=6)


@pytest.mark.parametrize("typed", ["", "12a", "3.14", "-1", "٣١", "1 2"])
def test_anything_but_digits_is_refused(typed):
    with pytest.raises(UserError, match="expected only digits 0 to 9"):
        data.read_strings(["12", typed], 6)


def test_too_long_an_input_is_refused_and_spaces_around_are_not():
    with pytest.raises(UserError, match="has 7 digits, expected at most 6 as in training"):
        data.read_strings(["1234567"], 6)
    typed = data.read_strings([" 12 "], 6)
    assert "target" not in typed[0]
    assert typed.padded == {"source": 0}
    np.testing.assert_array_equal(typed[0]["source"], [4, 5])
