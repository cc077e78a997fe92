"""Checksums of files, for caches and checkpoints that may be damaged on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def file_sums(path: Path) -> list[int]:
    """Returns the size of a file in bytes, and its CRC-32.

    Raises:
      OSError: the file cannot be read.
    """
    sums = [0, 0]
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            sums = extended(sums, block)
    return sums


def extended(sums: Sequence[int], data: bytes) -> list[int]:
    """Updates the size and the CRC-32 of a file for data that are appended to it.

    Args:
      sums: size and CRC-32 before; [0, 0] for an empty file.
      data: the appended bytes.
    """
    return [sums[0] + len(data), zlib.crc32(data, sums[1])]


def sealed(content: Any) -> dict[str, Any]:
    """Returns a dict that contains a JSON value and its checksum."""
    return {"crc32": _checksum(content), "content": content}


def unsealed(found: Any) -> Any:
    """Returns the JSON value in a dict made by `sealed`, after comparing its checksum.

    Raises:
      ValueError: there is no value or no checksum, or the value has changed.
    """
    if not isinstance(found, dict) or "content" not in found:
        raise ValueError("content: is missing, expected a value with its checksum")
    if found.get("crc32") != _checksum(found["content"]):
        raise ValueError("crc32: does not match the content")
    return found["content"]


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
