"""Clock of the training loop: step times, and the time of compilation, data wait and saving."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from launch.engine import monitoring

# Largest number of steps in flight. If it is reached, the host waits for the oldest step before it
# starts another one. On a CPU, a step allocates its temporaries when it is started, so several
# steps in flight would need several times the memory.
_IN_FLIGHT, _IN_FLIGHT_ON_CPU = 3, 1
_COMPILED = "/jax/core/compile/backend_compile_duration"


class _Step(NamedTuple):
    """Results of a call of the step function.

    Attributes:
      state: train state after the step.
      metrics: metrics of the step.
      compiled: whether the call compiled.
      ended: time of `time.monotonic` when the step ended; None if it may still be running.
    """

    state: Any
    metrics: Any
    compiled: bool
    ended: float | None = None


def _arrays(state: Any) -> Any:
    return state.result().state if isinstance(state, Future) else state


class Clock:
    """Clock that measures the training steps of one process.

    A window is the time between two lines of timing.jsonl. Steps run asynchronously: a call of the
    step function returns before the step has run. So the step time is the time from the completion
    of the previous step to the completion of this step, as the host observes them. Before the host
    starts a step, it waits until at most two (on a CPU, none) of the earlier steps are running. If
    a wait for data delays a step, the step time includes the wait. Steps that compile, and steps
    that complete after the host has compiled a later step, have no step time.

    On a CPU, another thread calls the step function for one step after the other, because a call
    may return only after the step has run (see `launch.engine.memory.run_in_calls`). Meanwhile the
    host prepares the batch of the next step.
    """

    def __init__(self, seeds: int | None = None):
        """Starts the clock. The time until `started` is called counts as `start_seconds`.

        Args:
          seeds: number of seeds that are trained together, see `launch.engine.stack`; None for a
            seed that is trained alone.
        """
        self._seeds = seeds or 1
        self._compilations = _compilations()
        self._step, self._totals = 0, collections.defaultdict[str, float](float)
        self._began = time.monotonic()
        self._pending: collections.deque[Future[_Step]] = collections.deque()
        self._begun = threading.Semaphore()
        self._metrics: list[Any] = []
        on_cpu = jax.default_backend() == "cpu"
        self._in_flight = _IN_FLIGHT_ON_CPU if on_cpu else _IN_FLIGHT
        # The seeds of a stack have threads already, which wait for each other in the step function.
        self._thread = ThreadPoolExecutor(1, "step") if on_cpu and seeds is None else None
        self._restart(0)

    def _restart(self, step: int) -> None:
        self._step, self._began = step, time.monotonic()
        self._totals = collections.defaultdict[str, float](float)
        self._completed, self._durations = self._began, []

    def started(self, step: int, lost: float) -> dict[str, float]:
        """Begins the first window; returns the values of this process's first timing.jsonl line.

        Args:
          step: step from which training continues.
          lost: wall time, in seconds, of the lines after `step`, which were removed from
            timing.jsonl.
        """
        result = {"start_seconds": round(time.monotonic() - self._began, 4)}
        if lost:
            result["lost_seconds"] = round(lost, 4)
        self._restart(step)
        return result

    @contextlib.contextmanager
    def _counting(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._totals[name] += time.monotonic() - began

    def waiting(self):
        """Returns a context whose time counts as waiting for data."""
        return self._counting("wait")

    def saving(self):
        """Returns a context whose time counts as saving a checkpoint."""
        return self._counting("save")

    def run(self, function: Callable[..., tuple[Any, Any]], state: Any, batch: Any) -> Any:
        """Starts a step and returns its state, which may be a future until `finish` is called.

        If the call compiles, its duration counts as compilation.

        Args:
          function: step function, (state, batch) -> (state, metrics).
          state: train state, or the result of the previous call.
          batch: arrays on the devices.
        """
        if self._thread is not None:
            # The host prepares the next batch after the thread has started the previous step. If
            # it did so when the step before had ended, the two would compete for Python's lock.
            self._begun.acquire()
            while self._pending and self._pending[0].done():
                self._complete()
            call = contextvars.copy_context().run
            step = self._thread.submit(call, self._call_in_thread, function, state, batch)
            self._pending.append(step)
            return step
        while len(self._pending) >= self._in_flight:
            self._complete()
        step = Future[_Step]()
        step.set_result(self._call(function, state, batch))
        self._pending.append(step)
        return step.result().state

    def _call_in_thread(self, function: Callable[..., Any], state: Any, batch: Any) -> _Step:
        self._begun.release()
        # JAX would run the step in another thread if the batch was still being copied.
        jax.block_until_ready(batch)
        step = self._call(function, _arrays(state), batch)
        # The call returns before the step has run if JAX was not set up by `run_in_calls`.
        jax.block_until_ready(step.metrics)
        return step._replace(ended=time.monotonic())

    def _call(self, function: Callable[..., Any], state: Any, batch: Any) -> _Step:
        before, began = len(self._compilations), time.monotonic()
        state, metrics = function(state, batch)
        compiled = len(self._compilations) > before
        if compiled:
            self._totals["compile"] += time.monotonic() - began
        return _Step(state, metrics, compiled)

    def _complete(self) -> None:
        step = self._pending.popleft().result()
        jax.block_until_ready(step.metrics)
        self._metrics.append(step.metrics)
        ended = step.ended or time.monotonic()
        # The duration is unknown if the host compiled a later step while this one completed.
        if not step.compiled and not any(
            later.done() and later.result().compiled for later in self._pending
        ):
            self._durations.append(ended - self._completed)
        self._completed = ended

    def drain(self) -> None:
        """Waits for all steps."""
        while self._pending:
            self._complete()

    def finish(self, state: Any) -> tuple[Any, list[Any]]:
        """Waits for all steps.

        Args:
          state: result of the last call of `run`, or a state that was not passed to `run`.

        Returns:
          The state and the metrics of the steps since the last call of this method.
        """
        self.drain()
        metrics, self._metrics = self._metrics, []
        return _arrays(state), metrics

    def lap(self, step: int, name: str = "seconds") -> dict[str, float]:
        """Ends a window and begins the next one; returns the values of a line of timing.jsonl.

        Args:
          step: number of finished steps.
          name: key of the window's duration in the result.
        """
        self.drain()
        seconds = max(time.monotonic() - self._began, 1e-9)
        result = {name: round(seconds, 4)}
        if step > self._step:
            result["steps_per_second"] = round((step - self._step) / seconds, 3)
            result["data_wait_fraction"] = round(self._totals["wait"] / seconds, 4)
            result |= monitoring.percentiles(self._durations)
        for part in ("compile", "save"):
            if self._totals[part]:
                result[f"{part}_seconds"] = round(self._totals[part], 4)
        if self._seeds > 1:
            result["stacked_seeds"] = self._seeds
        self._restart(step)
        return result


@functools.cache
def _compilations() -> list[float]:
    """Returns a list to which JAX appends the duration of each compilation of this process."""
    found: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            found.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found
