"""Values of config keys to compare, as written in --set=KEY=VALUES.

    model.pooling=mean,max                       a list
    optimizer.learning_rate=log(1e-5,1e-2,7)     7 numbers with equal ratios
    model.dropout_rate=linear(0,0.5,6)           6 numbers with equal distances
    model.num_layers=1,linear(2,8,4)             a list of 1 and the numbers of a range
    optimizer.learning_rate=log(1e-5,1e-2)       a range, for searches

`log` and `linear` are for keys whose values are numbers, and give integers for integer keys. For
other keys, these words are ordinary values, such as in model.mixer=dot_product,linear.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.engine import config as configs
from launch.engine import keys
from launch.engine import values as typed
from tasks.common.errors import UserError

_CALL = re.compile(r"(log|linear)\s*\((.*)\)", re.DOTALL)
_EXAMPLES = {"log": "1e-5,1e-2", "linear": "0,0.5"}
_INTEGER_EXAMPLES = {"log": "16,256", "linear": "1,6"}


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of a config key, and the text for this value in the names of experiments."""

    text: str
    value: Any


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`.

    Attributes:
      low, high: limits, which are included.
      log: whether the numbers are searched on a logarithmic scale.
      integer: whether the numbers are integers.
    """

    low: float
    high: float
    log: bool
    integer: bool


@dataclasses.dataclass(frozen=True)
class Space:
    """The values that --set gives to a key.

    Attributes:
      key: dotted key.
      text: values as written.
      values: the values; empty for a range.
      range: numbers to search, or None.
    """

    key: str
    text: str
    values: tuple[Value, ...] = ()
    range: Range | None = None

    def grid(self) -> tuple[Value, ...]:
        """Returns the values.

        Raises:
          UserError: the space is a range.
        """
        if self.range is not None:
            raise UserError(
                f"--set={self.key}={self.text}: has no number of values; write "
                f"{self.text.strip()[:-1]},7) for 7 values, or search the range with "
                f"--search=optuna"
            )
        return self.values


def parse_spaces(values: Mapping[str, Any], settings: Sequence[str]) -> list[Space]:
    """Parses the settings `key=values` of the flag --set.

    Args:
      values: nested mapping of the experiment.
      settings: values of the flag.

    Raises:
      UserError: a setting is not key=values, a key or value is given twice, or a value is invalid.
    """
    return [_space(values, key, text) for key, text in keys_and_texts(values, settings)]


def keys_and_texts(values: Mapping[str, Any], settings: Sequence[str]) -> list[tuple[str, str]]:
    """Splits the settings `key=text` of the flag --set; returns a pair (key, text) for each.

    Args:
      values: nested mapping of the experiment.
      settings: values of the flag.

    Raises:
      UserError: a setting is not key=text, or a key is given twice.
    """
    pairs = [_key_and_text(setting) for setting in settings]
    found = [(configs.current_key(values, key), text) for key, text in pairs]
    for number, (key, _) in enumerate(found):
        if key in (earlier for earlier, _ in found[:number]):
            raise UserError(
                f"--set: {key} is given twice; write all values of the key in one --set"
            )
    return found


def _key_and_text(setting: str) -> tuple[str, str]:
    key, equals, text = setting.partition("=")
    if not equals or not text or not key:
        raise UserError(f"--set={setting}: write key=a,b,c, for example model.pooling=mean,max")
    key = key.removeprefix("config.")
    if key == "name":
        raise UserError(
            f"--set={setting}: names are generated from the compared values; leave out the name"
        )
    return key, text


def _space(values: Mapping[str, Any], key: str, text: str) -> Space:
    kinds = keys.alternatives(typed.field_type(values, key))
    numeric = any(kind in (int, float) for kind in kinds) and str not in kinds
    integer = float not in kinds
    parts = typed.split(text)
    found: list[Value] = []
    for part in parts:
        call = _CALL.fullmatch(part.strip()) if numeric else None
        if call is None:
            found.append(Value(part, _parsed(values, key, part, numeric, integer)))
            continue
        numbers = _arguments(call, f"--set={key}={part.strip()}", integer)
        if len(numbers) == 3:
            found += _numbers(numbers, call[1] == "log", integer, f"--set={key}={part.strip()}")
        elif len(parts) > 1:
            raise UserError(
                f"--set={key}={text}: a list cannot contain a range without a number of "
                f"values; write {part.strip()[:-1]},7) for 7 values of the range"
            )
        else:
            low, high = numbers
            return Space(key, text, range=Range(low, high, call[1] == "log", integer))
    for number, one in enumerate(found):
        if one.value in (earlier.value for earlier in found[:number]):
            raise UserError(f"--set: {key}={one.text} is given twice; give each value once")
    return Space(key, text, tuple(found))


def _parsed(values: Mapping[str, Any], key: str, text: str, numeric: bool, integer: bool) -> Any:
    try:
        return typed.parse(values, key, text)
    except UserError as error:
        if numeric and "(" in text:
            raise UserError(f"{error}; write {_usage('log', integer)}, or a list") from None
        raise


def _usage(name: str, integer: bool) -> str:
    return f"{name}({(_INTEGER_EXAMPLES if integer else _EXAMPLES)[name]},5)"


def _arguments(call: re.Match[str], where: str, integer: bool) -> list[float]:
    """Parses the arguments of log(...) or linear(...): first, last and, if given, the count."""
    name, words = call[1], [word.strip() for word in call[2].split(",")]
    expected = f"{name}(FIRST,LAST,COUNT), such as {_usage(name, integer)}"
    if len(words) not in (2, 3):
        raise UserError(f"{where}: expected {expected}")
    try:
        found = [int(word) if integer else float(word) for word in words[:2]]
        found += [int(word) for word in words[2:]]
    except ValueError:
        kind = "integers" if integer else "numbers"
        raise UserError(f"{where}: expected {kind}, as in {expected}") from None
    first, last, count = found[0], found[1], found[2] if len(found) == 3 else 2
    if not np.isfinite([first, last]).all():
        raise UserError(f"{where}: expected finite numbers, as in {expected}")
    if first >= last:
        raise UserError(f"{where}: expected the smaller number first, as in {expected}")
    if name == "log" and first <= 0:
        raise UserError(f"{where}: log needs numbers above 0; write linear({','.join(words)})")
    if count < 2:
        raise UserError(f"{where}: got {count} values, expected at least 2, as in {expected}")
    return found


def _numbers(given: Sequence[float], log: bool, integer: bool, where: str) -> list[Value]:
    """Returns distinct numbers from first to last, rounded to 4 digits, or to more if needed."""
    first, last, count = given[0], given[1], int(given[2])
    inner = np.geomspace(first, last, count) if log else np.linspace(first, last, count)
    if integer:
        found = [int(first), *(round(float(x)) for x in inner[1:-1]), int(last)]
        if len(set(found)) < count:
            raise UserError(
                f"{where}: gives only {len(set(found))} different integers; write a smaller number "
                f"of values"
            )
        return [Value(str(value), value) for value in found]
    for digits in range(4, 18):
        found = [float(first), *(rounded(float(x), digits) for x in inner[1:-1]), float(last)]
        if len(set(found)) == count:
            return [Value(f"{value:.{digits}g}", value) for value in found]
    raise UserError(
        f"{where}: the range is too small for {count} different numbers; write a smaller number "
        f"of values"
    )


def rounded(value: float, digits: int = 4) -> float:
    """Returns a number rounded to a number of significant digits."""
    return float(f"{value:.{digits}g}")
