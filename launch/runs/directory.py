"""Access to run directories: config, task, checkpoint and outputs of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine import config as configs
from launch.engine import state as states
from launch.engine.checkpoints import finished_steps
from launch.engine.config import Experiment
from launch.engine.evaluation import Evaluation
from launch.engine.predictor import Predictor
from launch.engine.writers import best_step, check_logs, validation_curve, write_text
from launch.runs import predictions
from launch.runs.provenance import Description, saved_assets
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.task import Pretrained, Task


def saved_config(folder: Path, required: bool = True) -> Experiment | None:
    """Reads the experiment of a run directory from its config.json.

    Raises:
      UserError: the directory contains no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        if not required:
            return None
        raise UserError(
            f"--workdir={folder}: contains no run (no config.json); {_run_near(folder)}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); name another directory") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not the config of a run; name another directory")
    try:
        return configs.resolve(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _run_near(folder: Path) -> str:
    """Returns advice for an error message about a directory without a run.

    If the directory contains run directories, the advice names them.
    """
    if folder.is_file():
        return "it is a file; name the run directory"
    runs = sorted(path.parent for path in folder.glob("*/config.json")) if folder.is_dir() else []
    if runs:
        names = ", ".join(str(run) for run in runs[:3]) + (", ..." if runs[3:] else "")
        return f"name one of the runs in it: {names}"
    return "train one first"


def load_variables(task: Task, config: Experiment, folder: Path) -> tuple[Any, Any, int]:
    """Returns the compiled functions, the variables at the best validation step, and that step.

    For a refitted run, the last step is used instead.

    Raises:
      UserError: the directory has no checkpoint, or the best one cannot be read.
    """
    from launch.engine.checkpoints import Checkpoints
    from launch.engine.steps import make_steps

    best = _step_to_load(task, config, folder)
    steps = make_steps(task, config)
    with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        state = checkpoints.restore(best, steps.abstract_state)
    return steps, states.evaluation_variables(state), best


def _step_to_load(task: Task, config: Experiment, folder: Path) -> int:
    """Returns the step with the best validation metric; for a refitted run, the last step."""
    whole = finished_steps(folder / "checkpoints")
    if not whole:
        raise UserError(f"--workdir={folder}: has no checkpoint yet; train first")
    if config.training.refit:
        return max(whole)
    plan = config.training
    check_logs(folder, whole, plan.evaluate_every, plan.steps, plan.log_every)
    curve = dict(validation_curve(folder, task.primary_metric))
    if not curve:
        raise UserError(f"--workdir={folder}: has no checkpoint yet; train first")
    best = best_step(folder, task.primary_metric, task.higher_is_better)
    if best in whole or (folder / "checkpoints" / str(best)).exists():
        return best
    # The run was killed while writing the checkpoint of the best step.
    sign = 1 if task.higher_is_better else -1
    found = max(whole, key=lambda step: (sign * curve.get(step, -sign * math.inf), -step))
    print(
        f"--workdir={folder}: the checkpoint of the best step {best} is missing; step {found} "
        f"is used",
        file=sys.stderr,
        flush=True,
    )
    return found


def load_predictor(task: Task, config: Experiment, folder: Path) -> Predictor:
    """Returns a predictor with the best checkpoint of a run directory.

    Args:
      task: task restored from the assets of the run directory.
      config: experiment of the run.
      folder: run directory.

    Raises:
      UserError: there is no checkpoint, or the best one cannot be read.
    """
    steps, variables, _ = load_variables(task, config, folder)
    return Predictor(task, config, steps, variables)


def prepared_task(config: Experiment, paths: Paths, trained: Path | None = None) -> Task:
    """Returns the task with its data and, if config.model.init_from is set, initial parameters.

    Args:
      config: the experiment.
      trained: run directory that already has parameters, so that the run named by
        config.model.init_from is not needed.

    Raises:
      UserError: the data cannot be obtained, or the initial parameters cannot be read or do not fit
        the model.
    """
    options = {}
    if source := getattr(config.model, "init_from", ""):
        if trained is None:
            options["pretrained"] = _pretrained(config, Path(source))
        else:
            options["assets"] = saved_assets(trained)
    return configs.task_class(config.task).prepare(config.data, config.model, paths, **options)


def _pretrained(config: Experiment, folder: Path) -> Pretrained:
    try:
        saved = saved_config(folder)
        # The parameters are restored to the mesh of this run.
        placed = dataclasses.replace(saved, mesh=config.mesh)
        steps, variables, _ = load_variables(restored_task(saved, folder), placed, folder)
    except UserError as error:
        reason = str(error).removeprefix(f"--workdir={folder}: ")
        raise UserError(f"config.model.init_from={folder}: {reason}") from None
    params = steps.fetch(variables["params"])
    return Pretrained(folder, saved.task, saved.data, saved.model, saved_assets(folder), params)


def restored_task(config: Experiment, folder: Path) -> Task:
    """Returns the task of a run directory for predictions, without its data.

    Raises:
      UserError: assets.json is missing, damaged or from another task.
    """
    assets = saved_assets(folder)
    try:
        return configs.task_class(config.task).restore(config.data, config.model, assets)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / 'assets.json'}: was not written by {config.task} "
            f"({type(error).__name__}: {error}); restore the file, or train again"
        ) from None


def check_assets(task: Task, folder: Path) -> None:
    """Raises if the data differ from the data that the run was trained on.

    Raises:
      UserError: the data, the labels or the tokenizer differ.
    """
    remedy = "restore the data, or train on the present data in another --workdir"
    Description.of(task).check(folder, remedy)


def save_outputs(folder: Path, task: Task, evaluation: Evaluation, split: str) -> None:
    """Writes the outputs, score and prediction of every example of a split.

    The files are outputs-<split>.npz, for paired comparisons, and predictions-<split>.csv.

    Raises:
      UserError: the directory cannot be written.
    """
    scores, ids = task.example_scores(evaluation.outputs, split), task.example_ids(split)
    saved = {"example_scores": scores, "overlap": task.overlap, "example_ids": ids}
    rows = task.predictions(evaluation.outputs, split, ids, scores)
    write_text(folder / f"predictions-{split}.csv", predictions.as_csv(rows))
    path = folder / f"outputs-{split}.npz"
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        np.savez_compressed(temporary, **saved, **evaluation.outputs)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
