"""Instructions of a Dockerfile, run in a folder as the root of the file system.

The folder has the system of this machine read-only, and its Python in /usr/local as the image of
Python has. Packages come from the environment of the tests.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[3]
# Mounts of a namespace of its own, then the command. $1 is the root, $2 is "ro" at run time.
_SETUP = r"""
root=$1 mode=$2 base=$3 packages=$4 exports=$5 user=$6; shift 6
mount --bind "$root" "$root"
mount --rbind /usr "$root/usr"
mount --bind "$base" "$root/usr/local"
mount --bind "$packages" "$root/packages"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
if [ "$mode" = ro ]; then
    mount --bind "$exports" "$root/exports/exported"
    mount -t tmpfs tmpfs "$root/tmp"
    mount --bind "$root/cache" "$root/cache"
    mount -o remount,bind,ro "$root"
fi
exec chroot --userspec="$user" "$root" "$@"
"""


def can_run() -> bool:
    """Returns whether this process may mount and change the root."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("chroot"):
        return False
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def instructions(path: pathlib.Path) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile as pairs of name and arguments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    pairs = (line.partition(" ") for line in text.splitlines() if line.strip())
    return [(name, rest.strip()) for name, _, rest in pairs]


class Image:
    """A folder in which the instructions of a Dockerfile have been run.

    Attributes:
      root: the folder.
      environment: variables of ENV.
      user: of USER.
      last: arguments of instructions that may occur once, by name.
    """

    def __init__(self, root: pathlib.Path, exports: pathlib.Path, port: int):
        """Makes an image without content.

        Args:
          root: an empty folder.
          exports: folder that is mounted at /exports/exported.
          port: stands for port 8000, which may be in use.
        """
        self.root, self.user, self.last = root, "0", {}
        self._exports, self._port, self._folder = exports, str(port), "/"
        self.environment = {
            "PATH": "/venv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PIP_NO_INDEX": "1",
            # As ldconfig has it in the image.
            "LD_LIBRARY_PATH": "/usr/local/lib",
        }
        self._make_base()

    def _make_base(self) -> None:
        for name in ("usr", "proc", "dev", "etc", "tmp", "packages", "var", "venv"):
            (self.root / name).mkdir()
        (self.root / "tmp").chmod(0o1777)
        for name in ("bin", "sbin", "lib", "lib64"):
            if (found := pathlib.Path("/", name)).is_symlink():
                (self.root / name).symlink_to(found.readlink())
        for name in ("passwd", "group", "shadow", "gshadow", "login.defs", "ld.so.cache"):
            if pathlib.Path("/etc", name).exists():
                shutil.copy2(f"/etc/{name}", self.root / "etc")
        version = sysconfig.get_python_version()
        self._run(["/usr/local/bin/python3", "-m", "venv", "--without-pip",
                   "--system-site-packages", "/venv"], "0")  # fmt: skip
        packages = self.root / "venv" / "lib" / f"python{version}" / "site-packages"
        (packages / "packages.pth").write_text("/packages\n")
        pip = self.root / "venv" / "bin" / "pip"
        pip.write_text('#!/bin/sh\nexec /venv/bin/python -m pip "$@"\n')
        pip.chmod(0o755)

    def _words(self, command: Sequence[str], user: str, mode: str) -> list[str]:
        packages = next(path for path in site.getsitepackages() if "site-packages" in path)
        given = [str(self.root), mode, sys.base_prefix, packages, str(self._exports), user]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        there = ["/bin/sh", "-c", f'cd {shlex.quote(self._folder)} && exec "$@"', "sh", *command]
        return ["unshare", "-m", "sh", "-e", "-c", _SETUP, "sh", *given,
                "/usr/bin/env", "-i", *variables, *there]  # fmt: skip

    def _run(self, command: Sequence[str], user: str) -> str:
        words = self._words(command, f"{user}:{user}", "rw")
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (command, done.stdout[-500:], done.stderr[-500:])
        return done.stdout

    def build(self, path: pathlib.Path, ignored: Sequence[str]) -> None:
        """Runs the instructions of a Dockerfile.

        Args:
          path: the Dockerfile.
          ignored: patterns of files that are not copied.
        """
        for name, rest in instructions(path):
            if name == "ENV":
                for pair in shlex.split(rest):
                    variable, _, value = pair.partition("=")
                    self.environment[variable] = value
            elif name == "WORKDIR":
                self._folder = rest
                (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif name == "COPY":
                self._copy(shlex.split(rest), ignored)
            elif name == "RUN":
                self._run(["/bin/sh", "-c", rest], self.user)
            elif name == "USER":
                self.user = rest
            else:
                assert name in ("FROM", "EXPOSE", "VOLUME", "STOPSIGNAL", "HEALTHCHECK",
                                "ENTRYPOINT", "CMD"), name  # fmt: skip
                self.last[name] = rest.replace("8000", self._port)
        (self.root / "exports" / "exported").mkdir()

    def _copy(self, words: Sequence[str], ignored: Sequence[str]) -> None:
        *sources, target = words
        for source in sources:
            to = self.root / self._folder.lstrip("/") / target
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns(*ignored))
            else:
                shutil.copy2(ROOT / source, to)

    def command(self) -> list[str]:
        """Returns the words that run ENTRYPOINT and CMD, with a root that is read-only."""
        command = json.loads(self.last["ENTRYPOINT"]) + json.loads(self.last["CMD"])
        return self._words(command, f"{self.user}:{self.user}", "ro")

    def health(self) -> int:
        """Returns the exit status of HEALTHCHECK."""
        match = re.search(r"CMD (\[.*\])$", self.last["HEALTHCHECK"])
        assert match is not None
        words = self._words(json.loads(match[1]), f"{self.user}:{self.user}", "ro")
        return subprocess.run(words, capture_output=True, timeout=60).returncode

    def files(self) -> dict[str, float]:
        """Returns the times of the files outside mounts."""
        mounts = {"usr", "proc", "dev", "packages"}
        found = {}
        for path in self.root.rglob("*"):
            first, *_ = path.relative_to(self.root).parts
            if first not in mounts and path.is_file() and not path.is_symlink():
                found[str(path.relative_to(self.root))] = path.stat().st_mtime
        return found
