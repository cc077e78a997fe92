"""Worker process of a sweep or an ablation, see `launch.runs.worker_process`.

The first line of the standard input is the set-up:

    cores: ids of the CPU cores to run on, or null.
    config: experiment of the first job, whose devices are requested for all jobs, as in a command
      that runs all jobs itself.
    paths, command, track: as in `launch.runs.jobs.Options`; paths is an object with the attributes
      of `tasks.common.data.paths.Paths`.

Every further line is a job with the keys name, config, folder and log. The key log has the path of
the file to which the output is appended. The answer to a job is a line with the keys record,
failure and retriable. It has the key stopped instead if a signal stopped the job, and the key
refused if the set-up is invalid.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Seconds to wait for an earlier worker that still saves a checkpoint in the run directory.
_LOCKED = 120.0


def main() -> None:
    """Executes the jobs of the standard input until its end."""
    source = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    setup = json.loads(source.readline() or b"{}")
    if not setup:
        return
    # Set before JAX is imported, because JAX sizes its thread pools by the cores.
    if setup["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, setup["cores"])
    lines = _Lines(source)
    worker = None
    for line in lines:
        job = json.loads(line)
        _write_to(job["log"])
        if worker is None:
            worker = _Worker(setup)
        answer = worker.execute(job)
        lines.answered()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "stopped" in answer:
            return


class _Lines:
    """Lines of standard input. At its end, the process sends itself SIGTERM to stop training."""

    def __init__(self, source: Any):
        self._source, self._found = source, queue.SimpleQueue()
        self._busy, self._ended = threading.Lock(), False
        # Python also writes every signal to this pipe. A scheduler that ends a job may send SIGTERM
        # to the workers too. Then `_read` sends none, because a second one would end training
        # without a checkpoint.
        self._signals, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._source:
            self._found.put(line)
        self._ended = True
        self._found.put(None)
        if self._busy.locked() and not select.select([self._signals], [], [], 0)[0]:
            os.kill(os.getpid(), signal.SIGTERM)

    def __iter__(self) -> Iterator[bytes]:
        while (line := self._found.get()) is not None:
            self._busy.acquire()
            if self._ended:
                return
            yield line

    def answered(self) -> None:
        """Records that the last line has been answered."""
        self._busy.release()


def _write_to(log: str) -> None:
    """Appends all further output of the process to a file."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(opened, number)
    os.close(opened)


class _Worker:
    """JAX and the options that all jobs share, set up at the first job."""

    def __init__(self, setup: dict[str, Any]):
        self._setup, self._options, self._refused = setup, None, ""

    def execute(self, job: dict[str, Any]) -> dict[str, Any]:
        """Executes a job and returns the answer."""
        from launch.engine.errors import Interrupted, terminable
        from launch.runs.jobs import Ended, Job, perform

        try:
            with terminable():
                if self._options is None:
                    self._set_up()
                if self._options is None:
                    return {"refused": self._refused}
                from launch.engine import config as configs

                folder = Path(job["folder"])
                _wait_for_lock(folder)
                ended = perform(
                    Job(job["name"], configs.resolve(job["config"]), folder), self._options
                )
        except (Interrupted, KeyboardInterrupt) as stopped:
            print(str(stopped) or "stopped", file=sys.stderr, flush=True)
            return {"stopped": True}
        except Exception as error:
            ended = Ended(failure=f"{type(error).__name__}: {error}")
        if ended.failure:
            print(f"failed: {ended.failure}", file=sys.stderr, flush=True)
        return {
            "record": ended.record, "failure": ended.failure, "retriable": ended.retriable,
        }  # fmt: skip

    def _set_up(self) -> None:
        from launch import cli
        from launch.engine import config as configs
        from launch.engine import devices
        from launch.runs.jobs import Options
        from tasks.common.data.paths import Paths
        from tasks.common.errors import UserError

        cli.set_up_process()
        given = {name: path and Path(path) for name, path in self._setup["paths"].items()}
        paths = Paths(**given)
        try:
            devices.set_up_jax(paths.cache_dir, configs.resolve(self._setup["config"]))
        except UserError as error:
            self._refused = str(error)
            return
        folder = Path()  # each job has its own
        self._options = Options(folder, paths, self._setup["command"], print, self._setup["track"])


def _wait_for_lock(folder: Path) -> None:
    """Waits for the end of an earlier worker in a run directory.

    A worker whose command was killed still saves a checkpoint. If the directory stays locked, the
    run fails with a message.
    """
    import filelock

    if (folder / ".lock").exists():
        lock = filelock.FileLock(folder / ".lock", timeout=_LOCKED)
        with contextlib.suppress(filelock.Timeout), lock:
            pass


if __name__ == "__main__":
    main()
