"""Slots on a Ray cluster (--on=ray), which need the optional package ray; see `launch.runs.pool`.

Each slot is an actor with the CPUs and GPUs of one run. The actor starts a worker process like
those of --on=local, so that JAX is set up as on one machine. The clone of the repository, the
Python environment and the run directories must have the same paths on all nodes, as in a shared
file system. Ray: Moritz et al. 2018.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine.environment import usable_cores
from launch.engine.writers import write_text
from launch.runs import worker_process
from launch.runs.jobs import Ended, Job, Options
from launch.runs.pool import CLOSING, Pool, worker_setup
from launch.runs.worker_process import ROOT, Lost
from tasks.common.errors import UserError

# Largest number of actors. Actors that wait for a free node make the cluster add nodes.
_SLOTS = 1000
# Number of successive actors of a slot that may end before their first job.
_STARTS = 3

# Environment variables for Ray. The workers of a cluster started here have the same priority as
# this command.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


def check_installed() -> None:
    """Raises if Ray is missing.

    Raises:
      UserError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--on=ray: ray is not installed; pip install -r requirements-ray.txt")


class OnRay:
    """Placement on a Ray cluster."""

    def __init__(self, address: str, resources: Mapping[str, float]):
        """Initializes the placement.

        Args:
          address: HOST:PORT or "auto"; with "", a cluster is started if there is none.
          resources: CPUs and GPUs of each run, see `launch.runs.placement.parse`.
        """
        self._address, self._resources = address, resources

    def run(
        self, jobs: Sequence[Job], options: Options, done: Callable[[Job, Ended], None]
    ) -> None:
        with _connected(self._address), _token(options.folder) as token:
            resources = _resources(self._resources)
            setup = worker_setup(jobs, options, None) | {
                "cpus": resources["num_cpus"],
                "folder": os.getcwd(),
                "root": str(ROOT),
                "token": str(token.absolute()),
                "variables": worker_process.settings(os.environ),
                "workdir": str(options.folder.absolute()),
            }
            slots = [_RaySlot(setup, resources) for _ in jobs[:_SLOTS]]
            Pool(slots, options, done).run(jobs)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connects to a cluster, or starts one on this machine.

    Raises:
      UserError: there is no cluster at the address.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        _check_port(address)
        try:
            ray.init(address=address or "auto", **quiet)
        except ConnectionError:
            if address:
                raise
            ray.init(
                address="local", include_dashboard=False, num_cpus=len(usable_cores()), **quiet
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"--on=ray{address and f':{address}'}: no Ray cluster ({reason}); start one by `ray "
            f"start --head`, or write --on=ray"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """Raises OSError if nothing listens at HOST:PORT; Ray would notice only after a minute."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """Writes a file by which nodes check whether they share the output directory."""
    path = folder / f".nodes-{uuid.uuid4().hex}"
    write_text(path, path.name)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _resources(given: Mapping[str, float]) -> dict[str, float]:
    """Returns the numbers of CPUs and GPUs that each run gets.

    Raises:
      UserError: no node has so many CPUs and GPUs.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpu_only = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    some = 0.0 if cpu_only else float(any(node.get("GPU", 0) >= 1 for node in nodes))
    found = {"num_cpus": 1.0, "num_gpus": some, **given}
    cpus, gpus = found["num_cpus"], found["num_gpus"]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
        raise UserError(
            f"--on=ray: a run needs {cpus:g} CPUs and {gpus:g} GPUs, but the largest node has "
            f"{largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}; lower --cpus_per_run or "
            f"--gpus_per_run"
        )
    return found


class _RaySlot:
    """An actor that executes one job at a time, and is replaced if it is lost."""

    def __init__(self, setup: Mapping[str, Any], resources: Mapping[str, float]):
        self._setup, self._resources = setup, resources
        self._actor: Any = None
        self._opened: Any = None
        self._job: Any = None
        self._starts = 0

    def ready(self) -> bool:
        import ray

        if self._actor is None:
            actor = ray.remote(_actor_class()).options(
                max_concurrency=2, max_restarts=0, scheduling_strategy="SPREAD", **self._resources
            )
            self._actor = actor.remote(self._setup)
            self._opened = self._actor.open.remote()
        if self._opened is None:
            return True
        if not ray.wait([self._opened], timeout=0)[0]:
            return False
        try:
            refused = ray.get(self._opened)
        except ray.exceptions.RayError as error:
            self._forget()
            self._starts += 1
            if self._starts < _STARTS:
                return False
            raise UserError(f"--on=ray: workers cannot start: {_reason(error)}") from None
        if refused:
            raise UserError(refused)
        self._opened, self._starts = None, 0
        return True

    def start(self, job: dict[str, Any]) -> None:
        self._job = self._actor.execute.remote(job)

    def answer(self) -> dict[str, Any] | None:
        import ray

        if not ray.wait([self._job], timeout=0)[0]:
            return None
        job, self._job = self._job, None
        try:
            answer = ray.get(job)
        except ray.exceptions.RayError as error:
            self._forget()
            raise Lost(_reason(error)) from None
        if "lost" in answer:
            raise Lost(answer["lost"])
        return answer

    def _forget(self) -> None:
        """Kills the actor, which may be unreachable but alive, and removes its references."""
        self.kill()
        self._actor = self._opened = None

    def stop(self) -> None:
        if self._actor is not None and self._opened is None:
            self._actor.stop.remote()

    def kill(self) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actor)

    def close(self) -> None:
        import ray

        if self._actor is None:
            return
        if self._opened is None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._actor.close.remote(CLOSING), timeout=CLOSING + 10)
        self._forget()


def _reason(error: Exception) -> str:
    """Returns one line that tells why an actor ended."""
    if type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error):
        return "the Ray worker was killed for lack of memory"
    return f"the Ray worker or its node was lost ({type(error).__name__})"


def _actor_class() -> type:
    """Returns the class of the actors.

    Ray serializes a class that is defined in a function by value. So an actor also starts on a node
    that lacks this code, and can report that the code is missing.
    """

    class Slot:
        def __init__(self, setup: dict[str, Any]):
            self._setup, self._process, self._claims = setup, None, []

        def open(self) -> str:
            """Prepares the node; returns an error message, or "" if it has the command's files."""
            import sys

            setup, node = self._setup, socket.gethostname()
            for folder in (setup["root"], setup["folder"]):
                if not os.path.isdir(folder):
                    return (
                        f"--on=ray: node {node} has no directory {folder}; share it between the "
                        f"nodes, under the same path"
                    )
            try:
                with open(setup["token"], encoding="utf-8") as file:
                    shared = file.read() == os.path.basename(setup["token"])
            except OSError:
                shared = False
            if not shared or not os.access(setup["workdir"], os.W_OK):
                return (
                    f"--workdir={setup['workdir']}: node {node} does not see the files of this "
                    f"directory, or cannot write to it; name a directory that all nodes "
                    f"share"
                )
            sys.path.insert(0, setup["root"])
            return ""

        def execute(self, job: dict[str, Any]) -> dict[str, Any]:
            from launch.runs import worker_process

            setup = self._setup
            if self._process is None:
                count = math.floor(setup["cpus"])
                cores, self._claims = worker_process.claim_cores(count)
                variables = worker_process.environment(setup["variables"])
                self._process = worker_process.Process(
                    setup | {"cores": cores}, variables, setup["folder"]
                )
            self._process.send(job)
            try:
                while (answer := self._process.answer(1.0)) is None:
                    pass
            except worker_process.Lost as lost:
                self._process.close()
                self._process = None
                return {"lost": str(lost)}
            return answer

        def stop(self) -> None:
            if self._process is not None:
                self._process.stop()

        def close(self, timeout: float) -> None:
            if self._process is not None:
                self._process.close(timeout)

    return Slot
