"""Parsing of a column of numbers with a common decimal mark and thousands separator.

Numbers in Python notation are read directly. Other notations, such as `1.234,5` or `1 234.5`, are
read if a single convention fits all cells of the column; an ambiguous column is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

DECIMALS = (".", ",")
DECIMAL_KEY = "config.data.decimal"
_MISSING = ("", "nan", "na", "n/a", "#n/a", "<na>", "null", "none", "nat", "-", "?")
_SPACES = re.compile("(?<=\\d)[\u00a0\u202f\u2009\u2007 ](?=\\d)")
_CURRENCIES = "eur|usd|gbp|chf|jpy|cny|inr|sek|nok|dkk|pln|aud|cad|us\\$|r\\$|rs\\.?|kr\\.?"
_WITH_UNIT = re.compile(
    rf"(?P<before>(?:{_CURRENCIES})?[^\w+\-.,]{{0,4}})(?P<number>[+\-]?\d[\d.,' ]*?)"
    r"(?P<after>\s*[^\d\s]{0,6}(?:\s?[^\d\s]{1,3})?)",
    re.IGNORECASE,
)


class NumberError(ValueError):
    """Error for a cell that cannot be read as a number.

    Attributes:
      index: index of the cell in its column.
      is_text: whether the column contains text, so that it can be omitted.
      two_readings: whether two conventions fit the column and give different numbers.
    """

    def __init__(
        self, index: int, reason: str = "", is_text: bool = False, two_readings: bool = False
    ):
        super().__init__(reason)
        self.index, self.is_text, self.two_readings = index, is_text, two_readings


@dataclasses.dataclass(frozen=True)
class Convention:
    """Notation of numbers: decimal mark and thousands separator.

    Attributes:
      decimal: decimal mark.
      separator: separator of groups of three digits; empty if there are none.
    """

    decimal: str
    separator: str

    def __str__(self) -> str:
        decimal = {".": "decimal points", ",": "decimal commas"}[self.decimal]
        names = {",": "commas", ".": "points", " ": "spaces", "'": "apostrophes"}
        grouped = f" and {names[self.separator]} between thousands" if self.separator else ""
        return f"{decimal}{grouped}"

    def pattern(self) -> re.Pattern[str]:
        """Returns a pattern that matches the numbers of the convention."""
        decimal, mark = re.escape(self.decimal), re.escape(self.separator)
        whole = r"\d+"
        if self.separator:
            # The first group cannot be 0, since the comma of 0,123 is a decimal comma.
            whole = rf"[1-9]\d{{0,2}}(?:{mark}\d{{3}})+|\d+"
        if self.separator == ",":
            whole = rf"[1-9]\d?(?:,\d\d)+,\d{{3}}|{whole}"
        return re.compile(
            rf"[+\-]?(?:(?:{whole})(?:{decimal}\d*)?|{decimal}\d+)(?:[eE][+\-]?\d+)?", re.ASCII
        )

    def value(self, cell: str) -> float:
        """Returns the value of a cell that matches the pattern."""
        return float(cell.replace(self.separator, "").replace(self.decimal, "."))


CONVENTIONS = tuple(
    Convention(decimal, separator)
    for decimal in DECIMALS
    for separator in ("", ",", ".", " ", "'")
    if separator != decimal
)
_PATTERNS = {convention: convention.pattern() for convention in CONVENTIONS}


@dataclasses.dataclass(frozen=True)
class Column:
    """Numbers of a column, and their notation.

    Attributes:
      values: float64 [n], NaN for missing cells.
      convention: notation of the numbers; None for Python notation.
      example: first cell that `float` does not read as the same number; "" if `convention` is None.
    """

    values: np.ndarray
    convention: Convention | None = None
    example: str = ""


def plain_number(cell: str) -> float | None:
    """Returns the number in a cell; NaN if missing or not finite, None for other texts."""
    if cell.lower() in _MISSING:
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else np.nan


def read_numbers(cells: Sequence[str], decimal: str = "", likely: str = "") -> Column:
    """Reads a column of numbers.

    Args:
      cells: cells without surrounding spaces.
      decimal: decimal mark; empty to detect it.
      likely: decimal mark to prefer if the column is ambiguous.

    Raises:
      NumberError: a cell is not a number, or the column is ambiguous.
    """
    plain = [plain_number(cell) for cell in cells]
    is_plain = None not in plain
    if is_plain and decimal != "," and (likely != "," or decimal):
        return Column(np.array(plain, np.float64))
    there = [i for i, value in enumerate(plain) if value is None or not np.isnan(value)]
    texts = [_normal(cells[i]) for i in there]
    usable = [each for each in CONVENTIONS if decimal in ("", each.decimal)]
    fitting = [each for each in usable if all(map(_PATTERNS[each].fullmatch, texts))]
    if not fitting:
        if is_plain and not decimal:
            return Column(np.array(plain, np.float64))
        raise _unreadable(cells, plain, there, texts, usable)
    values = {each: [each.value(text) for text in texts] for each in fitting}
    if likely and not decimal:
        fitting = [each for each in fitting if each.decimal == likely] or fitting
    chosen = fitting[0]
    for other in fitting[1:]:
        for index, pair in enumerate(zip(values[chosen], values[other], strict=True)):
            if pair[0] != pair[1]:
                readings = " or ".join(f"{value:.15g}" for value in sorted(pair))
                reason = f"which can mean {readings}, and no cell of the column shows which"
                raise NumberError(there[index], reason, two_readings=True)
    found = np.full(len(cells), np.nan)
    found[there] = values[chosen]
    found[~np.isfinite(found)] = np.nan
    first = next((i for i, index in enumerate(there) if plain[index] != values[chosen][i]), None)
    if first is None:
        return Column(found)
    return Column(found, chosen, cells[there[first]])


def grouped_by_points(cells: Sequence[str]) -> int | None:
    """Returns the index of the first cell whose point may separate thousands, as in "1.234".

    All cells must be in Python notation. The result is None if there is no such cell, or if the
    point of some cell can only be a decimal point.
    """
    first = None
    convention = Convention(",", ".")
    for index, cell in enumerate(cells):
        if "." not in cell or cell.lower() in _MISSING:
            continue
        if not _PATTERNS[convention].fullmatch(cell):
            return None
        first = index if first is None else first
    return first


def _unreadable(
    cells: Sequence[str],
    plain: Sequence[float | None],
    there: Sequence[int],
    texts: Sequence[str],
    usable: Sequence[Convention],
) -> NumberError:
    """Returns the error for a column that no convention fits."""
    fits = {each: [bool(_PATTERNS[each].fullmatch(text)) for text in texts] for each in usable}
    best = max(usable, key=lambda each: sum(fits[each]))
    wrong = there[fits[best].index(False)]
    units = Counter()
    like = 0
    for text in texts:
        kind = _unit(text)
        like += kind == ""
        units[kind] += bool(kind)
    # Cells with the most frequent unit count as numbers, because numbers of a column have the same
    # unit. In a column of texts, letters differ from cell to cell.
    like += max(units.values(), default=0)
    others = sum(plain[index] is None for index in there)
    is_text = 2 * others > len(cells) and 2 * like < len(texts)
    reason = "it has a unit" if _unit(_normal(cells[wrong])) else ""
    return NumberError(wrong, reason if not is_text else "", is_text)


def _unit(text: str) -> str | None:
    """Returns the unit next to the number in a text, "" without unit, None without number."""
    found = _WITH_UNIT.fullmatch(text)
    if not found or not any(p.fullmatch(found["number"]) for p in _PATTERNS.values()):
        return None
    around = f"{found['before']} {found['after']}".strip().lower()
    return around if re.search(r"\w", around) else ""


def _normal(cell: str) -> str:
    """Normalizes signs, spaces within numbers and apostrophes."""
    return _SPACES.sub(" ", cell).replace("\u2212", "-").replace("\u2019", "'")
