"""Directories that appear whole: mistakes, errors, and two processes with one target."""

import pytest

from launch.engine.new_folder import new_folder
from tasks.common.errors import UserError


def test_the_directory_appears_at_the_end_with_its_parents(tmp_path):
    target = tmp_path / "a" / "b"
    with new_folder("to", target) as folder:
        (folder / "file").write_text("1")
        assert not target.exists()
    assert (target / "file").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_an_empty_directory_is_filled_and_a_link_to_it_kept(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with new_folder("to", tmp_path / "link") as folder:
        (folder / "file").touch()
    assert (tmp_path / "empty" / "file").exists()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    "make", [lambda path: path.touch(), lambda path: (path / "x").mkdir(parents=True)]
)
def test_what_exists_is_kept(make, tmp_path):
    target = tmp_path / "target"
    make(target)
    with (
        pytest.raises(UserError, match=f"--to={target}: already exists; name a new directory"),
        new_folder("to", target),
    ):
        pytest.fail("the block ran")


def filled(target, end):
    with new_folder("to", target) as folder:
        (folder / "file").write_text("outer")
        end()


def test_an_error_leaves_nothing(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path / "a", interrupt)
    assert not any(tmp_path.iterdir())


def test_of_two_at_once_the_first_to_end_stays(tmp_path):
    target = tmp_path / "target"

    def other():
        with new_folder("to", target) as folder:
            (folder / "file").write_text("inner")

    with pytest.raises(UserError, match="already exists"):
        filled(target, other)
    assert (target / "file").read_text() == "inner"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
