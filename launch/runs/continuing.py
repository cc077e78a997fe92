"""Continuation of a run by raising `config.training.steps` or `config.training.patience`.

A run is continued only if the result is the same as that of a run that has the larger values from
the start. So the learning rate must not depend on the number of steps, and the last validation must
be at a step at which the longer run is validated too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path

from launch.engine import config as configs
from launch.engine import processes
from launch.engine.checkpoints import Checkpoints, finished_steps
from launch.engine.config import Experiment
from launch.engine.loop import early_stop
from launch.engine.writers import best_step, write_json
from launch.reporting.results import RESULT
from tasks.common.errors import UserError

_EARLIER = re.compile(r"result-(\d+)\.json")


def is_longer(saved: Experiment, config: Experiment) -> bool:
    """Returns whether a config differs from the config of a run only by more steps or patience."""
    before, after = saved.training, config.training
    more_patience = before.patience and (not after.patience or after.patience > before.patience)
    if after.steps < before.steps or not (after.steps > before.steps or more_patience):
        return False
    if after.patience != before.patience and not more_patience:
        return False
    training = dataclasses.replace(after, steps=before.steps, patience=before.patience)
    return configs.identity(dataclasses.replace(config, training=training)) == configs.identity(
        saved
    )


def check(saved: Experiment, config: Experiment, folder: Path) -> None:
    """Raises unless a run can be continued with the larger values of `config`; see `is_longer`.

    Raises:
      UserError: the continued run would differ from a run with these values from the start.
    """
    before, after = saved.training, config.training
    remedy, reason = "name another --workdir", ""
    if after.refit:
        reason = (
            "it was trained again on the training and validation splits (config.training.refit)"
        )
    elif after.steps > before.steps and config.optimizer.spans_all_steps:
        reason = f"config.optimizer.schedule={config.optimizer.schedule} decays over all its steps"
        remedy += (
            "; a run with the schedule constant or inverse_sqrt, or with "
            "config.optimizer.decay_steps, can be continued"
        )
    elif whole := finished_steps(folder / "checkpoints"):
        task = configs.task_class(config.task)
        if stopped := early_stop(folder, task, after):
            reason = str(stopped)
            remedy = f"raise config.training.patience too, or {remedy}"
        elif _last_common(saved, folder, whole) is None:
            reason = (
                f"its last validation at step {before.steps} is not at a multiple of "
                f"config.training.evaluate_every={before.evaluate_every}, and checkpoints before "
                "it are gone"
            )
    if reason:
        raise UserError(
            f"--workdir={folder}: contains a run of {before.steps} steps, which cannot be "
            f"continued to {after.steps}: {reason}; {remedy}"
        )


def _last_common(saved: Experiment, folder: Path, whole: list[int]) -> int | None:
    """Returns the newest step at which a run with more steps would have a checkpoint too.

    The result is 0 if there is no such step, and None if the checkpoint at this step, or the best
    one up to it, does not exist any more.
    """
    every, newest = saved.training.evaluate_every, max(whole)
    if newest < saved.training.steps or newest % every == 0:
        return newest
    common = newest - newest % every
    if not common:
        # The run is trained again from the start.
        return 0
    task = configs.task_class(saved.task)
    best = best_step(folder, task.primary_metric, task.higher_is_better, until=common)
    return common if {common, best} <= set(whole) else None


def begin(saved: Experiment, config: Experiment, folder: Path) -> None:
    """Prepares a finished run for continuation; renames its result to result-<steps>.json.

    Args:
      saved: experiment of the run.
      config: experiment with more steps or patience, for which `check` has passed.
      folder: run directory.
    """
    first = processes.is_first()
    if first and (folder / RESULT).exists():
        (folder / RESULT).replace(folder / f"result-{saved.training.steps}.json")
    if whole := processes.from_first(lambda: finished_steps(folder / "checkpoints")):
        common = processes.from_first(lambda: _last_common(saved, folder, whole))
        if common is not None and common < max(whole):
            with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
                checkpoints.delete_after(common)
    if first:
        write_json(folder / "config.json", configs.to_dict(config))


def earlier_steps(folder: Path) -> list[int]:
    """Returns the number of steps of each finished run that this run continues, ascending."""
    found = (_EARLIER.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)
