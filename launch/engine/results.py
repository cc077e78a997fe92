"""Result records and the run files under results/.

A run file is results/<task>/<data>/<experiment>/<seed>.json. Where runs of one experiment differ in
`settings` (a horizon, a speaker), the settings stand in the file's name too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.engine.config import Experiment
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


def load_result(path: Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
      UserError: the file is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    missing = [field for field in FIELDS if not isinstance(record, dict) or field not in record]
    if missing:
        raise UserError(
            f"{path}: is damaged ({', '.join(missing[:3])} missing); remove this file, and the "
            "same command writes it again from the checkpoints"
        )
    return record


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
