"""Seconds from the start of a command to its first train steps, with PyTorch for comparison.

python -m benchmarks.startup                      (make bench installs torch)
python -m benchmarks.startup --models=translator --rounds=1

Each measurement is a process of its own. `launch.train` is measured from its start to the end of
its first and its tenth step, including imports and the reading of data, which an earlier command
has prepared. "cold" means an empty compilation cache, and "warm" a cache that the previous process
has filled. The processes of PyTorch build the model of `benchmarks.steps` and take a step on a
batch that is already in memory. Their time includes the import of torch, but no data. Results are
medians over --rounds; they are written to benchmarks/results/cpu.json or --json.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags

from benchmarks import records, report
from benchmarks.attention_backends import installed
from launch import cli
from launch.engine.writers import read_lines
from tasks.common.errors import UserError

# Steps of `launch.train` whose time is measured.
STEPS = (1, 10)
STATES = ("cold", "warm")
# Seconds after which a process is ended.
_LIMIT = 600


class Startup(NamedTuple):
    """A command of `launch.train`.

    Attributes:
      config: config file with its argument.
      peer: model of `benchmarks.steps` with which PyTorch is measured.
      targets: for each state of the cache, "cold" or "warm", the target for the seconds to the
        first step; empty if there is none.
    """

    config: str
    peer: str
    targets: Mapping[str, float] = {}


MODELS = {
    "classifier": Startup(
        "configs/text_classification.py:sst2,transformer", "transformer", {"cold": 10, "warm": 4}
    ),
    "translator": Startup("configs/translation.py", "translator", {"cold": 25, "warm": 8}),
    "unet": Startup("configs/segmentation.py", "unet"),
    "language_model": Startup("configs/language_modeling.py", "language_model"),
    "speech": Startup("configs/speech_recognition.py:spoken_digits,conformer,ctc", "speech"),
}


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_enum("models", list(MODELS), list(MODELS), "Models to start.")
    flags.DEFINE_integer("rounds", 3, "Number of rounds.", lower_bound=1)
    flags.DEFINE_string(
        "python",
        sys.executable,
        "Interpreter that runs `launch.train`, such as that of .venv, because the additional "
        "packages of the benchmarks' environment take time to import.",
    )
    records.define_output()
    flags.DEFINE_enum("only", None, list(MODELS), "Print the seconds of a step with PyTorch.")
    flags.DEFINE_bool("compiled", False, "Whether --only uses torch.compile.")


def run() -> None:
    """Runs the command."""
    values = flags.FLAGS
    if values.only:
        print(torch_seconds(MODELS[values.only].peer, values.compiled))
        return
    path = records.output()
    if not installed("torch"):
        print("torch is not installed: no comparison")
    for name in values.models:
        row = measure(name, values.rounds)
        print(json.dumps(row), flush=True)
        records.put_row(path, "startup", "model", row, MODELS, rounds=values.rounds)
    if values.readme:
        report.write(path.parent)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Measures the startup of a model, with this project and with PyTorch.

    Returns:
      The row of the model. Its entry "ways" contains, for each implementation, the median seconds
      by the state of the cache and the step.
    """
    started, python = MODELS[name], flags.FLAGS.python
    here: list[dict[str, float]] = []
    torch: dict[str, list[dict[str, float]]] = {"torch": [], "torch compiled": []}
    with tempfile.TemporaryDirectory() as folder:
        # Prepares data and tokenizers.
        first_steps(started.config, pathlib.Path(folder) / "prepared", {}, python)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            base = pathlib.Path(folder)
            caches = {
                "JAX_COMPILATION_CACHE_DIR": str(base / "jax"),
                "TORCHINDUCTOR_CACHE_DIR": str(base / "torch"),
            }
            here.append(
                {
                    f"{state} {step}": seconds
                    for state in STATES
                    for step, seconds in first_steps(
                        started.config, base / state, caches, python
                    ).items()
                }
            )
            if installed("torch"):
                for way, found in torch.items():
                    found.append({f"{state} 1": _torch(name, way, caches) for state in STATES})
    ways = {"here": _medians(here)}
    ways |= {way: _medians(found) for way, found in torch.items() if found}
    return {"model": name, "what": started.config, "targets": dict(started.targets), "ways": ways}


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(one[key] for one in found), 2) for key in found[0]}


def first_steps(
    config: str, workdir: pathlib.Path, environment: Mapping[str, str], python: str = ""
) -> dict[int, float]:
    """Starts `launch.train` and returns the seconds until the end of each step of `STEPS`.

    Args:
      config: value of --config.
      workdir: run directory, which does not exist.
      environment: additional environment variables.
      python: interpreter; that of this process by default.

    Raises:
      UserError: the command ended, or the steps took more than ten minutes.
    """
    words = [
        python or sys.executable, "-m", "launch.train", f"--config={config}",
        f"--workdir={workdir}", "--nobaselines", "--config.training.log_every=1",
    ]  # fmt: skip
    began, found = time.perf_counter(), {}
    process = subprocess.Popen(
        words, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while len(found) < len(STEPS):
            time.sleep(0.01)
            seconds = time.perf_counter() - began
            if process.poll() is not None or seconds > _LIMIT:
                process.kill()
                said = process.communicate()[1].decode(errors="replace").strip()
                reason = said.splitlines()[-1] if said else "no message"
                raise UserError(f"{' '.join(words)}: ended after {seconds:.0f} s: {reason}")
            lines = read_lines(workdir / "metrics.jsonl")
            done = max((line["step"] for line in lines), default=0)
            found |= {step: seconds for step in STEPS if step <= done and step not in found}
    finally:
        if process.returncode is None:
            process.kill()
            process.communicate()
    return found


def _torch(name: str, way: str, environment: Mapping[str, str]) -> float:
    words = [sys.executable, "-m", "benchmarks.startup", f"--only={name}"]
    words += ["--compiled"] * (way == "torch compiled")
    done = subprocess.run(
        words, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def torch_seconds(model: str, compiled: bool) -> float:
    """Imports torch, builds a model and takes a step in this process; returns the seconds."""
    module = importlib.import_module(f"benchmarks.steps.{model}")
    config, data = module.setup(None)
    began = time.perf_counter()
    module.torch_step(config, data, compiled)(1)
    return time.perf_counter() - began


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
