"""A process that has imported the libraries of the commands, and forks for each command.

Importing JAX and Flax takes a command seconds. A fork starts with both, and is otherwise a process
of its own: it has its own arguments, standard streams, exit status and JAX backend. Commands with
another environment are not forked, since JAX reads the environment when it is imported.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import runpy
import select
import subprocess
import sys
import tempfile
import warnings
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
# Modules of commands define flags, so none of them is imported before the fork.
IMPORTED = (
    "flax.nnx",
    "grain",
    "jax",
    "launch.engine.checkpoints",
    "launch.engine.predictor",
    "launch.engine.steps",
    "launch.reporting.figures",
    "launch.reporting.tables",
    "launch.runs.run",
    "optax",
    "orbax.checkpoint",
    "tasks.text_classification.task",
)


class ForkServer:
    """Runs commands in forks of one process; close it at the end."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, words: list[str], stdin: str | None = None, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python -m` with `words`, as subprocess.run does with captured output."""
        with tempfile.TemporaryDirectory() as folder:
            streams = [pathlib.Path(folder) / name for name in ("stdin", "stdout", "stderr")]
            streams[0].write_text(stdin or "", encoding="utf-8")
            request = {"words": words, "streams": [str(path) for path in streams]}
            print(json.dumps(request), file=self.process.stdin, flush=True)
            if not select.select([self.process.stdout], [], [], timeout)[0]:
                self.process.kill()
                raise subprocess.TimeoutExpired(words, timeout)
            status = int(self.process.stdout.readline())
            out, err = (path.read_text(encoding="utf-8") for path in streams[1:])
        return subprocess.CompletedProcess(words, status, out, err)

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def _next_command() -> list[str] | None:
    """Returns the arguments in the fork of a command; in the server None, at its end."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        with warnings.catch_warnings():
            # JAX warns of forks; it has started no thread yet.
            warnings.simplefilter("ignore")
            child = os.fork()
        if not child:
            for number, path in enumerate(request["streams"]):
                mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
                opened = os.open(path, mode)
                os.dup2(opened, number)
                os.close(opened)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            return request["words"]
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


if __name__ == "__main__":
    for imported in IMPORTED:
        importlib.import_module(imported)
    if found := _next_command():
        sys.argv = [found[0], *found[1:]]
        runpy.run_module(found[0], run_name="__main__", alter_sys=True)
