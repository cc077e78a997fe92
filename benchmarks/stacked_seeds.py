"""Seconds per seed of `launch.sweep` with and without --stack_seeds.

python -m benchmarks.stacked_seeds
python -m benchmarks.stacked_seeds --models=sequence_copy --seeds=3 --steps=100

Each variant is a command in a process of its own, with an empty compilation cache; a short earlier
run prepares data and baselines. Seconds are those of training and validation, with compilation:
`seconds` in `result.json`. The median time of a step is divided by the number of seeds if they are
stacked; unlike seconds it does not include compilation, which is the same for any number of steps.
CPU seconds are those of all threads of the whole command; unlike the other times, they hardly
depend on the load by other processes. Results are written to benchmarks/results/stacked_seeds.json
or --json.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from absl import flags

from benchmarks import records
from launch import cli

MODELS = {
    "sequence_copy": [
        "--config=configs/sequence_copy.py",
        "--config.data.validation_size=500",
        "--config.data.test_size=500",
    ],
    "attention_pooling": ["--config=configs/text_classification.py:sst2,attention_pooling"],
}
WAYS = {"one after another": [], "stacked": ["--stack_seeds"]}


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_enum("models", list(MODELS), list(MODELS), "Models to train.")
    flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=2)
    flags.DEFINE_integer("steps", 200, "Number of steps.", lower_bound=20)
    flags.DEFINE_string("json", None, "Output file.")


def run() -> None:
    """Runs the command."""
    values = flags.FLAGS
    path = pathlib.Path(values.json or records.FOLDER / "stacked_seeds.json")
    for name in values.models:
        row = measure(name, values.seeds, values.steps)
        print(show(row), flush=True)
        records.put(path, "stacked_seeds", {"rows": [*_other_rows(path, name), row]})


def _other_rows(path: pathlib.Path, name: str) -> list[dict[str, Any]]:
    """Returns the rows of other models in a results file."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8")).get("stacked_seeds", {"rows": []})
    return [row for row in found["rows"] if row["model"] != name]


def measure(name: str, seeds: int, steps: int) -> dict[str, Any]:
    """Measures the times per seed of a model with and without stacking; returns its row."""
    sweep(name, 1, 20, [])
    return {
        "model": name,
        "seeds": seeds,
        "steps": steps,
        "ways": {way: sweep(name, seeds, steps, more) for way, more in WAYS.items()},
    }


def sweep(name: str, seeds: int, steps: int, more: list[str]) -> dict[str, float]:
    """Runs a sweep and returns its times per seed and the load of the machine before it."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable, "-m", "launch.sweep", *MODELS[name],
            f"--workdir={folder}/runs", f"--seeds={seeds}",
            f"--config.training.steps={steps}", f"--config.training.evaluate_every={steps}",
            f"--config.training.log_every={steps // 10}", *more,
        ]  # fmt: skip
        load, used = os.getloadavg()[0], _cpu_seconds()
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
        used = _cpu_seconds() - used
        files = sorted(pathlib.Path(folder).glob("runs/*/result.json"))
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert len(found) == seeds
    return summarize(found) | {
        "cpu_seconds_per_seed": round(used / seeds, 1),
        "load_before": round(load, 1),
    }


def _cpu_seconds() -> float:
    """Returns the CPU time of the ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summarize(found: list[dict[str, Any]]) -> dict[str, float]:
    """Returns means over the seeds: the seconds of a run, and the milliseconds of a step."""
    medians = [
        1e3 * run["timing"]["step_seconds_p50"] / run["timing"].get("stacked_seeds", 1)
        for run in found
    ]
    return {
        "seconds_per_seed": round(statistics.mean(run["seconds"] for run in found), 2),
        "milliseconds_per_step_and_seed": round(statistics.mean(medians), 3),
    }


def show(row: dict[str, Any]) -> str:
    """Formats a row for the terminal."""
    lines = [f"{row['model']}, {row['seeds']} seeds, {row['steps']} steps"]
    for way, one in row["ways"].items():
        lines.append(
            f"{way:>18}: {one['seconds_per_seed']:.1f} s per seed, "
            f"{one['milliseconds_per_step_and_seed']:.2f} ms per step and seed, "
            f"{one['cpu_seconds_per_seed']:.1f} CPU s per seed (load {one['load_before']})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
