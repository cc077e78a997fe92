"""Python API of the commands: configs, training, and the results of run directories.

`train` and `compare` do the same as the commands of these names, with the same files, checks and
messages. Mistakes raise `UserError`. The arguments `data_dir`, `cache_dir` and `data_mirror` have
the meaning of the flags of `launch.cli`. Their defaults come from environment variables.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine import config as configs
from launch.engine import devices
from launch.engine import values as typed
from launch.engine.config import Experiment
from launch.engine.environment import ROOT
from launch.engine.errors import Interrupted
from launch.engine.own_data import Data, check_columns, with_own_data
from launch.reporting import comparison as comparisons
from launch.reporting import comparison_files
from launch.reporting.comparison import Comparison
from launch.runs import collection, directory
from launch.runs import run as runs
from launch.runs.loaded import Folder, Run
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError


def config(
    source: Any,
    changes: Mapping[str, Any] | None = None,
    *,
    data: Data | None = None,
    columns: Mapping[str, str] | None = None,
) -> Experiment:
    """Returns an experiment with some values changed; new values are checked like flag values.

        launch.config("text_classification:own", data="my.csv", columns={"text": "review"})

    Args:
      source: config file with its argument, such as "configs/text_classification.py:sst2" or, for
        files in the repository's folder configs/, "text_classification:sst2"; an `Experiment`; or
        an experiment as a nested mapping. Paths are relative to the working directory or, if there
        is no such file, to the repository.
      changes: new values by dotted key, such as {"model.num_layers": 2}. A string is parsed like
        the value of a flag. A mapping changes some keys of a group; a dataclass replaces the group.
      data: your own data, as the flag --data: a file, a folder or a glob pattern, or a sequence of
        three, for training, validation and test. Relative paths are relative to the working
        directory.
      columns: names of columns of `data` by their role. The roles are the names of the commands'
        flags: text, label, user, item, time, image, audio, speaker, group.

    Raises:
      UserError: the file, a key or a value is invalid.
    """
    if isinstance(source, str | os.PathLike):
        values = configs.load_values(_located(os.fspath(source)))
    elif isinstance(source, Experiment):
        values = configs.to_dict(source)
    elif isinstance(source, Mapping) or hasattr(source, "to_dict"):
        values = configs.with_current_keys(getattr(source, "to_dict", lambda: dict(source))())
    else:
        raise UserError(f"config: got {source!r}, expected a config file, Experiment or mapping")
    values = with_own_data(values, data, columns)
    found = {}
    for given, value in _leaves(changes or {}):
        key = configs.current_key(values, given.removeprefix("config."))
        if isinstance(value, str):
            value = typed.parse(values, key, value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = dataclasses.asdict(value)
        elif isinstance(value, np.generic):
            value = value.item()
        found[key] = value
    values = configs.replaced(values, found)
    check_columns(values, columns or {})
    return configs.resolve(values)


def _leaves(changes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _located(specification: str) -> str:
    """Completes the path in "FILE:ARGUMENT"; returns it unchanged if no such file is found."""
    path, colon, argument = specification.partition(":")
    for folder in ("", ROOT, ROOT / "configs"):
        for file in (Path(folder, path).expanduser(), Path(folder, f"{path}.py").expanduser()):
            if path and file.is_file():
                return f"{file}{colon}{argument}"
    known = [file.stem for file in sorted((ROOT / "configs").glob("*.py"))]
    if path and path == Path(path).stem and not Path(path).exists():
        raise UserError(f"{path}: no such config file{configs.did_you_mean(path, known)}")
    return specification


def train(
    config: Any,
    workdir: Folder,
    *,
    data: Data | None = None,
    columns: Mapping[str, str] | None = None,
    baselines: bool = True,
    track: Sequence[str] = (),
    data_dir: Folder | None = None,
    cache_dir: Folder | None = None,
    data_mirror: Folder | None = None,
) -> Run:
    """Trains and tests an experiment in a run directory, as `python -m launch.train` does.

    A new directory is created. An interrupted run of the same config is resumed. For a finished
    run, the function only checks that the data have not changed. An interrupt (Ctrl+C, or the stop
    button of a notebook) saves a checkpoint after the current step and raises KeyboardInterrupt.

    Args:
      config: experiment, or anything that `launch.config` accepts.
      workdir: run directory.
      data, columns: your own data, as for `launch.config`.
      baselines: whether to evaluate the task's baselines (cached).
      track: trackers that also receive metrics, test results and figures: "mlflow", "wandb".
      data_dir: directory of prepared data sets.
      cache_dir: directory of downloads, tokenizers and baselines.
      data_mirror: directory with copies of downloads.

    Returns:
      The finished run.

    Raises:
      UserError: the config, the data, the devices or the directory cannot be used.
      KeyboardInterrupt: training was interrupted; the same call resumes it.
    """
    experiment, folder = _experiment(config, data, columns), _folder(workdir)
    names = [track] if isinstance(track, str) else list(track)
    paths = Paths.default(data_dir, cache_dir, data_mirror)
    devices.set_up_jax(paths.cache_dir, experiment)
    command = f"launch.train(config, {str(workdir)!r})"
    try:
        runs.run(experiment, folder, paths, command, baselines, track=names)
    except Interrupted as stopped:
        if stopped.signal_number == signal.SIGTERM:
            # Training had replaced the signal handler of the calling program. The signal is raised
            # again so that this handler receives it.
            signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt(str(stopped)) from None
    return Run(folder, experiment, paths)


def _experiment(given: Any, data: Data | None, columns: Mapping[str, str] | None) -> Experiment:
    # A separate function, because the argument `config` of `train` hides the function `config`.
    return config(given, data=data, columns=columns)


def _folder(workdir: Folder) -> Path:
    if not os.fspath(workdir):
        raise UserError("--workdir is empty; name a directory")
    return Path(workdir).expanduser().absolute()


def load(
    workdir: Folder,
    *,
    data_dir: Folder | None = None,
    cache_dir: Folder | None = None,
    data_mirror: Folder | None = None,
) -> Run:
    """Returns the run of a directory, finished or not.

    Args:
      workdir: run directory.
      data_dir, cache_dir, data_mirror: as for `train`; only used by methods that need the data set.

    Raises:
      UserError: the directory contains no run.
    """
    folder = _folder(workdir)
    experiment = directory.saved_config(folder)
    assert experiment is not None
    return Run(folder, experiment, Paths.default(data_dir, cache_dir, data_mirror))


def compare(runs: Sequence[Folder | Run], against: Folder | Run = "best") -> Compared:
    """Compares finished runs, as `python -m launch.compare` does.

    Args:
      runs: runs, run directories, or directories that contain run directories.
      against: run with which the other runs are compared: "best" (on validation), "first", or one
        of the runs.

    Returns:
      The comparison tables. The attribute `left_out` has a message about each unfinished or damaged
      run.

    Raises:
      UserError: none of the runs is finished, or `against` is not one of the runs.
    """
    if isinstance(runs, str | os.PathLike | Run):
        raise UserError(f"runs: got {runs!r}, expected a list of runs; write [RUN, ...]")
    folders = [each.folder if isinstance(each, Run) else Path(each).expanduser() for each in runs]
    reference = str(against.folder) if isinstance(against, Run) else os.fspath(against)
    found, messages = collection.collect(folders)
    if not found:
        raise UserError("; ".join(["runs: none is finished", *messages]))
    return Compared(collection.compare_runs(found, reference), messages)


@dataclasses.dataclass(frozen=True, repr=False)
class Compared:
    """Comparison of runs, with one table for each combination of task and test data.

    The rows of a table are ordered by the validation metric, best first. Notebooks show the tables
    with their figures.

    Attributes:
      tables: the tables, see `launch.reporting.comparison.Comparison`.
      left_out: messages about unfinished and damaged runs.
    """

    tables: Sequence[Comparison]
    left_out: Sequence[str]

    @property
    def records(self) -> list[dict[str, Any]]:
        """Records of the rows of all tables, see `launch.reporting.comparison.records`."""
        return [record for table in self.tables for record in comparisons.records(table)]

    def __repr__(self) -> str:
        tables = [comparison_files.markdown(table) for table in self.tables]
        return "\n".join([*tables, *(f"- {line}" for line in self.left_out)])

    def _repr_html_(self) -> str:
        return comparison_files.sections(self.tables, self.left_out)
