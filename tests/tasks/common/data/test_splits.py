"""Counts of splits and the check that each can be used."""

import pytest

from tasks.common.data.splits import SplitSummary, check_splits
from tasks.common.errors import UserError

GOOD = SplitSummary(3, {"a": 2, "b": 1}, least_classes=2)


def test_what_is_printed():
    assert str(GOOD) == "3 examples; examples by class: a 2, b 1"
    void = SplitSummary(1_000, {"sky": 6_000}, "pixels", ignored=2_000, ignored_as="void")
    assert str(void) == (
        "1,000 examples; pixels by class: sky 6,000; void: 2,000 (25.0% of pixels)"
    )
    many = SplitSummary(40, {f"c{n}": 2 for n in range(20)}, note="3 without words")
    assert str(many).endswith("c11 2, ... 8 more; 3 without words")


@pytest.mark.parametrize(
    ("split", "summary", "message"),
    [
        ("test", SplitSummary(0), "data: the test split has no examples"),
        ("train", SplitSummary(0, ignored=4, unit="recordings", ignored_as="empty"),
         "the train split has no examples (4 recordings are empty)"),
        ("train", SplitSummary(3, {"a": 3, "b": 0}, least_classes=2),
         "all labeled examples of the train split have the class 'a', expected at least 2 classes"),
        ("validation", SplitSummary(3, {"a": 0}, "objects", ignored=7, ignored_as="crowds"),
         "none of 3 examples of the validation split has a label (7 objects are crowds); there is "
         "nothing to measure"),
    ],
)  # fmt: skip
def test_a_split_that_cannot_be_used_is_refused(split, summary, message):
    with pytest.raises(UserError) as error:
        check_splits("data", {"train": GOOD, split: summary})
    assert message in str(error.value)


def test_test_may_have_one_class():
    check_splits("data", {"train": GOOD, "test": SplitSummary(1, {"a": 1, "b": 0})})
