"""Tables of one run, for the terminal, and of all records, for RESULTS.md."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launch.engine.config import task_class
from launch.reporting import paired

Record = Mapping[str, Any]

# Label in rows with the mean and deviation over all values of a setting.
_MEAN = "all (mean)"
# Line of a page before a table of models.
_MODELS = re.compile(r"^<!-- models (.*) -->\n", re.M)
# Line of a page before a table of metrics.
_METRICS = re.compile(r"^<!-- metrics (\w+) -->\n", re.M)
# Keys in the metrics of a baseline: the model's gain over it, and the half-width of its interval.
_GAIN = ("gain", "gain_95")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Computes mean and sample standard deviation (0 for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))


def format_mean(values: Sequence[float]) -> str:
    """Formats the mean and deviation as '0.8012 ± 0.0031', or a single value as '0.8012'."""
    mean, spread = mean_and_spread(values)
    return f"{mean:.4f} ± {spread:.4f}" if len(values) > 1 else f"{mean:.4f}"


def format_metric(runs: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Formats a metric of several runs; '' if a run lacks the metric."""
    found = [run["metrics"].get(metric) for run in runs]
    return "" if None in found else format_mean(found)


def format_seconds(seconds: float) -> str:
    """Formats a duration as '12 s' or '3 min 05 s'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


DIFFERENCE = "this model minus baseline (95 % CI)"
"""Heading of the column of `format_differences`."""


def format_differences(record: Record) -> dict[str, str]:
    """Formats the difference between the model and each baseline on the primary metric.

    A difference is followed by its confidence interval.

    The differences are paired over the examples of the test split. Baselines without per-example
    scores are left out.
    """
    sign = 1 if task_class(record["task"]).higher_is_better else -1
    return {
        name: paired.format_interval(sign * values[_GAIN[0]], values[_GAIN[1]])
        for name, values in record["baselines"].items()
        if _GAIN[0] in values
    }


def verdicts(record: Record) -> dict[str, str]:
    """Returns whether the model is "better" or "worse" than each baseline with example scores.

    If the confidence interval contains 0, the result is "no clear difference".
    """
    found = {}
    for name, values in record["baselines"].items():
        if _GAIN[0] in values:
            gain, half = (values[key] for key in _GAIN)
            clear = "better" if gain > 0 else "worse"
            found[name] = clear if abs(gain) > half else "no clear difference"
    return found


def measured(record: Record, metrics: Iterable[str]) -> list[str]:
    """Returns those of the given metrics that the model or one of its baselines has."""
    rows = [record["metrics"], *record["baselines"].values()]
    return [name for name in metrics if any(name in row for row in rows)]


class _Row(NamedTuple):
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
    groups = _by_data(records)
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
        "figure without ± is of one seed, to save computing time, so its spread is unknown: "
        "smaller differences than the spread of similar models are no evidence.",
    ]
    lines += ["", *_summary_table(groups)]
    for (task, data), group in groups.items():
        lines += ["", f"## {task}: {data}", *_section(task_class(task), group)]
        if notes and (remarks := notes.get((task, data))):
            lines += ["", remarks]
    return "\n".join(lines) + "\n"


def summary_table(records: Iterable[Record]) -> str:
    """Returns a table with the best model on validation and the best baseline per data set."""
    return "\n".join(_summary_table(_by_data(records)))


def insert_summary(text: str, records: Iterable[Record]) -> str:
    """Inserts `summary_table` between the lines <!-- results --> and <!-- /results -->.

    Raises:
      ValueError: the text lacks these lines.
    """
    return insert(text, "results", summary_table(records))


def insert(text: str, name: str, content: str) -> str:
    """Replaces the text between the lines <!-- name --> and <!-- /name -->.

    Raises:
      ValueError: the text lacks these lines.
    """
    before, first, rest = text.partition(f"<!-- {name} -->\n")
    _, last, after = rest.partition(f"<!-- /{name} -->\n")
    if not first or not last:
        raise ValueError(f"expected the lines <!-- {name} --> and <!-- /{name} -->")
    return f"{before}{first}\n{content}\n\n{last}{after}"


def insert_models(text: str, records: Iterable[Record]) -> str:
    """Inserts tables of models after the lines <!-- models KEY=VALUE ... -->.

    They replace the text before the lines <!-- /models -->. The keys select runs: task, data,
    experiment (several are separated by commas), or one of `settings`. Without the key experiment,
    the runs of `launch.train` are selected.

    Raises:
      ValueError: a table has no end, no key task, a malformed key, or selects no run.
    """
    records, parts = list(records), _MODELS.split(text)
    for index in range(1, len(parts), 2):
        _, end, after = parts[index + 1].partition("<!-- /models -->\n")
        if not end:
            raise ValueError(f"<!-- models {parts[index]} -->: has no line <!-- /models -->")
        table = "\n".join(_models(parts[index], records))
        parts[index] = f"<!-- models {parts[index]} -->\n"
        parts[index + 1] = f"\n{table}\n\n{end}{after}"
    return "".join(parts)


def insert_metrics(text: str) -> str:
    """Inserts tables of metrics after the lines <!-- metrics TASK -->.

    They replace the text before the lines <!-- /metrics -->.

    Raises:
      ValueError: a table has no end.
    """
    parts = _METRICS.split(text)
    for index in range(1, len(parts), 2):
        name = parts[index]
        _, end, after = parts[index + 1].partition("<!-- /metrics -->\n")
        if not end:
            raise ValueError(f"<!-- metrics {name} -->: has no line <!-- /metrics -->")
        table = "\n".join(_metrics(task_class(name)))
        parts[index] = f"<!-- metrics {name} -->\n"
        parts[index + 1] = f"\n{table}\n\n{end}{after}"
    return "".join(parts)


def _metrics(task: Any) -> list[str]:
    """Returns a table that describes the metrics of a task: meaning, unit and direction."""
    found = [(name, task.describe_metric(name)) for name in task.table_metrics]
    rows = [[f"`{name}`", x.about, x.unit, x.direction] for name, x in found if x is not None]
    return markdown_table(["metric", "measures", "unit", "direction"], rows)


def _models(selection: str, records: Sequence[Record]) -> list[str]:
    """Returns a table of the selected runs and their baselines.

    The columns are the data, the model, the number of parameters, the test metric and the time.
    """
    where = f"<!-- models {selection} -->"
    for word in selection.split():
        if "=" not in word:
            raise ValueError(f"{where}: expected KEY=VALUE, got {word!r}")
    wanted = dict(word.split("=", 1) for word in selection.split())
    if "task" not in wanted:
        raise ValueError(f"{where}: expected the key task")
    experiments = set(filter(None, wanted.pop("experiment", "").split(",")))

    def selects(record: Record) -> bool:
        values = {"task": record["task"], "data": record["data"], **record["settings"]}
        trained = "launch.train" in record["command"]
        named = record["experiment"] in experiments if experiments else trained
        return named and all(str(values.get(key)) == value for key, value in wanted.items())

    groups = _by_data(filter(selects, records))
    if not groups:
        raise ValueError(f"{where}: selects no run")
    task = task_class(wanted["task"])
    rows = []
    for (name, data), group in groups.items():
        cells = [
            [row._replace(settings=_unselected(row, wanted)).label, *numbers]
            for row, numbers in _numbers(task, group)
        ]
        link = f"[{data}](../../RESULTS.md#{name}-{data})"
        rows += [[data if index else link, *row] for index, row in enumerate(cells)]
    better = "" if task.higher_is_better else " (lower is better)"
    metric = f"{task.primary_metric} on test{better}"
    devices = sorted({record["device"] for group in groups.values() for record in group})
    time = f"time on {', '.join(devices)}"
    return markdown_table(["data", "model", "parameters", metric, time], rows)


def _unselected(row: _Row, wanted: Mapping[str, str]) -> tuple[tuple[str, Any], ...]:
    """Returns the settings of a row that are not fixed by the selection."""
    return tuple((key, value) for key, value in row.settings if str(value) != wanted.get(key))


def _numbers(task: Any, group: Sequence[Record]) -> Iterator[tuple[_Row, list[str]]]:
    """Yields each row of a table with its parameters, test metric and time.

    Of the baselines with the same settings, only the best has a row. If there is a row with the
    mean over the setting `Task.averaged_over`, the rows with single values of this setting are left
    out.
    """
    runs, given = _by_row(group)
    primary, sign = task.primary_metric, 1 if task.higher_is_better else -1
    rows = [*runs, *given]
    averaged = {row.name for row in rows if row.mean}
    rows = [
        row
        for row in rows
        if row.mean or row.name not in averaged or task.averaged_over not in dict(row.settings)
    ]
    for row in sorted(rows, key=lambda row: row.order):
        if row.baseline:
            rivals = [other for other in rows if other.settings == row.settings and other.baseline]
            best = max(rivals, key=lambda other: sign * given[other].get(primary, -sign * math.inf))
            if row == best:
                yield row, ["", f"{given[row][primary]:.3f}", ""]
            continue
        own = runs[row]
        mean, spread = mean_and_spread([run["metrics"][primary] for run in own])
        metric = f"{mean:.3f} ± {spread:.3f}" if len(own) > 1 else f"{mean:.3f}"
        seconds = mean_and_spread([run["seconds"] for run in own])[0]
        yield row, [f"{own[0]['parameters']:,}", metric, format_seconds(seconds)]


def _by_data(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["task"], record["data"]].append(record)
    return dict(sorted(groups.items()))


def _by_row(
    group: Sequence[Record],
) -> tuple[dict[_Row, list[Record]], dict[_Row, dict[str, float]]]:
    """Groups runs and baselines by table row, and adds rows with the mean over a setting.

    If only some of the models are refitted on training and validation examples, as their baselines
    are then, the split is a setting of the rows.
    """
    differs = len({_is_refitted(record) for record in group}) > 1
    runs: dict[_Row, list[Record]] = defaultdict(list)
    given: dict[_Row, dict[str, float]] = defaultdict(dict)
    for record in sorted(group, key=lambda record: record["seed"]):
        whole = "train + validation" if _is_refitted(record) else "train"
        split = {"trained_on": whole} if differs else {}
        settings = tuple(sorted({**record["settings"], **split}.items()))
        runs[_Row(settings, False, record["experiment"])].append(record)
        for name, values in record["baselines"].items():
            given[_Row(settings, True, name)].update(values)
    over = task_class(group[0]["task"]).averaged_over
    averaged: dict[_Row, list[_Row]] = defaultdict(list)
    for row in [*runs, *given] if over else []:
        settings = dict(row.settings)
        if over in settings:
            settings[over] = _MEAN
            averaged[row._replace(settings=tuple(sorted(settings.items())))].append(row)
    for mean, rows in averaged.items():
        if len(rows) > 1 and mean.baseline:
            shared = set.intersection(*(set(given[row]) for row in rows)) - {*_GAIN}
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
        task, (runs, given) = task_class(name), _by_row(group)
        primary, sign = task.primary_metric, 1 if task.higher_is_better else -1

        def on_validation(row: _Row, runs=runs, primary=primary) -> float:
            return mean_and_spread([run["validation"][primary] for run in runs[row]])[0]

        means = [row for row in runs if row.mean]
        best = max(means or runs, key=lambda row: sign * on_validation(row))
        cheap = [row for row in given if row.settings == best.settings and primary in given[row]]
        strongest = max(cheap, key=lambda row: sign * given[row][primary], default=None)
        baseline = f"{strongest.name} {given[strongest][primary]:.3f}" if strongest else ""
        mean, spread = mean_and_spread([run["metrics"][primary] for run in runs[best]])
        figure = f"{mean:.3f} ± {spread:.3f}" if len(runs[best]) > 1 else f"{mean:.3f}"
        better = "" if task.higher_is_better else " (lower is better)"
        rows.append([name, data, f"{primary}{better}", f"{best.name} {figure}", baseline])
    return markdown_table(
        ["task", "data", "metric on test", "best on validation", "baseline"], rows
    )


def _section(task: Any, group: Sequence[Record]) -> list[str]:
    runs, given = _by_row(group)
    order = sorted([*runs, *given], key=lambda row: row.order)
    tables = [_main_table(task, order, runs, given), _conditions(task, order, runs, given)]
    own = [row for row in order if not (row.baseline or row.mean)]
    tables.append(_gains(own, runs))
    lines = [line for table in tables if table for line in ["", *table]]
    return [*lines, "", *_commands(own, runs), *_validation_curves(task, own, runs)]


def _main_table(
    task: Any,
    order: Sequence[_Row],
    runs: Mapping[_Row, Sequence[Record]],
    given: Mapping[_Row, Mapping[str, float]],
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
    order: Sequence[_Row],
    runs: Mapping[_Row, Sequence[Record]],
    given: Mapping[_Row, Mapping[str, float]],
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


def _gains(models: Sequence[_Row], runs: Mapping[_Row, Sequence[Record]]) -> list[str]:
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
                *(mean_and_spread([v[key] for v in values])[0] for key in _GAIN)
            )
            if (values := found[row].get(name))
            else ""
            for name in names
        ]
        rows.append([row.label, *cells])
    return markdown_table(["gain over", *names], rows) if rows else []


def _commands(models: Sequence[_Row], runs: Mapping[_Row, Sequence[Record]]) -> list[str]:
    lines = []
    for row in models:
        first = runs[row][0]
        refitted = f" (chosen by {first['selected_by']})" if _is_refitted(first) else ""
        lines.append(f"- {row.label}{refitted}: `{first['command']}`")
    return lines


def _validation_curves(
    task: Any, models: Sequence[_Row], runs: Mapping[_Row, Sequence[Record]]
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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns a table in Markdown, without the columns that are empty in all rows."""
    return table_lines(*without_empty_columns(header, list(rows)))


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns a table in Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [lines[0], f"|{'---|' * len(header)}", *lines[1:]]


def without_empty_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Returns a table without the columns, after the first, that are empty in all rows."""
    kept = [n for n in range(len(header)) if not n or any(row[n] for row in rows)]
    return [header[n] for n in kept], [[row[n] for n in kept] for row in rows]


def show(record: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Prints the test metrics of one run and its baselines."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{record['task']}: {record['data']}, test split")
    table.add_column("model", no_wrap=True)
    metrics = measured(record, metrics)
    for metric in metrics:
        table.add_column(metric, justify="right", overflow="fold")
    gains = format_differences(record)
    if gains:
        # Without a minimum width, the column would be as wide as its heading.
        table.add_column(DIFFERENCE, justify="right", min_width=26)
    table.add_column("seed", justify="right")
    table.add_column("time", justify="right")
    table.add_row(
        record["experiment"],
        *(format_metric([record], metric) for metric in metrics),
        *([""] if gains else []),
        str(record["seed"]),
        format_seconds(record["seconds"]),
    )
    for name, values in record["baselines"].items():
        cells = [f"{values[metric]:.4f}" if metric in values else "" for metric in metrics]
        if gains:
            cells.append(gains.get(name, ""))
        table.add_row(
            f"baseline {name}", *cells, "", format_seconds(values["seconds"])
            if "seconds" in values else "",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 140).print(table)
