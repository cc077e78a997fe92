"""Goodput and other summaries of the lines of timing.jsonl.

Each line describes the time since the line before it: `seconds` of training steps,
`evaluation_seconds` of a validation with its checkpoint, or `start_seconds` of compiling the
initialization and restoring a checkpoint. The line of a start also has `lost_seconds`: the wall
time of all lines that a killed process wrote after the restored step. The steps of these lines are
repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Line = Mapping[str, Any]

PERCENTILES = (50, 90, 99)
# Keys whose values in a line add up to the wall time of the line.
_WALL = ("seconds", "evaluation_seconds", "start_seconds", "lost_seconds")
# Parts of `seconds` in which no step makes progress.
_OVERHEAD = ("compile_seconds", "save_seconds")


def wall_seconds(line: Line) -> float:
    """Returns the wall time that a line describes, including its `lost_seconds`."""
    return sum(line.get(key, 0.0) for key in _WALL)


def wait_seconds(line: Line) -> float:
    """Returns the part of a line's time in which the host waited for data."""
    return line.get("data_wait_fraction", 0.0) * line.get("seconds", 0.0)


def useful_seconds(line: Line) -> float:
    """Returns the part of a line's time in which steps ran.

    Waiting for data, compilation and saving are excluded.
    """
    spent = line.get("seconds", 0.0)
    if not spent:
        return 0.0
    overhead = sum(line.get(key, 0.0) for key in _OVERHEAD) + wait_seconds(line)
    return max(spent - overhead, 0.0)


def run_seconds(line: Line) -> float:
    """Returns the part of a line's time for training and validation, per seed.

    If seeds are trained together (--stack_seeds), a line has the time of all of them, and their
    number as `stacked_seeds`.
    """
    spent = line.get("seconds", 0.0) + line.get("evaluation_seconds", 0.0)
    return spent / line.get("stacked_seeds", 1)


def goodput(lines: Iterable[Line]) -> float | None:
    """Computes the fraction of the wall time of a run in which useful steps ran.

    The wall time is the total time of the successive processes that trained the run, each from the
    start of its training loop to its last line. Time in the loop is useful except for compilation,
    waiting for data, evaluation, saving, restoring, and steps that were repeated because a process
    was killed. The wall time excludes the preparation of data, the evaluation on the test split,
    the time between two processes, and the time of a killed process after its last line.

    Args:
      lines: lines of timing.jsonl. Lines of earlier versions lack the time of compilation and
        saving, which then counts as useful.

    Returns:
      A number from 0 to 1; None without lines.
    """
    wall = useful = 0.0
    for line in lines:
        wall += wall_seconds(line)
        useful += useful_seconds(line)
    return useful / wall if wall else None


def percentiles(durations: Sequence[float]) -> dict[str, float]:
    """Computes percentiles of step times by linear interpolation; returns {} without step times.

    Args:
      durations: step times in seconds.
    """
    if not durations:
        return {}
    values = np.percentile(np.asarray(durations, np.float64), PERCENTILES)
    return {
        step_key(percent): float(f"{value:.4g}")
        for percent, value in zip(PERCENTILES, values, strict=True)
    }


def step_key(percent: int) -> str:
    """Returns the key under which a line has a percentile of the step time."""
    return f"step_seconds_p{percent}"


def summarize(lines: Sequence[Line]) -> dict[str, float]:
    """Summarizes the times and the memory of a run for its record.

    Args:
      lines: lines of timing.jsonl.

    Returns:
      The goodput, sums of seconds by purpose, percentiles of the step time, peak memory in MB, and
      the number of stacked seeds. A percentile is the median of its values in all lines. Values
      that were not measured are left out.
    """
    found: dict[str, float] = {}
    if (fraction := goodput(lines)) is not None:
        found["goodput"] = round(fraction, 4)
        found["wall_seconds"] = round(sum(map(wall_seconds, lines)), 2)
        found["useful_seconds"] = round(sum(map(useful_seconds, lines)), 2)
        found["data_wait_seconds"] = round(sum(map(wait_seconds, lines)), 2)
    for key in ("compile_seconds", "evaluation_seconds", "save_seconds", "start_seconds",
                "lost_seconds"):  # fmt: skip
        if values := _values(lines, key):
            found[key] = round(sum(values), 2)
    for key in map(step_key, PERCENTILES):
        if values := _values(lines, key):
            found[key] = float(f"{np.median(values):.4g}")
    for key in ("peak_memory_mb", "peak_device_memory_mb", "stacked_seeds"):
        if values := _values(lines, key):
            found[key] = max(values)
    return found


def _values(lines: Iterable[Line], key: str) -> list[float]:
    return [line[key] for line in lines if key in line]
