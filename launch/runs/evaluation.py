"""Evaluation of a run directory on a split, or on a labeled file of the user."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine import evaluation, processes
from launch.engine.config import Experiment
from launch.engine.writers import write_json
from launch.reporting.paired import mean_and_interval
from launch.runs import directory
from tasks.answers import AnswerOptions
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.task import Task, seven_digits


def prepared_for_evaluation(config: Experiment, folder: Path, paths: Paths) -> Task:
    """Returns the task with the data that a run was trained on.

    Raises:
      UserError: the data cannot be read, or differ from the run's data.
    """
    task = directory.prepared_task(config, paths, folder)
    if config.training.refit:
        task = task.with_validation()
    directory.check_assets(task, folder)
    return task


@dataclasses.dataclass(frozen=True)
class FileEvaluation:
    """Results on a labeled file of the user.

    Attributes:
      record: file, number of examples, step, metrics, and 95 % confidence intervals of metrics.
      rows: record of each example, see `tasks.task.Task.predictions`.
    """

    record: dict[str, Any]
    rows: list[dict[str, Any]]


def evaluate_file(
    config: Experiment,
    folder: Path,
    file: str,
    options: AnswerOptions,
    images: str | None = None,
) -> FileEvaluation:
    """Evaluates the best checkpoint of a run directory on a labeled file.

    The data of the run are not needed, and nothing is written to the run directory.

    Args:
      config: experiment of the run.
      folder: run directory.
      file: labeled file, see `tasks.task.Task.with_file`.
      options: options of predictions, which add metrics.
      images: folder of the images of an annotation file.

    Raises:
      UserError: the file cannot be used, an option does not apply, or there is no checkpoint.
    """
    trained = directory.restored_task(config, folder).with_options(options)
    _expect_metrics(trained, options)
    if images is not None and not trained.separate_images:
        raise UserError(
            "--images: does not apply, because this task reads no annotation file; leave it out"
        )
    task = trained.with_file(file, images)
    steps, variables, best = directory.load_variables(trained, config, folder)
    batch_size = config.training.evaluation_batch_size
    found = evaluation.evaluate(task, steps, variables, "test", batch_size)
    scores = task.example_scores(found.outputs, "test")
    rows = task.predictions(found.outputs, "test", scores=scores)
    metrics = {**found.metrics, **task.decided(found.outputs, "test")}
    middle, half = mean_and_interval(scores.astype(np.float64), task.overlap)
    # Equal scores give an interval of width 0, which says nothing and is left out.
    primary = {task.primary_metric: (middle - half, middle + half)} if half else {}
    intervals = {**primary, **task.intervals(found.outputs, "test")}
    record = {
        "file": file,
        "examples": len(scores),
        "step": best,
        "metrics": metrics,
        "intervals": {
            name: [seven_digits(bound) for bound in intervals[name]]
            for name in metrics
            if name in intervals
        },
    }
    return FileEvaluation(record, rows)


def _expect_metrics(task: Task, options: AnswerOptions) -> None:
    """Checks that the given options of predictions add metrics to an evaluation.

    Raises:
      UserError: an option does not apply, or the task has no metrics that depend on options.
    """
    options.check(task.answer_options)
    if options.given and type(task).decided is Task.decided:
        name = next(iter(options.given))
        raise UserError(
            f"--{name}: applies only to predictions, and adds no metric of this task; leave it out"
        )


def evaluate_run(
    config: Experiment,
    folder: Path,
    split: str,
    paths: Paths,
    task: Task | None = None,
    options: AnswerOptions | None = None,
) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run directory and writes the metrics to that directory.

    Args:
      config: experiment of the run.
      folder: run directory.
      split: split to evaluate on.
      paths: directories of data sets and caches.
      task: result of `prepared_for_evaluation`; None to call it.
      options: options of predictions. Their metrics are returned, but not written.

    Returns:
      Split, step and metrics.

    Raises:
      UserError: the data cannot be read or differ from the run's data, or there is no checkpoint.
    """
    if config.training.refit and split == "validation":
        print(
            "this run was refitted on train and validation; use --split=test for an unbiased "
            "estimate",
            file=sys.stderr,
        )
    if task is None:
        task = prepared_for_evaluation(config, folder, paths)
    if options is not None:
        _expect_metrics(task, options)
        task = task.with_options(options)
    steps, variables, best = directory.load_variables(task, config, folder)
    result = evaluation.evaluate(
        task, steps, variables, split, config.training.evaluation_batch_size
    )
    record = {"split": split, "step": best, "metrics": result.metrics}
    if processes.is_first():
        directory.save_outputs(folder, task, result, split)
        write_json(folder / f"evaluation-{split}.json", record)
    return {**record, "metrics": {**result.metrics, **task.decided(result.outputs, split)}}
