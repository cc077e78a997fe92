"""Generated tables between marker lines of Markdown pages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from launch.engine.config import task_class
from launch.reporting.formatting import (
    Record,
    format_mean,
    format_seconds,
    markdown_table,
    mean_and_spread,
)
from launch.reporting.tables import Row, by_data, by_row, summary_table


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


def insert_tables(text: str, records: Iterable[Record]) -> str:
    """Inserts the tables of models and of metrics into a page."""
    return insert_models(insert_metrics(text), records)


def insert_models(text: str, records: Iterable[Record]) -> str:
    """Inserts tables of models after the lines <!-- models KEY=VALUE ... -->.

    They replace the text before the lines <!-- /models -->. The keys select runs: task, data,
    experiment (several are separated by commas), or a key of the record's `settings`. Without the
    key experiment, the runs of `launch.train` are selected.

    Raises:
      ValueError: a first line has no matching last line, no key task or a malformed key, or it
        selects no run.
    """
    records = list(records)
    return _insert_each(text, "models", lambda selection: _models(selection, records))


def insert_metrics(text: str) -> str:
    """Inserts tables of metrics after the lines <!-- metrics TASK -->.

    They replace the text before the lines <!-- /metrics -->.

    Raises:
      ValueError: a first line has no matching last line.
    """
    return _insert_each(text, "metrics", lambda task: _metrics(task_class(task)))


def _insert_each(text: str, kind: str, table: Callable[[str], list[str]]) -> str:
    """Inserts `table(ARGUMENT)` after each line <!-- kind ARGUMENT -->, up to <!-- /kind -->."""
    parts = re.split(rf"^<!-- {kind} (.*) -->\n", text, flags=re.M)
    last = f"<!-- /{kind} -->\n"
    for index in range(1, len(parts), 2):
        first = f"<!-- {kind} {parts[index]} -->"
        _, end, after = parts[index + 1].partition(last)
        if not end:
            raise ValueError(f"{first}: has no line {last.strip()}")
        content = "\n".join(table(parts[index]))
        parts[index], parts[index + 1] = f"{first}\n", f"\n{content}\n\n{end}{after}"
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

    groups = by_data(filter(selects, records))
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


def _unselected(row: Row, wanted: Mapping[str, str]) -> tuple[tuple[str, Any], ...]:
    """Returns the settings of a row that are not fixed by the selection."""
    return tuple((key, value) for key, value in row.settings if str(value) != wanted.get(key))


def _numbers(task: Any, group: Sequence[Record]) -> Iterator[tuple[Row, list[str]]]:
    """Yields each row of a table with its parameters, test metric and time.

    Of the baselines with the same settings, only the best has a row. If there is a row with the
    mean over the setting `Task.averaged_over`, the rows with single values of this setting are left
    out.
    """
    runs, given = by_row(group)
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
        metric = format_mean([run["metrics"][primary] for run in own], digits=3)
        seconds = mean_and_spread([run["seconds"] for run in own])[0]
        yield row, [f"{own[0]['parameters']:,}", metric, format_seconds(seconds)]
