"""Processes of one run on this machine, which a test can kill one by one."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from launch.engine.supervision import free_port
from tests.fork_server import ROOT


class Group:
    """Processes of a run, each with a supervisor.

    Args:
      words: module and arguments of each process, without --distributed.
      devices: number of devices of each process.
    """

    def __init__(self, words: list[list[str]], devices: int = 2):
        port, count = free_port(), len(words)
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)
        }  # fmt: skip
        self.processes = []
        for index, given in enumerate(words):
            more = [f"--distributed=127.0.0.1:{port},{count},{index}"] if count > 1 else []
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", *given, *more],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def any_ended(self) -> bool:
        """Returns whether one of the processes has ended."""
        return any(process.poll() is not None for process in self.processes)

    def trainer(self, index: int) -> int | None:
        """Returns the process that the supervisor of process `index` has started; None if none."""
        supervisor = self.processes[index].pid
        try:
            children = pathlib.Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text()
        except OSError:
            return None
        return int(children.split()[0]) if children.split() else None

    def wait_for(self, reached, seconds: float = 400) -> None:
        """Waits until a condition holds; the test fails if a process ends before."""
        until = time.monotonic() + seconds
        while not reached():
            if self.any_ended() or time.monotonic() > until:
                pytest.fail(str(self.ended(1) if self.any_ended() else self.processes))
            time.sleep(0.02)

    def ended(self, seconds: float) -> list[tuple[int, list[str]]]:
        """Returns exit status and lines of standard error of each process."""
        try:
            texts = [process.communicate(timeout=seconds)[1] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return [
            (process.returncode, text.splitlines())
            for process, text in zip(self.processes, texts, strict=True)
        ]
