"""Metrics of runs as text, tables in Markdown, and the table of one run for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launch.engine.config import task_class
from launch.reporting import paired

Record = Mapping[str, Any]

# Keys in the metrics of a baseline: the model's gain over it, and the half-width of its interval.
GAIN = ("gain", "gain_95")

DIFFERENCE = "this model minus baseline (95 % CI)"
"""Heading of the column of `format_differences`."""


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Computes mean and sample standard deviation (0 for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))


def format_mean(values: Sequence[float], digits: int = 4) -> str:
    """Formats the mean and deviation as '0.8012 ± 0.0031', or a single value as '0.8012'."""
    mean, spread = mean_and_spread(values)
    both = f"{mean:.{digits}f} ± {spread:.{digits}f}"
    return both if len(values) > 1 else f"{mean:.{digits}f}"


def format_metric(runs: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Formats a metric of several runs; '' if a run lacks the metric."""
    found = [run["metrics"].get(metric) for run in runs]
    return "" if None in found else format_mean(found)


def format_seconds(seconds: float) -> str:
    """Formats a duration as '12 s' or '3 min 05 s'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_differences(record: Record) -> dict[str, str]:
    """Formats the difference between the model and each baseline on the primary metric.

    A difference is followed by its confidence interval.

    The differences are paired over the examples of the test split. Baselines without per-example
    scores are left out.
    """
    sign = 1 if task_class(record["task"]).higher_is_better else -1
    return {
        name: paired.format_interval(sign * values[GAIN[0]], values[GAIN[1]])
        for name, values in record["baselines"].items()
        if GAIN[0] in values
    }


def verdicts(record: Record) -> dict[str, str]:
    """Returns whether the model is "better" or "worse" than each baseline with example scores.

    If the confidence interval contains 0, the result is "no clear difference".
    """
    found = {}
    for name, values in record["baselines"].items():
        if GAIN[0] in values:
            gain, half = (values[key] for key in GAIN)
            clear = "better" if gain > 0 else "worse"
            found[name] = clear if abs(gain) > half else "no clear difference"
    return found


def measured(record: Record, metrics: Iterable[str]) -> list[str]:
    """Returns those of the given metrics that the model or one of its baselines has."""
    rows = [record["metrics"], *record["baselines"].values()]
    return [name for name in metrics if any(name in row for row in rows)]


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
