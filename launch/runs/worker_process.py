"""Worker processes that execute jobs for a sweep or an ablation.

A worker, `launch.runs.worker`, reads JSON lines from its standard input: the set-up, then one job
at a time. It writes one JSON line for each job to its standard output. The end of its input, which
also occurs if the parent is killed, stops training at the next step with a checkpoint. This module
imports only the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODULE = "launch.runs.worker"
# Environment variables that affect results, and that a worker gets from the command.
_PREFIXES = ("JAX_", "XLA_", "ATTENTION_", "HF_", "MLFLOW_", "WANDB_", "TF_CPP_")
_NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LIBTPU_INIT_ARGS")


class Lost(Exception):
    """Raised if a worker has ended without an answer."""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a worker: that of this process, with the command's settings.

    Settings of JAX, XLA and thread counts that the command does not have are removed: a cluster may
    set some of them for its own processes.

    Args:
      given: environment of the command, or the result of `settings` for it.
    """
    kept = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    above = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([above] if above else [])])
    return kept | settings(given) | {"PYTHONPATH": path}


def settings(given: Mapping[str, str]) -> dict[str, str]:
    """Returns those environment variables that affect results or name directories."""
    return {name: value for name, value in given.items() if _is_setting(name)}


def _is_setting(name: str) -> bool:
    return name.startswith(_PREFIXES) or name in _NAMES


def claim_cores(count: int) -> tuple[list[int] | None, list[Any]]:
    """Claims cores of this machine that no other worker of the user has claimed.

    Args:
      count: number of cores.

    Returns:
      Ids of the cores, or None if fewer are free; and files that hold the claims. A claim lasts
      until its file is closed or the process ends.
    """
    if not count or not hasattr(os, "sched_getaffinity"):
        return None, []
    import fcntl

    folder = Path(tempfile.gettempdir()) / f"attention-cores-{os.getuid()}"
    cores, claims = [], []
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for core in sorted(os.sched_getaffinity(0)):
            claim = (folder / str(core)).open("w")
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                claim.close()
                continue
            cores.append(core)
            claims.append(claim)
            if len(cores) == count:
                return cores, claims
    except OSError:
        pass
    for claim in claims:
        claim.close()
    return None, []


class Process:
    """A worker process, in a session of its own.

    A terminal sends SIGINT to the processes of the command's session only, so that the command
    decides when its workers stop.
    """

    def __init__(self, setup: Mapping[str, Any], variables: Mapping[str, str], folder: str):
        """Starts the process.

        Args:
          setup: first line of its input, see `launch.runs.worker`.
          variables: environment variables of the process.
          folder: working directory of the process.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(variables),
            cwd=folder,
            start_new_session=True,
        )
        self._received = b""
        self.send(setup)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """State of the process: False if it has ended."""
        return self._process.poll() is None

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one line. If the worker has ended, the next call of `answer` raises `Lost`."""
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")  # pyright: ignore
            self._process.stdin.flush()  # pyright: ignore

    def answer(self, timeout: float = 0.0) -> dict[str, Any] | None:
        """Returns the next answer; None if there is none within `timeout` seconds.

        Raises:
          Lost: the process has ended.
        """
        until = time.monotonic() + timeout
        stream = self._process.stdout.fileno()  # pyright: ignore
        while True:
            line, newline, rest = self._received.partition(b"\n")
            if newline:
                self._received = rest
                return json.loads(line)
            if not select.select([stream], [], [], max(until - time.monotonic(), 0))[0]:
                return None
            if not (read := os.read(stream, 1 << 16)):
                raise Lost(self._reason())
            self._received += read

    def _reason(self) -> str:
        status = self._process.wait()
        if status >= 0:
            return f"the worker process exited with status {status}"
        name = signal.Signals(-status).name
        memory = ", possibly for lack of memory" if -status == signal.SIGKILL else ""
        return f"the worker process was killed by {name}{memory}"

    def stop(self) -> None:
        """Stops training at the next step, with a checkpoint, and then ends the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # pyright: ignore

    def kill(self) -> None:
        """Ends the process and the processes that it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self, timeout: float | None = None) -> None:
        """Stops the process and waits for its end.

        Args:
          timeout: seconds after which the process is killed; None to wait until it has ended.
        """
        self.stop()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._process.stdout.close()  # pyright: ignore
