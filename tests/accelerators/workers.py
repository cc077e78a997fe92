"""Processes that compile cases for devices which need not be present.

Imports and the start of a compiler take longer than most cases, so a process compiles many of them.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading

from tests import virtual_devices
from tests.accelerators import records

# Seconds after which a process is ended, with its case counted as failed.
PATIENCE = 600


def environment(**more):
    """Returns the environment of a process that compiles as for users, without a cache."""
    # Settings of tests/conftest.py.
    ours = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"JAX_PLATFORMS": "cpu"} | more


def compile_all(module, cases, processes=2):
    """Compiles cases in processes of a module; returns the record of each case by its name.

    A case at which a process dies has a record with "error"; another process does the rest.

    Args:
      module: reads names of cases from its standard input, and prints {"case": name, ...} as a line
        of JSON after each.
      cases: names of cases.
      processes: how many run at once.
    """
    found, lock, waiting = {}, threading.Lock(), list(reversed(cases))

    def take(count):
        with lock:
            taken = [waiting.pop() for _ in range(min(count, len(waiting)))]
        return taken

    def work():
        # Small portions, so that all processes end at about the same time; a process reads the
        # next portion when it asks for one.
        while portion := take(1):
            found.update(_run(module, portion, take))

    threads = [threading.Thread(target=work) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _run(module, portion, take):
    """Feeds one process until it dies or no case is left."""
    found = {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=records.ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        while portion:
            (name,) = portion
            line, timer = "", threading.Timer(PATIENCE, process.kill)
            timer.start()
            try:
                process.stdin.write(name + "\n")
                process.stdin.flush()
                for line in process.stdout:
                    if line.startswith("{"):
                        break
                else:
                    line = ""
            except BrokenPipeError:
                line = ""
            finally:
                timer.cancel()
            if not line:
                process.wait()
                errors.seek(0)
                error = f"exit status {process.returncode}: {errors.read()[-1000:]}"
                return found | {name: {"case": name, "error": error}}
            found[name] = json.loads(line)
            portion = take(1)
        process.stdin.close()
        process.wait()
    return found


def compiled_once(tmp_path_factory, worker_id, kind, module, cases, **options):
    """Returns the records of `compile_all`, which runs once for all workers of pytest-xdist."""
    return virtual_devices.once(
        tmp_path_factory, worker_id, kind, lambda: compile_all(module, cases, **options)
    )
