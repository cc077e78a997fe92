"""Output files of a command, each named by a flag."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from launch.engine.writers import write_text
from tasks.common.errors import UserError


def check(targets: Mapping[str, str | None]) -> None:
    """Checks that files can be written, before anything is computed.

    Args:
      targets: values of flags by name: a path, "-" for standard output, or None.

    Raises:
      UserError: a value is empty or names a directory, or several are standard output.
    """
    for name, target in targets.items():
        if target == "":
            raise UserError(f"--{name} is empty; name a file, or - for standard output")
        if target is not None and Path(target).expanduser().is_dir():
            raise UserError(f"--{name}={target}: is a directory; name a file")
    if list(targets.values()).count("-") > 1:
        *names, last = (f"--{name}" for name in targets)
        raise UserError(
            f"only one of {', '.join(names)} and {last} can be -; name files for the others"
        )


def write(target: str, text: str) -> None:
    """Writes a file and prints its name on standard error; for "-", prints the text instead.

    The folder of the file is created if it does not exist.

    Raises:
      UserError: the file cannot be written.
    """
    if target == "-":
        print(text, end="")
        return
    write_text(Path(target).expanduser(), text)
    # Not on standard output, which may be redirected.
    print(f"written: {target}", file=sys.stderr)
