"""The file report.html of a run: training curves, test metrics and figures, self-contained."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launch.engine.evaluation import Evaluation
from launch.engine.writers import read_lines, write_text
from launch.reporting import figures, page
from launch.reporting.results import training_notes
from launch.reporting.tables import format_gains, format_seconds
from tasks.common.data import summary
from tasks.common.metrics.descriptions import Metric, pattern_of
from tasks.figures import AttendedText
from tasks.task import Task

_BODY = """<p><code>{{ record.command }}</code></p>
<p>{{ record.steps }} steps to the best {{ record.selected_by }}, {{ seconds }},
{{ "{:,}".format(record.parameters) }} parameters, {{ record.device }}, seed {{ record.seed }}
{%- if record.commit %}, commit {{ record.commit[:9] }}{{ "+dirty" if "dirty" in record.commit }}
{%- endif %}.
{%- for note in notes %} {{ note }}{% endfor %}</p>
<h2>Test split</h2>
<table><tr><th>model</th>{% for name in metrics %}<th>{{ name }}</th>{% endfor %}
{% if gains %}<th>gain over baseline (95 %)</th>{% endif %}</tr>
<tr><td><b>{{ record.experiment }}</b></td>
{% for name in metrics %}<td>{{ "%.4f" | format(record.metrics[name]) if name in record.metrics }}
</td>{% endfor %}</tr>
{% for baseline, values in record.baselines.items() %}<tr><td>baseline {{ baseline }}</td>
{% for name in metrics %}<td>{{ "%.4f" | format(values[name]) if name in values }}</td>{% endfor %}
{% if gains %}<td>{{ gains[baseline] }}</td>{% endif %}</tr>{% endfor %}</table>
<details><summary>What the metrics measure</summary><dl>
{% for name, metric in described %}<dt><code>{{ name }}</code></dt><dd>{{ metric }}</dd>
{% endfor %}</dl></details>
{% if others %}<details><summary>All metrics</summary><table>
{% for name, value in others.items() %}<tr><td>{{ name }}</td><td>{{ "%.4f" | format(value) }}</td>
</tr>{% endfor %}</table></details>{% endif %}
<h2>Data</h2>
{% for warning in data.warnings %}<p><b>Warning:</b> {{ warning }}.</p>{% endfor %}
<dl>{% for name, text in facts %}<dt>{{ name }}</dt><dd>{{ text }}</dd>
{% endfor %}</dl>
{% if data.notes %}<details><summary>Messages while the data were read ({{ data.notes | length }})
</summary><ul>{% for note in data.notes %}<li>{{ note }}</li>{% endfor %}</ul></details>{% endif %}
<h2>Training</h2>{{ curves }}
{% if figures %}<h2>Figures</h2>{{ figures }}{% endif %}
{% if texts %}<h2>Attention over examples</h2>
<p>Darker words have larger attention weights; point at a word to read its weight.</p>
{{ texts }}{% endif %}
"""


# Subdirectory of a refitted run with the first training, which selected the number of steps.
SELECTION = "selection"


def write_report(
    folder: Path,
    task: Task,
    record: Mapping[str, Any],
    evaluation: Evaluation,
    attention: Mapping[str, np.ndarray],
) -> None:
    """Writes the file report.html of a run.

    Args:
      folder: run directory.
      task: task that the run was trained on.
      record: result record of the run.
      evaluation: results on the test split.
      attention: attention weights of the first test examples, by name.
    """
    from markupsafe import Markup

    drawn = task.figures(evaluation.statistics, evaluation.outputs, "test", attention)
    texts = [figure for figure in drawn if isinstance(figure, AttendedText)]
    drawings = [figure for figure in drawn if not isinstance(figure, AttendedText)]
    shown = list(task.table_metrics)
    write_text(
        folder / "report.html",
        page.render(
            _BODY,
            title=f"{record['task']}: {record['data']}, {record['experiment']}",
            record=record,
            notes=training_notes(record),
            data=record["data_summary"],
            facts=summary.facts(record["data_summary"]),
            described=_described(task, record),
            metrics=shown,
            others={name: value for name, value in record["metrics"].items() if name not in shown},
            gains=format_gains(record),
            seconds=format_seconds(record["seconds"]),
            curves=Markup(curves(folder, task.primary_metric)),
            figures=Markup("".join(figures.draw(figure) for figure in drawings)),
            texts=Markup("".join(figures.draw(figure) for figure in texts)),
        ),
    )


def _described(task: Task, record: Mapping[str, Any]) -> list[tuple[str, Metric]]:
    """Returns the metrics of a record with their descriptions; only the first of a pattern."""
    found: dict[str, tuple[str, Metric]] = {}
    for name in record["metrics"]:
        metric = task.describe_metric(name)
        pattern = pattern_of(task.metric_table, name)
        if metric is not None and pattern is not None:
            found.setdefault(pattern, (name, metric))
    return list(found.values())


def log_file(folder: Path) -> Path:
    """Returns the path of the metrics by step of a run.

    For a refitted run, it is that of the first training, which used validation.
    """
    selection = folder / SELECTION
    return (selection if selection.is_dir() else folder) / "metrics.jsonl"


def curves(folder: Path, metric: str) -> str:
    """Draws the loss and a metric of a run on training and validation split, as HTML."""
    lines = read_lines(log_file(folder))

    def series(split: str, metric: str):
        points = [
            (line["step"], line[metric])
            for line in lines
            if line.get("split") == split and metric in line
        ]
        return [point[0] for point in points], [point[1] for point in points]

    losses = {split: series(split, "loss") for split in ("train", "validation")}
    drawn = figures.curves("loss", {name: line for name, line in losses.items() if line[0]})
    primary = {f"{split} {metric}": series(split, metric) for split in ("train", "validation")}
    drawn += figures.curves(
        html.escape(metric), {name: line for name, line in primary.items() if line[0]}
    )
    return drawn
