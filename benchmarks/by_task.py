"""Benchmarks with a row per task. Each task runs in a separate process with its default config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from benchmarks import records, report
from benchmarks.comparison import experiment

TASKS = (
    "text_classification",
    "language_modeling",
    "translation",
    "image_classification",
    "segmentation",
    "detection",
    "recommendation",
    "forecasting",
    "speech_recognition",
    "handwriting_recognition",
    "sequence_copy",
)


def define_flags() -> None:
    """Defines the flags that these benchmarks share."""
    flags.DEFINE_multi_enum("tasks", list(TASKS), list(TASKS), "Tasks to measure.")
    flags.DEFINE_enum("only", None, list(TASKS), "Print the row of one task as JSON.")
    records.define_output()


def run(
    section: str,
    option: str,
    measure: Callable[[str, Any], dict[str, Any]],
    show: Callable[[Mapping[str, Any]], str],
) -> None:
    """Measures the tasks of --tasks and writes their rows, or prints the row of --only.

    Args:
      section: name of the section of the results file, and of the module in `benchmarks`.
      option: flag whose value `measure` takes.
      measure: function that returns the row of a task.
      show: function that formats a row for the terminal.
    """
    values, given = flags.FLAGS, flags.FLAGS[option].value
    if values.only:
        print(json.dumps(measure(values.only, given)))
        return
    path = records.output()
    for name in values.tasks:
        row = records.alone(f"benchmarks.{section}", f"--only={name}", f"--{option}={given}")
        print(show(row), flush=True)
        records.put_row(path, section, "task", row, TASKS)
    if values.readme:
        report.write(path.parent)


def prepared(name: str) -> tuple[str, Any, Any]:
    """Returns the default config file of a task, its experiment, and the task with its data."""
    from launch.runs.directory import prepared_task
    from tasks.common.data.paths import Paths

    file = f"configs/{name}.py"
    config = experiment(file)
    return file, config, prepared_task(config, Paths.default())
