"""The check that a name is a regular file, whose content can be read, and read again."""

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
    """Refuses pipes, sockets and devices.

    Opening a pipe waits for a writer, a device may have no end, and neither can be read by several
    passes. A file that is missing or a folder is left to the one who opens it.

    Args:
      path: of the file.
      name: in messages; the path if None.

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
