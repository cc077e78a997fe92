"""Field types of configs: their intervals, their messages, and the plain types behind them."""

import dataclasses
import math
import typing

import pytest

from tasks.common.configs import (
    Config,
    FiniteFloat,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFloats,
    PositiveInt,
    PositiveInts,
    Rate,
    one_of,
    within,
)


@dataclasses.dataclass(frozen=True)
class Base(Config):
    size: PositiveInt = 4
    count: NonNegativeInt = 0
    scale: PositiveFloat = 1.0
    weight: NonNegativeFloat = 0.0
    shift: FiniteFloat = 0.0
    rate: Rate = 0.0
    fraction: Fraction = 0.5
    speed: within("(0, 0.5]") = 0.5
    kind: one_of("a", "b") = "a"
    sizes: PositiveInts = (1, 2)
    ratios: PositiveFloats = (0.5,)
    limit: PositiveInt | None = None


@dataclasses.dataclass(frozen=True)
class Redeclared(Base):
    size: int = 8
    kind: str = "b"
    limit: int | None = 3


@dataclasses.dataclass(frozen=True)
class Inherited(Base):
    heads: PositiveInt = 2
    free: float = -1.0

    def __post_init__(self):
        super().__post_init__()
        self.expect("heads", self.size % self.heads == 0, f"a divisor of size={self.size}")


@pytest.mark.parametrize("config", [Base, Redeclared, Inherited])
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("size", 0, "at least 1"),
        ("count", -1, "at least 0"),
        ("scale", 0.0, "a number above 0"),
        ("scale", math.inf, "a number above 0"),
        ("weight", -0.1, "at least 0"),
        ("weight", math.nan, "at least 0"),
        ("shift", math.inf, "a finite number"),
        ("rate", 1.0, "a rate in [0, 1)"),
        ("fraction", 1.1, "a fraction in [0, 1]"),
        ("speed", 0.0, "a number in (0, 0.5]"),
        ("speed", 0.6, "a number in (0, 0.5]"),
        ("kind", "c", "one of 'a', 'b'"),
        ("sizes", (), "at least one number, each at least 1"),
        ("sizes", (2, 0), "at least one number, each at least 1"),
        ("ratios", (0.0,), "at least one number, each above 0"),
        ("limit", 0, "at least 1"),
    ],
)
def test_messages_name_field_value_and_expectation(config, field, value, expected):
    got = list(value) if isinstance(value, tuple) else value
    with pytest.raises(ValueError) as error:
        config(**{field: value})
    assert str(error.value) == f"{field}: got {got!r}, expected {expected}"


def test_bounds_that_belong_to_the_interval():
    Base(size=1, count=0, weight=0, rate=0, fraction=0, limit=1, sizes=(1,))
    Base(fraction=1, speed=0.5, shift=-1e9, kind="b", limit=None)


def test_conditions_on_several_fields():
    assert Inherited(size=6, heads=3).heads == 3
    with pytest.raises(ValueError, match="heads: got 3, expected a divisor of size=4"):
        Inherited(heads=3)


def test_plain_types_remain():
    hints = typing.get_type_hints(Inherited)
    assert hints["size"] is int
    assert hints["kind"] is str
    assert hints["sizes"] == tuple[int, ...]
    assert hints["limit"] == int | None
    assert hints["free"] is float
