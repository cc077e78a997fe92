"""Lists the commands, or runs one: `python -m launch train --help`."""

from __future__ import annotations

import ast
import contextlib
import runpy
import sys
import textwrap
from pathlib import Path

from launch.cli import fail
from launch.command_line import command_sources
from launch.engine import output

_WIDTH = 80


def commands() -> dict[str, str]:
    """Returns the first line of each command's docstring, by command name.

    The commands are not imported.
    """
    return {
        name: (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        for name, text in command_sources().items()
    }


def page() -> str:
    """Returns the help page, which lists the commands and the config files."""
    found = commands()
    longest = max(map(len, found))
    lines = ["usage: python -m launch.COMMAND --flag=value ...", ""]
    for name, summary in found.items():
        lines.append(f"  {name:{longest}}  {summary}")
    files = (path.stem for path in sorted(Path("configs").glob("*.py")))
    names = textwrap.wrap(", ".join(files), _WIDTH - 2)
    if names:
        lines += ["", "Config files, as configs/NAME.py, one for each task:"]
        lines += [f"  {line}" for line in names]
    lines += [
        "",
        "python -m launch.COMMAND --help prints the flags of a command.",
        "python -m launch.train --config=configs/NAME.py --help prints the data sets",
        "and models of a config file, and all of its keys.",
    ]
    return "\n".join(lines)


def main(words: list[str]) -> None:
    """Runs `python -m launch WORDS`."""
    if not words or words[0] in ("--help", "-help", "-h", "help"):
        output.tolerate_narrow_encodings()
        with contextlib.suppress(BrokenPipeError):
            print(page(), flush=True)
            return
        output.discard_closed()
        return
    name, known = words[0].removeprefix("launch."), commands()
    if name not in known:
        from launch.engine.config import did_you_mean

        there_are = ", ".join(known)
        fail(
            f"{words[0]}: no such command{did_you_mean(name, known)}; the commands are {there_are}"
        )
    sys.argv = [str(Path(__file__).with_name(f"{name}.py")), *words[1:]]
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
