"""Check that a path is a regular file, so that it can be read repeatedly."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tasks.common.errors import UserError

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expect_regular(path: str | Path, name: str | None = None) -> None:
    """Checks that a path is not a pipe, a socket or a device.

    Opening a pipe blocks until there is a writer, a device may be infinite, and neither can be read
    twice. Missing files and folders are not checked.

    Args:
      path: path of the file.
      name: name used in messages; None for the path.

    Raises:
      UserError: `path` is neither a regular file nor a folder.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):
        return
    if kind in _KINDS:
        raise UserError(
            f"{path if name is None else name}: is {_KINDS[kind]}, expected a regular file; write "
            "its content to a file first"
        )
