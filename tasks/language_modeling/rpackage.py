"""Character vectors that an R package brings as data, out of its Debian package."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterator

_STRINGS, _STRING = 16, 9


def member_of(package: bytes, path: str) -> bytes:
    """A file of a Debian package: an `ar` archive with one of tar in it."""
    place = len(b"!<arch>\n")
    while place < len(package):
        header, start = package[place : place + 60], place + 60
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[start : start + size])) as files:
                return files.extractfile(path).read()
        place = start + size + size % 2
    raise ValueError("no data in the package")


def vectors(database: bytes) -> Iterator[list[str]]:
    """The character vectors of a lazy-load database (.rdb), in its order.

    Each is kept as its length, four bytes, and a zlib stream of R's serialization (R Internals,
    section 1.8), version 3 in XDR. Vectors of another kind are refused.
    """
    while database:
        stream = zlib.decompressobj()
        yield _vector(stream.decompress(database[4:]))
        database = stream.unused_data


def _vector(data: bytes) -> list[str]:
    if data[:2] != b"X\n" or _number(data, 2) != 3:
        raise ValueError("not the serialization of R in version 3")
    place = 14  # after the versions of the format, of the writer and of the oldest reader
    place += 4 + _number(data, place)
    if _number(data, place) & 255 != _STRINGS:
        raise ValueError("not a character vector")
    count, place, strings = _number(data, place + 4), place + 8, []
    for _ in range(count):
        kind, size = _number(data, place) & 255, _number(data, place + 4)
        if kind != _STRING or size < 0:
            raise ValueError("a string is missing")
        strings.append(data[place + 8 : place + 8 + size].decode("utf-8"))
        place += 8 + size
    return strings


def _number(data: bytes, place: int) -> int:
    return struct.unpack_from(">i", data, place)[0]
