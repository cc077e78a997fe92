"""Environment of a run: package versions, devices and git commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that may affect metrics."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def usable_cores() -> list[int]:
    """Returns the ids of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def device() -> str:
    """Returns the kind and number of devices, such as 'cpu x2 (2 cores)' or 'NVIDIA H100 x1'."""
    import jax

    devices = jax.devices()
    kind = devices[0].device_kind
    cores = f" ({len(usable_cores())} cores)" if devices[0].platform == "cpu" else ""
    return f"{kind} x{len(devices)}{cores}"


def commit() -> str:
    """Returns the hash of the git commit, with '+dirty' if files differ; '' outside a checkout."""
    head = _git("rev-parse", "HEAD")
    return f"{head}+dirty" if head and dirty_files() else head


def dirty_files() -> list[str]:
    """Lists the files that differ from the git commit, except results/ and RESULTS.md."""
    lines = _git("status", "--porcelain", "--untracked-files=normal").splitlines()
    paths = [line.split(maxsplit=1)[-1] for line in lines if line.strip()]
    return [path for path in paths if not path.startswith(("results/", "RESULTS.md"))]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Returns the content of environment.json."""
    return {
        "versions": versions(),
        "device": device(),
        "platform": platform.platform(),
        "commit": commit(),
    }
