"""Keys of nested configs: the types of the fields, and the former names of renamed fields.

A field names its former key in its metadata: `{"formerly": "old_name"}`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Returns the member types of a union, or, for any other type, a tuple with this type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def group_type(hint: Any) -> type | None:
    """Returns the first dataclass among the `alternatives` of a type; None if there is none."""
    kinds = (kind for kind in alternatives(hint) if isinstance(kind, type))
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def replace_former(
    kind: type, values: Mapping[str, Any], path: str, parts: Mapping[str, type]
) -> dict[str, Any]:
    """Replaces former keys in a nested mapping by the current ones.

    If both keys are present, the value of the former key is used: a config file has set it, while
    the current key has its default.

    Args:
      kind: dataclass whose fields the mapping contains.
      values: nested mapping.
      path: dotted key of the mapping, for messages.
      parts: dataclass of each group of keys, by name, for groups such as `model`, whose dataclass
        depends on other values instead of the type annotation.
    """
    found, hints = dict(values), typing.get_type_hints(kind)
    for old, new in _former_keys(kind).items():
        if old in found:
            _notify(f"{path}.{old}", f"{path}.{new}")
            found[new] = found.pop(old)
    for key, value in found.items():
        inner = group_type(parts.get(key, hints.get(key)))
        if inner is not None and isinstance(value, Mapping):
            found[key] = replace_former(inner, value, f"{path}.{key}", {})
    return found


def current_name(kind: type, key: str, parts: Mapping[str, type]) -> str:
    """Replaces former names in a dotted key by the current ones.

    Args:
      kind, parts: see `replace_former`.
      key: dotted key without the prefix "config.".
    """
    inner: type | None = kind
    names = []
    for name in key.split("."):
        names.append(_former_keys(inner).get(name, name) if inner else name)
        hints = typing.get_type_hints(inner) if inner else {}
        inner, parts = group_type(parts.get(names[-1], hints.get(names[-1]))), {}
    found = ".".join(names)
    if found != key:
        _notify(f"config.{key}", f"config.{found}")
    return found


def _former_keys(kind: type) -> dict[str, str]:
    return {
        field.metadata["formerly"]: field.name
        for field in dataclasses.fields(kind)
        if "formerly" in field.metadata
    }


@functools.cache
def _notify(old: str, new: str) -> None:
    """Prints the new name of a renamed key, once per process."""
    print(f"{old} is now {new}", file=sys.stderr, flush=True)
