"""Reading of files in Debian packages, which are `ar` archives that contain a tar archive."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator


def member_of(package: bytes, path: str) -> bytes:
    """Returns the content of one file in a package.

    Args:
      package: bytes of the package.
      path: path of the file in the package, such as `./usr/share/...`.

    Raises:
      ValueError: the package contains no data archive.
      KeyError: the package does not contain the file.
    """
    with tarfile.open(fileobj=io.BytesIO(_data(package))) as files:
        return files.extractfile(path).read()


def members(package: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of each file in a package.

    Raises:
      ValueError: the package contains no data archive.
    """
    with tarfile.open(fileobj=io.BytesIO(_data(package))) as files:
        for member in files:
            if member.isfile():
                yield member.name, files.extractfile(member).read()


def _data(package: bytes) -> bytes:
    offset = len(b"!<arch>\n")
    while offset < len(package):
        header, start = package[offset : offset + 60], offset + 60
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return package[start : start + size]
        offset = start + size + size % 2
    raise ValueError("the package contains no data archive")
