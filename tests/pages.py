"""Commands of Markdown pages, and their execution in a folder that has the files they name."""

from __future__ import annotations

import contextlib
import glob
import pathlib
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator

from tasks.common.data.paths import Paths
from tests.fork_server import ROOT, ForkServer

_COMMAND = re.compile(r"^(?:python -m launch\.|python \S+\.py|curl ).*$", re.M)
_ADDRESS = "localhost:8000"
# Folders of the repository that commands name.
_SHARED = ("configs", "results")
_WITHOUT_DATA = ("report", "import_weights", "export_weights")


def commands(text: str) -> list[list[str]]:
    """Returns the words of each command in the code blocks of a page, in order.

    These are `python -m launch.NAME`, `python FILE.py` and `curl`; a backslash continues a line.
    """
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```$", text, re.M | re.S)
    code = "\n".join(blocks).replace("\\\n", " ")
    return [shlex.split(line) for line in _COMMAND.findall(code)]


def launched(words: list[str]) -> str:
    """Returns NAME of `python -m launch.NAME`, else ''."""
    return words[2].removeprefix("launch.") if words[1] == "-m" else ""


class Shell:
    """Runs the commands of a page in a folder, as in a checkout of the repository.

    Attributes:
      folder: working directory.
      ran: names of the commands that have run.
    """

    def __init__(
        self,
        server: ForkServer,
        folder: pathlib.Path,
        paths: Paths,
        added: Callable[[list[str]], list[str]],
    ):
        """Initializes the folder.

        Args:
          server: process whose forks run the commands.
          folder: an empty folder, or one with user files that the page names.
          paths: directories of data and caches.
          added: added(words) -> further flags of a command.
        """
        self.folder, self.ran = folder, []
        self._server, self._added = server, added
        self._data = [f"--data_dir={paths.data_dir}", f"--cache_dir={paths.cache_dir}"]
        for name in _SHARED:
            (folder / name).symlink_to(ROOT / name)

    def run(self, page: list[list[str]]) -> None:
        """Runs commands in order; a server runs until the next one or the end.

        Raises:
          AssertionError: a command fails or prints nothing.
        """
        with contextlib.ExitStack() as stack:
            address = ""
            for words in page:
                name = launched(words)
                if name == "serve":
                    stack.close()
                    address = stack.enter_context(self._served(words[2:]))
                elif words[0] == "curl":
                    self._curl([word.replace(_ADDRESS, address) for word in words])
                else:
                    self._command(words, name)
                self.ran.append(name or pathlib.Path(words[0]).name)

    def _command(self, words: list[str], name: str) -> None:
        output = None
        if ">" in words:  # a shell's
            output = words[words.index(">") + 1]
            words = words[: words.index(">")]
        more = self._added(words)
        if name and name not in _WITHOUT_DATA:
            more = [*more, *self._data]
        given = [path for word in words[2 if name else 1 :] for path in self._matching(word)]
        done = self._server.run([*given, *more], folder=self.folder)
        line = " ".join([*words, *more])
        assert done.returncode == 0, f"{line}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
        assert done.stdout or done.stderr, line
        if output is not None:
            (self.folder / output).write_text(done.stdout, encoding="utf-8")

    def _matching(self, word: str) -> list[str]:
        """Returns the files that a word such as runs/* matches, as a shell does, or the word."""
        if word.startswith("-"):
            return [word]
        return sorted(glob.glob(word, root_dir=self.folder)) or [word]

    @contextlib.contextmanager
    def _served(self, words: list[str]) -> Iterator[str]:
        """Starts a server, waits until it is ready, and yields its address."""
        flags = [*self._added(words), *self._data, "--port=0", "--max_batch=1"]
        with self._server.background([*words, *flags], self.folder) as printed:
            until = time.monotonic() + 600
            while "ready after" not in (text := printed.read_text()):
                assert time.monotonic() < until, text
                time.sleep(0.05)
            yield re.search(r"on http://(\S+)", text)[1]

    def _curl(self, words: list[str]) -> None:
        done = subprocess.run(
            [*words, "--silent", "--show-error", "--write-out", "\n%{http_code}"],
            cwd=self.folder, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
        answer, _, status = done.stdout.rpartition("\n")
        assert status == "200", f"{' '.join(words)}\n{status} {answer[:1500]}"
