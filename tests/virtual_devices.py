"""Processes with virtual CPU devices, and results that all workers of pytest-xdist share."""

import fcntl
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def printed(*words, count=8):
    """Runs Python in a process with virtual devices; returns the lines of JSON that it prints.

    Args:
      words: arguments of the interpreter, such as "-m", MODULE or "-c", CODE.
      count: number of devices.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def on_eight_devices(module, *arguments):
    """Runs a module on 8 virtual devices; returns its lines of JSON."""
    return printed("-m", module, *arguments)


def on_eight_devices_once(tmp_path_factory, worker_id, module, *arguments):
    """Runs `on_eight_devices` in one process for all workers of pytest-xdist."""
    return once(tmp_path_factory, worker_id, module, lambda: on_eight_devices(module, *arguments))


def once(tmp_path_factory, worker_id, name, make):
    """Returns the JSON value of `make()`, which one worker of pytest-xdist calls for all."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = shared / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(make()))
    return json.loads(file.read_text())
