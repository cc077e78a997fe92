"""Commands of benchmarks in a process of their own."""

import json
import subprocess
import sys

from tests.attention.test_registry import ROOT


def rows_of(name, file, *options, timeout=600):
    """Runs `benchmarks.<name>`, which writes to a file, and returns the rows of its section."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options, f"--json={file}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())[name]["rows"]
