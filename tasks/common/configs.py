"""Base class of configs, and field types with value checks.

    @dataclasses.dataclass(frozen=True)
    class BlockConfig(Config):
        model_size: PositiveInt = 128
        num_heads: PositiveInt = 4
        norm: one_of("pre", "post") = "pre"

        def __post_init__(self):
            super().__post_init__()
            divides = self.model_size % self.num_heads == 0
            self.expect("num_heads", divides, f"a divisor of model_size={self.model_size}")

The field types are `typing.Annotated`; `typing.get_type_hints` returns the plain types.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any


class Config:
    """Base class of frozen dataclasses whose fields are checked on construction."""

    def __post_init__(self) -> None:
        for name, check in _checks(type(self)):
            value = getattr(self, name)
            self.expect(name, value is None or check.holds(value), check.expected)

    def expect(self, name: str, holds: bool, expected: str) -> None:
        """Raises an error if a condition on a field does not hold.

        Args:
          name: name of the field.
          holds: whether the condition holds.
          expected: description of the condition, which follows "expected" in the message.

        Raises:
          ValueError: the condition does not hold.
        """
        if not holds:
            value = getattr(self, name)
            got = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{name}: got {got!r}, expected {expected}")


@dataclasses.dataclass(frozen=True)
class Check:
    """A condition on the value of a field.

    Attributes:
      holds: function that returns whether a value satisfies the condition.
      expected: description of the condition, which follows "expected" in messages.
    """

    holds: Callable[[Any], bool]
    expected: str


@dataclasses.dataclass(frozen=True)
class Names:
    """Names that help pages list as possible values of a field.

    Unlike a `Check`, they are not enforced by `Config`. The code that reads the field checks its
    value.

    Attributes:
      known: the names.
      takes_options: whether a name may be followed by options in parentheses.
    """

    known: tuple[str, ...]
    takes_options: bool = False


@functools.cache
def _checks(config: type) -> list[tuple[str, Check]]:
    return [
        (field.name, item)
        for field in dataclasses.fields(config)
        for item in field_metadata(config, field.name)
        if isinstance(item, Check)
    ]


def field_metadata(config: type, name: str) -> tuple[Any, ...]:
    """Returns the `Check`s and `Names` of a field of a config class.

    If a subclass declares the field again with a plain type, the `Check`s and `Names` of the base
    class apply.
    """
    for kind in config.__mro__:
        if name not in inspect.get_annotations(kind):
            continue
        hint = typing.get_type_hints(kind, include_extras=True)[name]
        optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
        found = tuple(
            item
            for part in (typing.get_args(hint) if optional else (hint,))
            for item in getattr(part, "__metadata__", ())
        )
        if found:
            return found
    return ()


def one_of(*choices: Any) -> Any:
    """Returns a field type whose values are among `choices`."""
    check = Check(lambda value: value in choices, f"one of {', '.join(map(repr, choices))}")
    return Annotated[type(choices[0]), check]


def known_names(*names: str) -> Any:
    """Returns a field type of strings for which help pages list the known names.

    `Config` does not check the value.
    """
    return Annotated[str, Names(names)]


def spec_of(*names: str) -> Any:
    """Returns a field type of names that may have options, such as "performer(features=64)".

    Help pages list the known names; `Config` does not check the value.
    """
    return Annotated[str, Names(names, takes_options=True)]


def within(interval: str, expected: str = "", kind: type = float) -> Any:
    """Returns a field type of numbers in an interval.

    Args:
      interval: interval such as "[0, 0.5)"; an end may be "inf".
      expected: description in messages; by default, for example, "a number in [0, 0.5)".
      kind: int or float.
    """
    low, high = map(float, interval[1:-1].split(","))
    above = operator.ge if interval[0] == "[" else operator.gt
    below = operator.le if interval[-1] == "]" else operator.lt
    expected = expected or f"a number in {interval}"
    return Annotated[kind, Check(lambda value: above(value, low) and below(value, high), expected)]


def at_least(least: int) -> Any:
    """Returns a field type of integers that are `least` or more."""
    return within(f"[{least}, inf)", f"at least {least}", int)


# Metadata of config fields that older runs lack. Such a field does not enter the hash of the
# experiment while it has its default value, see `launch.engine.config.identity`.
LATER = {"later": True}

PositiveInt = at_least(1)
NonNegativeInt = at_least(0)
PositiveFloat = within("(0, inf)", "a number above 0")
NonNegativeFloat = within("[0, inf)", "at least 0")
FiniteFloat = within("(-inf, inf)", "a finite number")
Rate = within("[0, 1)", "a rate in [0, 1)")
Fraction = within("[0, 1]", "a fraction in [0, 1]")
Dtype = one_of("float32", "bfloat16")
PositiveInts = Annotated[
    tuple[int, ...],
    Check(lambda values: min(values, default=0) >= 1, "at least one number, each at least 1"),
]
PositiveFloats = Annotated[
    tuple[float, ...],
    Check(lambda values: min(values, default=0) > 0, "at least one number, each above 0"),
]
