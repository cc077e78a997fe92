"""SIGKILL at random moments of training: the same command ends as an uninterrupted run."""

import json
import os
import pathlib
import random
import signal
import time

import pytest

from launch.engine import supervision
from launch.engine.checkpoints import finished_steps
from launch.engine.errors import REQUEUED
from tests.faults.experiments import TASKS
from tests.faults.tally import LOST, SEED, SURVIVED
from tests.fork_server import ROOT
from tests.launch.distributed.group import Group

pytestmark = pytest.mark.faults
KILLS = 10
KILLS_OF_TWO = 5
KILLED = 128 + signal.SIGKILL


def lines_in(folder: pathlib.Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saves_of(folder: pathlib.Path) -> set[int]:
    """Returns the inodes of the checkpoints that are incomplete."""
    checkpoints = folder / "checkpoints"
    if not checkpoints.exists():
        return set()
    with os.scandir(checkpoints) as entries:
        return {entry.inode() for entry in entries if "tmp" in entry.name}


def until(reached, over, limit: float = 120.0) -> None:
    """Waits until a condition holds, or the processes are over."""
    ends = time.monotonic() + limit
    while not reached() and time.monotonic() < ends and not over():
        time.sleep(0.01)


def moments(folder, rng):
    """Returns the name of a random moment of training, its condition, and seconds after it."""
    # Earlier kills leave incomplete checkpoints.
    earlier, first = saves_of(folder), lines_in(folder)
    if rng.random() < 0.4:
        return "during a save", lambda: saves_of(folder) - earlier, rng.uniform(0, 0.02)
    # The log is cut back to the restored step first, so lines are counted from there.
    more = rng.randrange(1, 7)
    return f"after {more} lines", lambda: lines_in(folder) >= first + more, rng.uniform(0, 0.1)


def ended(child: int) -> bool:
    stat = pathlib.Path(f"/proc/{child}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def start(server, words: list[str], streams: list[str]) -> int:
    server._send({"words": words, "streams": streams, "folder": str(ROOT), "waits": False})
    return int(server.process.stdout.readline())


def status_of(server, child: int, words: list[str]) -> int:
    server._send({"child": child})
    return server._wait(words, 240)


def killed(server, words, folder, rng) -> tuple[str, int, str]:
    """Runs a command and kills it; returns the moment, the exit status and standard error."""
    with server._streams(None) as streams:
        moment, reached, delay = moments(folder, rng)
        child = start(server, words, streams)
        until(reached, lambda: ended(child))
        time.sleep(delay)
        if not ended(child):
            os.kill(child, signal.SIGKILL)
        status = status_of(server, child, words)
        text = pathlib.Path(streams[2]).read_text()
    return moment, status, text


def resumed_from(text: str) -> int:
    lines = [line for line in text.splitlines() if line.startswith("resuming from step ")]
    return int(lines[0].rpartition(" ")[2]) if lines else 0


def same_results(folder: pathlib.Path, whole: pathlib.Path) -> str:
    """Returns what differs between two runs; "" if nothing does."""
    for name in ("metrics.jsonl", "predictions-test.csv"):
        if (folder / name).read_bytes() != (whole / name).read_bytes():
            return f"{name} differs"
    records = [json.loads((run / "result.json").read_text()) for run in (folder, whole)]
    for key in ("metrics", "validation", "steps"):
        if records[0][key] != records[1][key]:
            return f"{key} of result.json differ"
    return ""


@pytest.mark.parametrize("task", TASKS)
def test_killed_runs_end_as_uninterrupted_ones(task, cases, whole, server, tally, tmp_path):
    rng = random.Random(f"{SEED} {task}")
    expected, number = whole(task), 0
    faults: list[tuple[str, str]] = []
    while len(faults) < KILLS:
        # A run is killed until it ends before the next kill.
        number += 1
        folder = tmp_path / f"run{number}"
        words, since, saved = cases[task].words(folder), len(faults), 0
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            if len(faults) < KILLS:
                moment, status, text = killed(server, words, folder, rng)
            else:
                done = server.run(words)
                moment, status, text = "", done.returncode, done.stderr
            problem = "traceback" if "Traceback" in text else ""
            # A run that was killed before it trained has not said where it resumed.
            if saved and ("resuming" in text or not status) and resumed_from(text) < saved:
                problem = f"resumed from step {resumed_from(text)}, but {saved} was saved"
            saved = max(finished_steps(folder / "checkpoints"), default=0)
            if status == -signal.SIGKILL:
                faults.append((moment, problem))
        difference = same_results(folder, expected) if status == 0 else text[-400:]
        difference = difference or problem
        faults[since:] = [(moment, found or difference) for moment, found in faults[since:]]
    for moment, problem in faults:
        tally.add("killed, one process", task, moment, LOST if problem else SURVIVED, problem)
    assert not tally.lost("killed, one process"), tally.lost("killed, one process")


@pytest.mark.parametrize("task", TASKS[:2])
def test_killed_runs_on_two_processes_end_as_uninterrupted_ones(task, cases, tally, tmp_path):
    """One process or both are killed: the other one ends within a minute, with one line."""
    rng, kind = random.Random(f"{SEED} two {task}"), "killed, two processes"
    whole, folder = tmp_path / "whole", tmp_path / "run"
    ends = Group([cases[task].words(whole)] * 2, devices=1).ended(400)
    assert [status for status, _ in ends] == [0, 0], ends
    words, faults, saved = cases[task].words(folder), [], 0
    difference = "not finished"
    while difference == "not finished":
        group, victims = Group([words] * 2, devices=1), []
        if len(faults) < KILLS_OF_TWO:
            moment, reached, delay = moments(folder, rng)
            until(reached, group.any_ended)
            time.sleep(delay)
            victims = rng.choice(([0], [1], [0, 1]))
            for index in victims:
                if trainer := group.trainer(index):
                    os.kill(trainer, signal.SIGKILL)
        began = time.monotonic()
        ends = group.ended(400)
        problem = "traceback" if any("Traceback" in "".join(text) for _, text in ends) else ""
        printed = "\n".join(ends[0][1])
        if saved and "resuming" in printed and resumed_from(printed) < saved:
            problem = f"resumed from step {resumed_from(printed)}, but {saved} was saved"
        saved = max(finished_steps(folder / "checkpoints"), default=0)
        statuses = [status for status, _ in ends]
        if any(statuses):
            others = [status for index, status in enumerate(statuses) if index not in victims]
            if not {*others} <= {0, supervision.LOST} or not {*statuses} & {KILLED}:
                problem = f"status {statuses}: {ends}"
            if time.monotonic() - began > 60:
                problem = "the other process ended after more than a minute"
            faults.append((f"{moment}, {victims}", problem))
            if len(faults) > KILLS_OF_TWO:
                difference = f"status {statuses} without a kill"
        else:
            difference = same_results(folder, whole)
    for moment, problem in faults:
        problem = problem or difference
        tally.add(kind, task, moment, LOST if problem else SURVIVED, problem)
    lost = [each for each in tally.lost(kind) if each["task"] == task]
    assert not lost, lost


def test_a_terminated_run_saves_and_asks_for_a_requeue(cases, server, whole, tally, tmp_path):
    """SIGTERM during a step: the step is finished and saved, and the exit status is documented."""
    task = "text_classification"
    folder, expected = tmp_path / "run", whole(task)
    words = cases[task].words(folder)
    with server._streams(None) as streams:
        child = start(server, words, streams)
        until(lambda: lines_in(folder) >= 2, lambda: ended(child))
        began = time.monotonic()
        os.kill(child, signal.SIGTERM)
        status = status_of(server, child, words)
        tally.measured["seconds_from_sigterm_to_exit"] = round(time.monotonic() - began, 2)
        text = pathlib.Path(streams[2]).read_text()
    assert status == REQUEUED == 143, text
    assert "the same command resumes from there" in text
    done = server.run(words)
    difference = same_results(folder, expected) if done.returncode == 0 else done.stderr[-400:]
    tally.add("SIGTERM", task, "status 143", LOST if difference else SURVIVED, difference)
    assert not difference
