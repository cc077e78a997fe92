"""Five tiny experiments on user files, as flags of a command and as configs in Python."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from launch.engine import config as configs
from launch.engine.config import Experiment
from launch.runs.run import run
from tasks.common.data.paths import Paths
from tests.launch.own_data import CASES
from tests.tasks.contract import GENERATED

TASKS = (
    "text_classification",
    "sequence_copy",
    "forecasting",
    "segmentation",
    "recommendation",
)
# Three log lines for each save, and five saves.
PLAN = {
    "training.steps": 30,
    "training.batch_size": 4,
    "training.evaluation_batch_size": 8,
    "training.evaluate_every": 6,
    "training.log_every": 2,
    "training.refit": False,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """An experiment with its data.

    Attributes:
      task: name of the task.
      file: config file with its argument.
      changes: values by key.
      paths: directories of data sets and caches.
      data: folder of the user files.
    """

    task: str
    file: str
    changes: dict[str, Any]
    paths: Paths
    data: pathlib.Path

    @property
    def config(self) -> Experiment:
        """The experiment."""
        return configs.override(configs.load_file(self.file), self.changes)

    def words(self, folder: pathlib.Path) -> list[str]:
        """Returns the command line that trains in a directory."""
        changes = [f"--config.{key}={value}" for key, value in self.changes.items()]
        return ["launch.train", f"--config={self.file}", *changes, f"--workdir={folder}",
                "--nobaselines", f"--cache_dir={self.paths.cache_dir}"]  # fmt: skip

    def train(self, folder: pathlib.Path) -> dict[str, Any]:
        """Trains in this process, and returns the record."""
        return run(self.config, folder, self.paths, "command", with_baselines=False)


def case(task: str, folder: pathlib.Path) -> Case:
    """Writes the data of an experiment into a folder, and returns it."""
    data = folder / task
    data.mkdir(parents=True)
    if task in GENERATED:
        file, changes, _ = GENERATED[task]
    else:
        CASES[task].write(data)
        file, changes = CASES[task].config, CASES[task].overrides(data)
    paths = Paths(folder / "data", folder / "cache", None)
    return Case(task, file, {**changes, **PLAN}, paths, data)
