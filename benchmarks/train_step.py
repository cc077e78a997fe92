"""Train steps of models compared with PyTorch, eager and compiled.

python -m benchmarks.train_step                    (make bench installs torch)
python -m benchmarks.train_step --models=unet --rounds=9

The models are those of `benchmarks.steps`. Each model runs in a separate process, in which the
rounds of the implementations alternate. Ratios are this project's median time divided by PyTorch's.
Memory is that of `benchmarks.steps`: the growth of a process of each implementation. Results are
written to benchmarks/results/cpu.json or --json, and rows of other models are kept there if they
were measured on the same machine at the same commit.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from benchmarks import records, report
from benchmarks.attention_backends import installed
from benchmarks.interleaved import let_torch_wait, summary, time_interleaved
from benchmarks.steps import MODELS
from launch import cli
from tasks.common.errors import UserError

# Targets: maximum ratios of time and memory to the better of eager and compiled PyTorch.
TIME, MEMORY = 0.9, 1.2


def define_common_flags(models: Sequence[str]) -> None:
    """Defines the flags that this command shares with `benchmarks.train_choices`."""
    flags.DEFINE_multi_enum("models", [], list(models), "Models to time; all by default.")
    flags.DEFINE_integer("rounds", 7, "Number of rounds.", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "Minimum seconds per timing.", lower_bound=0.0)
    flags.DEFINE_integer("batch_size", None, "Examples per step; by default that of the config.")
    records.define_output()


def check_batch_size() -> None:
    """Raises UserError for a --batch_size below 1."""
    batch_size = flags.FLAGS.batch_size
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size={batch_size}: expected at least 1")


def define_flags() -> None:
    """Defines the flags of this command."""
    define_common_flags(list(MODELS))
    flags.DEFINE_bool("compiled", True, "Whether to time torch.compile.")
    flags.DEFINE_enum("only", None, list(MODELS), "Print one model's row as JSON.")


def run() -> None:
    """Runs the command."""
    check_batch_size()
    values = flags.FLAGS
    # The PyTorch implementations are for CPUs.
    jax.config.update("jax_platforms", "cpu")
    if values.only:
        print(json.dumps(measure(values.only)))
        return
    waiting = let_torch_wait() if installed("torch") else None
    if waiting is None:
        print("torch is not installed: no ratios")
    path = records.output()
    for name in values.models or MODELS:
        options = [word for word in sys.argv[1:] if not word.startswith(("--models", "--json"))]
        row = records.alone("benchmarks.train_step", f"--only={name}", *options)
        for way, one in row["ways"].items():
            if "milliseconds" in one:
                one["peak"] = memory(name, way)
        print(show(row), flush=True)
        records.put_row(path, "train_step", "model", row, MODELS, torch_waits=waiting)
    if values.readme:
        report.write(path.parent)


def measure(name: str) -> dict[str, Any]:
    """Times the train step of a model in all implementations.

    Returns:
      The row of the model. Its entry "ways" contains the times and the ratio of each
      implementation.
    """
    values, module = flags.FLAGS, importlib.import_module(f"benchmarks.steps.{name}")
    config, data = module.setup(values.batch_size)
    makers = {"here": functools.partial(module.jax_step, config, data)}
    if installed("torch"):
        import os

        import torch

        torch.set_num_threads(os.cpu_count())
        makers["torch"] = functools.partial(module.torch_step, config, data)
        if values.compiled:
            makers["torch compiled"] = functools.partial(module.torch_step, config, data, True)
    steps, found = {}, {}
    for way, make in makers.items():
        try:
            steps[way] = make()
            loss = steps[way](3)
        except Exception as error:
            if way == "here":
                raise
            steps.pop(way, None)
            found[way] = {"skipped": f"failed: {str(error).strip().splitlines()[0][:120]}"}
            continue
        if not math.isfinite(loss):
            sys.exit(f"{name}, {way}: the loss is {loss}")
    runs = {way: functools.partial(step, 1) for way, step in steps.items()}
    seconds = time_interleaved(runs, rounds=values.rounds, least=values.seconds)
    found |= summary(seconds, "here")
    for one in found.values():
        if "ratio" in one:
            low, high = one.pop("ratio_range")
            one["over"] = round(1 / one.pop("ratio"), 3)
            one["over_range"] = [round(1 / high, 3), round(1 / low, 3)]
    what = f"{MODELS[name].what}, batch {values.batch_size or config.training.batch_size}"
    ways = {way: found[way] for way in makers}
    return {"model": name, "what": what, "targets": {"time": TIME, "memory": MEMORY}, "ways": ways}


def memory(name: str, way: str) -> int | None:
    """Returns the peak memory of an implementation in bytes; None if it cannot be measured."""
    command = [sys.executable, "-m", "benchmarks.steps", f"--model={name}", f"--only={way}"]
    if flags.FLAGS.batch_size is not None:
        command.append(f"--batch_size={flags.FLAGS.batch_size}")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def show(row: dict[str, Any]) -> str:
    """Formats a row for the terminal."""
    lines = [f"{row['model']} ({row['what']})"]
    for name, one in row["ways"].items():
        if "skipped" in one:
            lines.append(f"{name:>16}: {one['skipped']}")
            continue
        low, high = one["milliseconds_range"]
        ratio = "" if name == "here" else f"; this project takes {one['over']:.2f} times as long"
        if one.get("peak"):
            ratio += f"; {one['peak'] / 1e6:,.0f} MB"
        lines.append(
            f"{name:>16}: {one['milliseconds']:.3g} ms a step ({low:.3g} to {high:.3g}){ratio}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
