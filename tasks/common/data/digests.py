"""Hashes of data sets, which detect changes, and of examples, which pair the results of runs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.data.splits import SPLITS

_HALF = 16


class Fingerprinted:
    """Base class of data sets with a hash for each part of the data.

    Attributes:
      parts: hash of each part of the data; see `tasks.task.Task.fingerprints`.
    """

    parts: Mapping[str, str]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all parts."""
        return joined(self.parts)


def code(value: Any) -> bytes:
    """Returns a 16-byte hash of a value; the hash is the same in every process.

    Args:
      value: array, string, bytes, number, None or dataclass, or a sequence or mapping of such
        values.
    """
    return _update(hashlib.sha256(), value).digest()[:16]


def _update(digest: Any, value: Any) -> Any:
    # Type and length precede each value, so that ("ab", "c") and ("a", "bc") differ.
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"a{value.dtype.str}{value.shape}".encode())
        # Converted to bytes, because hashlib does not accept datetime64 arrays.
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, str | bytes):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        digest.update(f"{type(value).__name__[0]}{len(data)}:".encode())
        digest.update(data)
    elif dataclasses.is_dataclass(value):
        _update(digest, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        _update(digest, [part for item in value.items() for part in item])
    elif isinstance(value, Iterable):
        parts = list(value)
        digest.update(f"l{len(parts)}:".encode())
        for part in parts:
            _update(digest, part)
    elif isinstance(value, float | np.floating):
        digest.update(f"f{float(value)!r};".encode())
    elif value is None or isinstance(value, bool | int | np.generic):
        # str instead of repr, because the repr of NumPy scalars differs between versions.
        digest.update(f"n{value!s};".encode())
    else:
        raise TypeError(
            f"value: got {type(value).__name__}, expected an array, a string, "
            f"bytes, a number, None, a dataclass, a sequence or a mapping"
        )
    return digest


def of_rows(rows: Iterable[Any]) -> str:
    """Returns two joined hashes of rows: one that depends on their order, and one that does not.

    Args:
      rows: values accepted by `code`.
    """
    codes = [code(row) for row in rows]
    ordered, unordered = (
        hashlib.sha256(b"".join(each)).hexdigest()[:_HALF] for each in (codes, sorted(codes))
    )
    return ordered + unordered


def of_splits(
    splits: Mapping[str, Any], columns: Callable[[Any], Mapping[str, Iterable[Any]]]
) -> dict[str, str]:
    """Returns a hash of each column of each split, under the key "<split> <column>".

    Args:
      splits: examples by split.
      columns: function that takes the examples of a split, and returns the values of each column by
        the name of the column.
    """
    return {
        f"{split} {name}": of_rows(rows)
        for split in SPLITS
        for name, rows in columns(splits[split]).items()
    }


def joined(parts: Mapping[str, str]) -> str:
    """Combines the hashes of named parts into one hash."""
    return code(dict(parts)).hex()


def differing(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns the names of the parts of a data set that differ.

    If only the order of the rows differs, " (order)" follows the name.

    Args:
      saved, now: hash of each part, as returned by `of_rows`, by name.
    """
    found = []
    for name in {**saved, **now}:
        old, new = saved.get(name, ""), now.get(name, "")
        if old != new:
            same_rows = old[_HALF:] == new[_HALF:] != ""
            found.append(f"{name} (order)" if same_rows else name)
    return found


def ids(*columns: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Returns an id of each row of a table, uint64 [n].

    The id is a hash of the values that the row has in the columns.

    Args:
      *columns: sequences of length n with values accepted by `code`.
    """
    rows = [code(row)[:8] for row in zip(*columns, strict=True)]
    return np.frombuffer(b"".join(rows), "<u8").astype(np.uint64)
