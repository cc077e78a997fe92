"""Parsing of config values in the flags --config.key=value and --set.

A value is parsed according to the type of its field. `None` and `null` mean None if the field may
be None; write ./None for a file of that name. A tuple is written (3, 4) or [3, 4]; a single value
without brackets means a tuple of one item. Numbers and booleans are parsed as by absl flags.
"""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from absl import flags

from launch.engine import config as configs
from launch.engine import keys
from tasks.common.errors import UserError

NONE = ("None", "null")
_PARSERS = {bool: flags.BooleanParser(), int: flags.IntegerParser(), float: flags.FloatParser()}


def field_type(values: Mapping[str, Any], key: str) -> Any:
    """Returns the type of a config's field.

    Args:
      values: experiment as a nested mapping.
      key: dotted key without the prefix "config.".

    Raises:
      UserError: the key is unknown; the message suggests the closest.
    """
    *parents, last = key.split(".")
    kind, group = configs.Experiment, values
    parts = configs.part_types(values)
    for name in (*parents, last):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in hints or not isinstance(group, Mapping) or name not in group:
            known = configs.flatten(values)
            raise UserError(f"config.{key}: no such key{configs.did_you_mean(key, known)}")
        kind, group, parts = parts.get(name, hints[name]), group[name], {}
        # The annotation of a group may be a union of its dataclass and None.
        if isinstance(group, Mapping):
            kind = keys.group_type(kind) or kind
    if isinstance(group, Mapping):
        inner = next((f"{key}.{name}" for name in configs.flatten(group)), "")
        raise UserError(f"config.{key}: is a group of keys; set one of them, such as {inner}")
    return kind


def parse(values: Mapping[str, Any], key: str, text: str) -> Any:
    """Parses the text of a flag as the value of a key.

    Args:
      values: nested mapping of the experiment.
      key: dotted key without the prefix "config.".
      text: value as written in the flag.

    Raises:
      UserError: the key is unknown, or the text is not a value of the key's type.
    """
    hint = field_type(values, key)
    kinds = keys.alternatives(hint)
    if type(None) in kinds and text in NONE:
        return None
    for kind in kinds:
        origin = typing.get_origin(kind) or kind
        if origin is str:
            if not text and type(None) in kinds:
                raise UserError(f"config.{key}: is empty, expected a value, or None")
            return text
        if origin is tuple:
            return _tuple(text, typing.get_args(kind)[0], f"config.{key}")
        if origin in _PARSERS:
            try:
                return _PARSERS[origin].parse(text)
            except ValueError:
                continue
    raise UserError(f"config.{key}: got {text!r}, expected {configs.type_name(hint)}")


def _tuple(text: str, item: Any, path: str) -> tuple[Any, ...]:
    expected = f"tuple of {configs.type_name(item)}, such as {_EXAMPLES.get(item, '(3, 4)')}"
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        # A word without quotes is a single item.
        if item is not str or text.strip()[:1] in "([":
            raise UserError(f"{path}: got {text!r}, expected {expected}") from None
        return (text,)
    if isinstance(found, str | bytes | dict) or not isinstance(found, tuple | list | set):
        found = (text if item is str and not isinstance(found, str) else found,)
    return tuple(found)


_EXAMPLES = {str: "('one', 'two')", int: "(3, 4)", float: "(0.5, 1)"}


def split(text: str) -> list[str]:
    """Splits comma-separated values, ignoring commas inside brackets and quotes.

    Args:
      text: 'mean,max', '(3,4),(2,3)' or 'performer(features=64,kernel=relu),linear'.
    """
    found, depth, quote = [""], 0, ""
    for letter in text:
        # A quotation mark opens a string only at the start of a value or item; elsewhere it is an
        # apostrophe.
        begins = found[-1].strip()[-1:] in ("", "(", "[", ",")
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and begins:
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth = max(depth - 1, 0)
        elif letter == "," and not depth:
            found.append("")
            continue
        found[-1] += letter
    return found
