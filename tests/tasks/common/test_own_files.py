"""Paths with commas, files by name, and splits of user files by content."""

import pytest

from tasks.common.own_files import split_paths


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
