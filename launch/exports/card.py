"""The model card of an export: README.md with the metadata that Hugging Face reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from launch.engine.config import Experiment
from launch.exports.pipelines import pipeline_of
from launch.reporting import results
from launch.reporting.formatting import format_metric
from tasks.common.data import builders

_TEMPLATE = """---
library_name: {{ "onnx" if signature.onnx else "jax" }}
{%- if pipeline %}
pipeline_tag: {{ pipeline }}
{%- endif %}
{%- if metrics %}
model-index:
- name: {{ name | tojson }}
  results:
  - task: {type: {{ (pipeline or signature.task) | tojson }}}
    dataset: {name: {{ signature.data | tojson }}, type: {{ signature.data | tojson }}, split: test}
    metrics:
{%- for metric, value in metrics.items() %}
    - {type: {{ metric | tojson }}, value: {{ value | tojson }}}
{%- endfor %}
{%- endif %}
---

# {{ signature.task }}: {{ name }}

{% if parameters %}{{ '{:,}'.format(parameters) }} parameters. {% endif -%}
Exported from step {{ step }} of a run on {{ signature.data }}
({{ selected }}).

## Use

```
pip install -r requirements.txt
python predict.py --input=...
python predict.py --verify
```

{% if signature.onnx -%}
`signature.json` describes the programs (ONNX, opset {{ signature.onnx.opset }}), their inputs and
outputs, and the pre- and postprocessing operations. The weights are external data of all programs,
in `{{ signature.onnx.weights }}`. The programs were converted by
{{ signature.onnx.converter }}. With {{ signature.onnx.verified_with }}, outputs differ from those
of JAX by at most {{ '%.2g' % signature.onnx.deviation }}, relative to the largest output.
{%- for kind, programs in signature.programs.items() %}
{%- for size in programs | map(attribute='batch_size') | select('defined') | unique %}
Programs `{{ kind }}` take batches of {{ size }}; `predict.py` pads and splits other batches.
{%- endfor %}
{%- endfor %}
{%- for kind, reason in signature.onnx.not_converted.items() %}
Not converted: `{{ kind }}` ({{ reason }}).
{%- endfor %}
{%- else -%}
`signature.json` describes the programs (StableHLO for {{ signature.platforms | join(', ') }}),
their inputs and outputs, and the pre- and postprocessing operations. The programs were written by
JAX {{ signature.jax.version }}. JAX guarantees that its releases until
{{ signature.jax.compatible_until }} can read them.
{%- endif %}

## Data

{{ data or "User data: " + signature.data + "." }}
{% if license %}
License: {{ license }}.
{% endif %}
{%- if splits %}
| split | examples |
| --- | ---: |
{%- for split, count in splits.items() %}
| {{ split }} | {{ '{:,}'.format(count) }} |
{%- endfor %}
{% endif %}
## Results
{% if rows %}
Test split. {{ protocol }}

| | {{ columns | join(' | ') }} |
| --- |{{ ' ---: |' * (columns | length) }}
{%- for row in rows %}
| {{ row | join(' | ') }} |
{%- endfor %}
{% else %}
The run has no result yet.
{% endif %}
## Limitations

- The results were measured only on data like those above. They may differ for data from other
  sources, languages or recording devices.
- The programs take inputs of at most: {{ limits }}.
- Probabilities and scores are not calibrated.
"""


def render(
    signature: Mapping[str, Any],
    config: Experiment,
    folder: Path,
    step: int,
    recorded: Path = Path("results"),
) -> str:
    """Returns the model card of an exported run as Markdown.

    Args:
      signature: content of the export's signature.json.
      config: config of the run.
      folder: run directory; its result.json and data.json are read if they exist.
      step: step of the exported checkpoint.
      recorded: directory of the result files that `--record` writes. If it contains several runs
        of the same experiment, the table of results gets a row with their mean and standard
        deviation.
    """
    result = folder / "result.json"
    record = results.load_result(result) if result.exists() else None
    metrics = {} if record is None else record["metrics"]
    columns, rows, protocol = _results(record, config, recorded)
    definition = builders.definition_of(config.data.name)
    longest = signature["programs"]["predict"][-1]["sizes"]
    return (
        jinja2.Template(_TEMPLATE, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    ).render(
        signature={"onnx": None, **signature},
        name=config.name or config.model.name,
        pipeline=pipeline_of(signature),
        metrics={name: metrics[name] for name in columns if name in metrics},
        parameters=record and record["parameters"],
        step=step,
        selected="best on validation" if not config.training.refit else "refitted with validation",
        data=definition and definition.description,
        license=definition and definition.license,
        splits=_counts(folder),
        rows=rows,
        columns=columns,
        protocol=protocol,
        limits=", ".join(f"{name} {size}" for name, size in longest.items()) or "the fixed shapes",
    )


def _counts(folder: Path) -> dict[str, int]:
    """Returns the number of examples of each split from data.json; {} if it cannot be read."""
    try:
        counts = json.loads((folder / "data.json").read_text(encoding="utf-8"))["examples"]
        return {str(split): int(count) for split, count in counts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _results(
    record: Mapping[str, Any] | None, config: Experiment, recorded: Path
) -> tuple[list[str], list[list[str]], str]:
    """Returns the header of the table of results, its rows, and a sentence about the run.

    The run and each baseline have a row. If several runs of the same experiment are recorded, their
    mean has a row too. The sentence states how the step was selected, the number of steps and the
    device.
    """
    if record is None:
        return [], [], ""
    from launch.engine.config import task_class

    columns = [name for name in task_class(config.task).table_metrics if name in record["metrics"]]
    rows = [_row("this model", [record], columns)]
    same = _same_experiment(record, recorded)
    if len(same) > 1:
        rows.append(_row(f"mean ± deviation of {len(same)} recorded seeds", same, columns))
    for name, metrics in record.get("baselines", {}).items():
        rows.append(_row(f"baseline {name}", [{"metrics": metrics}], columns))
    protocol = f"Selected by {record['selected_by']}; {record['steps']} steps, {record['device']}."
    return columns, rows, protocol


def _same_experiment(record: Mapping[str, Any], recorded: Path) -> Sequence[Mapping[str, Any]]:
    if not recorded.is_dir():
        return ()
    keys = ("task", "data", "experiment", "settings", "split")
    wanted = [record.get(key) for key in keys]
    return [
        other
        for other in results.load_records(recorded)
        if [other.get(key) for key in keys] == wanted
    ]


def _row(name: str, runs: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    return [name, *(format_metric(runs, column) for column in columns)]
