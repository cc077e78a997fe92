"""Character vectors that an R package brings as data."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_STRINGS, _STRING = 16, 9


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
