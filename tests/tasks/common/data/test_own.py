"""Paths and columns of user data, and the splits that paths give."""

import pytest

from launch.engine.config import task_class, task_names
from tasks.common.data.own import COLUMNS, OwnData, files_of, is_pattern, one_file, split_files
from tasks.common.errors import UserError

OWN = OwnData("a table", {"text": "text_column", "label": "targets"}, several=("label",))
THREE = OwnData("a table", path="train_file", held_out=("validation_file", "test_file"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a.csv", "b.csv", "c.csv", "notes.md", ".hidden.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "parts").mkdir()
    for name in ("val.csv", "train.csv", "other.csv"):
        (tmp_path / "parts" / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.csv", {"train": "a.csv"}),
        ("a.csv,b.csv,c.csv", {"train": "a.csv", "validation": "b.csv", "test": "c.csv"}),
        ("x/test.csv,x/train.csv", {"train": "x/train.csv", "test": "x/test.csv"}),
        (
            "test.csv,dev.csv,training.csv",
            {"train": "training.csv", "validation": "dev.csv", "test": "test.csv"},
        ),
        ("a.csv,dev.csv,c.csv", {"train": "a.csv", "validation": "dev.csv", "test": "c.csv"}),
        ("*.csv", {"train": "*.csv"}),
        (".", {"train": "."}),
        ("parts", {"train": "parts/train.csv", "validation": "parts/val.csv"}),
    ],
)
def test_paths_are_assigned_to_splits(folder, path, expected):
    assert split_files(path) == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.csv,b.csv", "got 2 paths in 'a.csv,b.csv', .*a.csv is not named after a split"),
        ("test.csv,b.csv,train.csv", "got 3 paths .*TRAIN,VALIDATION,TEST; b.csv is not"),
        ("a.csv,b.csv,c.csv,d.csv", "got 4 paths"),
        ("train.csv,x/train.csv,c.csv", "both denote the train split; keep one"),
        ("val.csv,test.csv", "got 2 paths"),
    ],
)
def test_paths_without_distinct_splits_are_refused(folder, path, message):
    with pytest.raises(UserError, match=f"^--data: .*{message}"):
        split_files(path)


def test_files_of_folders_and_patterns(folder):
    assert files_of("a.csv") == ["a.csv"]
    assert files_of("[ab].csv") == ["a.csv", "b.csv"]
    assert files_of("**/t*.csv") == ["parts/train.csv"]
    assert files_of(str(folder)) == [str(folder / name) for name in ("a.csv", "b.csv", "c.csv")]
    # A file may have the name of a pattern.
    (folder / "[ab].csv").write_text("x")
    assert not is_pattern("[ab].csv")
    assert files_of("[ab].csv") == ["[ab].csv"]
    with pytest.raises(UserError, match=r"^--data: no file matches 'z\*.csv'"):
        files_of("z*.csv")
    with pytest.raises(UserError, match=r"the folder parts has no file that ends in one of .json"):
        files_of("parts", (".json",))
    with pytest.raises(UserError, match=r"^--data: . has 4 files, expected one, because"):
        one_file(".", "because the task reads one table")


def test_flags_become_config_keys(folder):
    found = OWN.changes("t", "a.csv", {"text": " review ", "label": "load, price"})
    assert found == {"path": "a.csv", "text_column": "review", "targets": ("load", "price")}
    keys = THREE.changes("t", "a.csv,b.csv,c.csv", {})
    assert keys == {"train_file": "a.csv", "validation_file": "b.csv", "test_file": "c.csv"}
    assert OWN.changes("t", None, {"text": "review"}) == {"text_column": "review"}


@pytest.mark.parametrize(
    ("own", "data", "columns", "message"),
    [
        (OWN, "a.csv", {"user": "x"}, "--user: t has no such column; it takes --text and --label"),
        (THREE, "a.csv", {"text": "x"}, "--text: t has no .*; it takes a table, and no columns"),
        (OWN, "a.csv", {"text": " "}, "--text: is empty, expected the name of a column"),
        (OWN, " ", {}, "--data: is empty, expected a table"),
        (
            OwnData("a table", {"speaker": "split_by", "group": "split_by"}),
            None,
            {"speaker": "a", "group": "b"},
            "--group: got 'b', but --speaker defines the splits already",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(own, data, columns, message):
    with pytest.raises(UserError, match=f"^{message}"):
        own.changes("t", data, columns)


@pytest.mark.parametrize("name", task_names())
def test_every_task_declares_its_user_data(name):
    """Keys are fields of the task's config, and flags are those of the commands."""
    task = task_class(name)
    if isinstance(task.own_data, str):
        assert name == "sequence_copy"
        return
    own, fields = task.own_data, task.data_config.__dataclass_fields__
    assert {own.path, *own.held_out, *own.columns.values()} <= set(fields)
    assert set(own.columns) <= set(COLUMNS)
    assert set(own.several) <= set(own.columns)
