"""Files of benchmark results: one JSON file per suite, the source of README.md and its figure.

A file holds sections ("attention", "memory", "generation"), each with machine, command and rows. A
command replaces its own section and keeps the others. Files contain no dates.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

FOLDER = pathlib.Path(__file__).parent / "results"
VERSIONS = ("jax", "jaxlib", "flax", "torch", "transformers", "ctranslate2", "tokamax")


def define_output() -> None:
    """Defines --json and --readme."""
    flags.DEFINE_string("json", None, "Output file; benchmarks/results/cpu.json by default.")
    flags.DEFINE_bool("readme", False, "Also write README.md and attention.png.")


def output() -> pathlib.Path:
    """Returns the results file of --json, by default that of the suite "cpu"."""
    return pathlib.Path(flags.FLAGS.json or FOLDER / "cpu.json")


def put(path: pathlib.Path, name: str, section: Mapping[str, Any]) -> None:
    """Replaces a section of a results file, and adds machine and command to it."""
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    whole[name] = {"machine": machine(), "command": command(), **section}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(whole.items())), indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def rows(path: pathlib.Path, name: str) -> list[dict[str, Any]]:
    """Returns the rows of a section of a results file.

    The result is [] unless the section was measured on this machine, with the same software and
    commit.
    """
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    section = whole.get(name, {})
    here = {"load_before": None}
    same = section.get("machine", {}) | here == machine() | here
    return section["rows"] if same else []


def put_row(
    path: pathlib.Path,
    name: str,
    key: str,
    row: Mapping[str, Any],
    order: Iterable[str],
    **more: Any,
) -> None:
    """Adds a row to a section of a results file, or replaces it; keeps the section's other `rows`.

    Args:
      path: results file.
      name: name of the section.
      key: field that identifies a row.
      row: the row.
      order: values of that field in the order of the rows.
      **more: further entries of the section.
    """
    found = {one[key]: one for one in rows(path, name)} | {row[key]: row}
    put(path, name, {"rows": [found[each] for each in order if each in found], **more})


def alone(module: str, *options: str) -> dict[str, Any]:
    """Runs a module in a process of its own, and returns the JSON in the last line that it prints.

    If the other process ends with a status other than 0, this process ends with that status.
    """
    words = [sys.executable, "-m", module, *options]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def command() -> str:
    """Returns the command line of this process, without --json."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module.name if module else pathlib.Path(sys.argv[0]).stem
    flags = [word for word in sys.argv[1:] if not word.startswith("--json")]
    return " ".join(["python -m", name, *flags])


# At import, nothing has been measured yet, so this is the load by other processes.
_LOAD = round(os.getloadavg()[0], 1)


def machine() -> dict[str, Any]:
    """Describes the machine and the software: device, processor, load, versions and commit."""
    import jax

    device = jax.local_devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_before": _LOAD,
        "python": platform.python_version(),
        "versions": {name: found for name in VERSIONS if (found := _version(name))},
        "commit": _commit(),
    }


def processor() -> str:
    """Returns the name of the CPU."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Returns the current commit, with "+" if tracked files outside of results/ have changes."""

    def git(*words: str) -> str:
        folder = pathlib.Path(__file__).parent
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":!results")
    return commit + ("+" if changed else "") if commit else None
