"""Tables of all records, for RESULTS.md."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from launch.engine.config import task_class
from launch.reporting import paired
from launch.reporting.formatting import (
    GAIN,
    Record,
    format_mean,
    format_metric,
    markdown_table,
    mean_and_spread,
)

# Label in rows with the mean and deviation over all values of a setting.
_MEAN = "all (mean)"


class Row(NamedTuple):
    """One table row: a model or a baseline under given settings."""

    settings: tuple[tuple[str, Any], ...]
    baseline: bool
    name: str

    @property
    def mean(self) -> bool:
        """True if the row is the mean over all values of a setting."""
        return _MEAN in dict(self.settings).values()

    @property
    def label(self) -> str:
        name = f"baseline {self.name}" if self.baseline else self.name
        settings = ", ".join(f"{key}={value}" for key, value in self.settings)
        return f"{name} ({settings})" if settings else name

    @property
    def order(self) -> tuple:
        """Sort key: numeric settings by value, other settings alphabetically, baselines last."""
        settings = [
            (key, not isinstance(x, int | float), x if isinstance(x, int | float) else str(x))
            for key, x in self.settings
        ]
        return settings, self.baseline, self.name


def results_markdown(
    records: Iterable[Record], notes: Mapping[tuple[str, str], str] | None = None
) -> str:
    """Returns the content of RESULTS.md, with one section per task and data set.

    Args:
      records: records of runs.
      notes: result of `launch.reporting.results.load_notes`.
    """
    groups = by_data(records)
    lines = [
        "# Results",
        "",
        "Generated from the run files under `results/` by "
        "`python -m launch.report --results=results --output=RESULTS.md`.",
        "Metrics are those of the test split, evaluated once at the best validation step: "
        "mean ± standard deviation over the seeds. Baselines are fitted on the same training "
        "split, or on training and validation examples if the model is refitted on both. A gain "
        "is the paired difference of model and baseline on the first metric, positive if the "
        "model is better, with its 95 % confidence interval; both are averaged over the seeds. A "
        "value without ± is from a single seed, to save computing time, so its standard deviation "
        "is unknown. Differences that are smaller than the standard deviation of similar models "
        "are no evidence.",
    ]
    lines += ["", *_summary_table(groups)]
    for (task, data), group in groups.items():
        lines += ["", f"## {task}: {data}", *_section(task_class(task), group)]
        if notes and (remarks := notes.get((task, data))):
            lines += ["", remarks]
    return "\n".join(lines) + "\n"


def summary_table(records: Iterable[Record]) -> str:
    """Returns a table with the best model on validation and the best baseline per data set."""
    return "\n".join(_summary_table(by_data(records)))


def by_data(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Groups runs by task and data set."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["task"], record["data"]].append(record)
    return dict(sorted(groups.items()))


def by_row(
    group: Sequence[Record],
) -> tuple[dict[Row, list[Record]], dict[Row, dict[str, float]]]:
    """Groups runs and baselines by table row, and adds rows with the mean over a setting.

    If only some of the models are refitted on training and validation examples, the split is a
    setting of the rows. The baselines of these models are then fitted on both splits, too.
    """
    differs = len({_is_refitted(record) for record in group}) > 1
    runs: dict[Row, list[Record]] = defaultdict(list)
    given: dict[Row, dict[str, float]] = defaultdict(dict)
    for record in sorted(group, key=lambda record: record["seed"]):
        whole = "train + validation" if _is_refitted(record) else "train"
        split = {"trained_on": whole} if differs else {}
        settings = tuple(sorted({**record["settings"], **split}.items()))
        runs[Row(settings, False, record["experiment"])].append(record)
        for name, values in record["baselines"].items():
            given[Row(settings, True, name)].update(values)
    over = task_class(group[0]["task"]).averaged_over
    averaged: dict[Row, list[Row]] = defaultdict(list)
    for row in [*runs, *given] if over else []:
        settings = dict(row.settings)
        if over in settings:
            settings[over] = _MEAN
            averaged[row._replace(settings=tuple(sorted(settings.items())))].append(row)
    for mean, rows in averaged.items():
        if len(rows) > 1 and mean.baseline:
            shared = set.intersection(*(set(given[row]) for row in rows)) - {*GAIN}
            given[mean] = {
                key: mean_and_spread([given[row][key] for row in rows])[0] for key in shared
            }
        elif len(rows) > 1:
            runs[mean] = [run for row in rows for run in runs[row]]
    return runs, given


def _is_refitted(record: Record) -> bool:
    return "refitted" in record["selected_by"]


def _summary_table(groups: Mapping[tuple[str, str], Sequence[Record]]) -> list[str]:
    rows = []
    for (name, data), group in groups.items():
        task, (runs, given) = task_class(name), by_row(group)
        primary, sign = task.primary_metric, 1 if task.higher_is_better else -1

        def on_validation(row: Row, runs=runs, primary=primary) -> float:
            return mean_and_spread([run["validation"][primary] for run in runs[row]])[0]

        means = [row for row in runs if row.mean]
        best = max(means or runs, key=lambda row: sign * on_validation(row))
        cheap = [row for row in given if row.settings == best.settings and primary in given[row]]
        strongest = max(cheap, key=lambda row: sign * given[row][primary], default=None)
        baseline = f"{strongest.name} {given[strongest][primary]:.3f}" if strongest else ""
        figure = format_mean([run["metrics"][primary] for run in runs[best]], digits=3)
        better = "" if task.higher_is_better else " (lower is better)"
        rows.append([name, data, f"{primary}{better}", f"{best.name} {figure}", baseline])
    return markdown_table(
        ["task", "data", "metric on test", "best on validation", "baseline"], rows
    )


def _section(task: Any, group: Sequence[Record]) -> list[str]:
    runs, given = by_row(group)
    order = sorted([*runs, *given], key=lambda row: row.order)
    tables = [_main_table(task, order, runs, given), _conditions(task, order, runs, given)]
    own = [row for row in order if not (row.baseline or row.mean)]
    tables.append(_gains(own, runs))
    lines = [line for table in tables if table for line in ["", *table]]
    return [*lines, "", *_commands(own, runs), *_validation_curves(task, own, runs)]


def _main_table(
    task: Any,
    order: Sequence[Row],
    runs: Mapping[Row, Sequence[Record]],
    given: Mapping[Row, Mapping[str, float]],
) -> list[str]:
    metrics, primary = list(task.table_metrics), task.primary_metric
    header = [
        "model", *metrics, f"validation {primary}", "seeds", "parameters", "seconds per run",
        "device", "commit",
    ]  # fmt: skip
    rows = []
    for row in order:
        if row.baseline:
            values = given[row]
            cells = [f"{values[metric]:.4f}" if metric in values else "" for metric in metrics]
            rows.append([row.label, *cells, *[""] * (len(header) - 1 - len(metrics))])
            continue
        own = runs[row]
        rows.append(
            [
                row.label,
                *(format_metric(own, metric) for metric in metrics),
                format_mean([run["validation"][primary] for run in own]),
                ", ".join(map(str, sorted({run["seed"] for run in own}))),
                f"{own[0]['parameters']:,}",
                f"{mean_and_spread([run['seconds'] for run in own])[0]:.0f}",
                own[0]["device"],
                ", ".join(sorted({run["commit"][:9] for run in own})),
            ]
        )
    return markdown_table(header, rows)


def _conditions(
    task: Any,
    order: Sequence[Row],
    runs: Mapping[Row, Sequence[Record]],
    given: Mapping[Row, Mapping[str, float]],
) -> list[str]:
    """Returns the table of metrics under additional test conditions, such as noise levels.

    The result is empty if no run has such metrics.
    """
    pattern = task.condition_metrics
    figures = {
        row: [given[row]] if row.baseline else [run["metrics"] for run in runs[row]]
        for row in order
    }
    named = {
        row: {key for values in some for key in values if pattern and re.fullmatch(pattern, key)}
        for row, some in figures.items()
    }
    # With this order, wer_snr_5 precedes wer_snr_10.
    found = sorted(set().union(*named.values()), key=_natural)
    columns = [task.primary_metric, *found]
    rows = [
        [
            row.label,
            *(
                format_mean([values[key] for values in figures[row]])
                if all(key in values for values in figures[row])
                else ""
                for key in columns
            ),
        ]
        for row in order
        if named[row]
    ]
    return markdown_table(["model", *columns], rows) if rows else []


def _natural(name: str) -> list[tuple[str, int]]:
    """Returns a sort key that orders names by the numbers in them."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _gains(models: Sequence[Row], runs: Mapping[Row, Sequence[Record]]) -> list[str]:
    """Returns the table of gains over baselines with per-example scores; [] if there are none."""
    found = {
        row: {
            name: [run["baselines"][name] for run in runs[row]]
            for name in runs[row][0]["baselines"]
            if all("gain" in run["baselines"].get(name, ()) for run in runs[row])
        }
        for row in models
    }
    names = sorted(set().union(*found.values()))
    rows = []
    for row in filter(found.get, models):
        cells = [
            paired.format_difference(
                *(mean_and_spread([v[key] for v in values])[0] for key in GAIN)
            )
            if (values := found[row].get(name))
            else ""
            for name in names
        ]
        rows.append([row.label, *cells])
    return markdown_table(["gain over", *names], rows) if rows else []


def _commands(models: Sequence[Row], runs: Mapping[Row, Sequence[Record]]) -> list[str]:
    lines = []
    for row in models:
        first = runs[row][0]
        refitted = f" (chosen by {first['selected_by']})" if _is_refitted(first) else ""
        lines.append(f"- {row.label}{refitted}: `{first['command']}`")
    return lines


def _validation_curves(
    task: Any, models: Sequence[Row], runs: Mapping[Row, Sequence[Record]]
) -> list[str]:
    """Returns a table of the primary metric at each evaluation of the first seed of each model."""
    rows = []
    for row in models:
        # Records of earlier versions have no curve.
        if curve := runs[row][0].get("validation_curve"):
            points = ", ".join(f"{step:,}: {value:.4g}" for step, value in curve)
            rows.append([row.label, str(runs[row][0]["seed"]), points])
    header = ["model", "seed", f"validation {task.primary_metric} by step"]
    return ["", *markdown_table(header, rows)] if rows else []
