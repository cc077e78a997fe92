"""A sweep of four tiny runs, and the part of its table that does not depend on the placement."""

import json
import os
import pathlib
import subprocess
import time

import psutil

from launch.engine.environment import usable_cores
from tests import pages
from tests.launch.conftest import ROOT, command_line

# Four runs of some seconds each, with many checkpoints.
SHORT = (
    "--config.training.steps=120",
    "--config.training.evaluate_every=10",
    "--config.training.log_every=5",
    "--config.training.batch_size=16",
    "--config.data.text.max_length=16",
)


def flags_of(csv_file, on: str) -> tuple[list[str], str]:
    """Returns the flags of the sweep of docs/CLUSTER.md, and its --on.

    Args:
      csv_file: data.
      on: beginning of the value of --on, which tells the commands of the page apart.
    """
    page = (ROOT / "docs" / "CLUSTER.md").read_text(encoding="utf-8")
    words = next(
        words for words in pages.commands(page) if any(w.startswith(f"--on={on}") for w in words)
    )
    given = next(word for word in words if word.startswith("--on="))
    kept = [word for word in words[3:] if not word.startswith(("--on=", "--workdir="))]
    data = {"train_file": csv_file, "text_column": "review", "label_column": "stars"}
    return [*kept, *(f"--config.data.{key}={value}" for key, value in data.items()), *SHORT], given


def begun(cache, flags, folder, *more, cores: int | None = None) -> subprocess.Popen:
    """Starts the sweep in a process of its own; its status lines are in FOLDER.err.

    With `cores` it runs on that number of cores: XLA adds in another order with another number of
    threads.
    """

    def pin() -> None:
        if cores:
            os.sched_setaffinity(0, usable_cores()[:cores])

    with open(f"{folder}.err", "a", encoding="utf-8") as errors:
        return subprocess.Popen(
            command_line("sweep", cache, *flags, f"--workdir={folder}", *more),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=pin,
        )  # fmt: skip


def ended(process: subprocess.Popen, folder) -> tuple[str, str]:
    """Waits for the end of a sweep; returns its output and status lines."""
    out, _ = process.communicate(timeout=600)
    return out, pathlib.Path(f"{folder}.err").read_text(encoding="utf-8")


def wait(condition, process: subprocess.Popen, seconds: float = 300.0):
    """Waits until a condition holds while a process runs; returns its value."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, "the command ended early"
        assert time.monotonic() < until, "the condition does not come true"
        time.sleep(0.02)
    return found


def saved(folder) -> list[pathlib.Path]:
    """Returns the unfinished runs of a sweep that have a complete checkpoint."""
    found = {path.parents[2] for path in folder.glob("*/checkpoints/*/commit_success.txt")}
    return sorted(run for run in found if not (run / "result.json").exists())


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """Returns the worker processes of a command."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "launch.runs.worker" in child.cmdline():
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def outcome(folder) -> dict:
    """Returns the table and the records of a sweep, without times, devices and directories."""
    text = (folder / "table.json").read_text(encoding="utf-8").replace(str(folder), "FOLDER")
    found = json.loads(text)
    for runs in found["runs"].values():
        for record in runs:
            for name in ("seconds", "device", "timing"):
                record.pop(name, None)
            for baseline in record["baselines"].values():
                baseline.pop("seconds", None)
    rows = [row for table in found["comparisons"] for row in table["runs"]]
    for row in rows:
        row.pop("seconds")
    return {"runs": found["runs"], "failures": found["failures"], "rows": rows}
