"""Finished run directories written without training, for tests of comparisons."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.engine import config as configs
from launch.engine.config import Experiment

CONFIG = "configs/text_classification.py:movie_reviews,attention_pooling"


def experiment(changes: Mapping[str, Any] | None = None) -> Experiment:
    """Returns the experiment of `CONFIG` with changed values."""
    return configs.override(configs.load_file(CONFIG), changes or {})


def make_run(
    folder: pathlib.Path,
    scores: Sequence[float],
    validation: float = 0.5,
    ids: Sequence[int] | None = None,
    changes: Mapping[str, Any] | None = None,
    parameters: int = 1000,
) -> pathlib.Path:
    """Writes the files that a finished run leaves for comparisons, and returns its directory.

    Args:
      folder: run directory.
      scores: score of each test example; their mean is the accuracy on test.
      validation: accuracy on validation.
      ids: ids of the test examples; by default 0, 1, ....
      changes: values of `CONFIG` to change, such as {"seed": 1}.
      parameters: number of parameters.
    """
    config = experiment(changes)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(configs.to_dict(config)))
    accuracy = float(np.mean(scores))
    record = {
        "task": config.task,
        "data": config.data.name,
        "experiment": config.name,
        "seed": config.seed,
        "split": "test",
        "metrics": {"accuracy": accuracy, "macro_f1": accuracy, "mcc": 2 * accuracy - 1},
        "validation": {"accuracy": validation},
        "baselines": {"nb_svm": {"accuracy": 0.25}},
        "settings": {},
        "parameters": parameters,
        "selected_by": "validation accuracy",
        "steps": 20,
        "seconds": 12.0,
        "device": "cpu x1",
        "command": "python -m launch.train",
        "commit": "",
        "versions": {},
    }
    (folder / "result.json").write_text(json.dumps(record))
    np.savez(
        folder / "outputs-test.npz",
        example_scores=np.array(scores, np.float32),
        example_ids=np.array(range(len(scores)) if ids is None else ids, np.uint64),
        overlap=1,
    )
    lines = [(10, validation - 0.1, 4.0), (20, validation, 8.0)]
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "split": "validation", "loss": 1.0, "accuracy": value}) + "\n"
            for step, value, _ in lines
        )
    )
    (folder / "timing.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "seconds": 3.0}) + "\n"
            + json.dumps({"step": step, "evaluation_seconds": 1.0}) + "\n"
            for step, *_ in lines
        )
    )  # fmt: skip
    return folder
