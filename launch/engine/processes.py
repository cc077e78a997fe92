"""Processes of one run: connection, exchange of values, and the end of a process.

All processes execute the same steps. The first process writes the files of the run, and sends
values that depend on these files to the other processes. Small values and barriers use the
coordination service of JAX, which the first process hosts, so they need no collective of the
devices.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from launch.engine.supervision import LOST, SUPERVISED, end_lost
from tasks.common.errors import UserError

# Seconds without a heartbeat after which a process counts as lost.
HEARTBEAT_S = 30
# Seconds that a failed process waits for others, which may fail with the same error.
_SAME_END_S = 5
_EXPECTED = "expected auto, or HOST:PORT,N,I with N processes and index I from 0 to N-1"
# Error messages of collectives, the coordination service and Orbax after a process is gone.
_LOST = re.compile(
    r"gloo|nccl|coordination|barrier|heartbeat|UNAVAILABLE|socket closed|connection (reset|closed)",
    re.IGNORECASE,
)
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Connection:
    """The value of --distributed.

    Attributes:
      coordinator: HOST:PORT of the first process; None if JAX detects the coordinator, `count`
        and `index`.
      count: number of processes.
      index: index of this process.
      timeout_s: seconds until all processes must be connected.
    """

    coordinator: str | None = None
    count: int = 0
    index: int = 0
    timeout_s: int = 300

    def __str__(self) -> str:
        given = f"{self.coordinator},{self.count},{self.index}" if self.coordinator else "auto"
        return f"--distributed={given}"


def parse(text: str, timeout_s: int = 300) -> Connection:
    """Returns the connection that --distributed describes.

    Raises:
      UserError: the text is neither auto nor HOST:PORT,N,I.
    """
    if timeout_s < 1:
        raise UserError(f"--distributed_timeout={timeout_s}: expected at least 1 second")
    if text == "auto":
        return Connection(timeout_s=timeout_s)
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:,\[\]]+):(\d+),(\d+),(\d+)", text)
    if match is None:
        raise UserError(f"--distributed={text}: {_EXPECTED}")
    host, (port, count, index) = match[1], map(int, match.groups()[1:])
    if not 1 <= port <= 65535:
        raise UserError(f"--distributed={text}: got port {port}, expected 1 to 65535")
    if count < 1:
        raise UserError(f"--distributed={text}: got {count} processes, expected at least 1")
    if index >= count:
        raise UserError(
            f"--distributed={text}: got index {index}, expected 0 to {count - 1} for {count} "
            "processes"
        )
    return Connection(f"{host}:{port}", count, index, timeout_s)


def connect(connection: Connection) -> None:
    """Connects this process to the others. Call it before JAX initializes devices.

    If the others are not connected in time, JAX aborts this process, and the supervisor
    reports the abort; see `launch.engine.supervision`.

    Raises:
      UserError: JAX detects no cluster, or the coordinator's address cannot be used.
    """
    import jax

    if connection.coordinator and connection.index == 0:
        _check_port(connection)
    if supervisor := os.environ.get(SUPERVISED):
        threading.Thread(target=_end_with, args=(int(supervisor),), daemon=True).start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The training loop handles SIGTERM, and uses `largest` to stop all processes.
    jax.config.update("jax_enable_preemption_service", False)
    given: dict[str, Any] = {}
    if connection.coordinator:
        given = {
            "coordinator_address": connection.coordinator,
            "num_processes": connection.count,
            "process_id": connection.index,
        }
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=connection.timeout_s,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=2 * HEARTBEAT_S,
        )
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "write HOST:PORT,N,I"
        if connection.coordinator is None and "should be defined" in reason:
            reason = "found no Slurm, Open MPI, Kubernetes or TPU pod in the environment"
        raise UserError(f"{connection}: {reason}; {remedy}") from None


def _check_port(connection: Connection) -> None:
    """Raises if this process cannot listen on the coordinator's port."""
    port = int(str(connection.coordinator).rpartition(":")[2])
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        raise UserError(
            f"{connection}: cannot listen on port {port} ({error.strerror}); choose another port"
        ) from None


def _end_with(parent: int) -> None:
    """Waits for the end of the supervisor, however it ends, and then ends this process."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(LOST)


def count() -> int:
    """Returns the number of processes of the run."""
    import jax

    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Returns whether this process writes the files and the output of the run."""
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def _client() -> Any:
    from jax._src import distributed

    return distributed.global_state.client


def from_first(function: Callable[[], Any]) -> Any:
    """Calls a function on the first process only, and returns the result on every process.

    The other processes wait until the function has returned. All processes must call `from_first`
    and `barrier` in the same order.

    Args:
      function: returns a value that JSON can represent.
    """
    if count() == 1:
        return function()
    key = f"attention/value/{next(_numbers)}"
    if is_first():
        value = function()
        _client().key_value_set(key, json.dumps(value))
        return value
    while True:
        try:
            return json.loads(_client().blocking_key_value_get(key, 1000))
        except Exception as error:
            # Each call times out after a second, because signals are handled only between calls.
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def barrier() -> None:
    """Waits until all processes call it."""
    if count() > 1:
        # The timeout is a day, because a process that prepares data may be hours behind.
        _client().wait_at_barrier(f"attention/barrier/{next(_numbers)}", 24 * 3600 * 1000)


def largest(value: int) -> int:
    """Returns the largest value among all processes, computed by a collective of the devices."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def lost(error: BaseException) -> str | None:
    """Returns an error message if an exception shows that another process is gone, else None."""
    import jax

    if count() == 1 or not isinstance(error, jax.errors.JaxRuntimeError | ValueError):
        return None
    reason = " ".join(str(error).split())
    return reason[:200] if _LOST.search(reason) else None


def end_if_lost(error: BaseException) -> None:
    """Ends this process if an exception shows that another process is gone."""
    if (reason := lost(error)) is not None:
        end_lost(reason)


def leave(status: int) -> None:
    """Ends this process if it is one of several, even if the others continue.

    This process first waits a few seconds for the others, which may fail with the same error.
    Without the wait, some of them would report the end of another process instead of the error.

    Args:
      status: exit status.
    """
    if "jax" not in sys.modules or count() == 1:
        return
    try:
        if status != LOST:
            _client().wait_at_barrier("attention/failed", 1000 * _SAME_END_S)
    except Exception:
        # Not all of the others failed within this time.
        pass
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(status)
