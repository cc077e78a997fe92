"""The file report.html of a run: training curves, test metrics and figures, self-contained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine.monitoring import PERCENTILES, step_key
from launch.engine.writers import read_lines, write_text
from launch.reporting import figures, formatting, page
from launch.reporting.results import training_notes
from tasks.common.data import summary
from tasks.common.metrics.descriptions import Metric, pattern_of
from tasks.figures import AttendedText, ConfusionMatrix, Curves, Figure
from tasks.task import Task

_BODY = """<p>{{ record.steps }} steps to the best {{ record.selected_by }}, {{ seconds }},
{{ "{:,}".format(record.parameters) }} parameters, {{ record.device }}, seed {{ record.seed }}
{%- if record.commit %}, commit {{ record.commit[:9] }}{{ "+dirty" if "dirty" in record.commit }}
{%- endif %}.
{%- for note in notes %} {{ note }}{% endfor %}</p>
<p><code class="command">{{ record.command }}</code></p>
<h2>Test split</h2>
<p>{{ "{:,}".format(examples) }} example{{ "s" if examples != 1 }}, evaluated once at the best step.
{{ primary }}: {{ "higher" if higher_is_better else "lower" }} is better.</p>
{% filter scrolling("metrics on the test split") -%}
<table><thead><tr><th scope="col">model</th>
{%- for name in metrics %}<th scope="col">{{ name }}</th>
{%- if loop.first and differences %}<th scope="col" class="left">{{ heading }}</th>{% endif -%}
{% endfor -%}
</tr></thead><tbody>
<tr class="own"><td>{{ record.experiment }}</td>
{%- for name in metrics %}<td>{{ "%.4f" | format(record.metrics[name]) if name in record.metrics }}
</td>{% if loop.first and differences %}<td></td>{% endif %}{% endfor %}</tr>
{% for baseline, values in record.baselines.items() %}<tr><td>baseline {{ baseline }}</td>
{%- for name in metrics %}<td>{{ "%.4f" | format(values[name]) if name in values }}</td>
{%- if loop.first and differences %}<td class="left">
{%- if baseline in differences %}{% set parts = differences[baseline].partition(" ") -%}
<span class="whole">{{ parts[0] }}</span> <span class="whole">{{ parts[2] }}</span><br>
<span class="note">{{ verdicts[baseline] }}</span>{% endif %}</td>
{%- endif %}{% endfor %}</tr>
{% endfor %}</tbody></table>
{%- endfilter %}
{% if differences %}<p class="note">Differences of {{ primary }} are paired over the same test
examples. If the interval contains 0, the examples do not tell which is better.</p>{% endif %}
<details><summary>What the metrics measure</summary><dl>
{% for name, metric in described %}<dt><code>{{ name }}</code></dt><dd>{{ metric }}</dd>
{% endfor %}</dl></details>
{% if others %}<details><summary>{{ others | length }} further metric
{{- "s" if others | length > 1 }}</summary>
{%- filter scrolling("further metrics") %}<table><thead><tr><th scope="col">metric</th>
<th scope="col">value</th></tr></thead><tbody>
{% for name, value in others.items() %}<tr><td>{{ name }}</td><td>{{ "%.4f" | format(value) }}</td>
</tr>
{% endfor %}</tbody></table>{% endfilter %}</details>{% endif %}
<h2>Data</h2>
{% for warning in data.warnings %}<p><b>Warning:</b> {{ warning }}.</p>{% endfor %}
<dl>{% for name, text in facts %}<dt>{{ name }}</dt><dd>{{ text }}</dd>
{% endfor %}</dl>
{% if data.notes %}<details><summary>Messages while the data were read ({{ data.notes | length }})
</summary><ul>{% for note in data.notes %}<li>{{ note }}</li>{% endfor %}</ul></details>{% endif %}
<h2>Training</h2>
<div class="panels">{{ curves }}</div>
{% if times %}<h3>Time and memory</h3>
{% filter scrolling("time and memory of training") -%}
<table><tbody>
{% for name, value, meaning in times %}<tr><td>{{ name }}</td><td>{{ value }}</td>
<td class="left note">{{ meaning }}</td></tr>
{% endfor %}</tbody></table>
{%- endfilter %}
<div class="panels">{{ step_times }}</div>{% endif %}
{% if overviews %}<h2>Figures of the test split</h2>
<div class="figures">{{ overviews }}</div>{% endif %}
{% if drawn %}<h2>Examples</h2>
<p>{{ note }}</p>
{% if attended %}<p class="note">Words with a stronger background have larger attention weights.</p>
{% endif %}
<div class="figures">{{ drawn }}</div>{% endif %}
"""


# Subdirectory of a refitted run for its first training, which selects the number of steps.
SELECTION = "selection"


def write_report(
    folder: Path,
    task: Task,
    record: Mapping[str, Any],
    examples: int,
    drawn: Sequence[Figure],
    note: str = "",
) -> None:
    """Writes the file report.html of a run.

    Args:
      folder: run directory.
      task: task that the run was trained on.
      record: result record of the run.
      examples: number of examples of the test split.
      drawn: figures of `Task.figures`.
      note: sentence that says which examples are drawn.
    """
    from markupsafe import Markup

    overviews = [figure for figure in drawn if isinstance(figure, ConfusionMatrix | Curves)]
    others = [figure for figure in drawn if not isinstance(figure, ConfusionMatrix | Curves)]
    metrics = formatting.measured(record, task.table_metrics)
    further = {name: value for name, value in record["metrics"].items() if name not in metrics}
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
            examples=examples,
            primary=task.primary_metric,
            higher_is_better=task.higher_is_better,
            metrics=metrics,
            others=further,
            differences=formatting.format_differences(record),
            verdicts=formatting.verdicts(record),
            heading=formatting.DIFFERENCE,
            seconds=formatting.format_seconds(record["seconds"]),
            times=times(record.get("timing", {})),
            step_times=Markup(step_times(folder)),
            curves=Markup(curves(folder, task.primary_metric, record["steps"])),
            overviews=Markup("".join(figures.draw(figure) for figure in overviews)),
            drawn=Markup("".join(figures.draw(figure) for figure in others)),
            note=note,
            attended=any(isinstance(f, AttendedText) and any(f.weights) for f in others),
        ),
    )


# Rows of the table of times: key in the summary, name, format of the value, and meaning.
_TIMES = (
    ("goodput", "goodput", "{:.1%}", "fraction of the wall time in which useful steps ran"),
    ("wall_seconds", "wall time", "{:,.1f} s", "training loops of all processes of this run"),
    ("compile_seconds", "compilation", "{:,.1f} s", "of the train step"),
    ("data_wait_seconds", "data wait", "{:,.1f} s", "the host waited for the next batch"),
    ("evaluation_seconds", "evaluation", "{:,.1f} s", "validation, with the checkpoint after it"),
    ("save_seconds", "saving", "{:,.1f} s", "until training could go on; part of evaluation"),
    ("start_seconds", "start", "{:,.1f} s", "initialization, or restoring a checkpoint"),
    ("lost_seconds", "lost", "{:,.1f} s", "steps repeated after a process was killed"),
    ("step_seconds_p50", "step time, median", "{:.4g} s",
     "between the completions of consecutive steps"),
    ("step_seconds_p90", "step time, 90 %", "{:.4g} s", "90th percentile of a log interval"),
    ("step_seconds_p99", "step time, 99 %", "{:.4g} s", "99th percentile of a log interval"),
    ("peak_memory_mb", "peak memory", "{:,.0f} MB", "of the process on the host"),
    ("peak_device_memory_mb", "peak device memory", "{:,.0f} MB", "of the device that used most"),
)  # fmt: skip


def times(timing: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Returns the rows of the table of times: name, value and meaning.

    Args:
      timing: summary of `launch.engine.monitoring.summarize`.
    """
    return [
        (name, form.format(timing[key]), meaning)
        for key, name, form, meaning in _TIMES
        if key in timing
    ]


def step_times(folder: Path) -> str:
    """Draws the percentiles of the step time of a run over its steps, as HTML.

    Args:
      folder: run directory.
    """
    lines = read_lines(log_file(folder).with_name("timing.jsonl"))
    series = {}
    for percent in PERCENTILES:
        key = step_key(percent)
        found = [(line["step"], line[key]) for line in lines if key in line]
        if len(found) > 1:
            series[f"{percent}th percentile"] = tuple(map(list, zip(*found, strict=True)))
    return figures.curves("step time, seconds", series, "step") if series else ""


def _described(task: Task, record: Mapping[str, Any]) -> list[tuple[str, Metric]]:
    """Returns the metrics of a record with their descriptions.

    Of several metrics whose names match the same pattern, only the first is returned.
    """
    found: dict[str, tuple[str, Metric]] = {}
    for name in record["metrics"]:
        metric = task.describe_metric(name)
        pattern = pattern_of(task.metric_table, name)
        if metric is not None and pattern is not None:
            found.setdefault(pattern, (name, metric))
    return list(found.values())


def log_file(folder: Path) -> Path:
    """Returns the path of metrics.jsonl of a run.

    For a refitted run, this is the file of the first training, which used validation.
    """
    selection = folder / SELECTION
    return (selection if selection.is_dir() else folder) / "metrics.jsonl"


def curves(folder: Path, metric: str, best: int | None = None) -> str:
    """Draws curves of the loss and a metric of a run, on training and validation split, as HTML.

    Args:
      folder: run directory.
      metric: name of the metric.
      best: step to mark as the best; None to mark none.
    """
    lines = read_lines(log_file(folder))

    def series(split: str, metric: str):
        points = [
            (line["step"], line[metric])
            for line in lines
            if line.get("split") == split and metric in line
        ]
        return [point[0] for point in points], [point[1] for point in points]

    mark = None if best is None else ("best step", best)
    drawn, shown = "", None
    for name in dict.fromkeys(["loss", metric]):
        found = {split: series(split, name) for split in ("train", "validation")}
        if name == metric and found == shown:
            # The metric is the loss.
            continue
        shown = found
        drawn += figures.curves(
            name, {key: line for key, line in found.items() if line[0]}, "step", mark
        )
    return drawn
