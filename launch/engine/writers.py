"""What a run writes down while it goes: metrics.jsonl, timing.jsonl, TensorBoard events.

metrics.jsonl holds nothing that depends on the clock: the same command gives the same bytes, also
after a kill and a resume, because the lines past the restored step are cut off first.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.common.errors import UserError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a .jsonl file, none where there is no file; a last line cut short is left out.

    Raises:
      UserError: a line before the last is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not JSON; remove the file") from None
    return records


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
      UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}); restore the file") from None


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all.

    Half of a surrogate pair, as in names that are not UTF-8, is written as its JSON escape, from
    which JSON reads the same half again.

    Raises:
      UserError: the folder cannot be made or written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


class Writers:
    """The three logs of a run."""

    def __init__(self, folder: Path, step: int):
        """Opens them, metrics and timing cut back to what was written up to `step`."""
        from tensorboardX import SummaryWriter

        self._metrics = _cut_back(folder / "metrics.jsonl", step)
        self._timing = _cut_back(folder / "timing.jsonl", step)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def metrics(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """One line, and the same figures as TensorBoard scalars."""
        values = {name: float(value) for name, value in metrics.items()}
        self._write(self._metrics, {"step": step, "split": split, **values})
        for name, value in values.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def timing(self, step: int, **values: float) -> None:
        """One line of what depends on the clock; memory is added."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # Kilobytes on Linux, bytes on macOS.
        megabytes = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
        self._write(self._timing, {"step": step, **values, "peak_memory_mb": round(megabytes, 1)})

    @staticmethod
    def _write(file: Any, record: Mapping[str, Any]) -> None:
        file.write(json.dumps(record) + "\n")
        file.flush()

    def close(self) -> None:
        """Closes the three."""
        for log in (self._metrics, self._timing, self._events):
            log.close()


def _cut_back(path: Path, step: int) -> Any:
    kept = [json.dumps(record) for record in read_lines(path) if record["step"] <= step]
    write_text(path, "".join(f"{line}\n" for line in kept))
    return path.open("a", encoding="utf-8")


def validation_curve(folder: Path, metric: str) -> Iterator[tuple[int, float]]:
    """(step, value) of a validation metric, from metrics.jsonl."""
    for record in read_lines(folder / "metrics.jsonl"):
        if record["split"] == "validation":
            yield record["step"], record[metric]


def best_step(folder: Path, metric: str, higher_is_better: bool) -> int:
    """Step of the best value of a validation metric, the earliest of equals."""
    sign = 1 if higher_is_better else -1
    return max(validation_curve(folder, metric), key=lambda point: (sign * point[1], -point[0]))[0]
