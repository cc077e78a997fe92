"""Dynamic batching: one thread per model runs its programs on the rows of several requests.

A row is the input of a program for one example. Rows are queued by key, which is the kind and the
bucket of their program. A batch of rows with the same key starts when it is full, or when its first
row has waited for `max_wait_s`, or when no other row is expected. While a batch runs, new rows are
queued.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

Key = tuple[str, int]
Row = dict[str, Any]
Outputs = dict[str, Any]


class Expired(Exception):
    """Error for a request whose deadline passed before its rows were run."""


@dataclasses.dataclass(eq=False)
class _Ticket:
    """State of a submitted request.

    Attributes:
      future: future whose result is the list of outputs, in the order of the rows.
      outputs: outputs of each row; empty for rows that have not run yet.
      remaining: number of rows without outputs.
      deadline: latest time at which a row may start, in seconds of `time.monotonic`.
    """

    future: Future[list[Outputs]]
    outputs: list[Outputs]
    remaining: int
    deadline: float

    def fail(self, error: BaseException) -> None:
        """Sets an error as the result, unless the request was canceled or is complete."""
        if not self.future.done():
            try:
                self.future.set_exception(error)
            except InvalidStateError:
                # Canceled by another thread in the meantime.
                return


@dataclasses.dataclass(eq=False)
class _Job:
    """A queued row, with its position in the request and the time when it was submitted."""

    ticket: _Ticket
    position: int
    row: Row
    since: float


class Batcher:
    """Queue of rows that are run in batches on a separate thread.

    Attributes:
      prepared: set when `prepare` has returned or failed.
      error: error raised by `prepare`, or None.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Key, Sequence[Row]], Sequence[Outputs]],
        *,
        max_batch: int,
        max_wait_s: float,
        prepare: Callable[[], None] = lambda: None,
        failed: Callable[[BaseException], None] = lambda error: None,
        expected: Callable[[], float] = lambda: math.inf,
    ):
        """Creates a batcher whose thread is not started.

        Args:
          name: name of the model, for the name of the thread.
          run: function that runs at most `max_batch` rows with the same key. Its arguments are the
            key and the rows; it returns the outputs of each row.
          max_batch: maximum number of rows in a batch.
          max_wait_s: seconds that a row waits for its batch to fill.
          prepare: function that the thread calls once, before the first batch.
          failed: function that is called with the error if `prepare` raises one.
          expected: function that returns an upper bound on the number of rows that are queued or
            may be queued soon. If all of them are queued, a batch does not wait for more.
        """
        self._run, self._prepare, self._failed, self._expected = run, prepare, failed, expected
        self._max_batch, self._max_wait_s = max_batch, max_wait_s
        self._limits: dict[Key, int] = {}
        self._waiting: dict[Key, collections.deque[_Job]] = {}
        self._condition = threading.Condition()
        self._stopping = False
        self.prepared = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name=f"batches of {name}", daemon=True)

    @property
    def stopping(self) -> bool:
        """True after `stop` was called."""
        return self._stopping

    @property
    def ready(self) -> bool:
        """True from the success of `prepare` until `stop` is called."""
        return self.prepared.is_set() and self.error is None and not self._stopping

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Makes the thread end after running the queued rows.

        Returns:
          Whether the thread ended within `timeout_s` seconds.
        """
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def limit(self, key: Key, size: int) -> None:
        """Limits the batches of a key to `size` rows."""
        self._limits[key] = size

    def __len__(self) -> int:
        """Returns the number of queued rows."""
        with self._condition:
            return sum(map(len, self._waiting.values()))

    def submit(self, rows: Sequence[tuple[Key, Row]], deadline: float) -> Future[list[Outputs]]:
        """Queues the rows of a request.

        Canceling the returned future removes the rows that have not started.

        Args:
          rows: at least one pair of key and row.
          deadline: latest time at which a row may start, in seconds of `time.monotonic`. Later, the
            request fails with `Expired`.

        Returns:
          A future of the outputs, in the order of the rows.
        """
        future: Future[list[Outputs]] = Future()
        ticket = _Ticket(future, [{} for _ in rows], len(rows), deadline)
        now = time.monotonic()
        with self._condition:
            if self._stopping:
                raise RuntimeError("the batcher has stopped")
            for position, (key, row) in enumerate(rows):
                queue = self._waiting.setdefault(key, collections.deque())
                queue.append(_Job(ticket, position, row, now))
            self._condition.notify()
        return future

    def _main(self) -> None:
        try:
            self._prepare()
        except BaseException as error:
            self.error = error
            self._failed(error)
            return
        finally:
            self.prepared.set()
        while (taken := self._next()) is not None:
            key, jobs = taken
            if jobs:
                self._execute(key, jobs)

    def _next(self) -> tuple[Key, list[_Job]] | None:
        """Waits for the next batch and returns its key and rows.

        The result is None if the batcher was stopped and nothing is queued.
        """
        with self._condition:
            while True:
                now, soonest = time.monotonic(), None
                is_all = sum(map(len, self._waiting.values())) >= self._expected()
                # Keys are tried in the order in which their first rows were submitted.
                for key, queue in sorted(self._waiting.items(), key=lambda kv: kv[1][0].since):
                    start = queue[0].since + self._max_wait_s
                    is_full = len(queue) >= self._limits.get(key, self._max_batch)
                    if is_full or is_all or start <= now or self._stopping:
                        return key, self._take(key, now)
                    soonest = start if soonest is None else min(soonest, start)
                if self._stopping:
                    return None
                self._condition.wait(None if soonest is None else soonest - now)

    def _take(self, key: Key, now: float) -> list[_Job]:
        queue, jobs = self._waiting[key], []
        most = self._limits.get(key, self._max_batch)
        while queue and len(jobs) < most:
            job = queue.popleft()
            if job.ticket.future.done():
                continue
            if job.ticket.deadline <= now:
                job.ticket.fail(Expired())
                continue
            jobs.append(job)
        if not queue:
            del self._waiting[key]
        return jobs

    def _execute(self, key: Key, jobs: Sequence[_Job]) -> None:
        try:
            outputs = self._run(key, [job.row for job in jobs])
        except Exception as error:
            logging.getLogger(__name__).exception("a batch of program %s failed", key)
            for job in jobs:
                job.ticket.fail(error)
            return
        for job, found in zip(jobs, outputs, strict=True):
            ticket = job.ticket
            ticket.outputs[job.position] = found
            ticket.remaining -= 1
            if not ticket.remaining and not ticket.future.done():
                try:
                    ticket.future.set_result(ticket.outputs)
                except InvalidStateError:
                    continue
