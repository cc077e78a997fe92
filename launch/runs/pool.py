"""Execution of jobs by several workers at once.

Each worker is a slot, which executes one job after another. The kind of the slots depends on the
placement; the order of jobs, retries, status lines and the reaction to signals do not.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from launch.engine import config as configs
from launch.engine.errors import Terminated
from launch.engine.progress import clock
from launch.runs.jobs import Ended, Job, Options, retried
from launch.runs.worker_process import Lost
from tasks.common.errors import UserError

# Seconds between two checks of the workers.
_INTERVAL = 0.05
# Seconds without a running job after which a status line says that the command waits for a worker.
_PATIENCE = 60.0
# Seconds after which a worker is killed if it has not ended although it was asked to.
CLOSING = 60.0


def worker_setup(jobs: Sequence[Job], options: Options, cores: Sequence[int] | None):
    """Returns the set-up message of a worker, whose keys `launch.runs.worker` describes."""
    paths = {"data_dir": options.paths.data_dir, "cache_dir": options.paths.cache_dir,
             "mirror": options.paths.mirror}  # fmt: skip
    return {
        "cores": cores,
        "config": configs.to_dict(jobs[0].config),
        "paths": {name: None if path is None else str(path) for name, path in paths.items()},
        "command": options.command,
        "track": list(options.track),
    }


def message(job: Job, log: Path) -> dict[str, Any]:
    """Returns the message that gives a job to a worker, see `launch.runs.worker`."""
    return {
        "name": job.name,
        "config": configs.to_dict(job.config),
        "folder": str(job.folder.absolute()),
        "log": str(log.absolute()),
    }


def log_of(job: Job, options: Options) -> Path:
    """Returns the path of the file to which a worker writes its output during a run."""
    return options.folder / "logs" / f"{job.folder.name}.log"


# ------------------------------------------------------------------------------- slots


class Slot(Protocol):
    """A worker that executes one job at a time."""

    def ready(self) -> bool:
        """Returns whether a job can be started.

        Raises:
          UserError: no job can ever be started.
        """
        ...

    def start(self, job: dict[str, Any]) -> None:
        """Starts a job, see `message`."""
        ...

    def answer(self) -> dict[str, Any] | None:
        """Returns the answer to the job; None if there is none yet.

        Raises:
          Lost: the worker has ended; `start` starts another one.
        """
        ...

    def stop(self) -> None:
        """Makes a running job stop at the next step with a checkpoint."""
        ...

    def kill(self) -> None:
        """Ends the worker at once."""
        ...

    def close(self) -> None:
        """Ends the worker, which is idle or was asked to stop."""
        ...


class Pool:
    """Jobs that are being executed by slots."""

    def __init__(self, slots: Sequence[Slot], options: Options, done: Callable[[Job, Ended], None]):
        """Initializes a pool of workers; `done` is called with each job and its result."""
        self._slots, self._options, self._done = list(slots), options, done
        self._running: dict[Slot, Job] = {}
        self._began: dict[Path, float] = {}
        self._attempts: dict[Path, int] = collections.Counter()
        self._seconds: list[float] = []
        self._said: set[str] = set()
        # Number of jobs that run at once, for the estimate of the remaining time.
        self._width = 1
        self._busy = time.monotonic()

    def run(self, jobs: Sequence[Job]) -> None:
        """Executes jobs, see `Placement.run`."""
        waiting = collections.deque(jobs)
        (self._options.folder / "logs").mkdir(parents=True, exist_ok=True)
        with _Signals() as signals:
            try:
                while waiting or self._running:
                    if signals.received is not None:
                        self._stop(signals)
                        raise _exception(signals.received)
                    self._start(waiting)
                    self._collect(waiting)
                    time.sleep(_INTERVAL)
            finally:
                # After an error, such as a closed pipe, jobs may still be running.
                for slot in self._slots:
                    slot.stop()
                for slot in self._slots:
                    slot.close()

    def _start(self, waiting: collections.deque[Job]) -> None:
        for slot in list(self._slots):
            if not waiting:
                break
            if slot in self._running or not self._is_ready(slot):
                continue
            job = waiting.popleft()
            log = log_of(job, self._options)
            if not job.finished:
                self._options.say(f"started: {job.label}; log: {log}")
            self._running[slot], self._began[job.folder] = job, time.monotonic()
            slot.start(message(job, log))
        if self._running:
            self._width, self._busy = len(self._running), time.monotonic()
        elif time.monotonic() - self._busy > _PATIENCE:
            self._say_once("waiting for a worker that can execute a run")

    def _is_ready(self, slot: Slot) -> bool:
        """Returns whether a slot can start a job; a slot that can never start one is removed.

        Raises:
          UserError: no other slot is left.
        """
        try:
            return slot.ready()
        except UserError as error:
            self._slots.remove(slot)
            slot.close()
            if not self._slots:
                raise
            self._say_once(str(error))
            return False

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._options.say(line)

    def _collect(self, waiting: collections.deque[Job]) -> None:
        for slot, job in list(self._running.items()):
            try:
                answer = slot.answer()
            except Lost as lost:
                ended = Ended(failure=str(lost), retriable=True)
            else:
                if answer is None:
                    continue
                if "refused" in answer:
                    raise UserError(answer["refused"])
                if "stopped" in answer:
                    # The signal reached only this worker, for example from a scheduler.
                    ended = Ended(failure="the worker was stopped by a signal", retriable=True)
                else:
                    ended = Ended(**answer)
            del self._running[slot]
            self._ended(job, ended, waiting)

    def _ended(self, job: Job, ended: Ended, waiting: collections.deque[Job]) -> None:
        say, retries = self._options.say, self._options.retries
        attempt = self._attempts[job.folder]
        if ended.retriable and attempt < retries:
            self._attempts[job.folder] += 1
            say(retried(job, ended.failure, attempt, retries))
            # The job is the next one to start, so that jobs start in the given order.
            waiting.appendleft(job)
            return
        seconds = time.monotonic() - self._began.pop(job.folder)
        self._done(job, ended)
        if ended.record is None:
            log = log_of(job, self._options)
            line = f"failed: {job.label}: {ended.failure}; log: {log}"
        else:
            self._seconds.append(seconds)
            line = f"finished: {job.label}, in {clock(seconds)}"
            for warning in ended.record.get("data_summary", {}).get("warnings", ()):
                self._say_once(f"warning: {warning}")
        say(f"{line}{self._left(len(waiting))}")

    def _left(self, waiting: int) -> str:
        """Returns a text with the number of remaining runs and an estimate of the remaining time.

        The estimate is based on the mean time of finished runs.
        """
        left = waiting + len(self._running)
        if not left:
            return ""
        if not self._seconds:
            return f"; {left} left"
        mean, now = sum(self._seconds) / len(self._seconds), time.monotonic()
        rest = [max(mean - now + self._began[job.folder], 0.0) for job in self._running.values()]
        seconds = max((sum(rest) + mean * waiting) / self._width, *rest, 0.0)
        return f"; {left} left, about {clock(seconds)}"

    def _stop(self, signals: _Signals) -> None:
        """Stops all running jobs and waits for their checkpoints; a second signal kills them."""
        self._options.say("stopping: the running runs save their checkpoints")
        for slot in self._running:
            slot.stop()
        while self._running:
            if signals.count > 1:
                for slot in self._running:
                    slot.kill()
                return
            for slot, job in list(self._running.items()):
                with contextlib.suppress(Lost):
                    answer = slot.answer()
                    if answer is None:
                        continue
                    # A job may have ended before the signal reached it.
                    if answer.get("record") is not None:
                        self._done(job, Ended(**answer))
                del self._running[slot]
            time.sleep(_INTERVAL)


class _Signals:
    """Recorder of SIGINT and SIGTERM.

    Attributes:
      received: number of the first signal, or None.
      count: number of signals.
    """

    received: int | None = None
    count = 0

    def __enter__(self) -> _Signals:
        self._before = {}
        # Signals can be handled in the main thread only.
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        self.received = self.received or number
        self.count += 1

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _exception(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
