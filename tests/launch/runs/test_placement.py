"""Runs of a sweep by several workers at once: --on, retries, signals, and the table."""

import errno
import importlib.util
import json
import os
import signal
import sys
import types

import pytest

from launch import cli
from launch.runs import experiments, on_ray, placement, pool, worker_process
from launch.runs.jobs import Ended, Options, is_of_machine
from launch.runs.worker_process import Lost
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tests.launch import many_runs
from tests.launch.made_runs import experiment

# ------------------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("locl:2", "--on=locl:2: is not a placement; write local:4"),
        ("local", "--on=local: got no number, expected a number of processes"),
        ("local:0", "--on=local:0: got 0, expected a number of processes"),
        ("local:two", "--on=local:two: got two, expected"),
        ("local:3", "got 3 processes, expected at most 2, one for each core that this"),
        ("ray", r"--on=ray: ray is not installed; pip install -r requirements-ray\.txt"),
    ],
)
def test_an_invalid_placement_is_refused_in_one_line(on, message, monkeypatch):
    monkeypatch.setattr(placement, "usable_cores", lambda: [4, 6])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=message) as refused:
        placement.parse(on)
    assert "\n" not in str(refused.value)


def test_resources_are_those_of_ray(monkeypatch):
    assert placement.parse("") is None
    for on in ("", "local:1"):
        with pytest.raises(UserError, match="--gpus_per_run: needs --on=ray"):
            placement.parse(on, {"num_gpus": 1.0})


def test_each_process_has_cores_and_gpus_of_its_own(monkeypatch):
    assert placement.split([4, 5, 6, 7, 9], 2) == [[4, 5, 6], [7, 9]]
    plugin = types.SimpleNamespace(name="xla_cuda12")
    monkeypatch.setattr(placement.importlib.metadata, "entry_points", lambda group: [plugin])
    monkeypatch.setattr(placement, "usable_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,8")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert placement.gpus() == []
    monkeypatch.delenv("JAX_PLATFORMS")
    local = placement.parse("local:3")
    assert (local._cores, local._gpus) == ([[0, 1], [2], [3]], [["5"], ["7"], ["8"]])
    with pytest.raises(UserError, match="at most 3, one for each GPU; set JAX_PLATFORMS=cpu"):
        placement.parse("local:4")


def test_records_do_not_have_the_flags_of_the_placement(monkeypatch):
    words = ["--on", "local:2", "--seeds=3", "--retries=0", "--set=optimizer.name=on"]
    monkeypatch.setattr(sys, "argv", ["launch/sweep.py", *words])
    monkeypatch.setattr(cli, "FLAGS", {"on": None, "retries": None})
    assert cli.command() == "python -m launch.sweep --seeds=3 --set=optimizer.name=on"


# ---------------------------------------------------------------------------- workers


def test_workers_have_the_settings_of_the_command_only(monkeypatch):
    monkeypatch.setattr(os, "environ", {
        "JAX_ENABLE_X64": "1", "XLA_FLAGS": "--a", "OMP_NUM_THREADS": "1", "HOME": "/h",
        "PYTHONPATH": "/p",
    })  # fmt: skip
    command = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": "/c", "HOME": "/other"}
    assert worker_process.environment(command) == {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": "/c",
        "HOME": "/h",
        "PYTHONPATH": os.pathsep.join([str(worker_process.ROOT), "/p"]),
    }


def test_cores_are_claimed_once(monkeypatch, tmp_path):
    monkeypatch.setattr(worker_process.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 8}, raising=False)
    first, claims = worker_process.claim_cores(2)
    assert first == [3, 5]
    assert worker_process.claim_cores(2) == (None, [])
    assert worker_process.claim_cores(1)[0] == [8]
    for claim in claims:
        claim.close()
    assert worker_process.claim_cores(2)[0] == [3, 5]


def test_failures_of_the_machine_are_told_from_those_of_the_user():
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = OSError(errno.ESTALE, "Stale file handle", "/n/x")
    assert is_of_machine(wrapped)
    assert is_of_machine(MemoryError())
    assert is_of_machine(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))
    assert not is_of_machine(OSError(errno.ENOSPC, "No space left on device", "/x"))
    assert not is_of_machine(ValueError("x"))


def test_a_node_without_the_files_says_so(tmp_path):
    """The class of the actors, in this process."""
    token = tmp_path / ".nodes-1"
    setup = {"root": str(worker_process.ROOT), "folder": str(tmp_path), "workdir": str(tmp_path),
             "token": str(token)}  # fmt: skip
    opened = [on_ray._actor_class()(setup).open()]
    # Another directory of the same path has another file.
    token.write_text("other")
    opened.append(on_ray._actor_class()(setup).open())
    for line in opened:
        assert line.startswith(f"--workdir={tmp_path}: node ")
        assert "does not see the files of this directory" in line
    token.write_text(token.name)
    missing = setup | {"root": "/nowhere/clone"}
    assert "has no directory /nowhere/clone; share it" in on_ray._actor_class()(missing).open()
    assert on_ray._actor_class()(setup).open() == ""


# ------------------------------------------------------------------------------- pool


class Scripted:
    """A slot that answers a job with the next item of a list: an answer, an error, or None."""

    def __init__(self, *script):
        self.script, self.jobs, self.calls = list(script), [], []

    def ready(self):
        if self.script and isinstance(self.script[0], UserError):
            raise self.script[0]
        return True

    def start(self, job):
        self.jobs.append(job["config"]["seed"])

    def answer(self):
        if callable(found := self.script.pop(0)):
            found = found()
        if isinstance(found, Exception):
            raise found
        return found

    def stop(self):
        self.calls.append("stop")

    def kill(self):
        self.calls.append("kill")

    def close(self):
        self.calls.append("close")


def record(number):
    return {"record": {"validation": {"accuracy": number}}, "failure": "", "retriable": False}


BAD = {"record": None, "failure": "config.x: got 1", "retriable": False}
LOST = Lost("the worker process was killed by SIGKILL")


class Pooled:
    """Placement on scripted slots."""

    def __init__(self, *slots):
        self.slots = slots

    def run(self, jobs, options, done):
        pool.Pool(self.slots, options, done).run(jobs)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_INTERVAL", 0)

    def run(slots, seeds, retries=1):
        lines = []
        options = Options(tmp_path, Paths.default(), "command", lines.append,
                          placement=Pooled(*slots), retries=retries)  # fmt: skip
        outcomes, stopped = experiments.run_all({"base": experiment()}, seeds, options)
        return outcomes["base"], stopped, lines

    return run


def test_results_are_in_the_order_of_the_jobs(sweep):
    slots = Scripted(None, None, None, record(0)), Scripted(record(1), None, BAD, record(3))
    found, stopped, lines = sweep(slots, 4)
    assert stopped == 0
    assert list(found.records) == [0, 1, 3]
    assert [r["validation"]["accuracy"] for r in found.records.values()] == [0, 1, 3]
    # A user's mistake is not retried.
    assert found.failures == {2: "config.x: got 1"}
    assert [slot.jobs for slot in slots] == [[0], [1, 2, 3]]
    started = [line.split(";")[0] for line in lines if line.startswith("started")]
    assert started == [f"started: base, seed {seed}" for seed in (0, 1, 2, 3)]
    failed = next(line for line in lines if line.startswith("failed"))
    assert failed.startswith("failed: base, seed 2: config.x: got 1; log: ")
    assert ".log" in failed
    assert "left, about 0:00" in failed
    assert all(slot.calls == ["stop", "close"] for slot in slots)


def test_lost_workers_are_replaced_a_stated_number_of_times(sweep):
    found, _, lines = sweep([Scripted(LOST, record(0), LOST, LOST)], 2)
    assert list(found.records) == [0]
    assert found.failures == {1: str(LOST)}
    retried = [line for line in lines if "retry" in line]
    assert retried == [f"base, seed {seed}: {LOST}; retry 1 of 1" for seed in (0, 1)]
    found, _, lines = sweep([Scripted(LOST, {"stopped": True})], 2, retries=0)
    assert found.failures == {0: str(LOST), 1: "the worker was stopped by a signal"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_workers(sweep, number):
    slots = (
        Scripted(lambda: signal.raise_signal(number), {"stopped": True}),
        # This job ends before the signal reaches it.
        Scripted(None, record(1)),
    )
    found, stopped, lines = sweep(slots, 5)
    assert stopped == number
    assert found.records == {1: record(1)["record"]}
    assert not found.failures
    assert [slot.calls for slot in slots] == [["stop", "stop", "close"]] * 2
    assert "stopping: the running runs save their checkpoints" in lines
    assert lines[-1] == "stopped; the same command resumes from the last checkpoint"


def test_a_second_signal_kills(sweep):
    again = [lambda: signal.raise_signal(signal.SIGINT)] * 2
    slot = Scripted(*again, None, None)
    _, stopped, _ = sweep([slot], 2)
    assert stopped == signal.SIGINT
    assert slot.calls == ["stop", "kill", "stop", "close"]


def test_unusable_workers_are_left_out_with_one_line(sweep):
    refused = UserError("--workdir=x: node b does not see the files")
    slots = Scripted(refused), Scripted(record(0), record(1)), Scripted(refused)
    found, _, lines = sweep(slots, 2)
    assert list(found.records) == [0, 1]
    assert lines.count(str(refused)) == 1
    with pytest.raises(UserError, match="node b does not see the files"):
        sweep([Scripted(refused)], 2)
    with pytest.raises(UserError, match="XLA_FLAGS"):
        sweep([Scripted({"refused": "XLA_FLAGS=x: unknown"})], 2)


def test_failures_of_the_machine_are_retried_in_this_process(tmp_path, monkeypatch):
    results = [Ended(failure="/n: Stale file handle", retriable=True), Ended(record(0)["record"])]
    monkeypatch.setattr("launch.runs.jobs.perform", lambda job, options: results.pop(0))
    lines = []
    options = Options(tmp_path, Paths.default(), "command", lines.append)
    outcomes, _ = experiments.run_all({"base": experiment()}, 1, options)
    assert list(outcomes["base"].records) == [0]
    assert lines[-1] == "base, seed 0: /n: Stale file handle; retry 1 of 1"


# -------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(csv_file, cache, tmp_path):
    """One worker is killed, then the command is stopped and repeated."""
    each = len(placement.usable_cores()) // 2
    if not each:
        pytest.skip("this machine has one core")
    flags, on = many_runs.flags_of(csv_file, "local:")
    whole, folder = tmp_path / "whole", tmp_path / "placed"
    alone = many_runs.begun(cache, flags, whole, cores=each)
    out, err = many_runs.ended(alone, whole)
    assert alone.returncode == 0, err

    process = many_runs.begun(cache, flags, folder, on, cores=2 * each)
    run = many_runs.wait(lambda: many_runs.saved(folder), process)[0]
    pair = many_runs.workers(process)
    assert len(pair) == 2
    cores = [worker.cpu_affinity() for worker in pair]
    assert not set(cores[0]) & set(cores[1])
    for worker in pair:
        log = next(folder.glob(f"logs/{run.name}.log"))
        if any(os.path.samefile(file.path, log) for file in worker.open_files()):
            worker.kill()
    errors = folder.with_name("placed.err")
    many_runs.wait(lambda: "killed by SIGKILL" in errors.read_text(), process)
    many_runs.wait(lambda: "finished: " in errors.read_text(), process)
    many_runs.wait(lambda: many_runs.saved(folder), process)
    pair = many_runs.workers(process)
    process.send_signal(signal.SIGINT)
    out, err = many_runs.ended(process, folder)
    assert process.returncode == 130, err
    assert "(partial)" in out
    assert "Traceback" not in err
    assert "retry 1 of 1" in err
    assert not [worker for worker in pair if worker.is_running()]
    left = many_runs.saved(folder)
    assert left

    process = many_runs.begun(cache, flags, folder, on, cores=2 * each)
    out, err = many_runs.ended(process, folder)
    assert process.returncode == 0, err
    for run in left:
        assert "resuming from step" in (folder / "logs" / f"{run.name}.log").read_text()
    assert many_runs.outcome(folder) == many_runs.outcome(whole)
    devices = {json.loads(path.read_text())["device"] for path in folder.glob("*/result.json")}
    assert devices == {f"cpu x1 ({len(cores[0])} cores)"}
