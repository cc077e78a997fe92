"""Train steps of a model in JAX and in another library, compared in time and peak memory.

python -m benchmarks.steps --model=language_model        (make bench installs torch)
python -m benchmarks.steps --model=transformer --rounds=9 --set=length=64

Both implementations have the same sizes, options and optimizer and train on the same batches. The
rounds of the implementations alternate in one process. The ratio is that of the median times.
Memory is the growth of the resident set of a separate process, from before the model is built to
the peak in steps after the first. --set changes a size that the `setup` function of the model's
file takes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import flags

from benchmarks.comparison import grown_by
from benchmarks.steps import MODELS, WAYS
from benchmarks.torchvision_cpu import load_torchvision
from launch import cli
from tasks.common.errors import UserError

flags.DEFINE_enum("model", None, list(MODELS), "Model to compare.")
flags.DEFINE_integer("steps", None, "Train steps per round; by default that of the model.", 1)
flags.DEFINE_integer("rounds", None, "Number of rounds; by default that of the model.", 1)
flags.DEFINE_integer("batch_size", None, "Examples per step; by default that of the config.", 1)
flags.DEFINE_multi_string(
    "set", [], "Override size=number of the model's `setup`, for example length=64."
)
flags.DEFINE_enum("only", None, WAYS, "Print the peak memory of one implementation, in bytes.")
FLAGS = flags.FLAGS


def run() -> None:
    """Runs the command."""
    model = MODELS[cli.required("model")]
    module = importlib.import_module(f"benchmarks.steps.{FLAGS.model}")
    config, data = module.setup(FLAGS.batch_size, **_sizes(module.setup))

    def warm(name: str) -> Callable[[int], float]:
        if name == "here":
            step = module.jax_step(config, data)
        else:
            step = module.torch_step(config, data, name == "torch compiled")
        step(1)
        return step

    if FLAGS.only:
        library = model.task if FLAGS.only == "here" else model.library
        load_torchvision() if library == "torchvision" else importlib.import_module(library)
        print(grown_by(lambda: warm(FLAGS.only), lambda step: step(3)))
        return
    steps, rounds = FLAGS.steps or model.steps, FLAGS.rounds or model.rounds
    medians = _time({name: warm(name) for name in ("here", "torch")}, steps, rounds)
    print(f" ratio: {medians['here'] / medians['torch']:.2f} (here / torch)")
    peaks = {name: _memory(name) for name in medians}
    print(f" ratio: {peaks['here'] / peaks['torch']:.2f} (here / torch)")


def _sizes(setup: Callable[..., Any]) -> dict[str, Any]:
    known = [name for name in inspect.signature(setup).parameters if name != "batch_size"]
    found = {}
    for setting in FLAGS.set:
        name, _, value = setting.partition("=")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            name = ""
        if name not in known:
            there_are = ", ".join(known) or "none for this model"
            raise UserError(f"--set={setting}: expected size=number; the sizes are {there_are}")
    return found


def _time(runs: Mapping[str, Callable[[int], float]], steps: int, rounds: int) -> dict[str, float]:
    """Times all implementations; prints and returns the median seconds of a round for each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, step in runs.items():
            began = time.perf_counter()
            loss = step(steps)
            seconds[name].append(time.perf_counter() - began)
            if not np.isfinite(loss):
                sys.exit(f"{name}: the loss is {loss}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(
            f"{name:>6}: {medians[name]:.3f} s for {steps} steps "
            f"({min(values):.3f} to {max(values):.3f} in {rounds} rounds)"
        )
    return medians


def _memory(name: str) -> int:
    """Measures the peak memory of an implementation in a separate process.

    It is printed, and returned in bytes.
    """
    command = [sys.executable, "-m", "benchmarks.steps", *sys.argv[1:], f"--only={name}"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = int(answer.stdout.split()[-1])
    print(f"{name:>6}: {found / 2**20:,.0f} MiB at the peak")
    return found


if __name__ == "__main__":
    cli.main(run, __doc__)
