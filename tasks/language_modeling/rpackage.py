"""Character vectors in the data of an R package."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_STRINGS, _STRING = 16, 9


def vectors(database: bytes) -> Iterator[list[str]]:
    """Yields the character vectors of a lazy-load database (.rdb).

    A vector is stored as four bytes with its length, and a zlib stream of R's serialization (R
    Internals, section 1.8), version 3 in XDR. Other kinds of objects are not supported.
    """
    while database:
        stream = zlib.decompressobj()
        yield _vector(stream.decompress(database[4:]))
        database = stream.unused_data


def _vector(data: bytes) -> list[str]:
    if data[:2] != b"X\n" or _number(data, 2) != 3:
        raise ValueError("database: got another format, expected R's serialization, version 3")
    offset = 14  # after the versions of the format, of the writer and of the oldest reader
    offset += 4 + _number(data, offset)
    if _number(data, offset) & 255 != _STRINGS:
        raise ValueError("database: got another type of object, expected a character vector")
    count, offset, strings = _number(data, offset + 4), offset + 8, []
    for _ in range(count):
        kind, size = _number(data, offset) & 255, _number(data, offset + 4)
        if kind != _STRING or size < 0:
            raise ValueError("database: got a missing string (NA), expected text")
        strings.append(data[offset + 8 : offset + 8 + size].decode("utf-8"))
        offset += 8 + size
    return strings


def _number(data: bytes, offset: int) -> int:
    return struct.unpack_from(">i", data, offset)[0]
