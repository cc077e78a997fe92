"""Paths with commas, files by name, and splits of user files by content."""

import pytest

from tasks.common.data.deduplication import text_hash
from tasks.common.data.user_files import (
    cut_path,
    results_name,
    split_by_group,
    split_by_hash,
    split_paths,
)
from tasks.common.errors import UserError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.csv", ["a.csv"]),
        ("my,data", ["my,data"]),
        ("a.csv, b.csv", ["a.csv", "b.csv"]),
        ("my,data/train.csv,my,data/test.csv", ["my,data/train.csv", "my,data/test.csv"]),
        ("a.csv,my,data/test.csv", ["a.csv", "my,data/test.csv"]),
        # What does not exist is split at every comma, so that a message names it.
        ("a.csv,none.csv", ["a.csv", "none.csv"]),
        ("none,x", ["none", "x"]),
        # Two ways: "x,y" with "z", or "x" with "y,z".
        ("x,y,z", ["x", "y", "z"]),
        ("a.csv,", ["a.csv", ""]),
        ("n" * 300 + ",b.csv", ["n" * 300, "b.csv"]),
    ],
)
def test_commas_within_a_path_separate_nothing(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my,data").mkdir()
    for name in ("a.csv", "b.csv", "my,data/train.csv", "my,data/test.csv", "x,y", "z", "x", "y,z"):
        (tmp_path / name).touch()
    assert split_paths(given) == expected


# ---------------------------------------------------------------- splits


def test_an_empty_split_has_its_true_cause():
    with pytest.raises(UserError, match=r"^m\.csv: 2 distinct texts in 4000 examples are too few"):
        split_by_hash(["yes", "No!"] * 2000, [], "m.csv", "do this")
    with pytest.raises(
        UserError, match=r"m: 2 examples are too few to split: validation would be em.*is$"
    ):
        split_by_hash(["yes", "no"], ["test"], "m", "do this")
    with pytest.raises(UserError, match="1 distinct images in 9 examples"):
        split_by_hash(["f"] * 9, [], "m", "do this", "images")


def test_texts_without_a_word_are_split_as_they_are():
    texts = [face * count for face in "😀😡!" for count in range(1, 60)]
    found = split_by_hash(texts, [], "", "")
    assert sum(map(len, found.values())) == len(texts)
    assert all(5 < len(found[split]) < 40 for split in ("test", "validation"))
    # Spaces around them make no difference, and a text without anything is one text.
    assert text_hash(" 😀\n", unicode=True) == text_hash("😀", unicode=True)
    assert text_hash("😀", unicode=True) == 0x2A02EAC39D716A70ECF37579185927B6  # of md5sum
    assert text_hash("  ", unicode=True) == text_hash("", unicode=True)
    # The splits of the built-in data sets do not change.
    assert text_hash("😀") == text_hash("")


def test_groups_stay_in_one_split():
    groups = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"] * 21
    found = split_by_group(groups, [], "m", "speaker", "do this")
    of = {split: {groups[i] for i in rows} for split, rows in found.items()}
    assert "d" in of["train"]
    # A tenth of 30 is one of the others each.
    assert sorted(map(len, of.values())) == [1, 1, 2]
    assert set.union(*of.values()) == set("abcd")
    assert sum(map(len, of.values())) == 4
    first, second, _ = sorted("abc", key=lambda name: text_hash(name, unicode=True))
    assert (of["test"], of["validation"]) == ({first}, {second})
    # Test takes groups until it has a tenth, and leaves one for validation.
    alone = [str(number) for number in range(40)]
    assert {k: len(v) for k, v in split_by_group(alone, [], "", "", "").items()} == {
        "train": 32,
        "test": 4,
        "validation": 4,
    }
    assert set(split_by_group(["a", "b"], ["test"], "", "", "")) == {"train", "validation"}
    with pytest.raises(
        UserError, match=r"^m: speaker has 2 distinct values in 3 examples, expected"
    ):
        split_by_group(["a", "a", "b"], [], "m", "speaker", "do this")


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_no_folder(path):
    """A shell variable that is not set would be the folder of the command."""
    with pytest.raises(ValueError, match=r"^train_file: is empty, expected the name of a file"):
        results_name("a", ["a"], path, "", "train_file")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("sst2", ("sst2", "")),
        ("sst2,bert", ("sst2", "bert")),
        ("nuclei,se(reduction=4, x=1)", ("nuclei", "se(reduction=4, x=1)")),
        ("path:a.txt,bert", ("path:a.txt", "bert")),
        ("path:a, b.txt", ("path:a, b.txt", "")),
        ("path:a, b.txt,se(reduction=4, x=1)", ("path:a, b.txt", "se(reduction=4, x=1)")),
        ("path:none.txt,brt", ("path:none.txt", "brt")),
        ("path:,bert", ("path:", "bert")),
    ],
)
def test_a_path_of_a_config_may_have_commas(tmp_path, monkeypatch, argument, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "a, b.txt"):
        (tmp_path / name).write_text("x")
    assert cut_path(argument, "path:") == expected
