"""Files out of Debian packages: an `ar` archive with one of tar in it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator


def member_of(package: bytes, path: str) -> bytes:
    """One file of a package.

    Args:
      package: the whole archive.
      path: as the package has it, `./usr/share/...`.

    Raises:
      ValueError: the package has no data.
      KeyError: its data have no such file.
    """
    with tarfile.open(fileobj=io.BytesIO(_data(package))) as files:
        return files.extractfile(path).read()


def members(package: bytes) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of all files of a package; raises ValueError as `member_of`."""
    with tarfile.open(fileobj=io.BytesIO(_data(package))) as files:
        for member in files:
            if member.isfile():
                yield member.name, files.extractfile(member).read()


def _data(package: bytes) -> bytes:
    place = len(b"!<arch>\n")
    while place < len(package):
        header, start = package[place : place + 60], place + 60
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return package[start : start + size]
        place = start + size + size % 2
    raise ValueError("no data in the package")
