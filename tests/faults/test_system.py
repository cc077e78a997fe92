"""Full and read-only disks, a clock that is set back, and mirrors that are not there."""

import os
import random
import subprocess
import time

import pytest

from launch.engine.checkpoints import finished_steps
from launch.runs.directory import prepared_task
from tasks.common.data import sources
from tasks.common.data.fetchers import FetchError
from tasks.common.data.paths import Paths
from tests.faults.experiments import TASKS
from tests.faults.tally import LOST, REFUSED, SEED, SURVIVED, attempt
from tests.faults.test_kills import resumed_from, same_results
from tests.fork_server import ForkServer
from tests.small_data import prepare_small

pytestmark = pytest.mark.faults
NAMESPACE = ("unshare", "--map-root-user", "--mount")
SCRIPT = "tests/faults/on_small_disk.py"


def unreachable(*_):
    """Takes the place of `sources._raw` without a network."""
    raise FetchError("no network")


@pytest.fixture(scope="module")
def mounting():
    """Returns a process whose forks may mount file systems."""
    try:
        allowed = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"],
                                 capture_output=True).returncode == 0  # fmt: skip
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("unshare: this user may not mount file systems")
    started = ForkServer(prefix=NAMESPACE)
    yield started
    started.close()


def refusal(done) -> tuple[str, str]:
    """Returns the outcome of a command that should end with one line, and what is wrong."""
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    if done.returncode != 2 or len(errors) != 1 or "Traceback" in done.stderr:
        return LOST, f"status {done.returncode}: {done.stderr[-400:]}"
    return REFUSED, errors[0]


@pytest.mark.parametrize("task", ["text_classification"])
def test_a_full_disk(task, cases, whole, mounting, server, tally, tmp_path):
    """The disk fills up at any file; what was saved before is resumed on a larger one."""
    case, rng, kind = cases[task], random.Random(f"{SEED} {task}"), "disk full"
    size = sum(path.stat().st_size for path in whole(task).rglob("*") if path.is_file())
    for number in range(4):
        room = int(size * rng.uniform(0.02, 0.7)) // 4096 * 4096 + 4096
        out = tmp_path / f"run{number}"
        words = [word.replace(str(out), "@/run") for word in case.words(out)]
        done = mounting.run([SCRIPT, str(room), "-", str(out), *words])
        outcome, detail = refusal(done)
        if outcome == REFUSED and (out / "run").exists():
            saved = max(finished_steps(out / "run" / "checkpoints"), default=0)
            again = server.run(case.words(out / "run"))
            detail = again.stderr[-400:]
            if again.returncode == 0:
                detail = same_results(out / "run", whole(task))
            if not detail and resumed_from(again.stderr) < saved:
                detail = f"resumed from {resumed_from(again.stderr)} instead of {saved}"
            outcome = LOST if detail else REFUSED
        elif done.returncode == 0:
            outcome, detail = SURVIVED, ""
        tally.add(kind, task, f"{room} bytes", outcome, detail)
    lost = [each for each in tally.lost(kind) if each["task"] == task]
    assert not lost, lost


def test_read_only_directories(cases, unfinished, whole, mounting, tally, tmp_path):
    kind, task = "read-only directory", "text_classification"
    case, empty = cases[task], tmp_path / "empty"
    empty.mkdir()
    begun = unfinished(task)
    for what, source, run in (
        ("new run directory", empty, "@/run"),
        ("run directory with checkpoints", begun, "@"),
        ("finished run directory", whole(task), "@"),
    ):
        out = tmp_path / what
        words = case.words(tmp_path / "run")
        words = [word.replace(str(tmp_path / "run"), run) for word in words]
        done = mounting.run([SCRIPT, "ro", str(source), str(out), *words])
        outcome, detail = refusal(done)
        if done.returncode == 0:
            # Nothing is written to a finished run.
            outcome, detail = SURVIVED, ""
        tally.add(kind, task, what, outcome, detail)
    out = tmp_path / "cache"
    words = [word.replace(str(case.paths.cache_dir), "@") for word in case.words(tmp_path / "run")]
    done = mounting.run([SCRIPT, "ro", str(empty), str(out), *words])
    detail = done.stderr[-400:] if done.returncode else same_results(tmp_path / "run", whole(task))
    tally.add(kind, task, "cache directory", LOST if detail else SURVIVED, detail)
    assert not tally.lost(kind), tally.lost(kind)


@pytest.mark.parametrize("task", TASKS)
def test_a_clock_that_is_set_back(task, cases, whole, unfinished, tally, monkeypatch):
    """Resumes a year before the run was written, and with files from a year ahead."""
    case, kind, year = cases[task], "clock set back", 365 * 86400
    for fault in ("clock", "files"):
        folder = unfinished(task)
        now = time.time
        if fault == "clock":
            monkeypatch.setattr(time, "time", lambda now=now: now() - year)
        else:
            for path in folder.rglob("*"):
                os.utime(path, (now() + year, now() + year))
        found = attempt(lambda folder=folder: case.train(folder))
        monkeypatch.undo()
        detail = found.bug or found.message
        outcome = LOST if found.bug else REFUSED if found.message else SURVIVED
        if outcome == SURVIVED:
            detail = same_results(folder, whole(task))
            if "resuming from step 24" not in found.lines:
                detail = "not resumed from step 24"
            outcome = LOST if detail else SURVIVED
        tally.add(kind, task, f"one year, {fault}", outcome, detail)
    lost = [each for each in tally.lost(kind) if each["task"] == task]
    assert not lost, lost


PUBLIC = {
    "text_classification": ("sst2", "configs/text_classification.py:sst2,attention_pooling"),
    "segmentation": ("camvid", "configs/segmentation.py:camvid"),
    "image_classification": ("fashion_mnist", "configs/image_classification.py:fashion_mnist"),
}


def test_a_mirror_that_is_not_there(tally, tmp_path, monkeypatch):
    """Without network: prepared data need no mirror, others get a line with the places tried."""
    from launch.engine import config as configs

    kind = "mirror and network unavailable"
    monkeypatch.setattr(sources, "_raw", unreachable)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong" / "sst2").mkdir(parents=True)
    for task, (name, file) in PUBLIC.items():
        config = configs.load_file(file)
        for what, mirror in (
            ("none", None),
            ("missing folder", tmp_path / "missing"),
            ("a file", tmp_path / "file"),
            ("empty folder", tmp_path / "empty"),
        ):
            paths = Paths(tmp_path / "data", tmp_path / "cache", mirror)
            found = attempt(lambda config=config, paths=paths: prepared_task(config, paths))
            named = "cannot get" in found.message and "no network" in found.message
            outcome, detail = (REFUSED, "") if named else (LOST, found.bug or found.message)
            tally.add(kind, task, what, outcome, detail or found.message)
        paths = Paths(tmp_path / "prepared", tmp_path / "cache", tmp_path / "missing")
        prepare_small(name, paths)
        found = attempt(lambda config=config, paths=paths: prepared_task(config, paths))
        detail = found.bug or found.message
        tally.add(kind, task, "prepared before", LOST if detail else SURVIVED, detail)
    assert not tally.lost(kind), tally.lost(kind)
