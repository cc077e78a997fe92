"""Comparison of experiments on validation and test, with paired differences from a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.engine import config as configs
from launch.engine.config import Experiment
from launch.reporting import paired
from launch.reporting.formatting import (
    Record,
    format_mean,
    format_metric,
    mean_and_spread,
    without_empty_columns,
)
from tasks.common.errors import UserError

# Tables with at least this many differences have a note about intervals that exclude 0 by chance.
_MANY = 6


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Results of one experiment: records, error messages and run directories by seed.

    The dicts are filled as the runs end.
    """

    experiment: Experiment
    records: dict[int, Record]
    failures: dict[int, str]
    folders: dict[int, Path]


class Difference(NamedTuple):
    """Difference between the primary test metrics of two experiments.

    Attributes:
      mean: mean difference.
      half: half-width of its 95 % confidence interval.
      over: "examples" if the scores are paired by test example, or "seeds" if they are paired by
        seed.
      count: number of pairs of examples or seeds.
    """

    mean: float
    half: float
    over: str
    count: int


def paired_difference(outcome: Outcome, base: Outcome) -> tuple[float, float] | None:
    """Computes the mean difference of the primary metric from the base, with its 95 % interval.

    Scores are paired by example and averaged over the common seeds; see
    `launch.reporting.paired.mean_and_interval`.

    Returns:
      Mean and half-width of the interval; None if no seed has results of both experiments.

    Raises:
      UserError: the test examples differ, or the scores cannot be read.
    """
    found = _paired_by_example(outcome, base)
    return None if found is None else (found.mean, found.half)


def _paired_by_example(outcome: Outcome, base: Outcome) -> Difference | None:
    common = sorted(outcome.records.keys() & base.records.keys())
    if not common:
        return None
    # Files of earlier versions have no ids, so equal data configs are required instead.
    same_data = _same_data(outcome, base)
    differences, first = [], paired.read(base.folders[common[0]])
    for seed in common:
        own, other = paired.read(outcome.folders[seed]), paired.read(base.folders[seed])
        differences.append(own.aligned_to(first, same_data) - other.aligned_to(first, same_data))
    mean, half = paired.mean_and_interval(np.mean(differences, axis=0), first.overlap)
    return Difference(mean, half, "examples", len(first.values))


def difference(outcome: Outcome, base: Outcome, metric: str) -> Difference | None:
    """Computes the difference from the base, paired by test example or, if impossible, by seed.

    Pairs by seed need equal data configs and at least two common seeds.

    Args:
      outcome: results of one experiment.
      base: results of the experiment to compare with.
      metric: primary metric.

    Returns:
      The difference; None if no seed has results of both experiments.

    Raises:
      UserError: the experiments can be paired neither by test example nor by seed.
    """
    try:
        return _paired_by_example(outcome, base)
    except UserError:
        common = sorted(outcome.records.keys() & base.records.keys())
        if len(common) < 2 or not _same_data(outcome, base):
            raise
        values = [
            outcome.records[seed]["metrics"][metric] - base.records[seed]["metrics"][metric]
            for seed in common
        ]
        mean, half = paired.mean_and_t_interval(np.array(values))
        return Difference(mean, half, "seeds", len(values))


def _same_data(one: Outcome, other: Outcome) -> bool:
    return getattr(one.experiment, "data", None) == getattr(other.experiment, "data", None)


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared experiment.

    Attributes:
      name: name in the tables.
      outcome: its results.
      changes: values of the keys that differ between the rows; a model may lack some of the keys.
      difference: difference from the reference; None for the reference itself, and for an
        experiment that cannot be paired with it.
    """

    name: str
    outcome: Outcome
    changes: Mapping[str, Any]
    difference: Difference | None

    @property
    def runs(self) -> list[Record]:
        """Records of the finished runs."""
        return list(self.outcome.records.values())


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Experiments on the same test data.

    Attributes:
      title: task and data.
      task: class of the task.
      rows: the experiments.
      reference: name of the experiment with which the other experiments are compared.
      role: what the reference is, such as "base" or "best"; part of the header.
      best: name of the experiment that is best on validation; "" if no run is finished.
      baselines: test metrics of the baselines by name.
      first: header of the column of names, "experiment" or "run".
      keys: dotted keys that differ between the rows and are shown; empty to show none.
      notes: lines that explain the table.
    """

    title: str
    task: Any
    rows: Sequence[Row]
    reference: str
    role: str
    best: str
    baselines: Mapping[str, Mapping[str, float]]
    first: str
    keys: Sequence[str]
    notes: Sequence[str]

    @property
    def metric(self) -> str:
        """Primary metric."""
        return self.task.primary_metric


def compare(
    title: str,
    outcomes: Mapping[str, Outcome],
    *,
    reference: str = "",
    role: str = "base",
    first: str = "experiment",
    keys: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Compares experiments of one task.

    Args:
      title: title of the table.
      outcomes: results by name; at least one.
      reference: name of the experiment to compare the others with; "" for the best on validation.
      role: what the reference is; part of the header.
      first: header of the column of names.
      keys: dotted keys whose values are shown.
      notes: further lines that explain the table.
    """
    task = configs.task_class(next(iter(outcomes.values())).experiment.task)
    best = best_on_validation(task, outcomes)
    reference = reference or best or next(iter(outcomes))
    base, rows, unpaired = outcomes[reference], [], []
    for name, outcome in outcomes.items():
        values = configs.flatten(configs.to_dict(outcome.experiment)) if keys else {}
        changes = {key: values[key] for key in keys if key in values}
        found = None
        if outcome is not base:
            try:
                found = difference(outcome, base, task.primary_metric)
            except UserError as error:
                unpaired.append(f"{name}: cannot be paired with {reference}: {error}")
        rows.append(Row(name, outcome, changes, found))
    baselines = {
        name: values for run in base.records.values() for name, values in run["baselines"].items()
    }
    made = Comparison(
        title, task, rows, reference, role, best, baselines, first, list(keys), ()
    )  # fmt: skip
    return dataclasses.replace(made, notes=[*_notes(made), *unpaired, *notes])


def best_on_validation(task: Any, outcomes: Mapping[str, Outcome]) -> str:
    """Returns the name of the outcome with the best mean validation metric; "" if there is none.

    The first of equal outcomes is returned.
    """
    finished = {name: outcome for name, outcome in outcomes.items() if outcome.records}
    sign = 1 if task.higher_is_better else -1
    return max(finished, key=lambda name: sign * validation(task, finished[name]), default="")


def validation(task: Any, outcome: Outcome) -> float:
    """Returns the primary metric on validation, averaged over the finished runs."""
    runs = outcome.records.values()
    return mean_and_spread([run["validation"][task.primary_metric] for run in runs])[0]


def _notes(comparison: Comparison) -> Iterator[str]:
    metric, rows = comparison.metric, {row.name: row for row in comparison.rows}
    if not comparison.best:
        return
    chosen = rows[comparison.best]
    better = "" if comparison.task.higher_is_better else "; lower is better"
    if len([row for row in comparison.rows if row.runs]) > 1:
        yield (
            f"best on validation: {chosen.name}, with {metric} {_validation(chosen, metric)} on "
            f"validation and {format_metric(chosen.runs, metric)} on test{better}"
        )
    if any(len(row.runs) > 1 for row in comparison.rows):
        yield "± of a metric: standard deviation over the seeds"
    gaps = {row.name: row.difference for row in comparison.rows if row.difference}
    if not gaps:
        return
    by_seed = [name for name, gap in gaps.items() if gap.over == "seeds"]
    seeds = max(len(row.runs) for row in comparison.rows)
    counts = [gap.count for gap in gaps.values() if gap.over == "examples"]
    if counts:
        averaged = " and averaged over the seeds" if seeds > 1 else ""
        yield (
            f"{metric} - {comparison.role}: {metric} on test minus that of {comparison.reference}, "
            f"paired by test example ({max(counts):,} examples){averaged}; ± is half of the 95 % "
            f"confidence interval, which covers the choice of test examples, not the variation "
            f"over seeds"
        )
    if by_seed:
        yield (
            f"{metric} - {comparison.role} of {', '.join(by_seed)}: paired by seed, because the "
            f"test examples cannot be paired; ± is half of the 95 % confidence interval "
            f"(Student's t)"
        )
    if seeds == 1:
        yield "one seed each: the variation over seeds is unknown; compare 3 or more seeds"
    if len(gaps) >= _MANY:
        yield (
            f"of {len(gaps)} intervals, about one in 20 excludes 0 by chance; test the winner "
            f"with new seeds"
        )


def _validation(row: Row, metric: str) -> str:
    return format_mean([run["validation"][metric] for run in row.runs])


def table(comparison: Comparison, between: str = ", ") -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the table as texts; the baselines are last.

    Args:
      comparison: the experiments.
      between: text between the changed keys of a row.
    """
    metric, metrics = comparison.metric, list(comparison.task.table_metrics)
    shown = ["changed keys"] if comparison.keys else []
    header = [
        comparison.first,
        *shown,
        f"validation {metric}",
        *(f"test {name}" for name in metrics),
        f"{metric} - {comparison.role} (95 %)",
        "seeds",
        "parameters",
        "seconds per run",
    ]
    rows = []
    for row in comparison.rows:
        changes = [format_changes(row.changes, between)] if shown else []
        if not row.runs:
            word = "failed" if row.outcome.failures else "not run"
            blank = [word] * (1 + len(metrics))
            rows.append([row.name, *changes, *blank, "", "0", "", ""])
            continue
        gap = row.difference
        rows.append(
            [
                row.name,
                *changes,
                _validation(row, metric),
                *(format_metric(row.runs, name) for name in metrics),
                paired.format_difference(gap.mean, gap.half) if gap else "",
                str(len(row.runs)),
                f"{row.runs[0]['parameters']:,}",
                f"{mean_and_spread([run['seconds'] for run in row.runs])[0]:.0f}",
            ]
        )
    for name, values in comparison.baselines.items():
        figures = [f"{values[key]:.4f}" if key in values else "" for key in metrics]
        rows.append([f"baseline {name}", *[""] * len(shown), "", *figures, "", "", "", ""])
    return without_empty_columns(header, rows)


def ranking(found: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Ranks the experiments of each comparison by the mean primary metric on test.

    The differences from the reference and their intervals are those of `table`.

    Returns:
      The header and the rows of a table as texts; experiments without a finished run are last.
    """
    header = ["comparison", "rank", "experiment", "metric", "test", "difference (95 %)", "seeds",
              "parameters"]  # fmt: skip
    lines = []
    for each in found:
        metric, sign = each.metric, 1 if each.task.higher_is_better else -1

        def mean(row: Row, metric: str = metric) -> float:
            return mean_and_spread([run["metrics"][metric] for run in row.runs])[0]

        done = sorted((row for row in each.rows if row.runs), key=lambda row: -sign * mean(row))
        name = metric if each.task.higher_is_better else f"{metric} (lower is better)"
        for rank, row in enumerate(done, 1):
            gap = row.difference
            change = paired.format_difference(gap.mean, gap.half) if gap else each.role
            count = f"{row.runs[0]['parameters']:,}"
            lines.append([each.title, str(rank), row.name, name, format_metric(row.runs, metric),
                          change, str(len(row.runs)), count])  # fmt: skip
        rest = [row for row in each.rows if not row.runs]
        lines += [[each.title, "", row.name, name, "no run finished", "", "0", ""] for row in rest]
    return header, lines


def format_changes(changes: Mapping[str, Any], between: str = ", ") -> str:
    """Formats values of keys, as they are written after --config."""
    return between.join(f"{key}={_short(value)}" for key, value in changes.items())


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns a record of each experiment, as JSON values, without the baselines.

    The keys are "comparison" (the title), "run", "best" and "reference" (booleans), "directories",
    "seeds", the config keys that differ (such as "config.model.num_layers"), and the means and
    standard deviations of the metrics ("validation_accuracy", "validation_accuracy_sd",
    "test_accuracy", ...). The difference has the keys "difference", "difference_95" (half-width of
    the interval), "difference_over" and the number of pairs. Further keys are "parameters" and
    "seconds", which is a mean. Missing values are None.
    """
    return [_record(comparison, row) for row in comparison.rows]


def _record(comparison: Comparison, row: Row) -> dict[str, Any]:
    metric, seeds = comparison.metric, sorted(row.outcome.records)
    found: dict[str, Any] = {
        "comparison": comparison.title,
        "run": row.name,
        "best": row.name == comparison.best,
        "reference": row.name == comparison.reference,
        "directories": [str(row.outcome.folders[seed]) for seed in seeds],
        "seeds": seeds,
        **{f"config.{key}": row.changes.get(key) for key in comparison.keys},
        **_mean(f"validation_{metric}", [run["validation"].get(metric) for run in row.runs]),
    }
    for name in comparison.task.table_metrics:
        found |= _mean(f"test_{name}", [run["metrics"].get(name) for run in row.runs])
    gap = row.difference
    return found | {
        "difference": gap and gap.mean,
        "difference_95": gap and gap.half,
        "difference_over": gap and gap.over,
        "difference_pairs": gap and gap.count,
        "parameters": row.runs[0]["parameters"] if row.runs else None,
        "seconds": _mean("s", [run["seconds"] for run in row.runs])["s"],
    }


def _mean(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {name: None, f"{name}_sd": None}
    mean, spread = mean_and_spread(known)
    return {name: mean, f"{name}_sd": spread if len(known) > 1 else None}
