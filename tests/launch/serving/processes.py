"""The command `launch.serve` as a process, with its log and its memory."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[3]


class Process:
    """A server that runs.

    Attributes:
      popen: its process.
      port: port that it listens on.
      ready_s: seconds from its start until it was ready.
      cpu_s: seconds of CPU in this time.
    """

    def __init__(self, popen: subprocess.Popen[str], port: int, ready_s: float):
        self.popen, self.port, self.ready_s = popen, port, ready_s
        fields = pathlib.Path(f"/proc/{popen.pid}/stat").read_text().rpartition(")")[2].split()
        self.cpu_s = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, Any]:
        """Returns the status of a response, and its value or bytes."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            client.request(method, path, body, dict(headers))
            response = client.getresponse()
            content = response.read()
        finally:
            client.close()
        if response.headers.get("Content-Type", "").startswith("application/json"):
            return response.status, json.loads(content)
        return response.status, content

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        """Sends JSON: a value, or bytes as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.request("POST", path, body, {"Content-Type": "application/json"})

    def upload(self, path: str, content: bytes) -> tuple[int, Any]:
        """Sends a form with a file."""
        body = (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + content
            + b"\r\n--x--\r\n"
        )
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        return self.request("POST", path, body, kind)

    def memory(self, key: str = "VmRSS") -> float:
        """Returns the resident memory in MB, or its peak for "VmHWM"."""
        status = pathlib.Path(f"/proc/{self.popen.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(key))
        return int(line.split()[1]) / 1024

    def reset_peak(self) -> None:
        """Sets the peak of the resident memory to its present value."""
        pathlib.Path(f"/proc/{self.popen.pid}/clear_refs").write_text("5")

    def stop(self, timeout: float = 60) -> tuple[str, str]:
        """Ends the process by SIGTERM, and returns the rest of its output and its log."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.communicate(timeout=timeout)


@contextlib.contextmanager
def serving(
    *flags: str,
    before: Sequence[str] = (),
    environment: Mapping[str, str] = {},
    unset: Collection[str] = (),
    module: str = "launch.serve",
) -> Iterator[Process]:
    """Runs `launch.serve` with flags on a free port until it is ready; kills it at the end.

    Args:
      *flags: flags besides the port.
      before: words of a command that starts the one after it.
      environment: changes of the environment.
      unset: variables that are not in the environment.
      module: module that runs the command.
    """
    words = [*before, sys.executable, "-m", module, "--port=0", *flags]
    given = {**os.environ, **environment}
    start = time.monotonic()
    popen = subprocess.Popen(
        words,
        cwd=ROOT,
        env={name: value for name, value in given.items() if name not in unset},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        first = popen.stdout.readline()
        assert first.startswith("serving "), popen.communicate(timeout=60)
        second = popen.stdout.readline()
        assert second.startswith("ready after "), popen.communicate(timeout=60)
        yield Process(popen, int(first.rpartition(":")[2]), time.monotonic() - start)
    finally:
        popen.kill()
        popen.communicate()
