"""Clock of the training loop: step times, and the time of compilation, data wait and saving."""

from __future__ import annotations

import collections
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from launch.engine import monitoring

# Largest number of steps in flight, which have started but not completed. If it is reached, the
# host waits for the oldest step before it starts another one. On a CPU, a step allocates its
# temporaries when the host starts it, so several steps in flight would need several times the
# memory.
_IN_FLIGHT, _IN_FLIGHT_ON_CPU = 3, 1
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    """Clock that measures the training steps of one process.

    A window is the time between two lines of timing.jsonl. Steps run asynchronously: a call of the
    step function returns before the step has run. So the step time is the time from the completion
    of the previous step to the completion of this step, as the host observes them. Before the host
    starts a step, it waits until at most two (on a CPU, none) of the earlier steps are running. If
    a wait for data delays a step, the step time includes the wait. Steps that compile, and steps
    that complete after the host has compiled a later step, have no step time.
    """

    def __init__(self, seeds: int = 1):
        """Starts the clock. The time until `started` is called counts as `start_seconds`.

        Args:
          seeds: number of seeds that are trained together, see `launch.engine.stack`.
        """
        self._seeds = seeds
        self._compilations = _compilations()
        self._step, self._totals = 0, collections.defaultdict[str, float](float)
        self._began = time.monotonic()
        self._pending: collections.deque[tuple[Any, bool]] = collections.deque()
        on_cpu = jax.default_backend() == "cpu"
        self._in_flight = _IN_FLIGHT_ON_CPU if on_cpu else _IN_FLIGHT
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

    def run(self, function: Callable[..., tuple[Any, Any]], *arguments: Any) -> tuple[Any, Any]:
        """Starts a step: calls a function that returns (state, metrics).

        If the call compiles, its duration counts as compilation.
        """
        while len(self._pending) >= self._in_flight:
            self._complete()
        before, began = len(self._compilations), time.monotonic()
        state, metrics = function(*arguments)
        compiled = len(self._compilations) > before
        if compiled:
            self._totals["compile"] += time.monotonic() - began
        self._pending.append((metrics, compiled))
        return state, metrics

    def _complete(self) -> None:
        metrics, compiled = self._pending.popleft()
        jax.block_until_ready(metrics)
        now = time.monotonic()
        # The duration is unknown if the host compiled a later step while this one completed.
        if not compiled and not any(later for _, later in self._pending):
            self._durations.append(now - self._completed)
        self._completed = now

    def drain(self) -> None:
        """Waits for all steps."""
        while self._pending:
            self._complete()

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
