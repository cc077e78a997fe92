"""Evaluation of a run directory on a split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from launch.engine import evaluation
from launch.engine.config import Experiment
from launch.engine.writers import write_json
from launch.runs import directory
from tasks.common.data.paths import Paths


def evaluate_run(config: Experiment, folder: Path, split: str, paths: Paths) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run directory and writes the metrics to that directory.

    Args:
      config: experiment of the run.
      folder: run directory.
      split: split to evaluate on.
      paths: directories of data sets and caches.

    Returns:
      Split, step and metrics.

    Raises:
      UserError: the data cannot be read or differ from the run's data, or there is no checkpoint.
    """
    task = directory.prepared_task(config, paths, folder)
    if config.training.refit:
        task = task.with_validation()
        if split == "validation":
            print(
                "this run was refitted on train and validation; use --split=test for an unbiased "
                "estimate",
                file=sys.stderr,
            )
    directory.check_assets(task, folder)
    steps, variables, best = directory.load_variables(task, config, folder)
    result = evaluation.evaluate(
        task, steps, variables, split, config.training.evaluation_batch_size
    )
    directory.save_outputs(folder, task, result, split)
    record = {"split": split, "step": best, "metrics": result.metrics}
    write_json(folder / f"evaluation-{split}.json", record)
    return record
