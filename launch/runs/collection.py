"""Comparison of finished runs that have the same task and the same test examples."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine import config as configs
from launch.engine.checkpoints import finished_steps
from launch.engine.config import Experiment
from launch.reporting import comparison as comparisons
from launch.reporting import paired, results
from launch.reporting.comparison import Comparison, Outcome
from launch.reporting.report import SELECTION
from launch.runs.directory import saved_config
from tasks.common.errors import UserError

# Values of `against` in `compare_runs`, besides the name of a run directory.
REFERENCES = ("best", "first")


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run directory.

    Attributes:
      folder: run directory.
      experiment: its experiment.
      record: content of its result.json.
      examples: hash of the ids of its test examples; "" if the directory has none.
    """

    folder: Path
    experiment: Experiment
    record: Mapping[str, Any]
    examples: str


def collect(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Reads the finished runs in directories.

    Args:
      folders: run directories, or directories that contain run directories.

    Returns:
      The runs, and messages about unfinished and damaged runs and about paths without runs.
    """
    found, messages, files = [], [], []
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            if folder.exists():
                files.append(folder.name)
            else:
                messages.append(f"{folder}: no such directory")
            continue
        below = [folder] if (folder / "config.json").exists() else _runs_below(folder)
        if not below:
            messages.append(f"{folder}: contains no run")
        for each in below:
            try:
                run = read_run(each)
            except UserError as error:
                messages.append(str(error).removeprefix("--workdir="))
            else:
                found.append(run)
    if files:
        messages.append(f"no run directories: {', '.join(files)}")
    return found, messages


def _runs_below(folder: Path) -> list[Path]:
    """Returns the run directories below a directory.

    The subdirectory `selection` of a refitted run, with its first training, is left out.
    """
    found = (path.parent for path in sorted(folder.rglob("config.json")))
    return [path for path in found if path.name != SELECTION]


def read_run(folder: Path) -> FinishedRun:
    """Reads a finished run directory.

    Raises:
      UserError: the run is not finished, or its config or record is damaged.
    """
    experiment = saved_config(folder)
    assert experiment is not None
    path = folder / results.RESULT
    if not path.exists():
        steps = finished_steps(folder / "checkpoints")
        raise UserError(
            f"{folder}: is unfinished, at step {max(steps, default=0)} of "
            f"{experiment.training.steps}; the command that began it continues it"
        )
    record = results.load_result(path)
    metric = configs.task_class(experiment.task).primary_metric
    if metric not in record["metrics"] or metric not in record["validation"]:
        raise UserError(f"{path}: has no {metric}; it was written for another task")
    return FinishedRun(folder, experiment, record, _examples(folder))


def _examples(folder: Path) -> str:
    try:
        ids = paired.read(folder).ids
    except UserError:
        return ""
    return "" if ids is None else hashlib.sha256(np.sort(ids).tobytes()).hexdigest()[:16]


def compare_runs(runs: Sequence[FinishedRun], against: str = "best") -> list[Comparison]:
    """Compares runs with the same task and test examples.

    Runs that differ only in seed share a row. The rows are in the order of the validation metric,
    the best first.

    Args:
      runs: finished runs.
      against: run that the others are compared with: "best" (on validation), "first" (of the given
        runs), or the name of a run directory.

    Returns:
      Comparisons in the order of their first runs.

    Raises:
      UserError: no run is called `against`.
    """
    groups: dict[tuple[str, str, str], list[FinishedRun]] = {}
    for run in runs:
        key = (run.record["task"], run.record["data"], _test_data(run, runs))
        groups.setdefault(key, []).append(run)
    if against not in REFERENCES and not any(_is(run, against) for run in runs):
        raise UserError(
            f"--against={against}: is none of the finished runs; name one of their directories, or "
            f"{' or '.join(REFERENCES)}"
        )
    titles = [f"{task}: {data}" for task, data, _ in groups]
    return [
        _compared(title if titles.count(title) == 1 else _with_size(title, group), group, against)
        for title, group in zip(titles, groups.values(), strict=True)
    ]


def _is(run: FinishedRun, name: str) -> bool:
    return run.folder.resolve() == Path(name).expanduser().resolve()


def _test_data(run: FinishedRun, runs: Sequence[FinishedRun]) -> str:
    """Returns a key by which runs with the same test examples are grouped.

    The key is the hash of the example ids. A run without ids gets the key of a run that has ids and
    the same data config; if there is no such run, its key is its data config.
    """
    if run.examples:
        return run.examples
    same = (other for other in runs if other.examples and other.record["task"] == run.record["task"]
            and other.experiment.data == run.experiment.data)  # fmt: skip
    other = next(same, None)
    if other is not None:
        return other.examples
    return json.dumps(configs.to_dict(run.experiment)["data"], sort_keys=True)


def _with_size(title: str, group: Sequence[FinishedRun]) -> str:
    """Adds the data settings and the number and hash of the test examples to a title."""
    first = group[0]
    settings = ", ".join(f"{key}={value}" for key, value in first.record["settings"].items())
    try:
        count = f"{len(paired.read(first.folder).values):,} test examples"
    except UserError:
        count = "unknown test examples"
    ids = f", {first.examples[:6]}" if first.examples else ""
    return f"{title} ({', '.join(filter(None, [settings, count]))}{ids})"


def _compared(title: str, group: Sequence[FinishedRun], against: str) -> Comparison:
    members = _by_experiment(group)
    names = _names(members)
    first = names[0]
    named = next(
        (
            name
            for name, each in zip(names, members, strict=True)
            if any(_is(run, against) for run in each)
        ),
        "",
    )
    outcomes = {
        name: Outcome(
            each[0].experiment,
            {run.experiment.seed: run.record for run in each},
            {},
            {run.experiment.seed: run.folder for run in each},
        )
        for name, each in zip(names, members, strict=True)
    }
    task = configs.task_class(group[0].experiment.task)
    sign = 1 if task.higher_is_better else -1
    ordered = dict(
        sorted(outcomes.items(), key=lambda item: -sign * comparisons.validation(task, item[1]))
    )
    reference, role = (first, "first") if against == "first" else (named, "best")
    if named:
        role = "reference"
    return comparisons.compare(
        title,
        ordered,
        reference=reference,
        role=role,
        first="run",
        keys=_differing_keys([each[0].experiment for each in members]),
    )


def _by_experiment(group: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Groups runs that differ only in seed; a second run with the same seed starts a new group."""
    found: dict[tuple[str, int], list[FinishedRun]] = {}
    for run in group:
        same = json.dumps(configs.to_dict(dataclasses.replace(run.experiment, seed=0)))
        copy = 0
        while any(
            other.experiment.seed == run.experiment.seed for other in found.get((same, copy), ())
        ):
            copy += 1
        found.setdefault((same, copy), []).append(run)
    return list(found.values())


def _names(members: Sequence[Sequence[FinishedRun]]) -> list[str]:
    """Returns a distinct name for each row.

    The name is the directory of a single run, or the name of the experiment of several runs.
    Directories are relative to the deepest directory that contains all of them.
    """
    folders = [each[0].folder for each in members]
    if len(folders) > 1:
        common = os.path.commonpath([folder.absolute().parent for folder in folders])
        folders = [folder.absolute().relative_to(common) for folder in folders]
    names = [
        str(folder) if len(each) == 1 else each[0].experiment.name
        for folder, each in zip(folders, members, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{folder} and {len(each) - 1} more"
        for name, folder, each in zip(names, folders, members, strict=True)
    ]


def _differing_keys(experiments: Sequence[Experiment]) -> list[str]:
    """Returns the dotted keys that differ between experiments, except name and seed."""
    flat = [configs.flatten(configs.to_dict(experiment)) for experiment in experiments]
    missing = object()
    known = dict.fromkeys(key for values in flat for key in values)
    return [
        key
        for key in known
        if key not in ("name", "seed")
        and any(values.get(key, missing) != flat[0].get(key, missing) for values in flat)
    ]
