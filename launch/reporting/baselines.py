"""The task's cheap baselines, fitted once for the same data, beside a trained model."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine.evaluation import Evaluation
from launch.engine.writers import write_json
from launch.reporting import paired
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.task import Task


def baseline_metrics(task: Task, paths: Paths, test: Evaluation) -> dict[str, dict[str, float]]:
    """Metrics of the task's cheap baselines on the same split; fitted once for the same data.

    Where a baseline tells of each example, "gain" is the model's over it on the primary metric,
    positive where the model is better, and "gain_95" half its interval.
    """
    found: dict[str, dict[str, Any]] = {}
    correct = task.correctness(test.outputs, "test")
    examples = digests.of_rows(task.example_ids("test"))
    sign = 1 if task.higher_is_better else -1
    for name, fit in task.baselines().items():
        path = (
            paths.cache_dir
            / "baselines"
            / f"{task.fingerprint}-{name}-v{task.baseline_version}.json"
        )
        cached = _cached(path)
        if "correctness" in cached and cached.get("examples") != examples:
            # Made by an earlier version, or of other examples.
            cached = {}
        found[name] = cached or fit()
        if not cached:
            if "correctness" in found[name]:
                found[name]["correctness"] = np.asarray(found[name]["correctness"]).tolist()
                found[name]["examples"] = examples
            # Without the cache the next run fits it again.
            with contextlib.suppress(UserError):
                write_json(path, found[name])
        found[name].pop("examples", None)
        if (theirs := found[name].pop("correctness", None)) is not None:
            gain = sign * (correct.astype(np.float64) - np.asarray(theirs, np.float64))
            found[name]["gain"], found[name]["gain_95"] = paired.mean_and_interval(
                gain, task.overlap
            )
    return found


def _cached(path: Path) -> dict[str, Any]:
    """What was written; empty if nothing was, or the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
