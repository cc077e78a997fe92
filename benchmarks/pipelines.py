"""Examples per second of the input pipeline of each task, compared with those of its train step.

python -m benchmarks.pipelines
python -m benchmarks.pipelines --tasks=segmentation --tasks=detection

Each task is measured in a process of its own, with the data and the settings of its default config.
First the batches of `tasks.common.data.pipeline.train_iterator` are read without a model. Then the
train step takes the first of these batches from memory; every batch is taken once before the time
is measured, so compilation is excluded. Results are written to benchmarks/results/cpu.json or
--json.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import flags

from benchmarks import by_task
from benchmarks.comparison import engine_steps
from launch import cli

# Target: smallest ratio of the examples per second of the pipeline to those of the train step.
TARGET = 3.0
# Number of batches that the train step takes.
_BATCHES = 8


def define_flags() -> None:
    """Defines the flags of this command."""
    by_task.define_flags()
    flags.DEFINE_float("seconds", 5.0, "Minimum seconds per timing.", lower_bound=0.0)


def measure(name: str, seconds: float) -> dict[str, Any]:
    """Measures the pipeline and the train step of a task in this process.

    Args:
      name: name of the task and of its config file.
      seconds: minimum seconds per timing.

    Returns:
      The row of the task. "pipeline" and "step" are examples per second.
    """
    from tasks.common.data.pipeline import train_iterator

    file, config, task = by_task.prepared(name)
    size = config.training.batch_size

    def batches() -> Iterator[Mapping[str, np.ndarray]]:
        return train_iterator(
            task.examples("train"), batch_size=size, seed=config.seed, buckets=task.buckets
        )

    first = list(itertools.islice(batches(), _BATCHES))
    again = batches()
    next(again)
    step = engine_steps(task, config, first)
    step(_BATCHES)
    return {
        "task": name,
        "config": file,
        "batch_size": size,
        "target": TARGET,
        "pipeline": round(_rate((count(next(again)) for _ in itertools.count()), seconds), 1),
        "step": round(_rate(_stepped(step, sum(map(count, first))), seconds), 1),
    }


def count(batch: Mapping[str, np.ndarray]) -> int:
    """Returns the number of examples of a batch, without padding rows."""
    return int(np.count_nonzero(batch["weight"]))


def _stepped(step: Any, examples: int) -> Iterator[int]:
    while True:
        step(_BATCHES)
        yield examples


def _rate(done: Iterator[int], seconds: float) -> float:
    """Returns the number of examples per second of an iterator over numbers of examples."""
    total, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or not total:
        total += next(done)
    return total / passed


def show(row: Mapping[str, Any]) -> str:
    """Formats a row for the terminal."""
    return (
        f"{row['task']}: {row['pipeline']:,.0f} examples/s of the pipeline, "
        f"{row['step']:,.0f} of the train step, ratio {row['pipeline'] / row['step']:.1f}"
    )


if __name__ == "__main__":
    define_flags()
    cli.main(lambda: by_task.run("pipelines", "seconds", measure, show), __doc__)
