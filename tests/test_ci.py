"""The parts of .ci/run contain every slow test and every other environment."""

import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def targets(tmp_path):
    """Runs .ci/run with a `make` that only prints; returns the process."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$*"\n')
    make.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}

    def run(*words):
        return subprocess.run(
            [ROOT / ".ci" / "run", *words], env=environment, capture_output=True, text=True
        )

    return run


def test_each_part_has_a_sixth_of_the_slow_tests_and_one_environment(targets):
    others = []
    for part in range(1, 7):
        first, train, _, *rest = targets(str(part)).stdout.splitlines()
        assert first == "lint"
        assert train.startswith("train ")
        assert rest[-2:] == [f"test-slow SLICE={part}/6", "test"]
        others.append(" ".join(rest[:-2]))
    for name in ("test-accelerators PART=fast", "test-oracles"):
        assert others.count(name) == 2
    newest = [text for text in others if not text.startswith("test-")]
    assert len(newest) == 2
    assert all("VENV=.venv-newest" in text or text.startswith("skipped: ") for text in newest)


def test_a_commit_has_a_part_and_all_has_every_target(targets):
    slices = [line for _ in range(2) for line in targets().stdout.splitlines() if "SLICE" in line]
    assert len(slices) == 2
    assert slices[0] == slices[1]
    lines = targets("all").stdout.splitlines()
    assert {"test-accelerators PART=fast", "test-oracles", "test-slow", "test"} <= {*lines}


def test_another_part_is_refused(targets):
    done = targets("7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: 7: expected a part from 1 to 6, or all\n"


def test_durations_are_those_of_tests_that_exist():
    durations = json.loads((ROOT / "tests" / "durations.json").read_text())
    files = {name.partition("::")[0] for name in durations}
    assert {file for file in files if not (ROOT / file).is_file()} == set()
