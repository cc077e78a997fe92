"""A process that has imported the libraries of the commands, and forks for each command.

Importing JAX and Flax takes a command seconds. A fork starts with both, and is otherwise a process
of its own: it has its own arguments, standard streams, exit status and JAX backend. Commands with
another environment are not forked, since JAX reads the environment when it is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
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
    "launch.reporting.formatting",
    "launch.runs.run",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "optax",
    "orbax.checkpoint",
    "sklearn.svm",
    *(f"tasks.{path.parent.name}.task" for path in sorted(ROOT.glob("tasks/*/task.py"))),
)


class ForkServer:
    """Runs commands in forks of one process; close it at the end.

    `prefix` is a command that starts the process, such as `unshare`.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", __name__],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        words: list[str],
        stdin: str | None = None,
        timeout: float = 600,
        folder: pathlib.Path = ROOT,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `python -m` with `words`, as subprocess.run does with captured output.

        Args:
          words: module and its arguments; instead of a module, a file that ends with .py.
          stdin: text of the standard input.
          timeout: seconds until the command is stopped.
          folder: working directory of the command.
        """
        with self._streams(stdin) as streams:
            self._send({"words": words, "streams": streams, "folder": str(folder)})
            status = self._wait(words, timeout)
            out, err = (pathlib.Path(path).read_text(encoding="utf-8") for path in streams[1:])
        return subprocess.CompletedProcess(words, status, out, err)

    @contextlib.contextmanager
    def background(self, words: list[str], folder: pathlib.Path = ROOT) -> Iterator[pathlib.Path]:
        """Runs a command meanwhile, and ends it by SIGTERM; its exit status must be 0.

        Yields:
          The file of its standard output.
        """
        with self._streams(None) as streams:
            self._send({"words": words, "streams": streams, "folder": str(folder), "waits": False})
            child = int(self.process.stdout.readline())
            try:
                yield pathlib.Path(streams[1])
            finally:
                os.kill(child, signal.SIGTERM)
                self._send({"child": child})
                status = self._wait(words, 60)
            assert status == 0, pathlib.Path(streams[2]).read_text(encoding="utf-8")

    @contextlib.contextmanager
    def _streams(self, stdin: str | None) -> Iterator[list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            streams = [pathlib.Path(folder) / name for name in ("stdin", "stdout", "stderr")]
            for path, text in zip(streams, (stdin or "", "", ""), strict=True):
                path.write_text(text, encoding="utf-8")
            yield [str(path) for path in streams]

    def _send(self, request: dict[str, Any]) -> None:
        print(json.dumps(request), file=self.process.stdin, flush=True)

    def _wait(self, words: list[str], timeout: float) -> int:
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def _next_command() -> list[str] | None:
    """Returns the arguments in the fork of a command; in the server None, at its end."""
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        if "child" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["child"], 0)[1]), flush=True)
            continue
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
            os.chdir(request["folder"])
            return request["words"]
        if request.get("waits", True):
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        else:
            print(child, flush=True)
    return None


def _run(words: Sequence[str], statuses: list[int]) -> None:
    """Runs a command, and adds its exit status to `statuses` unless it ends by an exception."""
    sys.argv = list(words)
    try:
        if words[0].endswith(".py"):
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        statuses.append(0)
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            statuses.append(ended.code or 0)
        raise


def _leave(statuses: Sequence[int]) -> None:
    """Ends the process without freeing its objects, if the command has ended with a status.

    To free them copies all pages that the fork shares with the server: 0.7 s for each command.
    """
    if statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(statuses[0])


if __name__ == "__main__":
    ended_with: list[int] = []
    # Handlers run in reverse order, so those of the libraries and of the command run before it.
    atexit.register(_leave, ended_with)
    for imported in IMPORTED:
        importlib.import_module(imported)
    gc.freeze()
    if found := _next_command():
        _run(found, ended_with)
    else:
        ended_with.append(0)
