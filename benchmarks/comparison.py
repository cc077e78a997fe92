"""Train steps with `launch.engine` and PyTorch on the same batches, and memory of a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


def grown_by(work: Callable[[], Any], then: Callable[[Any], Any] | None = None) -> int:
    """Runs a function and returns by how many bytes the resident set of this process grows.

    The growth is measured from the memory before the call to the peak.

    Args:
      work: function to measure.
      then: function that is called with the result of `work`. If it is given, only the peak during
        this call counts, so that compilation in `work` is excluded.
    """
    before = _resident("VmRSS")
    given = work()
    if then is not None:
        # This resets the peak in Linux.
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        then(given)
    return _resident("VmHWM") - before


def resident_peak() -> int:
    """Returns the peak of the resident set of this process, in bytes."""
    return _resident("VmHWM")


def _resident(field: str) -> int:
    """Returns the bytes of the resident set, now (field "VmRSS") or at its peak ("VmHWM")."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def unaugmented(path: str, **changes: Any) -> Any:
    """Loads the experiment of a config file without augmentation, for one device.

    Args:
      path: config file.
      **changes: values of config keys; `a__b` stands for the key a.b.
    """
    from launch.engine import config as configs

    config = experiment(path)
    plain = vars(type(config.data.augmentation)())
    none = {f"data.augmentation.{name}": value for name, value in plain.items()}
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return configs.override(config, none | {"mesh.data": 1} | changes)


def experiment(path: str) -> Any:
    """Loads the experiment of a config file and sets up this process as `launch.train` does."""
    from launch.engine import config as configs
    from launch.engine.memory import keep_large_buffers, run_in_calls
    from launch.engine.sharding import request_devices

    config = configs.load_file(path)
    run_in_calls()
    request_devices(config.mesh)
    keep_large_buffers()
    return config


class Vocabulary(NamedTuple):
    """A stand-in for a fitted tokenizer: the train step needs only its size."""

    size: int


def engine_steps(
    task: Any, config: Any, data: Sequence[Mapping[str, np.ndarray]]
) -> Callable[[int], float]:
    """Returns a function that takes train steps with the engine and returns the last loss.

    The function cycles through the batches.

    Args:
      task: the task.
      config: the experiment.
      data: the batches.
    """
    from launch.engine.clock import Clock
    from launch.engine.steps import make_steps

    steps, clock = make_steps(task, config), Clock()
    state = steps.init()

    def run(count: int) -> float:
        nonlocal state
        for index in range(count):
            batch = steps.place(data[index % len(data)])
            state = clock.run(steps.train, state, batch)
        state, metrics = clock.finish(state)
        return float(metrics[-1]["loss"])

    return run


def torch_steps(
    model: Any,
    config: Any,
    batches: Sequence[Any],
    loss: Callable[[Any, Any], Any],
    compiled: bool = False,
) -> Callable[[int], float]:
    """Returns a function that takes train steps with PyTorch, AdamW and gradient clipping.

    Args:
      model: PyTorch module.
      config: the experiment.
      batches: the batches, through which the function cycles.
      loss: function of model and batch that returns the loss.
      compiled: whether `torch.compile` compiles the model.
    """
    import torch

    model = torch.compile(model) if compiled else model
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
