"""Set-up of JAX in a process: random numbers, devices and the compilation cache."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

from launch.engine.config import Experiment
from launch.engine.memory import keep_large_buffers, run_in_calls
from launch.engine.processes import Connection, connect
from launch.engine.sharding import request_devices
from tasks.common.errors import UserError


def set_up_determinism() -> None:
    """Makes random numbers independent of the mesh."""
    import jax

    jax.config.update("jax_default_prng_impl", "threefry2x32")
    jax.config.update("jax_threefry_partitionable", True)


def set_up_jax(
    cache_dir: Path, config: Experiment | None = None, connection: Connection | None = None
) -> None:
    """Sets up devices and the compilation cache; call this before anything is compiled.

    Args:
      cache_dir: parent of the compilation cache; unused if JAX already has a compilation cache.
      config: experiment whose virtual CPU devices are requested.
      connection: connection to the other processes of the run; None for a single process.

    Raises:
      UserError: the processes cannot be connected, or XLA_FLAGS, JAX_PLATFORMS or the number of
        virtual devices cannot be used.
    """
    import jax

    _check_xla_flags(os.environ.get("XLA_FLAGS", "").strip())
    keep_large_buffers()
    set_up_determinism()
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # Without a writable cache compilation is slower; nothing else changes.
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    if connection is None:
        run_in_calls()
    if config is not None:
        request_devices(config.mesh)
    if connection is not None:
        connect(connection)
    _check_platform()


@functools.cache
def _check_xla_flags(given: str) -> None:
    """Checks XLA_FLAGS in another process, because XLA aborts the process if a flag is unknown."""
    if not given or not hasattr(os, "fork"):
        return
    # A fork takes milliseconds. It is not used if other threads run, because a lock that one of
    # them holds would stay locked in the fork.
    lines = _aborted_fork() if threading.active_count() == 1 else _aborted_process()
    if lines is None:
        return
    # Fatal log lines begin with F and the date. Without one, the first line gives the reason.
    fatal = [line.partition("] ")[2] for line in lines if re.match(r"F\d{4} ", line)]
    reason = (fatal or lines or ["the process was aborted"])[0]
    raise UserError(f"XLA_FLAGS={given}: {reason}; correct it, or unset it")


def _aborted_process() -> list[str] | None:
    """Initializes JAX in another process; returns its output if it aborts, else None."""
    code = "import jax; jax.config.update('jax_platforms', 'cpu'); jax.devices()"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout.decode(errors="replace").splitlines() if done.returncode < 0 else None


def _aborted_fork() -> list[str] | None:
    """Initializes JAX in a fork of this process; returns its output if it aborts, else None."""
    import jax

    with tempfile.TemporaryFile() as printed:
        with warnings.catch_warnings():
            # JAX warns about forks; this child process starts no thread and exits at once.
            warnings.simplefilter("ignore")
            child = os.fork()
        if not child:
            try:
                for stream in (1, 2):
                    os.dup2(printed.fileno(), stream)
                jax.config.update("jax_platforms", "cpu")
                jax.devices()
            finally:
                os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return None
        printed.seek(0)
        return printed.read().decode(errors="replace").splitlines()


def _check_platform() -> None:
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX raises AssertionError if it knows a platform but no backend supports it.
        reason = (str(error).splitlines() or ["no such device"])[0]
        if named := os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms:  # pyright: ignore
            reason = f"JAX_PLATFORMS={named}: not available ({reason}); unset it, or set it to cpu"
        raise UserError(reason) from None
