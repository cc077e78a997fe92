"""Records of results, and the files under results/ in which `--record` stores them (run files).

A run file is results/<task>/<data>/<experiment>/<seed>.json. If runs of one experiment differ in
`settings`, such as horizon or speaker, the file name contains the settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine.config import Experiment
from launch.engine.environment import commit, device, dirty_files, versions
from launch.engine.writers import as_json, read_mapping, write_json, write_text
from tasks.common.checksums import extended
from tasks.common.errors import UserError

# Field names of a record and their types.
FIELDS = {
    "task": str, "data": str, "experiment": str, "seed": int, "split": str, "metrics": dict,
    "validation": dict, "baselines": dict, "settings": dict, "parameters": int,
    "selected_by": str, "steps": int, "seconds": float, "device": str, "command": str,
    "commit": str, "versions": dict,
}  # fmt: skip


# File of a run directory with the record of the finished run.
RESULT = "result.json"
SUMS = "result.sums.json"
# File in the folder of a data set, under the results directory, with remarks for RESULTS.md.
NOTES = "notes.md"
# Value of "kind" in records of `launch.explain --evaluate`, and the name of their folder. Records
# of runs do not have the key "kind".
FAITHFULNESS = "faithfulness"


def make_record(
    config: Experiment,
    task: Any,
    *,
    metrics: Mapping[str, float],
    validation: Mapping[str, float],
    curve: Sequence[tuple[int, float]],
    baselines: Mapping[str, Mapping[str, float]],
    steps_taken: int,
    seconds: float,
    parameters: int,
    command: str,
    training: Mapping[str, Any],
    data_summary: Mapping[str, Any],
    timing: Mapping[str, float],
) -> dict[str, Any]:
    """Creates the record of a finished run, with the metrics on the test split.

    The `curve` has the step and the primary metric of each evaluation on validation.
    """
    return {
        "task": config.task,
        "data": config.data.name,
        "experiment": config.name,
        "seed": config.seed,
        "split": "test",
        "metrics": dict(metrics),
        "validation": {task.primary_metric: validation[task.primary_metric]},
        "validation_curve": [list(point) for point in curve],
        "baselines": {name: dict(values) for name, values in baselines.items()},
        "settings": task.settings,
        "parameters": parameters,
        "selected_by": f"validation {task.primary_metric}"
        + (", then refitted on train + validation" if config.training.refit else ""),
        "steps": steps_taken,
        "training": dict(training),
        "data_summary": dict(data_summary),
        "metric_units": {
            name: str(metric)
            for name in dict.fromkeys([*task.table_metrics, "loss"])
            if name in metrics and (metric := task.describe_metric(name))
        },
        "seconds": round(seconds, 1),
        "timing": dict(timing),
        "device": device(),
        "command": command,
        "commit": commit(),
        "versions": versions(),
    }


def training_notes(record: Mapping[str, Any]) -> list[str]:
    """Returns sentences about early stopping, continuation and skipped steps of a run.

    For records of earlier versions, the result is empty.

    Args:
      record: record of a finished run.
    """
    facts, notes = record.get("training", {}), []
    if facts.get("stopped_early"):
        notes.append(
            f"Stopped early at step {facts['last_step']} of {facts['planned_steps']}: no better "
            f"{record['selected_by'].partition(',')[0]} in {facts['patience']} evaluations after "
            f"step {record['steps']}."
        )
    elif "patience" in facts:
        notes.append(
            f"Not stopped early: the patience of {facts['patience']} evaluations was not exhausted "
            f"in {facts['planned_steps']} steps."
        )
    if earlier := facts.get("continued_from"):
        notes.append(f"Continued from a finished run of {' and '.join(map(str, earlier))} steps.")
    if skipped := facts.get("skipped_steps"):
        notes.append(
            f"Skipped {skipped} of {facts['last_step']} steps, whose loss or gradient was not "
            "finite; see nonfinite/ in the run directory."
        )
    return notes


def check_recordable() -> None:
    """Raises unless the git commit describes the running code.

    Raises:
      UserError: files differ from the git commit, or there is no commit.
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
    """Writes the record of a run to its JSON file in the directory `root`; returns the path."""
    settings = "".join(f"-{key}={value}" for key, value in sorted(record["settings"].items()))
    folder = data_folder(root, record["task"], record["data"])
    path = folder / record["experiment"] / f"{record['seed']}{settings}.json"
    write_json(path, record)
    return path


def data_folder(root: Path, task: str, data: str) -> Path:
    """Returns the folder of the run files of a data set."""
    return root / task / _file_name(data)


def _file_name(data: str) -> str:
    return data.replace(":", "-").replace("/", "-")


def load_notes(root: Path, records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Reads the remarks on the results of each data set, which are Markdown.

    Returns:
      The text of the file "notes.md" by task and data set, for data sets that have such a file.
    """
    found = {}
    for task, data in {(record["task"], record["data"]) for record in records}:
        path = data_folder(root, task, data) / NOTES
        if path.is_file():
            found[task, data] = path.read_text(encoding="utf-8").strip()
    return found


def faithfulness_path(record: Mapping[str, Any], root: Path) -> Path:
    """Returns the path of a record of `launch.explain --evaluate` under the results directory."""
    data = _file_name(record["data"])
    return root / FAITHFULNESS / f"{record['task']}-{data}-{record['experiment']}.json"


def _faults(record: Any) -> str:
    """Returns the reason why a JSON value is not a valid record; '' if it is one."""
    if not isinstance(record, dict):
        return "it is not an object"
    missing = [field for field in FIELDS if field not in record]
    if missing:
        return f"it lacks {', '.join(missing[:3])}{', ...' if missing[3:] else ''}"
    wrong = [field for field, kind in FIELDS.items() if not _is(record[field], kind)]
    for name, numbers in [
        *((field, record[field]) for field in ("metrics", "validation")),
        *((f"baselines.{name}", values) for name, values in _items(record["baselines"])),
    ]:
        if not isinstance(numbers, dict):
            wrong += [name]
        wrong += [f"{name}.{key}" for key, value in _items(numbers) if not _is(value, float)]
    return f"wrong type of {', '.join(dict.fromkeys(wrong))}" if wrong else ""


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not isinstance(value, bool)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()


def save_result(record: Mapping[str, Any], folder: Path) -> None:
    """Writes a file with the checksum of result.json, and then result.json itself."""
    text = as_json(record)
    data = text.encode("utf-8", "backslashreplace")
    write_json(folder / SUMS, {"sums": extended([0, 0], data)})
    # Written last, since this file marks the run as finished.
    write_text(folder / RESULT, text)


def load_result(path: Path) -> dict[str, Any]:
    """Reads the record of a finished run from its result.json.

    Raises:
      UserError: the file is damaged.
    """
    text = path.read_bytes()
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    faults = _faults(record)
    sums = read_mapping(path.with_name(SUMS)).get("sums") if path.name == RESULT else None
    if not faults and sums is not None and sums != extended([0, 0], text):
        faults = "it has changed since it was written"
    if faults:
        raise UserError(
            f"{path}: is damaged ({faults}); remove the file, and the same command writes it "
            f"again from the checkpoints"
        )
    return record


def load_records(root: Path) -> list[dict[str, Any]]:
    """Reads all run files under a directory, sorted by path.

    If the directory is a run directory or contains run directories, the records of the finished
    runs are read instead.

    Raises:
      UserError: the directory does not exist or is empty, or a file is not a run file.
    """
    if not root.is_dir():
        raise UserError(f"--results={root}: no such directory")
    if runs := run_directories(root):
        records = [load_result(run / RESULT) for run in runs if (run / RESULT).exists()]
        if not records:
            raise UserError(f"--results={root}: has no finished run; train until {RESULT} is there")
        return records
    records = []
    for path in sorted(root.rglob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a JSON file ({error})") from None
        if isinstance(record, dict) and "kind" in record:
            continue
        if faults := _faults(record):
            raise UserError(f"{path}: is not a run file: {faults}; remove it from the directory")
        records.append(record)
    if not records:
        raise UserError(
            f"--results={root}: contains no run files (written by --record) and no run directories"
        )
    return records


def run_directories(root: Path) -> list[Path]:
    """Returns the run directories below a directory; the directory itself may be one."""
    found = (path.parent for path in sorted(root.rglob("config.json")))
    return [folder for folder in found if (folder / "metrics.jsonl").exists()]
