"""Ways to do the same, timed in turns in one process: all of them meet the same machine."""

from __future__ import annotations

import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags


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


def grown_by(work: Callable[[], Any], then: Callable[[Any], Any] | None = None) -> int:
    """Bytes by which work takes the resident set of this process, at its peak, beyond what it is
    now.

    Args:
      work: what is done.
      then: done after it with what it gives; where there is one, the peak is that of this part
        alone, so that what compiling takes for a while does not count.
    """
    before = _resident("VmRSS")
    given = work()
    if then is not None:
        # Linux forgets the peak so far.
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        then(given)
    return _resident("VmHWM") - before


def resident_peak() -> int:
    """Bytes of this process's resident set at its peak."""
    return _resident("VmHWM")


def _resident(field: str) -> int:
    """Bytes of the resident set: "VmRSS" now, "VmHWM" at its peak."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def compare_memory(module: str, names: Sequence[str], arguments: Sequence[str] = ()) -> float:
    """Prints the peak memory of each, and the ratio of the first two.

    Args:
      module: to be run in a process of its own for each name, with `--only=NAME`, when it prints
        what `grown_by` gives.
      names: of what is compared.
      arguments: further ones of the module.

    Returns:
      The ratio, first to second.
    """
    found = {}
    for name in names:
        command = [sys.executable, "-m", module, f"--only={name}", *arguments]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = int(answer.stdout.split()[-1])
        print(f"{name:>6}: {found[name] / 2**20:,.0f} MiB at the peak")
    first, second = names[:2]
    ratio = found[first] / found[second]
    print(f" ratio: {ratio:.2f} ({first} / {second})")
    return ratio


def define_flags() -> None:
    """Those of `time_and_memory`."""
    flags.DEFINE_integer("steps", 4, "Train steps a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Rounds of each.", lower_bound=1)
    flags.DEFINE_enum("only", None, ["here", "torch"], "Print the peak memory of one, in bytes.")


def time_and_memory(
    module: str,
    make: Mapping[str, Callable[[], Callable[[int], float]]],
    libraries: Mapping[str, str],
    arguments: Sequence[str] = (),
) -> None:
    """Prints seconds a round of each and the ratio, then the peak memory of each and the ratio.

    Args:
      module: that is run: see `compare_memory`.
      make: name -> what makes a function that takes steps.
      libraries: name -> module that is loaded before its memory is measured: what libraries
        themselves take does not count.
      arguments: see `compare_memory`.
    """

    def warm(name: str) -> Callable[[int], float]:
        run = make[name]()
        run(1)
        return run

    if name := flags.FLAGS.only:
        importlib.import_module(libraries[name])
        print(grown_by(lambda: warm(name), lambda run: run(3)))
        return
    runs = {name: warm(name) for name in make}
    compare(runs, steps=flags.FLAGS.steps, rounds=flags.FLAGS.rounds)
    compare_memory(module, list(runs), arguments)


def unaugmented(path: str, **changes: Any) -> Any:
    """The experiment of a config file on pictures, without augmentation, on one device.

    Args:
      path: of the config file.
      **changes: by key with __ for a dot.
    """
    from launch.engine import config as configs

    config = experiment(path)
    plain = vars(type(config.data.augmentation)())
    none = {f"data.augmentation.{name}": value for name, value in plain.items()}
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return configs.override(config, none | {"mesh.data": 1} | changes)


def experiment(path: str) -> Any:
    """The experiment of a config file, with this process set up as `launch.train` does it."""
    from launch.engine import config as configs
    from launch.engine.memory import keep_large_buffers
    from launch.engine.sharding import request_devices

    config = configs.load_file(path)
    request_devices(config.mesh)
    keep_large_buffers()
    return config


def engine_steps(
    task: Any, config: Any, data: Sequence[Mapping[str, np.ndarray]]
) -> Callable[[int], float]:
    """Takes train steps with this project's engine, through the batches again and again."""
    import jax

    from launch.engine.steps import make_steps

    steps = make_steps(task, config)
    state = steps.init()

    def run(count: int) -> float:
        nonlocal state
        for index in range(count):
            state, metrics = steps.train(state, steps.place(data[index % len(data)]))
        return float(jax.block_until_ready(metrics)["loss"])

    return run


def torch_steps(
    model: Any, config: Any, batches: Sequence[Any], loss: Callable[[Any, Any], Any]
) -> Callable[[int], float]:
    """Takes train steps with PyTorch: AdamW and clipping of the config; `loss(model, batch)`."""
    import torch

    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
    )

    def run(count: int) -> float:
        for index in range(count):
            optimizer.zero_grad()
            value = loss(model, batches[index % len(batches)])
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
            optimizer.step()
        return value.item()

    return run
