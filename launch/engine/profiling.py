"""Traces of training steps by `jax.profiler`, for --profile of `launch.train`."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.common.errors import UserError

# Number of steps before the trace if its first step is not given. The program is compiled and
# caches are filled in these steps.
WARM_UP = 10
FOLDER = "profile"
_EXPECTED = "a number of steps such as 10, or a range of steps such as 100-110"


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps that a trace contains.

    Attributes:
      given: value of the flag.
      count: number of steps.
      first: first step, counted from 1; None to begin after `WARM_UP` steps of the process.
    """

    given: str
    count: int
    first: int | None = None

    def steps(self, done: int, last: int) -> range:
        """Returns the steps to trace.

        Args:
          done: number of steps that the run has already finished.
          last: last step of the run.

        Raises:
          UserError: some of these steps are finished already, or come after `last`.
        """
        first = self.first
        if first is None:
            # In a short run, fewer steps precede the trace.
            first = min(done + WARM_UP, last - self.count) + 1
        end = first + self.count
        if first > done and end <= last + 1:
            return range(first, end)
        asked = f"{self.count} steps" if self.first is None else f"steps {first} to {end - 1}"
        raise UserError(
            f"--profile={self.given}: got {asked}, expected some of steps {done + 1} to {last}, "
            "which this command trains; name other steps, or another --workdir"
            if done < last
            else f"--profile={self.given}: training has ended at step {last}; name another "
            "--workdir"
        )


def parse(text: str | None) -> Profile | None:
    """Parses the value of --profile; returns None if the flag is not given.

    Raises:
      UserError: the value is neither a number nor a range of steps.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", text.strip())
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise UserError(f"--profile={text}: expected {_EXPECTED}")
    if match[2] is None:
        return Profile(text, int(match[1]))
    return Profile(text, int(match[2]) - int(match[1]) + 1, int(match[1]))


class Profiler:
    """Recorder of one trace during training."""

    def __init__(self, profile: Profile | None, folder: Path, done: int, last: int):
        """Checks the steps.

        Args:
          profile: steps to trace; None for no trace.
          folder: run directory.
          done: number of finished steps.
          last: last step of the run.

        Raises:
          UserError: some steps of `profile` are finished already, or come after `last`.
        """
        self._steps = profile.steps(done, last) if profile else range(0)
        self._folder, self._running = folder / FOLDER, False

    def before(self, step: int, drain: Callable[[], Any]) -> None:
        """Starts the trace before its first step.

        Args:
          step: number of the step that comes next.
          drain: function that waits for all earlier steps, which the trace would otherwise contain.
        """
        if self._steps and step == self._steps[0]:
            import jax

            drain()
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, drain: Callable[[], Any]) -> None:
        """Stops the trace after its last step, and prints the path of the trace.

        Args:
          step: number of the step that has started.
          drain: function that waits for the steps of the trace.
        """
        if self._running and step == self._steps[-1]:
            drain()
            self.stop()

    def stop(self) -> None:
        """Writes a trace that is being recorded."""
        if not self._running:
            return
        import jax

        self._running = False
        jax.profiler.stop_trace()
        newest = max(self._folder.glob("plugins/profile/*"), default=self._folder)
        print(
            f"profile: steps {self._steps[0]} to {self._steps[-1]} in {newest}; open its "
            f".trace.json.gz at https://ui.perfetto.dev, or run pip install xprof and "
            f"xprof --logdir={self._folder}",
            file=sys.stderr,
            flush=True,
        )
