"""The summary of a data set before training, with planted faults and large splits."""

import dataclasses

import numpy as np
import pytest

from tasks.common.data import summary
from tasks.common.data.splits import SplitSummary
from tasks.common.data.summary import Columns, facts, row_codes, segment_codes, summarize
from tasks.common.errors import collected, say, warn_once


def texts(*pairs, **options):
    """Returns columns of texts with labels."""
    return Columns(
        len(pairs), pairs.__getitem__, name=lambda index: repr(pairs[index][0]), **options
    )


def counts(**sizes):
    return {split: SplitSummary(size) for split, size in sizes.items()}


def test_duplicates_shared_inputs_and_conflicts():
    train = texts(("a fine film", 0), ("A  fine\nFilm", 0), ("dull", 1), ("weak", 1))
    test = texts(("dull", 0), ("new", 1), ("weak", 1))
    found = summarize(counts(train=4, test=3), {"train": train, "test": test}, ["skipped x"])
    assert found["splits"]["train"]["compared"] == {
        "rows": 4, "of": 4, "unit": "examples", "duplicates": 1,
        "duplicate_example": "'A  fine\\nFilm'", "shared": {}, "conflicts": 1,
        "conflict_example": "'dull'",
    }  # fmt: skip
    assert found["splits"]["test"]["compared"] == {
        "rows": 3, "of": 3, "unit": "examples", "duplicates": 0, "shared": {"train": 2},
        "shared_example": "'dull'", "conflicts": 1, "conflict_example": "'dull'",
    }  # fmt: skip
    assert found["notes"] == ["skipped x"]
    assert found["warnings"] == [
        "66.7% of the examples of the test split are also in the train split; metrics on them are "
        "biased"
    ]
    assert dict(facts(found)) == {
        "train": "4 examples",
        "test": "3 examples",
        "duplicates": "train 1 (25.0%), such as 'A  fine\\nFilm' (train)",
        "shared": "2 examples of test are also in train (66.7%), such as 'dull' (test)",
        "conflicts": "equal inputs with different labels: train 1, test 1, such as 'dull' (train)",
    }


def test_rows_without_labels_or_of_the_same_users():
    rows = {split: texts(("a", None), ("b", None), shares=False) for split in ("train", "test")}
    found = summarize(counts(train=2, test=2), rows)
    for split in found["splits"].values():
        assert split["compared"] == {"rows": 2, "of": 2, "unit": "examples", "duplicates": 0}
    assert dict(facts(found))["duplicates"] == "none"


def test_sizes_and_what_is_cut():
    sizes = {"tokens": np.array([2, 4, 6, 8, 20])}
    column = Columns(5, sizes=sizes, limits={"tokens": 8}, unknown={"tokens": 0.125})
    left = Columns(5, sizes=sizes, limits={"tokens": 8}, cut="left out")
    found = summarize(counts(train=5, test=5), {"train": left, "test": column})
    assert found["splits"]["test"]["sizes"]["tokens"] == {
        "min": 2, "5%": 2, "median": 6, "95%": 20, "max": 20,
        "limit": 8, "truncated": 1, "lost_fraction": 0.3,
    }  # fmt: skip
    lines = dict(facts(found))
    assert lines["too long"] == (
        "over 8 tokens: train 1 left out (50.0% of the tokens), test 1 truncated (30.0% of the "
        "tokens)"
    )
    assert lines["unknown"] == "tokens: test 12.5%"
    assert lines["sizes"] == (
        "tokens, min / 5% / median / 95% / max: train 2 / 2 / 6 / 20 / 20, test 2 / 2 / 6 / 20 / 20"
    )


def test_many_lost_tokens_are_warned_of_with_the_key():
    sizes = {"tokens": np.array([2, 4, 6, 8, 20])}
    lost = Columns(5, sizes=sizes, limits={"tokens": 8}, limit_key="config.data.text.max_length")
    few = dataclasses.replace(lost, limits={"tokens": 18})
    assert summarize(counts(train=5), {"train": few})["warnings"] == []
    assert summarize(counts(train=5), {"train": lost})["warnings"] == [
        "30.0% of the tokens of the train split are truncated, because config.data.text.max_length "
        "is 8; a larger value keeps them"
    ]


def test_warnings_about_classes():
    splits = {
        "train": SplitSummary(100, {"cat": 95, "dog": 5}, unit="images"),
        "test": SplitSummary(10, {"cat": 10, "dog": 0}, unit="images"),
    }
    found = summarize(splits, {split: Columns(0) for split in splits})
    assert found["warnings"] == [
        "95.0% of the images of the train split are of the class cat; always predicting it gives "
        "this accuracy",
        "the test split has no images of dog, but the train split has some",
        "100.0% of the images of the test split are of the class cat; always predicting it gives "
        "this accuracy",
    ]
    even = {split: SplitSummary(10, {"cat": 9, "dog": 1}) for split in ("train", "test")}
    assert summarize(even, {split: Columns(0) for split in even})["warnings"] == []


def test_a_large_split_is_sampled_evenly(monkeypatch):
    read = []

    def pair(index):
        read.append(index)
        return np.full(1000, index % 7, np.uint8), None

    monkeypatch.setattr(summary, "BYTES", 50_000)
    found = summarize(counts(train=10_000), {"train": Columns(10_000, pair)})
    compared = found["splits"]["train"]["compared"]
    assert (compared["rows"], compared["of"], compared["duplicates"]) == (50, 10_000, 43)
    rest = "duplicates among the other rows are not counted"
    assert ("compared", f"50 of 10,000 examples of train; {rest}") in facts(found)
    assert len(read) < 100
    # Half of the sample is spread as the whole is.
    beginning = np.sort(np.array(read[-50:-25]))
    assert np.diff(beginning).max() < 1_500


def test_a_slow_split_is_read_only_for_a_while(monkeypatch):
    now = iter(range(10_000))
    monkeypatch.setattr(summary.time, "monotonic", lambda: next(now) / 10)
    found = summarize(counts(train=500), {"train": Columns(500, lambda index: (str(index), None))})
    assert found["splits"]["train"]["compared"]["rows"] == 11


def test_codes_of_segments_and_rows():
    rng = np.random.default_rng(0)
    series = rng.integers(0, 3, (500, 2)).astype(np.float32)
    series[300:340] = series[20:60]
    valid = np.ones_like(series, bool)
    codes = row_codes(series, valid)
    rows = {(*map(float, row),): code for row, code in zip(series, codes, strict=True)}
    assert len(set(rows.values())) == len(rows) == 9
    assert row_codes(series[:, ::-1].copy(), valid)[0] != codes[0]
    starts = np.arange(480)
    found = segment_codes(codes, starts, starts + 20)
    expected = {}
    for start in starts:
        expected.setdefault(series[start : start + 20].tobytes(), []).append(start)
    groups = {code: np.flatnonzero(found == code).tolist() for code in set(found.tolist())}
    assert sorted(groups.values()) == sorted(expected.values())
    assert found[300] == found[20]
    lengths = segment_codes(np.zeros(9, np.uint64), np.zeros(4, int), np.arange(1, 5))
    assert len(set(lengths.tolist())) == 4


def test_messages_are_collected_also_if_they_were_printed_before(capsys):
    warn_once("x.csv: 3 empty lines are ignored (test)")
    with collected() as found:
        warn_once("x.csv: 3 empty lines are ignored (test)")
        say("skipped a.png")
        say("skipped a.png")
    say("skipped b.png")
    assert found == ["x.csv: 3 empty lines are ignored (test)", "skipped a.png"]
    assert capsys.readouterr().err.count("empty lines") == 1


@pytest.mark.parametrize("count", [1, 2, 3, 16, 100])
def test_the_order_of_a_sample_visits_each_index_once(count):
    assert sorted(summary._order(count, count)) == list(range(count))
    assert len(set(summary._order(1000, count))) == count
