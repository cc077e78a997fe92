"""Ablations: a base experiment, named deltas and seeds.

`configs/ablations/<name>.py` defines `get_ablation()`, which returns an `Ablation`. Before any
training, the config of every delta is compared with the config of the base: exactly the declared
fields must differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine import config as configs
from launch.engine import values as typed
from launch.engine.config import Experiment
from launch.engine.errors import Interrupted, signal_of, system_error, terminable
from launch.reporting import paired
from launch.reporting.tables import format_metric, mean_and_spread
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError

# Maximum length of an experiment name: file names are limited to 255 bytes, including seed and
# hash.
_LONGEST_NAME = 160


@dataclasses.dataclass(frozen=True)
class Delta:
    """One named change to the base.

    Attributes:
      declares: dotted keys of the fields that the delta changes, such as 'model.pooling'.
      overrides: values by dotted key, applied to the base.
      config: config file, optionally with ':argument', that replaces the base before the overrides.
    """

    declares: Sequence[str]
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: str | None = None

    def __post_init__(self):
        _check(self, declares=Sequence, overrides=Mapping, config=str | None)
        if isinstance(self.declares, str):
            raise ValueError(f"declares: got {self.declares!r}, expected a list of keys")


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A base experiment and its deltas.

    Attributes:
      base: config file, optionally with ':argument'.
      deltas: deltas by name.
      overrides: values by dotted key, for the base and every delta.
      base_name: name of the base in the table.
      seeds: number of seeds, counted from 0.
    """

    base: str
    deltas: Mapping[str, Delta]
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base_name: str = "base"
    seeds: int = 3

    def __post_init__(self):
        _check(self, base=str, deltas=Mapping, overrides=Mapping, base_name=str, seeds=int)
        for name, delta in self.deltas.items():
            if not isinstance(name, str) or not isinstance(delta, Delta):
                raise ValueError(f"deltas: got {name!r}: {delta!r}, expected a name and a Delta")
        if self.seeds < 1:
            raise ValueError(f"seeds: got {self.seeds}, expected at least 1")


def deltas_of(key: str, values: Mapping[str, Any]) -> dict[str, Delta]:
    """Returns, by name, a delta for each value of a key."""
    return {name: Delta([key], {key: value}) for name, value in values.items()}


def _check(part: Ablation | Delta, **kinds: Any) -> None:
    for name, kind in kinds.items():
        value = getattr(part, name)
        if not isinstance(value, kind):
            expected = getattr(kind, "__name__", str(kind)).lower()
            raise ValueError(f"{name}: got {value!r}, expected {expected}")


def load_ablation(path: str) -> Ablation:
    """Loads the ablation of a file.

    Raises:
      UserError: the file does not exist, raises an exception, or has no `get_ablation` that returns
        an `Ablation`.
    """
    file = path.partition(":")[0]
    module = configs.load_module(path if Path(path).exists() else file)
    if hasattr(module, "get_config") and not hasattr(module, "get_ablation"):
        raise UserError(
            f"--config={path}: is the config of one experiment, expected an ablation file such as "
            f"configs/ablations/text_pooling.py; run it with launch.train or launch.sweep"
        )
    if file != path:
        raise UserError(f"--config={path}: an ablation file takes no argument; write {file}")
    ablation = None
    if hasattr(module, "get_ablation"):
        with configs.located_error(path):
            ablation = module.get_ablation()
    if not isinstance(ablation, Ablation):
        raise UserError(f"{path}: has no get_ablation function that returns an Ablation")
    return ablation


def with_overrides(ablation: Ablation, settings: Sequence[str]) -> Ablation:
    """Adds `key=value` settings to the base and all deltas of an ablation.

    Raises:
      UserError: a setting is not key=value, or its value is invalid.
    """
    base = configs.to_dict(configs.override(configs.load_file(ablation.base), ablation.overrides))
    overrides = dict(ablation.overrides)
    for key, text in _keys_and_values(settings, base):
        overrides[key] = typed.parse(base, key, text)
    return dataclasses.replace(ablation, overrides=overrides)


def resolve_ablation(ablation: Ablation) -> dict[str, Experiment]:
    """Returns the experiments of an ablation by name, the base first.

    Raises:
      UserError: a delta changes an undeclared field or does not change a declared one, or a config
        is invalid.
    """
    base = configs.override(
        configs.load_file(ablation.base), {**ablation.overrides, "name": ablation.base_name}
    )
    found = {ablation.base_name: base}
    for name, delta in ablation.deltas.items():
        if name in found:
            raise UserError(f"delta {name!r} has the name of the base; rename it")
        start = configs.load_file(delta.config) if delta.config else base
        start = configs.override(start, {**delta.overrides, "name": ablation.base_name})
        changed = configs.differences(base, start)
        declares = [configs.current_key(configs.to_dict(start), key) for key in delta.declares]
        for key in changed:
            if key not in declares:
                raise UserError(
                    f"delta {name!r} also changes {key}, which it does not declare; declare the "
                    f"field, or remove the change"
                )
        for key in declares:
            if key not in changed:
                raise UserError(
                    f"delta {name!r} declares {key} but does not change it "
                    f"{configs.did_you_mean(key, changed).strip()}".rstrip()
                )
        found[name] = configs.override(start, {"name": name})
    return found


def resolve_sweep(base: Experiment, settings: Sequence[str]) -> dict[str, Experiment]:
    """Returns, by name, the experiment of each combination of the `key=a,b,c` settings.

    Without settings the result contains only the base experiment.

    Raises:
      UserError: a setting is not key=values, or a value is invalid.
    """
    values = configs.to_dict(base)
    axes = []
    for key, text in _keys_and_values(settings, values):
        parsed = [(key, one, typed.parse(values, key, one)) for one in typed.split(text)]
        for number, (_, one, value) in enumerate(parsed):
            if value in (earlier for *_, earlier in parsed[:number]):
                raise UserError(f"--set: {key}={one} is given twice; give each value once")
        axes.append(parsed)
    found: dict[str, Experiment] = {}
    for combination in itertools.product(*axes):
        name = ",".join(f"{key.split('.')[-1]}={text}" for key, text, _ in combination)
        changes = {key: value for key, _, value in combination}
        if combination:
            changes["name"] = _short(re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-"))
        found[name or base.name] = configs.override(base, changes)
    return found


def _short(name: str) -> str:
    """Shortens a name to the limit of file systems, with a hash in place of the removed end."""
    if len(name) <= _LONGEST_NAME:
        return name
    code = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]}-{code}"


def _keys_and_values(settings: Sequence[str], base: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = [_key_value(setting) for setting in settings]
    found = [(configs.current_key(base, key), text) for key, text in pairs]
    for number, (key, _) in enumerate(found):
        if key in (earlier for earlier, _ in found[:number]):
            raise UserError(
                f"--set: {key} is given twice; write all values of the key in one --set"
            )
    return found


def _key_value(setting: str) -> tuple[str, str]:
    key, equals, text = setting.partition("=")
    if not equals or not text or not key:
        raise UserError(f"--set={setting}: write key=a,b,c, for example model.pooling=mean,max")
    key = key.removeprefix("config.")
    if key == "name":
        raise UserError(
            f"--set={setting}: names are generated from the compared values; leave out this setting"
        )
    return key, text


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of one experiment: records, error messages and run directories by seed."""

    experiment: Experiment
    records: Mapping[int, Mapping[str, Any]]
    failures: Mapping[int, str]
    folders: Mapping[int, Path]


def run_all(
    experiments: Mapping[str, Experiment],
    seeds: int,
    folder: Path,
    paths: Paths,
    command: str,
    say: Any,
    track: Sequence[str] = (),
) -> tuple[dict[str, Outcome], int]:
    """Runs every experiment with every seed, except runs that have finished.

    Args:
      experiments: experiments by name, the base first. Finished runs are found by config hash.
      seeds: number of seeds, starting at the seed of the experiment.
      folder: parent of the run directories, one per config hash.
      paths: directories of data sets and caches.
      command: command line to store in the records.
      say: called with a status line about each run.
      track: trackers of each run, see `launch.runs.run.run`.

    Returns:
      Outcomes by name, and the number of the signal that stopped the runs, or 0.

    Raises:
      BrokenPipeError: the output pipe was closed by its reader.
    """
    from launch.runs.run import run

    known: dict[str, Any] = {}
    outcomes = {name: Outcome(experiment, {}, {}, {}) for name, experiment in experiments.items()}
    # Seeds are the outer loop, so that an interrupted ablation can still compare all experiments.
    runs = itertools.product(range(seeds), outcomes.items())
    try:
        with terminable():
            for offset, (name, outcome) in runs:
                seed = outcome.experiment.seed + offset
                config = configs.override(outcome.experiment, {"seed": seed})
                run_folder = folder / f"{config.name}-seed{seed}-{configs.identity(config)}"
                finished = (run_folder / "result.json").exists()
                say(f"{name}, seed {seed}: {'finished already' if finished else run_folder}")
                outcome.folders[seed] = run_folder
                try:
                    outcome.records[seed] = run(
                        config, run_folder, paths, command, known=known, track=track
                    )
                except (BrokenPipeError, Interrupted):
                    raise
                except UserError as error:
                    outcome.failures[seed] = str(error)
                except Exception as error:
                    reason = system_error(error) or f"{type(error).__name__}: {error}"
                    outcome.failures[seed] = reason
                if seed in outcome.failures:
                    say(f"{name}, seed {seed}: failed: {outcome.failures[seed]}")
    except Interrupted as stopped:
        say(str(stopped))
        return outcomes, stopped.signal_number
    except KeyboardInterrupt as stopped:
        say("stopped; the same command resumes from the last checkpoint")
        return outcomes, signal_of(stopped)
    return outcomes, 0


def paired_difference(outcome: Outcome, base: Outcome) -> tuple[float, float] | None:
    """Computes the mean difference from the base on the primary metric, with its 95 % interval.

    Scores are paired by example and averaged over the common seeds; see
    `launch.reporting.paired.mean_and_interval`.

    Returns:
      Mean and half-width of the interval; None if no seed has results of both experiments.

    Raises:
      UserError: the test examples differ, or the scores cannot be read.
    """
    common = sorted(outcome.records.keys() & base.records.keys())
    if not common:
        return None
    # Files of earlier versions have no ids, so equal data configs are required instead.
    same_data = getattr(outcome.experiment, "data", None) == getattr(base.experiment, "data", None)
    differences, first = [], paired.read(base.folders[common[0]])
    for seed in common:
        own, other = paired.read(outcome.folders[seed]), paired.read(base.folders[seed])
        differences.append(own.aligned_to(first, same_data) - other.aligned_to(first, same_data))
    return paired.mean_and_interval(np.mean(differences, axis=0), first.overlap)


def table(outcomes: Mapping[str, Outcome]) -> tuple[list[str], list[list[str]]]:
    """Returns the table's header, and a row per experiment with its mean and gain over the base.

    Means have a standard deviation; gains are paired differences, see `paired_difference`.
    """
    first = next(iter(outcomes.values()))
    task = configs.task_class(first.experiment.task)
    metrics = list(task.table_metrics)
    header = [
        "experiment", *metrics, f"{metrics[0]} - base (95 %)", "seeds", "parameters",
        "seconds per run",
    ]  # fmt: skip
    return header, list(_rows(outcomes, metrics, first))


def _rows(
    outcomes: Mapping[str, Outcome], metrics: Sequence[str], base: Outcome
) -> Iterator[list[str]]:
    for name, outcome in outcomes.items():
        runs = list(outcome.records.values())
        if not runs:
            word = "failed" if outcome.failures else "not run"
            yield [name, *(word for _ in metrics), "", "0", "", ""]
            continue
        pair = None
        if outcome is not base:
            try:
                pair = paired_difference(outcome, base)
            except UserError as error:
                print(f"{name}: cannot be paired with the base: {error}", file=sys.stderr)
        yield [
            name,
            *(format_metric(runs, metric) for metric in metrics),
            paired.format_difference(*pair) if pair else "",
            str(len(runs)),
            f"{runs[0]['parameters']:,}",
            f"{mean_and_spread([run['seconds'] for run in runs])[0]:.0f}",
        ]
    baselines = {name: values for run in base.records.values() for name, values in
                 run["baselines"].items()}  # fmt: skip
    for name, values in baselines.items():
        figures = [f"{values[metric]:.4f}" if metric in values else "" for metric in metrics]
        yield [f"baseline {name}", *figures, "", "", "", ""]


def finish(folder: Path, title: str, outcomes: Mapping[str, Outcome], stopped: int = 0) -> int:
    """Prints the table and writes it as table.md and table.json.

    Args:
      folder: output directory.
      title: title of the table.
      outcomes: outcomes returned by `run_all`.
      stopped: number of the signal that stopped the runs, which marks the table as partial, or 0.

    Returns:
      Exit status: 128 plus the signal number, 1 if a run failed, otherwise 0.
    """
    from rich.console import Console
    from rich.table import Table

    from launch.engine.writers import write_json, write_text

    if stopped:
        title = f"{title} (partial)"
    header, rows = table(outcomes)
    shown = Table(title=title)
    for number, column in enumerate(header):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    Console(width=None if Console().is_terminal else 140).print(shown)
    lines = [f"# {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    write_text(
        folder / "table.md", "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"
    )
    failures = {
        f"{name}, seed {seed}": message
        for name, outcome in outcomes.items()
        for seed, message in outcome.failures.items()
    }
    write_json(
        folder / "table.json",
        {
            "runs": {name: list(outcome.records.values()) for name, outcome in outcomes.items()},
            "failures": failures,
        },
    )
    for run, message in failures.items():
        print(f"failed: {run}: {message}")
    if stopped:
        return 128 + stopped
    return 1 if failures else 0
