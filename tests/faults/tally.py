"""Outcomes of injected faults by kind, and their record for docs/RELIABILITY.md.

    FAULTS_RECORD=results/faults.json make test-faults

A fault is survived if the run ends with the same results, or goes on from the last save or the one
before it with a line that says so; refused if one line names the culprit and the exit status is 2;
and lost otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from launch.engine.environment import commit, device
from launch.engine.errors import system_error
from launch.engine.writers import read_mapping, write_json
from launch.reporting import fault_table
from tasks.common.errors import UserError

SURVIVED, REFUSED, LOST = "survived", "refused", "lost"
SEED = 0


@dataclasses.dataclass
class Tally:
    """Outcomes of all faults of one execution of the suite.

    Attributes:
      faults: kind, task, fault, outcome and detail of each fault.
      measured: further numbers by name.
      began: time of the start.
      written: seconds of this execution that the file already has.
    """

    faults: list[dict[str, str]] = dataclasses.field(default_factory=list)
    measured: dict[str, float] = dataclasses.field(default_factory=dict)
    began: float = dataclasses.field(default_factory=time.monotonic)
    written: int = 0

    def add(self, kind: str, task: str, fault: str, outcome: str, detail: str = "") -> None:
        """Adds the outcome of one fault."""
        self.faults.append(
            {
                "kind": kind,
                "task": task,
                "fault": fault,
                "outcome": outcome,
                "detail": detail,
            }
        )

    def lost(self, kind: str) -> list[dict[str, str]]:
        """Returns the lost faults of a kind."""
        return [each for each in self.faults if each["kind"] == kind and each["outcome"] == LOST]

    def write(self, path: pathlib.Path) -> None:
        """Writes the record as JSON, with faults of other kinds and tasks that the file has."""
        old = read_mapping(path)
        tested = {(each["kind"], each["task"]) for each in self.faults}
        kept = [x for x in old.get("faults", []) if (x["kind"], x["task"]) not in tested]
        now = round(time.monotonic() - self.began)
        record = {
            "kind": fault_table.NAME,
            "command": "FAULTS_RECORD=results/faults.json make test-faults",
            "seed": SEED,
            "device": device(),
            "seconds": old.get("seconds", 0) + now - self.written,
            "measured": {**old.get("measured", {}), **self.measured},
            "faults": [
                {**each, "detail": _portable(each["detail"])}
                for each in kept + [{**each, "commit": commit()} for each in self.faults]
            ],
        }
        self.written = now
        write_json(path, record)


def _portable(detail: str) -> str:
    """Returns the end of a message without temporary directories."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s:]*/", "", detail)[-200:]


@dataclasses.dataclass(frozen=True)
class Attempt:
    """End of a command that ran in this process.

    Attributes:
      result: returned value; None if it raised.
      message: line of a `UserError` or system error, as the command prints it; "" otherwise.
      bug: last lines of the traceback of any other exception; "" otherwise.
      lines: lines on standard error.
    """

    result: Any
    message: str
    bug: str
    lines: list[str]


def attempt(function: Callable[[], Any]) -> Attempt:
    """Calls a function as a command does: expected errors become one line."""
    stream = io.StringIO()
    result, message, bug = None, "", ""
    with contextlib.redirect_stderr(stream), contextlib.redirect_stdout(io.StringIO()):
        try:
            result = function()
        except UserError as error:
            message = str(error)
        except Exception as error:
            message = system_error(error) or ""
            bug = "" if message else "".join(traceback.format_exception(error)[-3:])
    if "\n" in message:
        bug = f"several lines: {message}"
    return Attempt(result, message, bug, stream.getvalue().splitlines())


def damages(data: bytes, rng: Any) -> Iterator[tuple[str, bytes | None]]:
    """Yields damaged contents of a file: half, empty, with one flipped bit, and None if removed."""
    yield "truncated to half", data[: len(data) // 2]
    if data:
        yield "emptied", b""
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield "one bit flipped", bytes(flipped)
    yield "removed", None


@contextlib.contextmanager
def damaged(path: pathlib.Path, content: bytes | None) -> Iterator[None]:
    """Replaces a file by damaged content, and restores it afterwards."""
    original, stat = path.read_bytes(), path.stat()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(original)
        del stat


def same_json(left: pathlib.Path, right: pathlib.Path, key: str) -> bool:
    """Returns whether a key of two JSON files has the same value."""
    values = [json.loads(path.read_text())[key] for path in (left, right)]
    return values[0] == values[1]
