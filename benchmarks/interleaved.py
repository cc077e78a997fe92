"""Timing of short functions in interleaved rounds, without effects of the previous function.

PyTorch's OpenMP threads spin for some milliseconds after its last call and occupy the cores of the
next function; the threads of XLA do not. Each timing therefore begins with a pause and an untimed
call. Whether the threads spin at all (OMP_WAIT_POLICY) is chosen in favor of PyTorch: see
`let_torch_wait`.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

NAP = 0.01
# Duration of a call in seconds. For longer calls, effects of the previous function are negligible.
LONG = 0.5


def time_interleaved(
    runs: Mapping[str, Callable[[], Any]], *, rounds: int, least: float = 0.05
) -> dict[str, list[float]]:
    """Measures the seconds per call of each function in interleaved rounds.

    Args:
      runs: compiled functions by name; each waits for its result.
      rounds: number of rounds. If a call takes at least `LONG` seconds, the number is halved, but
        it is at least two.
      least: minimum seconds per timing; short functions are called repeatedly.

    Returns:
      The seconds per call of each function, by name, one number per round.
    """
    counts: dict[str, int] = {}
    for name, run in runs.items():
        time.sleep(NAP)
        once = _seconds(run)
        if once < LONG:
            once = min(once, _seconds(run))
        counts[name] = max(1, math.ceil(least / once))
        if once >= LONG:
            counts[name] = 0
        rounds = min(rounds, max(2, rounds // 2)) if once >= LONG else rounds
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(NAP)
            if counts[name]:
                run()
            seconds[name].append(_seconds(run, max(1, counts[name])))
    return seconds


def summary(seconds: Mapping[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """Computes the median time of each function and its ratio to the median of `base`.

    Args:
      seconds: result of `time_interleaved`.
      base: name of the function with which the other functions are compared.

    Returns:
      For each function, by name: "milliseconds" (the median) and "milliseconds_range" (over the
      rounds). If `base` was measured, also "ratio" (of the medians) and "ratio_range" (over the
      rounds).
    """
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    found = {}
    for name, times in seconds.items():
        found[name] = {
            "milliseconds": _round(1e3 * medians[name]),
            "milliseconds_range": [_round(1e3 * edge(times)) for edge in (min, max)],
        }
        if base in seconds:
            ratios = [mine / other for mine, other in zip(times, seconds[base], strict=True)]
            found[name]["ratio"] = _round(medians[name] / medians[base])
            found[name]["ratio_range"] = [_round(edge(ratios)) for edge in (min, max)]
    return found


def slope(sizes: list[float], values: list[float]) -> float:
    """Returns the exponent b of the power law value = a · size^b.

    It is fitted by least squares on logarithms.
    """
    x, y = ([math.log(v) for v in numbers] for numbers in (sizes, values))
    return statistics.linear_regression(x, y).slope


def _seconds(run: Callable[[], Any], count: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - began) / count


def _round(number: float) -> float:
    """Rounds to four significant digits."""
    return float(f"{number:.4g}")


_TORCH_ALONE = """
import os, statistics, time, torch
torch.set_num_threads(os.cpu_count())
heads = [torch.randn(8, 8, 128, 64, requires_grad=True) for _ in range(3)]
def step():
    out = torch.nn.functional.scaled_dot_product_attention(*heads)
    torch.autograd.grad(out, heads, out.detach())
def seconds():
    began = time.perf_counter()
    for _ in range(10):
        step()
    return (time.perf_counter() - began) / 10
seconds()
print(statistics.median(seconds() for _ in range(9)))
"""


def let_torch_wait() -> dict[str, Any]:
    """Sets OMP_WAIT_POLICY to the faster policy for PyTorch: spinning (its default) or PASSIVE.

    To compare them, a short forward and backward pass is timed in separate processes. Call this
    function before PyTorch is imported. It does nothing if the variable is already set.

    Returns:
      The "policy", and the milliseconds with each policy if they were measured.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {"policy": os.environ["OMP_WAIT_POLICY"]}
    found: dict[str, list[float]] = {"default": [], "PASSIVE": []}
    for _ in range(2):
        for policy, times in found.items():
            variables = {} if policy == "default" else {"OMP_WAIT_POLICY": policy}
            done = subprocess.run(
                [sys.executable, "-c", _TORCH_ALONE],
                env=os.environ | variables,
                capture_output=True,
                text=True,
                check=True,
            )
            times.append(1e3 * float(done.stdout))
    best = min(found, key=lambda policy: min(found[policy]))
    if best != "default":
        os.environ["OMP_WAIT_POLICY"] = best
    return {"policy": best, **{f"{k}_ms": _round(min(v)) for k, v in found.items()}}
