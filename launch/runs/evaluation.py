"""Evaluation of a run directory on a split, or on a labeled file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from launch.engine import evaluation
from launch.engine.config import Experiment
from launch.engine.writers import write_json
from launch.runs import directory
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.task import Task


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


def with_test_file(task: Task, file: str, paths: Paths) -> Task:
    """Returns the task with the examples of a labeled file as test split.

    Args:
      task: prepared task.
      file: file in the form of `config.data.test_file`.
      paths: directories of data sets and caches.

    Raises:
      UserError: the file cannot be read, has other classes, or the run has no user files.
    """
    data = task.data
    if getattr(data, "train_file", None) is None or not hasattr(data, "test_file"):
        raise UserError(
            "file: this run has no config.data.train_file, expected a run on user files of a task "
            "with config.data.test_file; leave it out"
        )
    read = task.load(dataclasses.replace(data, test_file=file), paths)
    known, names = (getattr(each, "label_names", ()) for each in (task.dataset, read))
    if list(known) != list(names):
        raise UserError(
            f"{file}: got the classes {', '.join(names)}, expected those of the run: "
            f"{', '.join(known)}"
        )
    splits = {**task.dataset.splits, "test": read.splits["test"]}
    dataset = dataclasses.replace(task.dataset, splits=splits)
    return type(task)(data, task.model, task.processor, dataset)


def evaluate_run(
    config: Experiment,
    folder: Path,
    split: str,
    paths: Paths,
    task: Task | None = None,
    write: bool = True,
) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run directory and writes the metrics to that directory.

    Args:
      config: experiment of the run.
      folder: run directory.
      split: split to evaluate on.
      paths: directories of data sets and caches.
      task: task of `prepared_for_evaluation`; None to prepare it.
      write: whether to write metrics, outputs and predictions.

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
    steps, variables, best = directory.load_variables(task, config, folder)
    result = evaluation.evaluate(
        task, steps, variables, split, config.training.evaluation_batch_size
    )
    record = {"split": split, "step": best, "metrics": result.metrics}
    if write:
        directory.save_outputs(folder, task, result, split)
        write_json(folder / f"evaluation-{split}.json", record)
    return record
