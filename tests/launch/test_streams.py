"""Closed streams, devices as outputs, names that are not text, and flags that XLA does not know."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from launch.engine import writers
from launch.engine.errors import system_error
from tasks.common.errors import UserError

ROOT = Path(__file__).parents[2]
COPY = "--config=configs/sequence_copy.py"


def shell(words, redirect):
    """Runs a command in a shell, with a redirection of its streams."""
    line = 'exec "$0" -m "$@" ' + redirect
    return subprocess.run(
        ["sh", "-c", line, sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("redirect", [">&-", ">&- <&-"])
def test_closed_output_is_refused(redirect, tmp_path):
    done = shell(["launch.train", COPY, f"--workdir={tmp_path / 'run'}"], redirect)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: standard output is closed; send it to a file, a pipe or /dev/null"
    ]
    assert not (tmp_path / "run").exists()


def test_closed_error_stream_does_not_send_messages_elsewhere(tmp_path):
    done = shell(["launch.evaluate", f"--workdir={tmp_path}"], "2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("flag", ["--workdir", "--config", "--cache_dir"])
def test_words_that_are_not_text_are_named(flag, tmp_path):
    word = flag.encode() + b"=" + os.fsencode(tmp_path) + b"/sch\xf6n"
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", word], cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{flag}=" in done.stderr
    assert "is not encoded in utf-8; rename the file" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--xla_nonsense=1", "Unknown flag in XLA_FLAGS: --xla_nonsense=1"),
        ("nonsense", 'Could not open file "nonsense"'),
        ("--xla_force_host_platform_device_count=many", "Flag parsing failed"),
    ],
)
def test_flags_that_xla_does_not_know_are_named(flags, words, command, tmp_path):
    done = command("train", COPY, f"--workdir={tmp_path / 'run'}", XLA_FLAGS=flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: XLA_FLAGS={flags}: ")
    assert words in done.stderr
    assert done.stderr.endswith("; correct it, or unset it\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_home_that_is_not_known(command):
    done = command("evaluate", "--workdir=~no-user-of-this-name/run")
    assert done.returncode == 2
    assert done.stderr == (
        "error: a path begins with ~: no home directory is known; write out the full path\n"
    )
    assert system_error(RuntimeError("another")) is None


def test_a_pipe_is_written_and_stays_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writers.write_text(path, "some text")
    assert os.read(reader, 100) == b"some text"
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_not_text_are_written_as_escapes(tmp_path):
    path = tmp_path / "labels.json"
    writers.write_json(path, ["caf\udce9"])
    assert path.read_bytes().isascii()
    assert writers.read_json(path) == ["caf\udce9"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no full device")
def test_logs_on_a_full_disk_are_named():
    file = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(UserError, match=r"/dev/full: cannot be written \(No space left"):
        writers.Writers._write(file, {"step": 1})
    with pytest.raises(OSError, match="No space left"):
        file.close()
