"""Pipes and devices given as files are refused at once; opening a pipe would wait for a writer."""

import os

import pytest

from tasks.common.audio.files import read_audio
from tasks.common.data.regular_files import expect_regular
from tasks.common.data.tables import open_table
from tasks.common.data.text_files import read_text
from tasks.common.errors import UserError
from tasks.common.images.files import read_image


def rows(path):
    return list(open_table(path).rows())


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (read_text, "a.txt"),
        (rows, "a.csv"),
        (open_table, "a.jsonl"),
        (read_image, "a.png"),
        (lambda path: read_audio(path, 8000), "a.wav"),
    ],
)
def test_a_pipe_is_refused_by_every_reader(tmp_path, read, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError) as refused:
        read(str(tmp_path / name))
    assert str(refused.value) == (
        f"{tmp_path / name}: is a pipe, expected a regular file; write its content to a file first"
    )


def test_a_device_without_end_is_refused():
    with pytest.raises(UserError, match=r"/dev/zero: is a device, expected a regular file"):
        read_text("/dev/zero")


def test_files_links_folders_and_what_is_missing_are_left_to_the_reader(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("a", "link", "loop", ".", "missing", "a" * 300):
        expect_regular(tmp_path / name)
    assert read_text(tmp_path / "link") == "x"
