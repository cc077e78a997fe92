"""Supervision of the processes of a run: output, signals and exit status.

JAX aborts a process with a stack trace of C++ if another process of the run ends, or if the
processes do not find each other. So each process of a run is a child of a supervisor, which does
not use JAX. The supervisor forwards the output, replaces such an abort by one line, and passes
signals on.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, TextIO

LOST = 75
"""Exit status if another process of the run ended: EX_TEMPFAIL of sysexits.h, for a requeue."""
USER_ERROR = 2
SUPERVISED = "ATTENTION_SUPERVISED"
"""Environment variable of processes that have a supervisor: its process id."""

# Fatal lines of absl's log, such as "F1201 08:49:27.008256   16734 client.h:80] ...".
_FATAL = re.compile(rb"F\d{4} \d\d:\d\d:\d\d")
_GLOO = b"[Gloo] Rank "
_REASON = b"\x1elost: "
# Signals that a supervisor passes on.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Largest number of lines after a fatal line that are kept.
_KEPT = 200
# Seconds in which the other processes can end by themselves after one has failed.
_GRACE_S = 10


class Child:
    """A process of a run; its supervisor reports its output and how it ended."""

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        prefix: str = "",
        shown: set[bytes] | None = None,
    ):
        """Starts the process.

        Args:
          words: command line.
          environment: environment variables that are added to those of the supervisor.
          prefix: text before each line on standard error.
          shown: error messages of all processes that were already shown; none is shown twice.
        """
        # By default only fatal messages of C++ are logged, because other errors are raised as
        # exceptions too. A level of 1 is not a choice of the user: JAX sets it when it is imported.
        level = os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")
        level = "3" if level == "1" else level
        quiet = {"TF_CPP_MIN_LOG_LEVEL": level, SUPERVISED: str(os.getpid())}
        self._popen = subprocess.Popen(
            words,
            env={**os.environ, **quiet, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Signals of the terminal reach the supervisor alone.
            start_new_session=True,
        )
        self._prefix, self._shown = prefix.encode(), shown
        self._fatal: list[bytes] = []
        self._reason = b""
        pairs = ((self._popen.stdout, self._write_out), (self._popen.stderr, self._write_error))
        self._threads = [threading.Thread(target=_copy, args=pair, daemon=True) for pair in pairs]
        for thread in self._threads:
            thread.start()

    def _write_out(self, line: bytes) -> None:
        if not line.startswith(_GLOO):
            _write(sys.stdout, line)

    def _write_error(self, line: bytes) -> None:
        if line.startswith(_REASON):
            self._reason = line.removeprefix(_REASON).strip()
        elif self._fatal or _FATAL.match(line):
            self._fatal = [*self._fatal, line][:_KEPT]
        elif not self._is_shown(line):
            _write(sys.stderr, self._prefix + line)

    def _is_shown(self, line: bytes) -> bool:
        if self._shown is None or not line.startswith(b"error: "):
            return False
        with _writing:
            known = line in self._shown
            self._shown.add(line)
        return known

    def signal(self, number: int) -> None:
        """Sends a signal to the process; SIGKILL reaches its own children too."""
        if self._popen.poll() is not None:
            return
        if number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
        else:
            self._popen.send_signal(number)

    def poll(self) -> bool:
        """Returns whether the process has ended."""
        return self._popen.poll() is not None

    def ended(self) -> tuple[int, str]:
        """Waits until the process has ended.

        Returns:
          Exit status of the supervisor, and one line that tells how the process ended. The line is
          "" if the process has succeeded or has printed an error message itself.
        """
        code = self._popen.wait()
        for thread in self._threads:
            # The timeout is needed because a grandchild may keep the pipes open.
            thread.join(5)
        text = b"".join(self._fatal).decode(errors="replace")
        if code != 0 and "RegisterTask" in text:
            return USER_ERROR, UNREACHABLE
        if code == LOST or (code < 0 and "distributed service detected fatal errors" in text):
            reason = self._reason.decode(errors="replace")
            return LOST, f"{ENDED} ({reason})" if reason else ENDED
        for line in self._fatal:
            _write(sys.stderr, self._prefix + line)
        if code < 0:
            return 128 - code, f"killed by {signal.Signals(-code).name}; {_CONTINUES}"
        return code, ""


def end_lost(reason: str) -> NoReturn:
    """Ends this process with the status `LOST`; its supervisor prints one line with the reason."""
    with contextlib.suppress(OSError):
        os.write(2, _REASON + reason.encode(errors="replace") + b"\n")
    os._exit(LOST)


UNREACHABLE = (
    "the processes did not find each other in time; start all of them with the same HOST:PORT and "
    "N, and make the port of the first one reachable (unset http_proxy if it is set)"
)
_CONTINUES = "the same command continues from the last checkpoint"
ENDED = f"another process of the run ended; {_CONTINUES}"


def _copy(stream: Any, write: Callable[[bytes], None]) -> None:
    for line in iter(stream.readline, b""):
        try:
            write(line)
        except (OSError, ValueError):
            # A line that cannot be written is dropped. The pipe must still be read, because the
            # process would block if it were full.
            continue


_writing = threading.Lock()


def _write(stream: TextIO, line: bytes) -> None:
    with _writing:
        stream.buffer.write(line)
        stream.flush()


class Signals:
    """Context manager that forwards SIGINT and SIGTERM to processes."""

    def __init__(self, children: Sequence[Child]):
        """Initializes the forwarding to these processes."""
        self._children, self._before = children, {}
        self.received = 0

    def __enter__(self) -> Signals:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._forward)
        return self

    def _forward(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for child in self._children:
            child.signal(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def free_port() -> int:
    """Returns a port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def supervise_all(jobs: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> int:
    """Runs all processes of a run on this machine, and returns the exit status.

    If a process fails, the others are killed, unless they end by themselves soon.

    Args:
      jobs: command line and environment variables of each process.

    Returns:
      Status of the first process that failed; `LOST` only if no process failed by itself.
    """
    shown: set[bytes] = set()
    children = [
        Child(words, environment, f"[process {index}] " if index else "", shown)
        for index, (words, environment) in enumerate(jobs)
    ]
    found: dict[int, tuple[int, str]] = {}
    until = math.inf
    with Signals(children):
        while len(found) < len(children):
            for index, child in enumerate(children):
                if index in found or not child.poll():
                    continue
                found[index] = child.ended()
                if found[index][0] and until == math.inf:
                    until = time.monotonic() + _GRACE_S
            if time.monotonic() > until:
                for index, child in enumerate(children):
                    if index not in found:
                        child.signal(signal.SIGKILL)
                        child.ended()
                        found[index] = (LOST, "")
            time.sleep(0.05)
    failed = {index: end for index, end in found.items() if end[0]}
    own = {index: end for index, end in failed.items() if end[0] != LOST} or failed
    for index, (status, line) in own.items():
        if line:
            print(f"error: process {index}: {line}", file=sys.stderr, flush=True)
        return status
    return 0


def supervise(words: Sequence[str], name: str) -> int:
    """Runs one process of a run, and returns its exit status.

    Args:
      words: command line of the process.
      name: name of the process for messages, such as its flag.
    """
    child = Child(words, {})
    with Signals([child]):
        status, line = child.ended()
    if line:
        print(f"error: {name}: {line}", file=sys.stderr, flush=True)
    return status
