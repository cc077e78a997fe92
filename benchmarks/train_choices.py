"""Effect of options on a train step: one device per core, dtype, rematerialization, C++ compiler.

python -m benchmarks.train_choices
python -m benchmarks.train_choices --models=unet --rounds=9

The models are three of `benchmarks.train_step`. Each choice of an option runs in a separate
process, and the rounds of the processes alternate. Results are written to
benchmarks/results/cpu.json or --json.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from benchmarks import records, report
from benchmarks.comparison import resident_peak
from benchmarks.interleaved import summary, time_interleaved
from benchmarks.train_step import check_batch_size, define_common_flags
from launch import cli
from tasks.common.errors import UserError

MODELS = ("transformer", "unet", "recurrent")
PLAIN = "as configured"
# For each choice, the changed config values and environment variables.
CHOICES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    PLAIN: ({}, {}),
    "a device a core": ({"mesh.cpu_devices": os.cpu_count(), "mesh.data": -1}, {}),
    "bfloat16": ({"model.dtype": "bfloat16"}, {}),
    "rematerialization": ({"model.rematerialize": True}, {}),
    "without a C++ compiler": ({}, {"CXX": "none"}),
}


def define_flags() -> None:
    """Defines the flags of this command."""
    define_common_flags(MODELS)
    flags.DEFINE_enum(
        "only", None, list(MODELS), "Take steps of this model on requests from stdin."
    )
    flags.DEFINE_enum("choice", PLAIN, list(CHOICES), "Choice to use with --only.")


def run() -> None:
    """Runs the command."""
    check_batch_size()
    values = flags.FLAGS
    if values.only:
        _serve(values.only, values.choice)
        return
    path = records.output()
    rows = []
    for name in values.models or MODELS:
        rows.append({"model": name, "choices": measure(name)})
        print(show(rows[-1]), flush=True)
        records.put(path, "train_choices", {"rows": rows})
    if values.readme:
        report.write(path.parent)


def measure(name: str) -> dict[str, dict[str, Any]]:
    """Measures the train step of a model with each choice.

    Returns:
      For each choice, the result of `summary` and the "peak" memory in bytes, or the reason why it
      was "skipped".
    """
    values, found = flags.FLAGS, {}
    with contextlib.ExitStack() as stack:
        steppers = {}
        for choice in CHOICES:
            stepper = stack.enter_context(_process(name, choice))
            answer = stepper.answer()
            if answer == "ready":
                steppers[choice] = stepper
            else:
                found[choice] = {"skipped": answer}
        asks: dict[str, Callable[[], Any]] = {c: s.step for c, s in steppers.items()}
        seconds = time_interleaved(asks, rounds=values.rounds, least=values.seconds)
        found |= summary(seconds, PLAIN)
        for choice, stepper in steppers.items():
            found[choice]["peak"] = int(stepper.ask("peak"))
    return {choice: found[choice] for choice in CHOICES}


class _Stepper:
    """A process that takes train steps on request."""

    def __init__(self, process: subprocess.Popen):
        self._process = process

    def answer(self) -> str:
        line = self._process.stdout.readline().strip()
        return line or "the process ended without a message"

    def ask(self, word: str) -> str:
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self.answer()

    def step(self) -> None:
        answer = self.ask("step")
        if answer != "done":
            sys.exit(answer)


@contextlib.contextmanager
def _process(name: str, choice: str) -> Iterator[_Stepper]:
    command = [sys.executable, "-m", "benchmarks.train_choices"]
    command += [f"--only={name}", f"--choice={choice}"]
    if flags.FLAGS.batch_size is not None:
        command.append(f"--batch_size={flags.FLAGS.batch_size}")
    environment = os.environ | CHOICES[choice][1] | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            yield _Stepper(process)
        finally:
            process.kill()


def _serve(name: str, choice: str) -> None:
    """Serves the train step of a model with one choice, in a process that `_process` starts.

    Prints "ready" or an error. Then answers the requests "step" and "peak" from stdin.
    """
    from launch.engine import config as configs
    from launch.engine.sharding import request_devices

    module = importlib.import_module(f"benchmarks.steps.{name}")
    config, data = module.setup(flags.FLAGS.batch_size)
    try:
        config = configs.override(config, CHOICES[choice][0])
        request_devices(config.mesh)
        step = module.jax_step(config, data)
    except UserError as error:
        print(str(error).splitlines()[0], flush=True)
        return
    step(len(data))
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            print(resident_peak(), flush=True)
            continue
        step(1)
        print("done", flush=True)


def show(row: dict[str, Any]) -> str:
    """Formats a row for the terminal."""
    lines = [row["model"]]
    for choice, one in row["choices"].items():
        if "skipped" in one:
            lines.append(f"{choice:>24}: {one['skipped']}")
            continue
        low, high = one["milliseconds_range"]
        lines.append(
            f"{choice:>24}: {one['milliseconds']:.3g} ms a step ({low:.3g} to {high:.3g}), "
            f"{one['ratio']:.2f} of {PLAIN}; {one['peak'] / 1e6:,.0f} MB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    cli.main(run, __doc__)
