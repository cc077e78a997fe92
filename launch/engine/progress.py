"""Progress display: a bar in a terminal or a notebook, otherwise lines.

Without a bar, a line with an estimate of the remaining time is printed after the first ten steps.
Further lines are printed at each log step and at each validation.
"""

from __future__ import annotations

import html
import importlib
import sys
import time
from typing import Any

from launch.engine import processes
from launch.engine.memory import peak_memory

# Shortest time between two updates of the bar in a notebook, in seconds. Each update is a message
# to the browser.
_INTERVAL = 0.25
# Number of steps after which the first estimate of the time is printed.
ESTIMATE_AFTER = 10
# Shortest time between two lines of `PredictionProgress`, in seconds.
_PREDICTION_INTERVAL = 10.0


class Progress:
    """Progress display with step, steps/s, loss, validation metric and remaining time."""

    def __init__(
        self, steps: int, first_step: int, metric: str, shown: bool = True, label: str = ""
    ):
        """Initializes a display that is not visible yet.

        Args:
          steps: total number of steps.
          first_step: number of finished steps.
          metric: name of the validation metric.
          shown: whether anything but the lines of `say` is displayed.
          label: prefix of the lines of `say`.
        """
        self._steps, self._first, self._metric = steps, first_step, metric
        self._silent = not processes.is_first()
        self._shown, self._label = shown and not self._silent, label
        self._marks = [(first_step, time.monotonic())]
        self._loss = self._value = float("nan")
        self._wait, self._logged = 0.0, False
        self._bar: _TerminalBar | _NotebookBar | None = None

    def __enter__(self) -> Progress:
        if not self._shown:
            return self
        if sys.stderr.isatty():
            self._bar = _TerminalBar(self._steps, self._first)
        elif _in_notebook():
            self._bar = _NotebookBar(self._steps, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def timed(self, step: int, logged: bool) -> None:
        """Records the time of a finished step, and prints the first estimate of the remaining time.

        Args:
          step: either the first step of the process, whose time includes compilation, or the step
            `ESTIMATE_AFTER` steps after the start.
          logged: whether a line for the same step follows.
        """
        if step == self._first + 1:
            self._marks = [(step, time.monotonic())]
        elif not (self._bar or logged or self._logged):
            left = f"about {self._left(step)} left, evaluations not counted"
            self._print(step, self._speed(step), left)

    def trained(
        self, step: int, loss: float, data_wait: float = 0.0, validates: bool = False
    ) -> None:
        """Updates the display with the training loss of a step.

        Args:
          step: number of finished steps.
          loss: mean training loss since the last update.
          data_wait: fraction of the time since then that was spent waiting for data.
          validates: whether a call of `validated` for the same step follows.
        """
        self._loss, self._wait = loss, data_wait
        self._update(step, f"{self._speed(step)}  loss {loss:.4f}", prints=not validates)

    def validated(self, step: int, value: float) -> None:
        """Updates the display with the validation metric of a step."""
        self._value = value
        self._update(step, self._status(step), prints=True)

    def _update(self, step: int, line: str, prints: bool) -> None:
        self._logged = True
        if self._bar:
            self._bar.update(step, self._status(step), self._left(step))
        elif prints:
            self._print(step, line, f"data wait {self._wait:.0%}", str(peak_memory()),
                        f"{self._left(step)} left")  # fmt: skip

    def _print(self, step: int, *parts: str) -> None:
        if not self._shown:
            return
        line = "  ".join((f"step {step}/{self._steps}", *parts))
        print(line, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Prints a line above the progress bar, on the first process only."""
        line = f"{self._label}: {line}" if self._label else line
        if self._bar:
            self._bar.say(line)
        elif not self._silent:
            print(line, file=sys.stderr, flush=True)

    def _rate(self, step: int) -> float:
        """Returns the steps per second over the most recent updates, which exclude compilation."""
        if step > self._marks[-1][0]:
            self._marks = [*self._marks[-4:], (step, time.monotonic())]
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        return (last - first) / max(ended - began, 1e-9)

    def _speed(self, step: int) -> str:
        rate = self._rate(step)
        return f"{rate:.1f} steps/s" if rate else "? steps/s"

    def _left(self, step: int) -> str:
        rate = self._rate(step)
        return clock((self._steps - step) / rate) if rate else "?"

    def _status(self, step: int) -> str:
        return (
            f"{self._speed(step)}  loss {self._loss:.4f}  "
            f"validation {self._metric} {self._value:.4f}"
        )


class PredictionProgress:
    """Lines on standard error with the number of predictions, one every few seconds."""

    def __init__(self, count: int | None, what: str = "inputs", done: str = "predicted"):
        """Initializes lines such as "predicted 5 of 10 inputs".

        Args:
          count: number of inputs; None if unknown.
          what: plural noun for the inputs.
          done: past participle before the number of finished inputs.
        """
        self._count, self._what, self._word, self._done = count, what, done, 0
        self._began = self._shown = time.monotonic()

    def add(self, number: int) -> None:
        """Counts predictions, and prints a line if none was printed in the last ten seconds."""
        self._done += number
        now = time.monotonic()
        if now - self._shown < _PREDICTION_INTERVAL:
            return
        self._shown = now
        rate = self._done / max(now - self._began, 1e-9)
        speed = f"{rate:,.0f} per second" if rate >= 10 else f"{rate:.2g} per second"
        line = f"{self._word} {self._done:,}"
        if self._count is not None:
            left = clock((self._count - self._done) / max(rate, 1e-9))
            line += f" of {self._count:,} {self._what}  {speed}  {left} left"
        else:
            line += f" {self._what}  {speed}"
        print(line, file=sys.stderr, flush=True)


class _TerminalBar:
    """Bar on standard error."""

    def __init__(self, steps: int, first_step: int):
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
        self._task = self._bar.add_task("training", total=steps, completed=first_step, status="")

    def update(self, step: int, status: str, left: str) -> None:
        self._bar.update(self._task, completed=step, status=status)

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def stop(self) -> None:
        self._bar.stop()


class _NotebookBar:
    """Bar in the output of a notebook's cell: one element that is replaced by each update."""

    def __init__(self, steps: int, first_step: int):
        self._ipython = importlib.import_module("IPython.display")
        self._steps, self._shown = steps, time.monotonic()
        self._content = self._html(first_step, "", "")
        self._handle = self._ipython.display(self._content, display_id=True)

    def _html(self, step: int, status: str, left: str) -> Any:
        line = f"step {step}/{self._steps}  {status}{f'  {left} left' if left else ''}"
        bar = f'<progress value="{step}" max="{self._steps}"></progress>'
        return self._ipython.HTML(f"<div>{bar} <code>{html.escape(line)}</code></div>")

    def update(self, step: int, status: str, left: str) -> None:
        self._content = self._html(step, status, left)
        if time.monotonic() - self._shown >= _INTERVAL:
            self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._handle.update(self._content)

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        self._show()


def _in_notebook() -> bool:
    """Returns whether the program runs in the kernel of a notebook, started by IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def clock(seconds: float) -> str:
    """Formats seconds as minutes and seconds, such as 1:05."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
