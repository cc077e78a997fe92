"""Comparisons as a terminal table, Markdown, CSV, an HTML page and figures."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine.answers import cell
from launch.engine.monitoring import run_seconds
from launch.engine.writers import read_lines, write_text
from launch.reporting import comparison as comparisons
from launch.reporting import figures, page
from launch.reporting.comparison import Comparison, Row
from launch.reporting.formatting import markdown_table, mean_and_spread
from launch.reporting.report import log_file
from tasks.figures import Curves, Figure, Intervals

# Largest number of experiments in the figure of curves.
_CURVES = 6
# Largest number of characters in a line of a table that is not printed in a terminal.
_WIDEST = 300


def show(comparison: Comparison) -> None:
    """Prints the table and its notes."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    header, rows = comparisons.table(comparison, between="\n")
    shown = Table(title=comparison.title)
    for number, column in enumerate(header):
        text = number == 0 or (number == 1 and bool(comparison.keys))
        shown.add_column(column, justify="left" if text else "right", overflow="fold")
    for row in rows:
        # Names may contain brackets, which rich would read as markup.
        shown.add_row(*map(Text, row))
    console = Console(markup=False)
    if not console.is_terminal:
        # Lines of files and pipes may be longer than those of a terminal.
        natural = Measurement.get(console, console.options.update(max_width=_WIDEST), shown)
        console = Console(markup=False, width=max(140, natural.maximum))
    console.print(shown)
    for note in comparison.notes:
        console.print(note, soft_wrap=True, highlight=False)


def markdown(comparison: Comparison) -> str:
    """Returns the table and its notes as Markdown."""
    lines = [f"# {comparison.title}", "", *markdown_table(*comparisons.table(comparison)), ""]
    return "\n".join([*lines, *(f"- {note}" for note in comparison.notes)]) + "\n"


def as_csv(found: Iterable[Comparison]) -> str:
    """Returns the records of comparisons as CSV, in which lists are written as JSON.

    The columns are the keys that `launch.reporting.comparison.records` returns for any of the
    comparisons.
    """
    records = [record for each in found for record in comparisons.records(each)]
    columns = list(dict.fromkeys(key for record in records for key in record))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(record.get(key)) for key in columns] for record in records)
    return buffer.getvalue()


def as_json(found: Iterable[Comparison], messages: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the comparisons as JSON values, with the messages about runs that are left out."""
    return {
        "comparisons": [
            {
                "title": each.title,
                "metric": each.metric,
                "higher_is_better": each.task.higher_is_better,
                "reference": each.reference,
                "best": each.best,
                "runs": comparisons.records(each),
                "baselines": each.baselines,
                "notes": list(each.notes),
            }
            for each in found
        ],
        "left_out": list(messages),
    }


def as_html(title: str, found: Sequence[Comparison], messages: Sequence[str] = ()) -> str:
    """Returns a self-contained HTML page with tables, notes and figures.

    Args:
      title: title of the page.
      found: comparisons; if there are several, each has a section.
      messages: lines about runs that are left out.
    """
    from markupsafe import Markup

    return page.render("{{ content }}", title, content=Markup(sections(found, messages, title)))


def sections(found: Sequence[Comparison], messages: Sequence[str] = (), title: str = "") -> str:
    """Returns tables, notes and figures as HTML.

    Args:
      found: comparisons.
      messages: lines about runs that are left out.
      title: title of the page that contains the HTML. A comparison with the same title gets no
        heading.
    """
    parts = []
    for each in found:
        if each.title != title:
            parts.append(f"<h2>{html.escape(each.title)}</h2>")
        parts += [_table(each), _list(each.notes)]
        parts += [figures.draw(figure) for figure in drawn(each).values()]
        parts.append(_directories(each))
    if messages:
        parts += ["<h2>Left out</h2>", _list(messages)]
    return "\n".join(parts)


def _table(comparison: Comparison) -> str:
    header, rows = comparisons.table(comparison)
    names = {row.name for row in comparison.rows}
    left = 2 if comparison.keys else 1
    lines = ["".join(_cell("th scope='col'", text, n < left) for n, text in enumerate(header))]
    for row in rows:
        chosen = row[0] == comparison.best and row[0] in names
        cells = "".join(_cell("td", text, n < left) for n, text in enumerate(row))
        lines.append(f"<tr{' class=own' * chosen}>{cells}</tr>")
    table = f"<table><tr>{lines[0]}</tr>{''.join(lines[1:])}</table>"
    return page.scrolling(table, comparison.title)


def _cell(tag: str, text: str, left: bool) -> str:
    # Browsers would break lines within "0.8012 ± 0.0031".
    text = html.escape(text).replace(" ± ", "&nbsp;±&nbsp;")
    return f"<{tag}{' class=left' * left}>{text}</{tag.split()[0]}>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def _directories(comparison: Comparison) -> str:
    """Lists the run directories of each experiment."""
    rows = "".join(
        f"<li>{html.escape(row.name)}"
        + "".join(
            f"<br><code>{html.escape(str(folder))}</code>"
            for folder in row.outcome.folders.values()
        )
        + "</li>"
        for row in comparison.rows
    )
    return f"<details><summary>Run directories</summary><ul>{rows}</ul></details>"


def write_files(folder: Path, comparison: Comparison) -> list[Path]:
    """Writes table.md, table.csv, report.html and, for finished runs, PNG figures.

    Returns:
      Paths of the report and of the figures.
    """
    write_text(folder / "table.md", markdown(comparison))
    write_text(folder / "table.csv", as_csv([comparison]))
    report = folder / "report.html"
    write_text(report, as_html(comparison.title, [comparison]))
    written = [report]
    for name, figure in drawn(comparison).items():
        (folder / f"{name}.png").write_bytes(figures.png(figure))
        written.append(folder / f"{name}.png")
    return written


def write_ranking(folder: Path, title: str, found: Sequence[Comparison]) -> Path:
    """Writes the ranking of the experiments of each comparison, and a common report.

    The files are ranking.md, with the experiments from best to worst, and report.html, with the
    ranking and the comparisons.

    Returns:
      Path of the report.
    """
    from markupsafe import Markup

    header, rows = comparisons.ranking(found)
    text = "\n".join([f"# {title}", "", *markdown_table(header, rows), ""])
    write_text(folder / "ranking.md", text)
    lines = "".join(f"<tr>{''.join(_cell('td', cell, True) for cell in row)}</tr>" for row in rows)
    names = "".join(_cell("th scope='col'", name, True) for name in header)
    table = page.scrolling(f"<table><tr>{names}</tr>{lines}</table>", "ranking")
    report = folder / "report.html"
    content = Markup(table + sections(found, title=title))
    write_text(report, page.render("{{ content }}", title, content=content))
    return report


def drawn(comparison: Comparison) -> dict[str, Figure]:
    """Returns the figures of a comparison by file name.

    "means" shows the metric on validation and test with its standard deviation over seeds, and the
    differences with their confidence intervals. "time" shows the metric on validation over the
    training time. The result is empty if fewer than two experiments are finished.
    """
    finished = [row for row in comparison.rows if row.runs]
    if len(finished) < 2:
        return {}
    found: dict[str, Figure] = {"means": _means(comparison, finished)}
    time = _time(comparison, finished)
    if time is not None:
        found["time"] = time
    return found


def _means(comparison: Comparison, rows: Sequence[Row]) -> Intervals:
    metric, nothing = comparison.metric, math.nan
    panels: dict[str, Mapping[str, Any]] = {}
    panels[metric] = {
        split: tuple(
            zip(
                *(mean_and_spread([run[field][metric] for run in row.runs]) for row in rows),
                strict=True,
            )
        )
        for split, field in (("validation", "validation"), ("test", "metrics"))
    }
    gap = f"{metric} - {comparison.role} (95 %)"
    if any(row.difference for row in rows):
        pairs = [row.difference or (nothing, nothing) for row in rows]
        panels[gap] = {"test": ([pair[0] for pair in pairs], [pair[1] for pair in pairs])}
    several = any(len(row.runs) > 1 for row in rows)
    bars = "; bars are standard deviations over the seeds" if several else ""
    title = f"{comparison.title}{bars}"
    return Intervals(title, [row.name for row in rows], panels, [gap])


def _time(comparison: Comparison, rows: Sequence[Row]) -> Curves | None:
    """Returns the validation curves of the best experiments over time; None without logs."""
    sign = 1 if comparison.task.higher_is_better else -1
    best = sorted(
        rows, key=lambda row: -sign * comparisons.validation(comparison.task, row.outcome)
    )
    series = {}
    for row in best[:_CURVES]:
        steps, values = _curve(row, comparison.metric)
        if steps:
            series[row.name] = (steps, values)
    if not series:
        return None
    left_out = f", {_CURVES} best of {len(rows)}" if len(rows) > _CURVES else ""
    return Curves(f"validation {comparison.metric}{left_out}", "seconds", series)


def _curve(row: Row, metric: str) -> tuple[list[float], list[float]]:
    """Returns the times and the validation metrics of a row, as two lists.

    Both are averaged over the seeds, at the steps that all seeds have.
    """
    curves = [_points(row.outcome.folders[seed], metric) for seed in row.outcome.records]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    pairs = [[curve[step] for curve in curves] for step in steps]
    means = [tuple(mean_and_spread(values)[0] for values in zip(*p, strict=True)) for p in pairs]
    return [seconds for seconds, _ in means], [value for _, value in means]


def _points(folder: Path, metric: str) -> dict[int, tuple[float, float]]:
    """Returns the time since the start and the validation metric of a run, by step."""
    logs = log_file(folder)
    timing = read_lines(logs.with_name("timing.jsonl"))
    found = {}
    for line in read_lines(logs):
        if line.get("split") == "validation" and metric in line and timing:
            seconds = sum(run_seconds(each) for each in timing if each["step"] <= line["step"])
            found[line["step"]] = (seconds, line[metric])
    return found
