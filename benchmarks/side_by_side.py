"""Ways to do the same, timed in turns in one process: all of them meet the same machine."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np


def compare(
    runs: Mapping[str, Callable[[int], float]], *, steps: int, rounds: int, wanted: str = ""
) -> float:
    """Prints seconds a round of each, and the ratio of the medians of the first two.

    Args:
      runs: name -> what takes that many steps and gives the last loss; warm already.
      steps: of a round.
      rounds: of each.
      wanted: said beside the ratio.

    Returns:
      The ratio, first to second.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            loss = run(steps)
            seconds[name].append(time.perf_counter() - began)
            if not np.isfinite(loss):
                sys.exit(f"{name}: the loss is {loss}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(
            f"{name:>6}: {medians[name]:.3f} s for {steps} steps "
            f"({min(values):.3f} to {max(values):.3f} in {rounds} rounds)"
        )
    (first, numerator), (second, denominator) = list(medians.items())[:2]
    print(f" ratio: {numerator / denominator:.2f} ({first} / {second}{wanted})")
    return numerator / denominator
