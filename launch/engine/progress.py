"""Progress display: a bar in a terminal, otherwise one line per evaluation."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Progress display with step, steps/s, loss, validation metric and remaining time."""

    def __init__(self, steps: int, first_step: int, metric: str):
        """Args: total number of steps; number of finished steps; name of the validation metric."""
        self._steps, self._first, self._metric = steps, first_step, metric
        self._marks = [(first_step, time.monotonic())]
        self._loss = self._value = float("nan")
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=self._steps, completed=self._first, status=""
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def trained(self, step: int, loss: float) -> None:
        """Updates the display with the training loss of a step."""
        self._loss = loss
        if self._bar:
            self._bar.update(self._task, completed=step, status=self._status(step))

    def validated(self, step: int, value: float) -> None:
        """Updates the display with the validation metric of a step."""
        self._value = value
        if self._bar:
            self._bar.update(self._task, completed=step, status=self._status(step))
        else:
            left = (self._steps - step) / max(self._rate(step), 1e-9)
            line = f"step {step}/{self._steps}  {self._status(step)}  {_clock(left)} left"
            print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _rate(self, step: int) -> float:
        """Returns steps/s over the most recent updates, which excludes compilation."""
        if step > self._marks[-1][0]:
            self._marks = [*self._marks[-4:], (step, time.monotonic())]
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        return (last - first) / max(ended - began, 1e-9)

    def _status(self, step: int) -> str:
        return (
            f"{self._rate(step):.1f} steps/s  loss {self._loss:.4f}  "
            f"validation {self._metric} {self._value:.4f}"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
