"""Metrics of a task's baselines, and the gain of a model over them."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine.evaluation import Evaluation
from launch.engine.writers import read_mapping, write_json
from launch.reporting import paired
from tasks.common.checksums import sealed, unsealed
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.task import Task


def baseline_metrics(task: Task, paths: Paths, test: Evaluation) -> dict[str, dict[str, float]]:
    """Returns the test metrics of a task's baselines, which are fitted once per data set.

    The metrics of each baseline are a dict. Its key "seconds" is the run time of fitting and
    evaluation. If the baseline has per-example scores, the key "gain" is the improvement of the
    model over the baseline on the primary metric, positive if the model is better. "gain_95" is
    half the width of the gain's 95 % confidence interval.
    """
    found: dict[str, dict[str, Any]] = {}
    scores = task.example_scores(test.outputs, "test")
    examples = digests.of_rows(task.example_ids("test"))
    sign = 1 if task.higher_is_better else -1
    for name, fit in task.baselines().items():
        path = (
            paths.cache_dir
            / "baselines"
            / f"{task.fingerprint}{task.baseline_data}-{name}-v{task.baseline_version}.json"
        )
        cached = _cached(path)
        if "example_scores" in cached and cached.get("examples") != examples:
            # The cached scores are from an earlier version or from other examples.
            cached = {}
        found[name] = cached
        if not cached:
            began = time.monotonic()
            found[name] = dict(fit())
            found[name]["seconds"] = round(time.monotonic() - began, 2)
            if "example_scores" in found[name]:
                theirs = np.asarray(found[name]["example_scores"])
                found[name]["example_scores"] = theirs.tolist()
                found[name]["examples"] = examples
            # Without the cache file, the next run fits the baseline again.
            with contextlib.suppress(UserError):
                write_json(path, sealed(found[name]))
        found[name].pop("examples", None)
        if (theirs := found[name].pop("example_scores", None)) is not None:
            gain = sign * (scores.astype(np.float64) - np.asarray(theirs, np.float64))
            mean, half = paired.mean_and_interval(gain, task.overlap)
            found[name] |= {"gain": mean, "gain_95": half}
    return found


def _cached(path: Path) -> dict[str, Any]:
    """Returns the content of a cache file; an empty dict if the file is missing or damaged.

    Files of earlier versions have no checksum, so the baseline is fitted again.
    """
    try:
        found = unsealed(read_mapping(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
