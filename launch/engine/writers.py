"""Logs of a run: metrics.jsonl and timing.jsonl.

metrics.jsonl does not depend on the clock. The same command writes the same bytes even if it was
killed and resumed, because lines after the restored step are removed first.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from launch.engine.memory import current_memory, peak_memory
from launch.engine.monitoring import useful_seconds, wall_seconds
from tasks.common.checksums import extended
from tasks.common.errors import UserError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the records of a .jsonl file, without a truncated last line; [] if there is no file.

    Args:
      path: metrics.jsonl or timing.jsonl of a run.

    Raises:
      UserError: the file is not UTF-8, or a line is not the record of a step.
    """
    if not path.exists():
        return []
    remedy = _REMEDIES.get(path.name, _RESTORE)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; {remedy}") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not JSON; {remedy}") from None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{path}: line {number} is not the record of a step; {remedy}")
        records.append(record)
    return records


SUMS = "metrics.sums.json"
_RESTORE = "restore the file, or train in another --workdir"
_REMEDIES = {"timing.jsonl": "remove the file; the run time is then counted from now on"}


def check_logs(
    folder: Path, steps: Sequence[int], evaluate_every: int, last: int, log_every: int = 1
) -> None:
    """Raises an error unless the logs contain the steps that the checkpoints require.

    Without this check, missing validation metrics would silently change which step is the best.

    Args:
      folder: run directory.
      steps: steps of the run's checkpoints.
      evaluate_every: steps between validations; 0 without validation.
      last: step of the last validation; it need not be a multiple of `evaluate_every`.
      log_every: steps between log lines; a signal may save a checkpoint between two lines.

    Raises:
      UserError: metrics.jsonl is missing, damaged or lacks a step, or timing.jsonl is damaged.
    """
    if not steps:
        return
    path, newest = folder / "metrics.jsonl", max(steps)
    found = {(record["step"], record.get("split")) for record in read_lines(path)}
    logged = newest if newest == last else newest - newest % log_every
    expected: list[tuple[int, str | None]] = [(logged, None)] if logged or not newest else []
    if evaluate_every:
        validated = [
            *range(evaluate_every, newest + 1, evaluate_every),
            *([last] * (newest == last)),
        ]
        expected += [(step, "validation") for step in validated]
    if not path.exists():
        raise UserError(f"{path}: is missing; {_RESTORE}")
    for step, split in expected:
        if not any(step == at and split in (None, name) for at, name in found):
            what = f"{split} metrics" if split else "metrics"
            raise UserError(
                f"{path}: has no {what} at step {step}, but checkpoints/ has step {newest}; "
                f"{_RESTORE}"
            )
    _check_sums(path, newest)
    read_lines(folder / "timing.jsonl")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
      UserError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}); restore the file") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns the mapping in a JSON file; {} if the file is missing, damaged or not a mapping."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically; devices and pipes are written directly.

    Unpaired surrogates, which occur in file names that are not UTF-8, are written as JSON escapes.

    Raises:
      UserError: the directory cannot be created or written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Returns the text that `write_json` writes."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


class Receiver(Protocol):
    """Receiver of the metrics in metrics.jsonl, such as `launch.engine.trackers.Tracker`."""

    def scalars(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Receives metrics of a split at a step."""


class Writers:
    """Writers of metrics.jsonl and timing.jsonl of a run.

    Attributes:
      lost_seconds: wall time of the lines that were removed from timing.jsonl.
    """

    def __init__(self, folder: Path | None, step: int, trackers: Sequence[Receiver] = ()):
        """Opens metrics.jsonl and timing.jsonl, and removes their lines after `step`.

        Args:
          folder: run directory; None in processes other than the first of a run, which write no
            logs.
          step: step from which the run continues.
          trackers: receivers of the same metrics; they are not closed with the logs.
        """
        self._metrics = self._timing = None
        kept: list[dict[str, Any]] = []
        removed: list[dict[str, Any]] = []
        self._sums, self._sum, self._known = None, [0, 0], {}
        if folder is not None:
            self._metrics, kept, _ = _cut_back(folder / "metrics.jsonl", step)
            self._sums, self._sum = (
                folder / SUMS,
                extended([0, 0], "".join(map(_line, kept)).encode()),
            )
            self._known = {name: sums for name, sums in read_mapping(self._sums).items()
                           if name.isdigit() and int(name) <= step}  # fmt: skip
            self._timing, kept, removed = _cut_back(folder / "timing.jsonl", step)
        self._wall, self._useful = sum(map(wall_seconds, kept)), sum(map(useful_seconds, kept))
        self.lost_seconds = sum(map(wall_seconds, removed))
        self._trackers = trackers

    def metrics(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Writes one line to metrics.jsonl, and gives the same values to the trackers."""
        values = {name: float(value) for name, value in metrics.items()}
        record = {"step": step, "split": split, **values}
        self._write(self._metrics, record)
        self._sum = extended(self._sum, _line(record).encode())
        for tracker in self._trackers:
            tracker.scalars(split, step, values)

    def seal(self, step: int) -> None:
        """Stores the current size and checksum of metrics.jsonl, before a checkpoint is saved."""
        if self._sums is None:
            return
        self._known[str(step)] = self._sum
        # At most three checkpoints are kept, and a fourth one may be about to be removed.
        write_json(self._sums, dict(list(self._known.items())[-4:]))

    def timing(self, step: int, **values: float) -> None:
        """Writes one line to timing.jsonl, and gives the same values to the trackers.

        Memory and the goodput of the run so far are added; see `launch.engine.monitoring`.

        Args:
          step: number of finished steps.
          **values: values that depend on the clock.
        """
        self._wall += wall_seconds(values)
        self._useful += useful_seconds(values)
        values["goodput"] = round(self._useful / self._wall, 4) if self._wall else 0.0
        for prefix, memory in (("", current_memory()), ("peak_", peak_memory())):
            found = {"memory_mb": memory.process, "device_memory_mb": memory.device}
            values |= {
                prefix + name: round(x / 2**20, 1) for name, x in found.items() if x is not None
            }
        self._write(self._timing, {"step": step, **values})
        for tracker in self._trackers:
            tracker.scalars("timing", step, values)

    @staticmethod
    def _write(file: Any, record: Mapping[str, Any]) -> None:
        if file is None:
            return
        try:
            file.write(_line(record))
            file.flush()
        except OSError as error:
            raise UserError(f"{file.name}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Closes the logs."""
        for log in (self._metrics, self._timing):
            if log is None:
                continue
            # Every line was already flushed, or its error was reported.
            with contextlib.suppress(OSError):
                log.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _check_sums(path: Path, newest: int) -> None:
    """Raises if metrics.jsonl has changed since the newest checkpoint.

    Runs of earlier versions have no checksums.
    """
    known = {int(name): sums for name, sums in read_mapping(path.with_name(SUMS)).items()
             if name.isdigit() and int(name) <= newest}  # fmt: skip
    if not known:
        return
    step, sums = max(known.items())
    data = path.read_bytes()[: sums[0]] if isinstance(sums, list) and len(sums) == 2 else b""
    if extended([0, 0], data) != sums:
        raise UserError(f"{path}: has changed since step {step}; {_RESTORE}")


def _cut_back(path: Path, step: int) -> tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]:
    """Removes the lines after a step from a log.

    Returns:
      The file, opened for appending; the records that were kept; and those that were removed.
    """
    if step:
        records = read_lines(path)
    else:
        # Without a checkpoint all lines are removed, so the file need not be readable.
        try:
            records = read_lines(path)
        except UserError:
            records = []
    kept = [record for record in records if step and record["step"] <= step]
    removed = records[len(kept) :]
    write_text(path, "".join(map(_line, kept)))
    return path.open("a", encoding="utf-8"), kept, removed


def validation_curve(folder: Path, metric: str) -> Iterator[tuple[int, float]]:
    """Yields (step, value) pairs of a validation metric from metrics.jsonl.

    Raises:
      UserError: the file is damaged or lacks the metric.
    """
    path = folder / "metrics.jsonl"
    for record in read_lines(path):
        if record.get("split") == "validation":
            if metric not in record:
                raise UserError(f"{path}: step {record['step']} has no {metric}; {_RESTORE}")
            yield record["step"], record[metric]


def best_step(folder: Path, metric: str, higher_is_better: bool, until: int | None = None) -> int:
    """Returns the step with the best validation metric; the earliest such step if tied.

    Args:
      folder: run directory.
      metric: name of the metric.
      higher_is_better: whether higher values of the metric are better.
      until: last step that counts; None for all steps.
    """
    sign = 1 if higher_is_better else -1
    curve = (x for x in validation_curve(folder, metric) if until is None or x[0] <= until)
    return max(curve, key=lambda point: (sign * point[1], -point[0]))[0]
