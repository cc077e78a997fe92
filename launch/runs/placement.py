"""Placements of runs: --on=local:4 in processes of this machine, --on=ray on a Ray cluster."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.engine.environment import usable_cores
from launch.runs import worker_process
from launch.runs.jobs import Ended, Job, Options, Placement
from launch.runs.pool import CLOSING, Pool, worker_setup
from launch.runs.worker_process import Lost
from tasks.common.errors import UserError


def parse(on: str, resources: Mapping[str, float] | None = None) -> Placement | None:
    """Returns the placement that --on names; None to execute runs in this process.

    Args:
      on: value of the flag, or ''.
      resources: CPUs and GPUs of each run on Ray, by the names num_cpus and num_gpus.

    Raises:
      UserError: the value is not a placement, or this machine or environment does not support it.
    """
    kind, _, argument = on.partition(":")
    if resources and kind != "ray":
        flag = {"num_cpus": "cpus_per_run", "num_gpus": "gpus_per_run"}[next(iter(resources))]
        raise UserError(f"--{flag}: needs --on=ray")
    if not on:
        return None
    if kind == "ray":
        from launch.runs import on_ray

        on_ray.check_installed()
        return on_ray.OnRay(argument, resources or {})
    if kind != "local":
        raise UserError(
            f"--on={on}: is not a placement; write local:4 for 4 processes of this machine, or "
            f"ray or ray:HOST:PORT for a Ray cluster"
        )
    count = int(argument) if argument.isdecimal() else 0
    if count < 1:
        raise UserError(f"--on={on}: got {argument or 'no number'}, expected a number of processes "
                        f"such as local:4")  # fmt: skip
    cores = usable_cores()
    if count > len(cores):
        raise UserError(
            f"--on={on}: got {count} processes, expected at most {len(cores)}, one for each core "
            f"that this command may use"
        )
    devices = gpus()
    if devices and count > len(devices):
        raise UserError(
            f"--on={on}: got {count} processes, expected at most {len(devices)}, one for each GPU; "
            f"set JAX_PLATFORMS=cpu to run on the CPU"
        )
    return Local(split(cores, count), split(devices, count) if devices else [])


def gpus() -> list[str]:
    """Returns the NVIDIA GPUs that JAX would use, without initializing them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if not any("cuda" in plugin.name for plugin in plugins):
        return []
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in given.split(",") if name not in ("", "-1")]
    return [str(n) for n, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def split(items: Sequence[Any], count: int) -> list[list[Any]]:
    """Splits a sequence into `count` parts whose lengths differ by at most 1."""
    size, more = divmod(len(items), count)
    starts = [part * size + min(part, more) for part in range(count + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(starts)]


class _LocalSlot:
    """A worker process of this machine."""

    def __init__(self, setup: Mapping[str, Any], gpus: Sequence[str]):
        self._setup, self._process = setup, None
        self._environment = worker_process.environment(os.environ)
        if gpus:
            self._environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)

    def ready(self) -> bool:
        return True

    def start(self, job: dict[str, Any]) -> None:
        if self._process is None:
            self._process = worker_process.Process(self._setup, self._environment, os.getcwd())
        self._process.send(job)

    def answer(self) -> dict[str, Any] | None:
        assert self._process is not None
        try:
            return self._process.answer()
        except Lost:
            self._process.close()
            self._process = None
            raise

    def stop(self) -> None:
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        if self._process:
            self._process.kill()

    def close(self) -> None:
        if self._process:
            self._process.close(CLOSING)


class Local:
    """Placement in several processes of this machine; each has its own cores and GPUs."""

    def __init__(self, cores: Sequence[Sequence[int]], gpus: Sequence[Sequence[str]]):
        """Initializes the placement.

        Args:
          cores: cores of each process.
          gpus: GPUs of each process; [] if there are none.
        """
        self._cores, self._gpus = cores, gpus

    def run(
        self, jobs: Sequence[Job], options: Options, done: Callable[[Job, Ended], None]
    ) -> None:
        slots = [
            _LocalSlot(worker_setup(jobs, options, cores), self._gpus[n] if self._gpus else ())
            for n, cores in enumerate(self._cores[: len(jobs)])
        ]
        Pool(slots, options, done).run(jobs)
