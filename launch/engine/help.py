"""Help page of a config: its keys with their values, types, allowed values and descriptions.

Descriptions are the "Attributes:" sections of the docstrings of the config's dataclasses. Where a
docstring refers to another class ("see `EncoderConfig`"), the description there is used.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.engine import config as configs
from launch.engine import keys
from tasks.common.configs import Check, Names, field_metadata

WIDTH = 80
_PLAIN = {bool: "True or False", int: "integer", float: "number", str: "text"}
_REFERENCE = re.compile(r"\bsee\s+`([\w.]+)`")


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
      name: dotted key without the prefix "config.".
      value: present value.
      expected: type and allowed values.
      description: description of the key; "" if there is none.
    """

    name: str
    value: Any
    expected: str
    description: str


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of keys.

    Attributes:
      name: dotted key of the group; "" for the experiment itself.
      summary: summary line of the dataclass.
      keys: keys of the group, without those that are groups themselves.
    """

    name: str
    summary: str
    keys: tuple[Key, ...]


def config_page(
    specification: str, values: Mapping[str, Any], original: Mapping[str, Any], prefix: str
) -> str:
    """Returns the help page of a config file.

    Args:
      specification: value of --config.
      values: nested mapping of the experiment.
      original: nested mapping without the overrides.
      prefix: text before a key in flags, such as "--config.".
    """
    path = specification.partition(":")[0]
    lines = [f"{specification}", "", *_paragraphs(module_docstring(path)), ""]
    lines += _wrapped(
        f"Keys, with their values. Set one with {prefix}KEY=VALUE, for example "
        f"{prefix}training.steps=100. A name with options is a spec such as "
        f"'performer(features=64)'; `python -m attention NAME` describes a mechanism."
    )
    before = configs.flatten(original)
    for group in groups(values):
        lines += ["", *_wrapped(f"{group.name or 'experiment'}: {group.summary}")]
        for key in group.keys:
            lines += _key_lines(key, before.get(key.name, key.value))
    return "\n".join([*lines, *_metric_lines(configs.task_class(values["task"]))]) + "\n"


def _metric_lines(task: Any) -> list[str]:
    """Returns lines of the help page that describe the metrics of a task."""
    lines = ["", "metrics: the first one, on the validation split, selects the best step."]
    for name in task.table_metrics:
        if metric := task.describe_metric(name):
            lines += textwrap.wrap(
                f"{name}: {metric}", WIDTH, initial_indent="  ", subsequent_indent="      "
            )
    return lines


def groups(values: Mapping[str, Any]) -> Iterator[Group]:
    """Yields the groups of keys of an experiment, given as a nested mapping."""
    for group in _groups(configs.Experiment, values, "", configs.part_types(values)):
        if group.name in ("", "model"):
            models = configs.task_class(values["task"]).model_configs
            named = tuple(_named(key, models) for key in group.keys)
            group = dataclasses.replace(group, keys=named)
        yield group


def _named(key: Key, models: Mapping[str, type]) -> Key:
    """Adds the allowed values of the keys "task" and "model.name", whose values are names."""
    if key.name == "task":
        return dataclasses.replace(key, expected=f"one of {', '.join(configs.task_names())}")
    if key.name == "model.name":
        about = "selected by the argument of the config file, which also sets the other model keys."
        return dataclasses.replace(key, expected=f"one of {', '.join(models)}", description=about)
    return key


def _groups(
    kind: type, values: Mapping[str, Any], path: str, parts: Mapping[str, type]
) -> Iterator[Group]:
    hints = typing.get_type_hints(kind)
    own, inner = [], []
    for field in dataclasses.fields(kind):
        name, value = f"{path}{field.name}", values.get(field.name)
        nested = keys.group_type(parts.get(field.name, hints[field.name]))
        if nested is not None and isinstance(value, Mapping):
            inner.append((nested, value, f"{name}."))
        elif field.name in values:
            about = description(kind, field.name)
            own.append(Key(name, value, _expected(kind, field.name), about))
    summary = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]
    yield Group(path.rstrip("."), _without_references(summary), tuple(own))
    for nested, value, name in inner:
        yield from _groups(nested, value, name, {})


def _expected(kind: type, name: str) -> str:
    """Returns the type and the allowed values of a field."""
    hint = typing.get_type_hints(kind)[name]
    optional = " or None" if type(None) in keys.alternatives(hint) else ""
    plain = _type_text(next(k for k in keys.alternatives(hint) if k is not type(None)))
    for item in metadata(kind, name):
        if isinstance(item, Names):
            options = ", with options if any" if item.takes_options else ""
            return f"one of {', '.join(item.known)}{options}{optional}"
        if isinstance(item, Check):
            named = item.expected.startswith(("one of", *(("a ",) * (plain == "number"))))
            return item.expected + optional if named else f"{plain}{optional}, {item.expected}"
    return plain + optional


def _type_text(kind: Any) -> str:
    if typing.get_origin(kind) is tuple or kind is tuple:
        inner = _PLAIN.get((typing.get_args(kind) or (None,))[0], "value")
        return f"tuple of {inner}s" if inner in ("integer", "number", "text") else "tuple"
    if dataclasses.is_dataclass(kind):
        return "group of keys"
    return _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))


def _key_lines(key: Key, before: Any) -> list[str]:
    changed = "" if before == key.value else f" (in the config file: {before!r})"
    text = f"{_capitalized(key.expected)}. {_capitalized(key.description)}"
    return [
        f"  {key.name} = {key.value!r}{changed}",
        *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def _capitalized(text: str) -> str:
    """Capitalizes the first word unless it is a symbol or a name."""
    begins = re.match(r"[a-z]{2,}\b(?!_)|a ", text)
    return text[:1].upper() + text[1:] if begins else text


def description(kind: type, name: str) -> str:
    """Returns the description of a field from the docstrings of a config class; '' if none."""
    return next((text for text in _descriptions(kind, name) if text), "")


def _descriptions(kind: type, name: str) -> Iterator[str]:
    for owner in classes(kind):
        text = attributes(owner).get(name, "")
        reference = _REFERENCE.fullmatch(text.rstrip("."))
        other = _class(owner, reference[1]) if reference else None
        if other is not None:
            yield description(other, name)
        elif text:
            yield _without_references(text)


def metadata(kind: type, name: str) -> tuple[Any, ...]:
    """Returns the `Check`s and `Names` in the metadata of a field.

    If the config class has none, the classes to which its docstring refers are searched.
    """
    for owner in classes(kind):
        hints = typing.get_type_hints(owner) if dataclasses.is_dataclass(owner) else {}
        if name in hints and (found := field_metadata(owner, name)):
            return found
    return ()


@functools.cache
def classes(kind: type) -> tuple[type, ...]:
    """Returns a config class, its base classes, and the config classes its docstrings refer to."""
    found = [owner for owner in kind.__mro__ if dataclasses.is_dataclass(owner)]
    for owner in tuple(found):
        for reference in _REFERENCE.finditer(owner.__doc__ or ""):
            other = _class(owner, reference[1])
            if other is not None and other not in found:
                found += [each for each in classes(other) if each not in found]
    return tuple(found)


def _class(owner: type, name: str) -> type | None:
    """Returns the dataclass that a docstring of `owner` names, or None.

    A name without a module is looked up in the modules of `owner` and of its base classes.
    """
    module, _, last = name.rpartition(".")
    modules = [module] if module else [each.__module__ for each in owner.__mro__]
    for each in modules:
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(each), last, None)
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                return found
    return None


@functools.cache
def attributes(kind: type) -> dict[str, str]:
    """Returns the description of each field, from the section "Attributes:" of a docstring."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    _, header, section = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    if header:
        section = re.split(r"\n(?=\S)", section)[0]
        for entry in re.split(r"\n(?=  \S)", f"\n{section}"):
            names, colon, about = entry.strip().partition(":")
            if colon and re.fullmatch(r"`?\w+`?(,\s+`?\w+`?)*", names):
                about = " ".join(about.split())
                found |= {name.strip(" `\n"): about for name in names.split(",")}
    return found


def _without_references(text: str) -> str:
    fields = r"( for (the )?other (fields|attributes),?)?"
    return re.sub(rf"[;,]?{fields} see `\w+`( for the attributes)?", "", text)


def module_docstring(path: str) -> str:
    """Returns the docstring of a Python file."""
    return ast.get_docstring(ast.parse(Path(path).read_text(encoding="utf-8"))) or ""


def _paragraphs(text: str) -> Iterator[str]:
    """Wraps the paragraphs of a docstring; command lines are broken before flags only."""
    for paragraph in re.split(r"\n\s*\n", text):
        commands = re.split(r"\n(?=\S)", paragraph)
        if not commands[0].startswith("python "):
            yield from [*_wrapped(paragraph), ""]
            continue
        for command in commands:
            line = ""
            for part in re.split(r"\s+(?=--)", command):
                if line and len(line) + len(part) + 1 > WIDTH:
                    yield line
                    line = "   "
                line = f"{line} {part}" if line else part
            yield line
        yield ""


def _wrapped(text: str) -> list[str]:
    # Lines are not broken at hyphens, because words with hyphens are flags and names.
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)
