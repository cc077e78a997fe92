"""Table cells: conversion to texts and class names, and their display in messages."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from tasks.common.errors import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"([+-]?\d+)\.0+")


def text_value(value: Any, where: str, column: str, may_be_empty: bool = True) -> str:
    """Checks that a table cell is a text, and returns it.

    Args:
      value: content of the cell, a string or another JSON value.
      where: file and line of the cell, for messages.
      column: column of the cell, for messages.
      may_be_empty: whether the text may be empty or blank.

    Raises:
      UserError: the cell is a JSON value but not a string, has half of a surrogate pair, or is
        empty although it may not be.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} is {to_json(value)}, expected a text")
    # A JSON escape can give half of a UTF-16 surrogate pair, which cannot be encoded.
    if not value.isascii() and (half := _SURROGATE.search(value)):
        raise UserError(f"{where}: {column!r} has {half[0]!a}, which is not a character")
    if not may_be_empty and not value.strip():
        raise UserError(f"{where}: {column!r} is empty; fill the cell or remove the row")
    return value


def label_value(value: Any, where: str, column: str) -> str:
    """Converts a table cell to a class name.

    Numbers and booleans are allowed. Whole numbers have one form: 1.0 becomes "1".

    Args:
      value: content of the cell, a string or another JSON value.
      where: file and line of the cell, for messages.
      column: column of the cell, for messages.

    Raises:
      UserError: the value is empty, NaN, a list or an object.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}: {column!r} is {to_json(value)}, expected a class name")
        value = int(value) if value.is_integer() else value
    if isinstance(value, int | float):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"{where}: {column!r} is {to_json(value)}, expected one class name (text or number)"
        )
    label = text_value(value or "", where, column, may_be_empty=False).strip()
    if whole := _WHOLE.fullmatch(label):
        return whole[1]
    return label


def quote(cell: str) -> str:
    """Quotes a cell for messages; a long cell is shortened."""
    return repr(_shorten(cell, 60))


def to_json(value: Any) -> str:
    """Formats a JSON value for messages; a long value is shortened."""
    return _shorten(json.dumps(value, ensure_ascii=False), 60)


def join_names(names: Sequence[str], most: int = 20) -> str:
    """Joins names for messages. Long names are shortened, and only the first `most` are shown."""
    return ", ".join(_shorten(name, 40) for name in names[:most]) + ", ..." * (len(names) > most)


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
