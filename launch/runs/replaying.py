"""Repetition of a step whose loss or gradient was not finite; see `launch.engine.nonfinite`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from launch.engine import nonfinite, origins
from launch.engine import state as states
from launch.engine.checkpoints import Checkpoints
from launch.engine.origins import Origin
from launch.engine.steps import Steps, loss_function, make_steps
from launch.engine.writers import read_json
from launch.runs.directory import check_assets, prepared_task, saved_config
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import numbered_batches
from tasks.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Replay:
    """Result of a repeated step.

    Attributes:
      step: number of the step.
      before: names of the arrays of the train state that are not finite before the step.
      loss: loss of the step.
      gradients: names of the parameters whose gradients are not finite.
      parameters: number of all parameters.
      origin: operation that produces the first non-finite value; None if it was not searched for,
        because the state before the step is not finite, or if there is none.
    """

    step: int
    before: list[str]
    loss: float
    gradients: list[str]
    parameters: int
    origin: Origin | None

    @property
    def finite(self) -> bool:
        """True if everything is finite, so that the fault was not repeated."""
        return not self.before and not self.gradients and bool(np.isfinite(self.loss))

    @property
    def verdict(self) -> str:
        """One line with the conclusion."""
        if self.finite:
            return (
                f"step {self.step} is finite when repeated; the fault depends on the device, or on "
                "operations without a fixed order"
            )
        if self.before:
            return f"{self.before[0]} is not finite before step {self.step}"
        return f"step {self.step}: {self.origin or 'the operation at fault was not found'}"

    def lines(self) -> list[str]:
        """Returns the lines to print, the verdict last."""
        before = ", ".join(self.before[:5]) or "finite"
        found = [f"state before the step: {before}", f"loss: {self.loss}"]
        if self.gradients:
            more = ", ..." if self.gradients[5:] else ""
            found.append(
                f"gradients: not finite for {len(self.gradients)} of {self.parameters} parameters: "
                f"{', '.join(self.gradients[:5])}{more}"
            )
        else:
            found.append("gradients: finite")
        return [*found, f"verdict: {self.verdict}"]


def replay(
    folder: Path, step: int | None, paths: Paths, say: Callable[[str], None] = print
) -> Replay:
    """Repeats a saved step of a run directory.

    The steps between the saved checkpoint and the saved step are repeated first; they need the data
    of the run.

    Args:
      folder: run directory.
      step: one of the saved steps; None for the first.
      paths: directories of data sets and caches.
      say: function that prints a line.

    Raises:
      UserError: the run has no such step, its files are damaged, or the data differ.
    """
    config = saved_config(folder)
    assert config is not None
    place, record = _saved(folder, step)
    task = prepared_task(config, paths, folder)
    task = task.with_validation() if config.training.refit else task
    check_assets(task, folder)
    steps = make_steps(task, config)
    at, first = record["step"], record["checkpoint"]
    state = _restored(place, first, steps)
    batch = numbered_batches(
        task.examples("train"),
        batch_size=config.training.batch_size,
        seed=config.seed,
        buckets=task.buckets,
        multiple=steps.batch_shards,
    )
    since = f"the checkpoint of step {first}" if first else "the initial parameters"
    say(f"step {at}: {at - 1 - first} steps are repeated from {since}")
    for number in range(first, at - 1):
        state, metrics = steps.train(state, steps.place(batch(number)))
        jax.block_until_ready(metrics)
    return _examine(task, config.seed, jax.device_get(state), _read_batch(place), at)


def _saved(folder: Path, step: int | None) -> tuple[Path, dict[str, Any]]:
    known = nonfinite.saved_steps(folder)
    if not known:
        raise UserError(
            f"--workdir={folder}: has no saved step; steps are saved in {nonfinite.FOLDER}/ when "
            "the loss or a gradient is not finite"
        )
    if step is not None and step not in known:
        raise UserError(
            f"--step={step}: is not saved, expected one of {', '.join(map(str, known))}"
        )
    place = folder / nonfinite.FOLDER / f"step-{known[0] if step is None else step}"
    record = read_json(place / nonfinite.RECORD)
    if not isinstance(record, dict) or not {"step", "checkpoint"} <= record.keys():
        raise UserError(f"{place / nonfinite.RECORD}: has no step or checkpoint; restore the file")
    return place, record


def _restored(place: Path, step: int, steps: Steps) -> Any:
    if not step:
        return steps.init()
    with contextlib.closing(Checkpoints(place / "checkpoints")) as checkpoints:
        return checkpoints.restore(step, steps.abstract_state, remedy="restore it")


def _read_batch(place: Path) -> dict[str, np.ndarray]:
    path = place / nonfinite.BATCH
    try:
        with np.load(path) as saved:
            return dict(saved)
    except Exception as error:
        raise UserError(f"{path}: cannot be read ({error}); restore the file") from None


def _examine(task: Any, seed: int, state: Any, batch: dict[str, np.ndarray], step: int) -> Replay:
    """Computes the loss and gradients of a step on one device, and searches for the `Origin`."""
    params, statistics = state["params"], state["statistics"]
    before = origins.nonfinite_names(state, states.path_name)
    model = states.merge_model(states.graph_definition(task, seed), params, statistics)
    with origins.module_scopes(model) as tagged:
        graphdef, _, _ = states.split_model(tagged)
        loss_of = loss_function(task, graphdef, seed)

        def both(params: Any) -> tuple[Any, Any]:
            (loss, _), gradients = jax.value_and_grad(loss_of, has_aux=True)(
                params, statistics, state["step"], batch
            )
            return loss, gradients

        loss, gradients = jax.jit(both)(params)
        found = origins.nonfinite_names(gradients, states.path_name)
        bad = bool(found) or not np.isfinite(loss)
        origin = origins.first_nonfinite(both, params) if bad and not before else None
    return Replay(step, before, float(loss), found, len(jax.tree.leaves(params)), origin)
