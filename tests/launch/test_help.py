"""`python -m launch`, and the pages of --help: with a config, without one, and in a pipe."""

import os
import subprocess
import sys

import pytest

from launch.__main__ import commands, page
from tests.launch.conftest import ROOT

CONFIG = "--config=configs/text_classification.py:sst2,bigru"


def run(*words, redirect=""):
    line = 'exec "$0" -m "$@" ' + redirect
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, sys.executable, *words], cwd=ROOT,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def test_every_command_is_listed_in_one_line():
    modules = {path.stem for path in (ROOT / "launch").glob("*.py")}
    shared = {"__init__", "__main__", "cli", "command_line", "several", "api"}
    assert commands().keys() == modules - shared
    lines = page().splitlines()
    for name, summary in commands().items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(summary)
        assert summary
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", [(), ("--help",), ("help",)])
def test_launch_lists_the_commands(words):
    done = run("launch", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, page() + "\n", "")


def test_launch_runs_a_command():
    flags = ["evaluate", "--workdir=/no/such/run"]
    done, same = run("launch", *flags), run("launch.evaluate", *flags[1:])
    assert done.returncode == same.returncode == 2
    assert done.stderr == same.stderr
    assert "--workdir=/no/such/run" in done.stderr


def test_unknown_command():
    done = run("launch", "trian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: trian: no such command (did you mean 'train'?); the co")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["train", "sweep", "prepare", "compile"])
def test_help_with_a_config(command, name):
    done = command(name, CONFIG, "--help", "--config.model.state_size=7")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  model.state_size = 7 (in the config file: " in done.stdout
    assert "DATA is movie_reviews, sst2" in done.stdout


def test_help_without_a_config(command):
    for word in ("--help", "-h"):
        done = command("train", word)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--workdir: Run directory" in done.stdout
        assert "--help lists all keys of" in done.stdout
    assert "--[no]with_attention" in command("export", "--help").stdout
    page = command("sweep", "--help").stdout
    assert all(f"--{flag}" in page for flag in ("[no]record", "match", "match_key", "trials"))


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_flags_of_several_commands_are_in_their_help(command, name):
    page = command(name, "--help").stdout
    assert all(f"\n  --{flag}: " in page for flag in ("top_k", "threshold", "positive", "workdir"))


def test_help_with_a_wrong_config(command):
    done = command("train", "--config=configs/text_classification.py:transformer", "--help")
    assert done.returncode == 2
    assert "'transformer' is a model" in done.stderr
    done = command("train", CONFIG, "--config.model.stat_size=7", "--help")
    assert done.returncode == 2
    assert "did you mean 'model.state_size'" in done.stderr


def test_help_of_an_ablation(command):
    done = command("ablate", "--config=configs/ablations/text_pooling.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "mean: model.pooling='mean'" in done.stdout


@pytest.mark.parametrize("words", [("launch",), ("launch.train", CONFIG, "--help")])
def test_a_closed_pipe_gives_no_message(words):
    done = run(*words, redirect="| true")
    assert "Traceback" not in done.stderr
    assert done.stderr == ""


def test_the_page_is_the_same_in_a_terminal(command):
    piped = command("train", CONFIG, "--help").stdout
    parent, child = os.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "launch.train", CONFIG, "--help"], cwd=ROOT, stdout=child,
        stderr=child, env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(parent)
    assert done.wait(timeout=120) == 0
    assert shown.decode().replace("\r\n", "\n") == piped
