"""Latency of the exported programs of each task with one input.

python -m benchmarks.latency
python -m benchmarks.latency --tasks=translation

Each task is measured in a process of its own. The model has the sizes of the task's default config
and initial parameters. It is exported as `launch.export` does, and read with the module that an
export contains. The program for the shortest inputs and that for the longest inputs are each called
with one random input, without pre- and postprocessing; calls of the two programs alternate.
Programs that generate tokens generate as many as their config allows, unless the untrained model
generates the end token earlier. Results are written to benchmarks/results/cpu.json or --json.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from benchmarks import by_task
from benchmarks.interleaved import time_interleaved
from launch import cli


def define_flags() -> None:
    """Defines the flags of this command."""
    by_task.define_flags()
    flags.DEFINE_integer("rounds", 15, "Number of rounds.", lower_bound=1)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Exports the model of a task and measures its programs in this process.

    Args:
      name: name of the task and of its config file.
      rounds: number of timings of each program.

    Returns:
      The row of the task. Its "programs" have the "sizes" of the input and the "p50" and "p90"
      milliseconds of a call, from the shortest input to the longest.
    """
    from launch.engine.state import evaluation_variables
    from launch.engine.steps import make_steps
    from launch.exports import reader, writer

    file, config, task = by_task.prepared(name)
    variables = evaluation_variables(make_steps(task, config).init())
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / "export"
        signature = writer.write_export(task, config, variables, target)
        export = reader.Export(target)
        programs = signature["programs"]["predict"]
        calls = {}
        for index in sorted({0, len(programs) - 1}):
            made_up = writer.made_up_inputs(signature["inputs"], programs[index]["sizes"], index)
            one = {field: values[:1] for field, values in made_up.items()}
            program = export.program("predict", index)
            calls[index] = lambda program=program, one=one: reader.fetched(program(one))
        seconds = time_interleaved(calls, rounds=rounds, least=0.0)
    found = [
        {
            "sizes": programs[index]["sizes"],
            **{f"p{p}": round(1e3 * float(np.percentile(times, p)), 3) for p in (50, 90)},
        }
        for index, times in seconds.items()
    ]
    return {"task": name, "config": file, "model": config.model.name, "programs": found}


def show(row: Mapping[str, Any]) -> str:
    """Formats a row for the terminal."""
    lines = [f"{row['task']}, {row['model']}"]
    for one in row["programs"]:
        sizes = ", ".join(f"{key}={size}" for key, size in one["sizes"].items()) or "one size"
        lines.append(f"{one['p50']:>12,.3g} ms (90 %: {one['p90']:,.3g} ms), {sizes}")
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.main(lambda: by_task.run("latency", "rounds", measure, show), __doc__)
