"""Files in Debian packages, which are `ar` archives with a tar archive inside."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator


def member_of(package: bytes, path: str) -> bytes:
    """Returns the content of a file of a package.

    Args:
      package: content of the archive.
      path: within the package, such as `./usr/share/...`.

    Raises:
      ValueError: the package has no data.
      KeyError: no such file.
    """
    with tarfile.open(fileobj=io.BytesIO(_data(package))) as files:
        return files.extractfile(path).read()


def members(package: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of each file of a package; raises ValueError like `member_of`."""
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
    raise ValueError("no data in the package")
