"""Download sources of public data: pinned URLs and packages from pip, npm and apt.

Each download has a time limit. Package clients are limited by their own options and by an outer
timeout.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Protocol

Extract = Callable[[Path, Path], None]
"""extract(fetched, output): extracts the file of a source from a downloaded file to `output`."""

_CHUNK = 1 << 20
_CONNECT_SECONDS = 5.0
_SECONDS = 60.0


class FetchError(Exception):
    """Error for a failed download; the message is a short reason."""


class Fetcher(Protocol):
    """A download source.

    Attributes:
      extract: function that converts the downloaded file to the file of a `Source`; None if they
        are the same.
      title: name of the download source in messages.
      archive: name under which the downloaded file is cached, because several sources may come from
        the same archive; None for no cache.
    """

    extract: Extract | None

    @property
    def title(self) -> str: ...

    @property
    def archive(self) -> str | None: ...

    def fetch(self, folder: Path) -> Path:
        """Downloads the file into a folder and returns its path.

        Raises:
          FetchError: the download failed.
        """


@dataclass(frozen=True)
class UrlFetcher:
    """A file at a pinned URL (http, https or file)."""

    url: str
    extract: Extract | None = None
    seconds: float = _SECONDS
    archive: str | None = None

    @property
    def title(self) -> str:
        return self.url

    def fetch(self, folder: Path) -> Path:
        """Downloads the file within the time limit; see `Fetcher.fetch`."""
        target = folder / (self.url.rstrip("/").rsplit("/", 1)[-1] or "file")
        # A daemon thread is used because host name lookup has no timeout and a slow server may
        # never finish. The caller stops waiting at the deadline.
        failure: list[str] = []
        connected = threading.Event()
        stop = threading.Event()

        def work() -> None:
            try:
                with urllib.request.urlopen(self.url, timeout=_CONNECT_SECONDS) as response:
                    connected.set()
                    expected = response.headers.get("Content-Length")
                    got = 0
                    with open(target, "wb") as file:
                        while (block := response.read(_CHUNK)) and not stop.is_set():
                            got += file.write(block)
                    if expected is not None and got != int(expected):
                        failure.append(f"connection closed after {got} of {expected} bytes")
            except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
                reason = getattr(error, "reason", None) or error
                failure.append("timed out" if isinstance(reason, TimeoutError) else short(reason))
            finally:
                connected.set()

        worker = threading.Thread(target=work, daemon=True)
        start = time.monotonic()
        worker.start()
        if not connected.wait(_CONNECT_SECONDS + 1):
            stop.set()
            raise FetchError(f"no answer in {_CONNECT_SECONDS:.0f} s")
        worker.join(max(0.0, start + self.seconds - time.monotonic()))
        if worker.is_alive():
            stop.set()
            raise FetchError(f"not finished after {self.seconds:.0f} s")
        if failure:
            raise FetchError(failure[0])
        return target


@dataclass(frozen=True)
class _Package:
    """A package that is downloaded by the client program of its registry."""

    package: str
    version: str
    archive: str
    extract: Extract | None = None
    seconds: float = _SECONDS

    def fetch(self, folder: Path) -> Path:
        """Downloads the package archive; see `Fetcher.fetch`."""
        _run_client(self._commands(folder), folder, self.seconds)
        return _only_file(folder, self.archive)

    def _commands(self, folder: Path) -> list[list[str]]:
        """Returns the download commands in the order in which they are tried."""
        raise NotImplementedError


@dataclass(frozen=True)
class PipPackage(_Package):
    """A wheel, or a source distribution if `sdist` is set, that is downloaded by pip."""

    sdist: bool = False

    @property
    def title(self) -> str:
        return f"pip download {self.package}=={self.version}"

    def _commands(self, folder: Path) -> list[list[str]]:
        command = [
            *_pip(),
            *("download", "--no-deps", "--ignore-requires-python", "--no-input", "--quiet"),
            *("--disable-pip-version-check", "--timeout", "5", "--retries", "0"),
            *("--dest", str(folder), f"{self.package}=={self.version}"),
        ]
        if not self.sdist:
            return [[*command, "--only-binary", self.package]]
        # pip builds the metadata of a source distribution even with --no-deps. Wheels are excluded
        # for this package alone, so that pip can download the build tools as wheels. If that
        # fails, the second command uses the installed build tools.
        command += ["--no-binary", self.package]
        return [command, [*command, "--no-build-isolation"]]


@dataclass(frozen=True)
class NpmPackage(_Package):
    """A package that is downloaded by `npm pack`."""

    @property
    def title(self) -> str:
        return f"npm pack {self.package}@{self.version}"

    def _commands(self, folder: Path) -> list[list[str]]:
        command = [_client("npm"), "pack", f"{self.package}@{self.version}", "--loglevel=error"]
        options = ["--fetch-retries=0", "--fetch-timeout=6000"]
        return [[*command, "--pack-destination", str(folder), *options]]


@dataclass(frozen=True)
class AptPackage(_Package):
    """A Debian package that is downloaded by `apt-get download`."""

    @property
    def title(self) -> str:
        return f"apt-get download {self.package}={self.version}"

    def _commands(self, folder: Path) -> list[list[str]]:
        command = [_client("apt-get"), "download", f"{self.package}={self.version}", "-q"]
        options = ["Acquire::Retries=0", "APT::Sandbox::User=root"]
        options += ["Acquire::http::Timeout=5", "Acquire::https::Timeout=5"]
        return [[*command, *(f"-o={option}" for option in options)]]


def zip_member(path: str) -> Extract:
    """Returns an `Extract` function that unpacks one file of a wheel or another zip archive."""

    def extract(fetched: Path, output: Path) -> None:
        with zipfile.ZipFile(fetched) as archive:
            output.write_bytes(archive.read(path))

    return extract


def short(error: object) -> str:
    """Returns the last line of a message, at most 160 characters.

    pip and other clients give the reason of an error in the last line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]


def _client(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FetchError(f"{name} is not installed")
    return path


def _pip() -> list[str]:
    """Returns the command that runs pip.

    The first of these that exists is used: pip of the current environment, pip on PATH, and pip run
    by uv. Environments that uv creates contain no pip.
    """
    if util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if path := shutil.which(name):
            return [path]
    if path := shutil.which("uv"):
        return [path, "tool", "run", "pip"]
    raise FetchError("pip is not installed")


def _run_client(commands: list[list[str]], folder: Path, seconds: float) -> None:
    """Runs commands one after another until one succeeds.

    If the first command fails, it is repeated, because registries sometimes refuse connections. If
    a command takes more than three seconds and fails, no further command is run.

    Args:
      commands: the commands.
      folder: working directory.
      seconds: time limit of all commands together.

    Raises:
      FetchError: no command succeeded within the time limit.
    """
    deadline = time.monotonic() + seconds
    reason = ""
    for command in [commands[0], *commands]:
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a new session, so that child processes are killed too
        )
        try:
            _, errors = process.communicate(timeout=max(0.0, deadline - start))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise FetchError(f"not finished after {seconds:.0f} s") from None
        if process.returncode == 0:
            return
        reason = reason or _reason(errors) or f"exit status {process.returncode}"
        if time.monotonic() - start > 3:
            break
    raise FetchError(reason)


def _reason(errors: str) -> str:
    """Returns the first line that a client marks as an error; the last line if none is marked."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    marked = [line for line in lines if line.startswith(("ERROR", "E:", "npm error", "npm ERR!"))]
    return short((marked or lines[-1:] or [""])[0]) if lines else ""


def _only_file(folder: Path, expected: str) -> Path:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if path.name == expected:
            return path
    if len(files) == 1:
        return files[0]
    raise FetchError(f"got files {[path.name for path in files]}, expected {expected}")
