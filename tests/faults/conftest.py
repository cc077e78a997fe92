"""Fixtures of the fault suite: the tally, the experiments, and their uninterrupted runs."""

import os
import pathlib
import shutil

import pytest

from launch.engine import devices, loop
from launch.runs import run
from tests.faults.experiments import TASKS, case
from tests.faults.tally import Tally


@pytest.fixture(scope="session")
def tally():
    """Counts the outcomes of all faults."""
    return Tally()


@pytest.fixture(autouse=True)
def recorded(tally):
    """Writes the outcomes to the file FAULTS_RECORD after each test."""
    yield
    if path := os.environ.get("FAULTS_RECORD"):
        tally.write(pathlib.Path(path))


@pytest.fixture(autouse=True)
def without_reports(monkeypatch):
    """Leaves out the figures of runs in this process, which take longer than their training."""
    monkeypatch.setattr(run, "write_report", lambda *arguments: None)
    monkeypatch.setattr(run.figures, "files", lambda *arguments: [])


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """Returns the experiments by task."""
    devices.set_up_determinism()
    folder = tmp_path_factory.mktemp("faults")
    return {task: case(task, folder) for task in TASKS}


@pytest.fixture(scope="session")
def whole(cases, server, tmp_path_factory):
    """Returns a function from a task to the directory of its uninterrupted run."""
    root, done = tmp_path_factory.mktemp("whole"), {}

    def trained(task: str) -> pathlib.Path:
        if task not in done:
            ended = server.run(cases[task].words(root / task))
            assert ended.returncode == 0, ended.stderr[-3000:]
            done[task] = root / task
        return done[task]

    return trained


@pytest.fixture(scope="session")
def unfinished(cases, tmp_path_factory):
    """Returns a function that copies a run whose process ended after step 26, without a save."""
    root, number, templates = tmp_path_factory.mktemp("unfinished"), iter(range(10**6)), {}

    def begin(task: str) -> pathlib.Path:
        trained = loop.Progress.trained

        def ends(self, step, *arguments, **options):
            if step == 26:
                raise KeyboardInterrupt
            trained(self, step, *arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Progress, "trained", ends)
            with pytest.raises(KeyboardInterrupt):
                cases[task].train(root / task)
        return root / task

    def copied(task: str) -> pathlib.Path:
        if task not in templates:
            templates[task] = begin(task)
        folder = root / f"{task}-{next(number)}"
        shutil.copytree(templates[task], folder)
        return folder

    return copied
