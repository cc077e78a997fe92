"""Resuming after kill -9 with the same command: the same metrics, bit for bit."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import ROOT, command_line


@pytest.fixture(scope="module")
def flags(tiny):
    # Embeddings large enough that a save takes a while.
    return [
        *tiny,
        "--nobaselines",
        "--config.model.model_size=256",
        "--config.training.steps=80",
    ]


@pytest.fixture(scope="module")
def uninterrupted(flags, command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = command("train", *flags, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def saving(folder):
    """Returns whether a checkpoint after the first is being written."""
    checkpoints = folder / "checkpoints"
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    return "20" in names and any("tmp" in name and not name.startswith("20.") for name in names)


def lines_in(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lines_written(count):
    return lambda folder: lines_in(folder) >= count


def kill_when(reached, flags, cache, folder):
    process = subprocess.Popen(
        command_line("train", cache, *flags, f"--workdir={folder}"),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not reached(folder):
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < limit
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_continuation_ends_as_an_uninterrupted_run(flags, command, cache, tmp_path):
    flags = [*flags, "--config.optimizer.schedule=constant"]
    whole, folder = tmp_path / "whole", tmp_path / "continued"
    short = [*flags, "--config.training.steps=40"]
    for place, given in ((whole, flags), (folder, short)):
        done = command("train", *given, f"--workdir={place}")
        assert done.returncode == 0, done.stderr[-2000:]
    before = lines_in(folder)
    kill_when(lines_written(before + 1), flags, cache, folder)
    done = command("train", *flags, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    results = [json.loads((run / "result.json").read_text()) for run in (folder, whole)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["training"]["continued_from"] == [40]
    assert json.loads((folder / "result-40.json").read_text())["training"]["planned_steps"] == 40


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("before the first checkpoint", lines_written(1)),
        ("between two", lines_written(5)),
        ("during a save", saving),
    ],
    ids=["early", "late", "during a save"],
)
@pytest.mark.slow
def test_killed_run_ends_as_an_uninterrupted_one(
    name, reached, flags, cache, uninterrupted, tmp_path
):
    for attempt in range(6):
        folder = tmp_path / f"run{attempt}"
        kill_when(reached, flags, cache, folder)
        # The save may have ended between the check and the kill: then try again.
        if reached is not saving or saving(folder):
            break
    else:
        pytest.fail("no kill came during a save")
    done = subprocess.run(
        command_line("train", cache, *flags, f"--workdir={folder}"),
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    expected = (uninterrupted / "metrics.jsonl").read_bytes()
    assert (folder / "metrics.jsonl").read_bytes() == expected
    results = [json.loads((run / "result.json").read_text()) for run in (folder, uninterrupted)]
    assert results[0]["metrics"] == results[1]["metrics"]
