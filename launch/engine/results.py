"""Result records, the run files under results/, and the tables generated from them.

A run file is results/<task>/<data>/<experiment>/<seed>.json. Where runs of one experiment differ in
`settings` (a horizon, a speaker), the settings stand in the file's name too.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine import pairs
from launch.engine.config import Experiment, task_class
from launch.engine.environment import commit, device, dirty_files, versions
from launch.engine.writers import write_json
from tasks.common.errors import UserError

FIELDS = (
    "task", "data", "experiment", "seed", "split", "metrics", "validation", "baselines",
    "settings", "parameters", "selected_by", "steps", "seconds", "device", "command", "commit",
    "versions",
)  # fmt: skip


def make_record(
    config: Experiment,
    task: Any,
    *,
    metrics: Mapping[str, float],
    validation: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    steps_taken: int,
    seconds: float,
    parameters: int,
    command: str,
) -> dict[str, Any]:
    """The record of one finished run, all its metrics on the test split."""
    return {
        "task": config.task,
        "data": config.data.name,
        "experiment": config.name,
        "seed": config.seed,
        "split": "test",
        "metrics": dict(metrics),
        "validation": {task.primary_metric: validation[task.primary_metric]},
        "baselines": {name: dict(values) for name, values in baselines.items()},
        "settings": task.settings,
        "parameters": parameters,
        "selected_by": f"validation {task.primary_metric}"
        + (", then refitted on train + validation" if config.training.refit else ""),
        "steps": steps_taken,
        "seconds": round(seconds, 1),
        "device": device(),
        "command": command,
        "commit": commit(),
        "versions": versions(),
    }


def check_recordable() -> None:
    """Refuses to record from a tree whose commit would not tell what ran.

    Raises:
      UserError: files differ from the commit, or there is no commit.
    """
    if not commit():
        raise UserError("--record: not a git checkout, so there is no commit to record")
    dirty = dirty_files()
    if dirty:
        raise UserError(
            f"--record: {', '.join(dirty[:5])} differ from the commit; commit first, or record "
            "from a clean clone"
        )


def save_record(record: Mapping[str, Any], root: Path) -> Path:
    """Writes the run file and returns its path."""
    settings = "".join(f"-{key}={value}" for key, value in sorted(record["settings"].items()))
    path = (
        root / record["task"] / record["data"].replace(":", "-").replace("/", "-")
        / record["experiment"] / f"{record['seed']}{settings}.json"
    )  # fmt: skip
    write_json(path, record)
    return path


def load_records(root: Path) -> list[dict[str, Any]]:
    """All run files under a folder, in the order of their paths.

    Raises:
      UserError: no such folder, no files in it, or a file that is not a run file.
    """
    if not root.is_dir():
        raise UserError(f"--results={root}: no such folder")
    records = []
    for path in sorted(root.rglob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a JSON file ({error})") from None
        missing = [field for field in FIELDS if not isinstance(record, dict) or field not in record]
        if missing:
            raise UserError(f"{path}: not a run file, {', '.join(missing)} missing")
        records.append(record)
    if not records:
        raise UserError(f"--results={root}: no run files are there")
    return records


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for one value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1))


def spell(values: Sequence[float]) -> str:
    """'0.8012 ± 0.0031' or, for one value, '0.8012'."""
    mean, spread = mean_and_spread(values)
    return f"{mean:.4f} ± {spread:.4f}" if len(values) > 1 else f"{mean:.4f}"


def spell_metric(runs: Sequence[Mapping[str, Any]], metric: str) -> str:
    """`spell` of a metric of some runs' records; empty where a run does not have it."""
    found = [run["metrics"].get(metric) for run in runs]
    return "" if None in found else spell(found)


def spell_seconds(seconds: float) -> str:
    """'12 s' or '3 min 05 s'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def results_markdown(records: Iterable[Mapping[str, Any]]) -> str:
    """Tables of all records, a section a task and data set, as RESULTS.md holds them."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["task"], record["data"]].append(record)
    lines = [
        "# Results",
        "",
        "Generated from the run files under `results/` by "
        "`python -m launch.report --results=results --output=RESULTS.md`.",
        "Figures are on the test split, read once, at the best validation step: mean ± standard "
        "deviation over the seeds. Baselines are fitted on the same train split; where a model is "
        "fitted again on train and validation, as its table says, they are too.",
    ]
    for (task, data), group in sorted(groups.items()):
        lines += ["", f"## {task}: {data}", "", *_table(task, group)]
    return "\n".join(lines) + "\n"


def _table(task: str, group: Sequence[Mapping[str, Any]]) -> list[str]:
    task_type = task_class(task)
    metrics = list(task_type.table_metrics)
    primary = task_type.primary_metric
    gains = ["gain (95 %)"] if any(map(_paired, group)) else []
    header = [
        "model", *metrics, *gains, f"validation {primary}", "seeds", "weights", "seconds a run",
        "device", "commit",
    ]  # fmt: skip
    rows: list[list[str]] = []
    by_experiment: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for record in group:
        by_experiment[record["experiment"], _spelled_settings(record)].append(record)
    for (experiment, settings), runs in sorted(by_experiment.items()):
        rows.append(
            [
                f"{experiment} ({settings})" if settings else experiment,
                *(spell_metric(runs, metric) for metric in metrics),
                *([_spelled_gain(runs)] if gains else []),
                spell([run["validation"][primary] for run in runs]),
                ", ".join(str(run["seed"]) for run in sorted(runs, key=lambda run: run["seed"])),
                f"{runs[0]['parameters']:,}",
                f"{mean_and_spread([run['seconds'] for run in runs])[0]:.0f}",
                runs[0]["device"],
                ", ".join(sorted({run["commit"][:9] for run in runs})),
            ]
        )
    baselines: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for record in group:
        for name, values in record["baselines"].items():
            baselines[name, _spelled_settings(record)].update(values)
    for (name, settings), values in sorted(baselines.items(), key=lambda row: row[0]):
        row = [f"baseline {name} ({settings})" if settings else f"baseline {name}"]
        row += [f"{values[metric]:.4f}" if metric in values else "" for metric in metrics]
        rows.append(row + [""] * (len(header) - len(row)))
    table = _markdown(header, rows)
    table += _conditions(task_type, by_experiment, baselines)
    lines = []
    for (experiment, _), runs in sorted(by_experiment.items()):
        first = min(runs, key=lambda run: run["seed"])
        how = first["selected_by"]
        refitted = f" (chosen by {how})" if "refitted" in how else ""
        lines.append(f"- {experiment}{refitted}: `{first['command']}`")
    if gains:
        lines.append(
            f"- gain: on {primary}, over the baseline that is named, the best of them, example by "
            "example; of several seeds the mean of both figures"
        )
    return [*table, "", *lines]


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return [lines[0], f"|{'---|' * len(header)}", *lines[1:]]


def _conditions(
    task_type: Any,
    models: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    baselines: Mapping[tuple[str, str], Mapping[str, float]],
) -> list[str]:
    """A second table, of the metrics under further conditions; nothing where no run has them."""
    prefix, primary = task_type.condition_prefix, task_type.primary_metric
    groups = [(name, [run["metrics"] for run in runs]) for name, runs in sorted(models.items())]
    groups += [
        ((f"baseline {name}", settings), [values])
        for (name, settings), values in sorted(baselines.items())
    ]
    groups = [
        (name, figures)
        for name, figures in groups
        if prefix and any(key.startswith(prefix) for each in figures for key in each)
    ]
    if not groups:
        return []
    found = {key for _, figures in groups for each in figures for key in each}
    columns = [primary, *sorted(key for key in found if key.startswith(prefix))]
    rows = []
    for (name, settings), figures in groups:
        cells = [
            spell([each[key] for each in figures]) if all(key in each for each in figures) else ""
            for key in columns
        ]
        rows.append([f"{name} ({settings})" if settings else name, *cells])
    return ["", *_markdown(["model", *columns], rows)]


def _paired(run: Mapping[str, Any]) -> list[str]:
    """The baselines of a run that tell of each example, the best on the primary metric first."""
    metric = task_class(run["task"]).primary_metric
    sign = -1 if task_class(run["task"]).higher_is_better else 1
    named = [name for name, values in run["baselines"].items() if "gain" in values]
    return sorted(named, key=lambda name: sign * run["baselines"][name][metric])


def _spelled_gain(runs: Sequence[Mapping[str, Any]]) -> str:
    if not all(map(_paired, runs)):
        return ""
    best = _paired(runs[0])[0]
    figures = [
        mean_and_spread([run["baselines"][best][key] for run in runs])[0]
        for key in ("gain", "gain_95")
    ]
    return f"{pairs.spell(*figures)} ({best})"


def _spelled_settings(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(record["settings"].items()))


def show(record: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Prints the test table of one run: the model, then the baselines."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{record['task']}: {record['data']}, test split")
    table.add_column("model", no_wrap=True)
    for metric in metrics:
        table.add_column(metric, justify="right", overflow="fold")
    gains = bool(_paired(record))
    if gains:
        table.add_column("gain over it (95 %)", justify="right", no_wrap=True)
    table.add_column("seed", justify="right")
    table.add_column("time", justify="right")
    table.add_row(
        record["experiment"],
        *(spell_metric([record], metric) for metric in metrics),
        *([""] if gains else []),
        str(record["seed"]),
        spell_seconds(record["seconds"]),
    )
    for name, values in record["baselines"].items():
        cells = [f"{values[metric]:.4f}" if metric in values else "" for metric in metrics]
        if gains:
            paired = "gain" in values
            cells.append(pairs.spell(values["gain"], values["gain_95"]) if paired else "")
        table.add_row(
            f"baseline {name}", *cells, "", spell_seconds(values["seconds"])
            if "seconds" in values else "",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 140).print(table)
