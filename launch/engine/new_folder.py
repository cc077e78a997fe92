"""New directories that appear with their whole content, or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.common.errors import UserError


def check_new(flag: str, target: Path) -> None:
    """Checks that a directory does not exist, or is empty.

    Args:
      flag: name of the flag that names the directory.
      target: the directory.

    Raises:
      UserError: a file or a directory with content has this name.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--{flag}={target}: already exists; name a new directory")


@contextlib.contextmanager
def new_folder(flag: str, target: Path) -> Iterator[Path]:
    """Yields a temporary directory, which is renamed to `target` at the end of the block.

    If the block raises an exception, the temporary directory is removed. If two processes have the
    same target, the process that ends first creates it, and the other one raises an error.

    Args:
      flag: name of the flag that names the directory.
      target: directory that does not exist, or is empty.

    Raises:
      UserError: a file or a directory with content has this name, before or after the block.
    """
    check_new(flag, target)
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        folder.chmod(0o755)
        yield folder
        try:
            folder.rename(target)
        except OSError:
            check_new(flag, target)
            raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
