"""Parser of a column of times, whose notation and unit are inferred from all cells.

Depending on their magnitude, numbers are seconds, milliseconds, microseconds or nanoseconds since
1970, or dates such as 20241231, 202412 or 2024. Other small numbers are not converted to times;
they only give the order of the rows. Texts have the notations of `tasks.common.data.dates`. A
column that mixes units or notations, or that is ambiguous, is an error.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from tasks.common.data.dates import DAY_AND_MONTH, ISO, NO_DATE, NO_OFFSET, parse

# Descriptions of the two orders of day and month before a year.
_READINGS = {"dmy": "with the day first", "mdy": "with the month first"}
DATE_ORDERS = tuple(_READINGS)
DATE_ORDER_KEY = "config.data.date_order"
UNITS = {"seconds": 1e0, "milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}
# First and last year of numbers that are read as dates.
_YEARS = (1900, 2100)
# Range of seconds since 1970 that are accepted as times, from 3 March 1973 to 20 November 2286. The
# same range in other units gives other numbers, so that the numbers determine the unit.
_LEAST, _MOST = 1e8, 1e10
# Numbers in this range are rejected. As nanoseconds since 1970, they would be in 1989 or 1990, but
# more likely they are present times in units of 100 ns since the year 1.
_TICKS = (6.2e17, 6.5e17)
_TWO_READINGS = tuple(map(DAY_AND_MONTH.format, "-/."))
# Days since 1900, for the years 1990 to 2049.
_SPREADSHEET_DAYS = (32874, 54788)
# Count of numbers that are processed at once, to limit memory.
_PIECE = 8192
# A number with an exponent and fewer significant digits than this is imprecise by hours.
_LEAST_DIGITS = 9


class TimeError(ValueError):
    """A cell that is not a time, or does not match the other cells of its column.

    Attributes:
      reason: description of the cell, which follows "is" in messages; may be empty.
      remedy: advice for the user; may be empty.
      index: index of the cell in the column; None for the cell that was added last.
    """

    def __init__(self, reason: str = "", remedy: str = "", index: int | None = None):
        super().__init__(reason)
        self.reason, self.remedy, self.index = reason, remedy, index


@dataclasses.dataclass(frozen=True)
class Times:
    """The times of a column.

    Attributes:
      seconds: seconds since 1970 in UTC, float64 [n]; the numbers of the column if they only give
        the order of the rows.
      local: local times as written, datetime64[us] [n]; None if there is only an order.
      offset: UTC offsets in seconds, positive to the east, int64 [n]; None without a time zone.
      unit: unit or notation that was assumed, for messages; empty if nothing was assumed.
      date_order: "dmy" or "mdy" if dates have day and month as numbers before the year; else empty.
      remark: warning about values that are unusual but allowed; may be empty.
    """

    seconds: np.ndarray
    local: np.ndarray | None
    offset: np.ndarray | None = None
    unit: str = ""
    date_order: str = ""
    remark: str = ""

    @property
    def is_order(self) -> bool:
        """True if the numbers give only the order of the rows, not times."""
        return self.local is None

    @property
    def utc(self) -> np.ndarray:
        """Times in UTC, datetime64[us] [n]; times without a time zone are assumed to be in UTC."""
        if self.offset is None:
            return self.local
        return self.local - self.offset.astype("timedelta64[s]")

    @property
    def assumption(self) -> str:
        """Assumed unit and first time in UTC, for messages; empty if nothing was assumed."""
        if not self.unit or self.is_order:
            return self.unit
        return f"{self.unit} (first: {str(self.utc[0].astype('datetime64[s]')).replace('T', ' ')})"


class TimeColumn:
    """Collector of the cells of a column of times. It stores 8 to 28 bytes per cell."""

    def __init__(self, date_order: str = "", likely_order: str = "", stray: bool = False):
        """Initializes a column without cells.

        Args:
          date_order: order of dates that have day and month as numbers before the year, "dmy" or
            "mdy"; empty to infer the order from the column.
          likely_order: order that is used if the column allows both orders. If empty, such a column
            is an error.
          stray: whether some numbers may be near 0 in a column of seconds, milliseconds,
            microseconds or nanoseconds since 1970.
        """
        self._date_order, self._likely, self._stray = date_order, likely_order, stray
        self._numbers = array("d")
        self._days_first, self._months_first = array("q"), array("q")
        self._offsets = array("i")
        self._notation: str | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, cell: Any) -> None:
        """Adds the next cell, which is a text or a JSON number.

        Raises:
          TimeError: the cell is not a time, or its notation differs from that of earlier cells.
        """
        number = _number(cell)
        if number is not None:
            self._numbers.append(number)
            if self._notation is not None:
                self._append(NO_DATE, NO_DATE, NO_OFFSET)
            return
        try:
            moment = parse(cell)
        except ValueError as error:
            raise TimeError(remedy=str(error)) from None
        if self._notation is None:
            self._notation = moment.notation
            count = len(self._numbers)
            for kept, nothing in (
                (self._days_first, NO_DATE),
                (self._months_first, NO_DATE),
                (self._offsets, NO_OFFSET),
            ):
                kept.extend([nothing] * count)
        if moment.notation != self._notation:
            raise TimeError(
                f"in another notation ({moment.notation}) than the cells above ({self._notation})",
                "use one notation in the column",
            )
        self._numbers.append(np.nan)
        self._append(moment.day_first, moment.month_first, moment.offset)

    def _append(self, day_first: int, month_first: int, offset: int) -> None:
        self._days_first.append(day_first)
        # ISO dates have a fixed order of day and month, so both readings are equal, and only one is
        # stored.
        if self._notation != ISO:
            self._months_first.append(month_first)
        self._offsets.append(offset)

    def read(self) -> Times:
        """Returns the times of all cells.

        Raises:
          TimeError: the cells cannot all be read in the same way, or can be read in several ways.
            The attribute `index` of the error is the index of a cell with the problem.
        """
        numbers = np.frombuffer(self._numbers, np.float64)
        if self._notation is None:
            return _times_of_numbers(numbers, self._stray)
        local, date_order = self._local()
        there = ~np.isnan(numbers)
        if not there.any():
            return self._zoned(local, date_order)
        if self._notation != ISO:
            raise TimeError(
                f"a number among {self._notation}",
                "use one notation in the column",
                int(np.argmax(there)),
            )
        places = np.flatnonzero(there)
        try:
            found = _times_of_numbers(numbers[there], self._stray)
        except TimeError as error:
            raise TimeError(error.reason, error.remedy, int(places[error.index])) from None
        if found.is_order:
            raise TimeError(
                "a small number among dates", "use one notation in the column", int(places[0])
            )
        local = local.copy()
        local[there] = found.local
        zoned = self._zoned(local, date_order)
        unit = f"{ISO} and {found.unit}"
        return dataclasses.replace(zoned, unit=unit, remark=found.remark)

    def _local(self) -> tuple[np.ndarray, str]:
        """Returns the local times, datetime64[us] [n], and the order of day and month."""
        days_first = np.frombuffer(self._days_first, np.int64)
        if self._notation == ISO:
            return days_first.view("datetime64[us]"), ""
        months_first = np.frombuffer(self._months_first, np.int64)
        if self._notation not in _TWO_READINGS:
            return days_first.view("datetime64[us]"), ""
        readings = {"dmy": days_first, "mdy": months_first}
        wrong = {order: np.flatnonzero(found == NO_DATE) for order, found in readings.items()}
        fitting = [order for order, places in wrong.items() if not len(places)]
        if self._date_order:
            if self._date_order not in fitting:
                raise TimeError(
                    f"no date {_READINGS[self._date_order]}",
                    f"change {DATE_ORDER_KEY}",
                    int(wrong[self._date_order][0]),
                )
            fitting = [self._date_order]
        elif not fitting:
            # Each of the two orders is excluded by some cell. The error names the later one of
            # these two cells, which contradicts the earlier one.
            first = max(int(places[0]) for places in wrong.values())
            raise TimeError(
                "a date with another order of day and month than the cells above",
                "write 2024-12-31",
                first,
            )
        elif len(fitting) == 2 and self._likely:
            fitting = [self._likely]
        if len(fitting) == 2:
            raise TimeError(
                "a date in a column that allows both orders of day and month",
                f"set {DATE_ORDER_KEY} to 'dmy' or 'mdy'",
                0,
            )
        return readings[fitting[0]].view("datetime64[us]"), fitting[0]

    def _zoned(self, local: np.ndarray, date_order: str) -> Times:
        offsets = np.frombuffer(self._offsets, np.int32).astype(np.int64)
        unit = f"dates {_READINGS[date_order]}" if date_order else ""
        without = offsets == NO_OFFSET
        if without.all():
            seconds = local.astype(np.int64) / 1e6
            return Times(seconds, local, unit=unit, date_order=date_order)
        if without.any() and np.any(offsets[~without]):
            raise TimeError(
                "a time without a time zone, while other cells have one",
                "write the UTC offset in all cells",
                int(np.argmax(without)),
            )
        offsets = np.where(without, 0, offsets)
        low, high = (_offset_text(east) for east in (offsets.min(), offsets.max()))
        zone = f"UTC offset {low}" if low == high else f"UTC offsets {low} to {high}"
        seconds = local.astype(np.int64) / 1e6 - offsets
        unit = f"{unit} with {zone}" if unit else f"times with {zone}"
        return Times(seconds, local, offsets, "" if np.all(offsets == 0) else unit, date_order)


def looks_like_times(cells: Iterable[Any], stray: bool = False) -> bool:
    """Returns True if cells can be read as times, in any order of day and month.

    Args:
      cells: cells of a column.
      stray: see `TimeColumn`.
    """
    column = TimeColumn(likely_order="dmy", stray=stray)
    try:
        for cell in cells:
            column.add(cell)
        return len(column) > 0 and not column.read().is_order
    except TimeError:
        return False


def _offset_text(east: int) -> str:
    hours, minutes = divmod(abs(int(east)) // 60, 60)
    return f"{'-' if east < 0 else '+'}{hours:02d}:{minutes:02d}"


def _number(cell: Any) -> float | None:
    """Returns the value of a number; None for a text.

    Raises:
      TimeError: the cell is neither number nor text, or is a number that cannot be a time.
    """
    if isinstance(cell, str):
        try:
            # Texts such as 1_000, which only Python reads as numbers, are rejected.
            number = float(cell) if "_" not in cell and cell.isascii() else None
        except ValueError:
            return None
        if number is None:
            return None
        if number >= _LEAST and not math.isinf(number) and "e" in cell.lower():
            digits = sum(map(str.isdigit, cell.lower().partition("e")[0]))
            if digits < _LEAST_DIGITS:
                raise TimeError("a rounded number", "export it with all digits")
    elif isinstance(cell, int | float) and not isinstance(cell, bool):
        number = float(cell) if abs(cell) < 1e300 else math.inf
    else:
        raise TimeError
    if not math.isfinite(number):
        raise TimeError("not a finite number")
    return number


# ---------------------------------------------------------------------- numbers


def _times_of_numbers(numbers: np.ndarray, stray: bool) -> Times:
    size = np.abs(numbers)
    small = size < _LEAST
    if small.all():
        return _small(numbers)
    for digits, name in ((10, "yyyymmddhh"), (12, "yyyymmddhhmm"), (14, "yyyymmddhhmmss")):
        if (found := _calendar_digits(numbers, digits)) is not None:
            return _of_local(found, f"dates as {name}")
    found = {
        unit: (size >= _LEAST * factor) & (size < _MOST * factor) for unit, factor in UNITS.items()
    }
    found["nanoseconds"] &= (size < _TICKS[0]) | (size >= _TICKS[1])
    present = [unit for unit, where in found.items() if where.any()]
    unknown = ~small
    for where in found.values():
        unknown &= ~where
    if unknown.any():
        remedy = "write seconds since 1970, or dates as 2024-12-31"
        raise TimeError("not a time in any known unit", remedy, int(np.argmax(unknown)))
    if len(present) > 1:
        first = next(unit for unit in present if found[unit][np.argmin(small)])
        other = int(np.argmax(~small & ~found[first]))
        is_in = next(unit for unit in present if found[unit][other])
        raise TimeError(
            f"a number of {is_in} since 1970 among {first}", "use one unit in the column", other
        )
    unit = present[0]
    remark = ""
    if small.any():
        few = numbers[small]
        place = int(np.argmax(small))
        if not stray or 2 * np.sum(_dates(few) | _in_years(few)) > len(few):
            raise TimeError(
                f"not {unit} since 1970, unlike other times", "use one unit in the column", place
            )
        remark = (
            f"{len(few)} of {len(numbers)} times are close to 1970, the first is {few[0]:.15g}; "
            f"correct them if they stand for missing times"
        )
    seconds = numbers / UNITS[unit]
    local = np.rint(numbers * (1e6 / UNITS[unit])).astype(np.int64).view("datetime64[us]")
    return Times(seconds, local, unit=f"{unit} since 1970", remark=remark)


def _small(numbers: np.ndarray) -> Times:
    """Reads a column whose numbers are all below 10^8, as dates or as an order."""
    whole = numbers == np.floor(numbers)
    if whole.all():
        dates = _dates(numbers)
        if dates.all():
            return _of_local(_calendar_digits(numbers, 8), "dates as yyyymmdd")
        in_range = _in_years(numbers // 10_000)
        if 2 * dates.sum() > len(dates) or (dates.any() and in_range.all()):
            raise TimeError(
                "not a date as yyyymmdd, unlike the other cells",
                "correct it",
                int(np.argmin(dates)),
            )
        months = numbers.astype(np.int64)
        if np.all(_in_years(months // 100) & (months % 100 >= 1) & (months % 100 <= 12)):
            return _of_local(_calendar_digits(numbers * 100 + 1, 8), "months as yyyymm")
        if _in_years(numbers).all():
            return _of_local(_calendar_digits(numbers * 10000 + 101, 8), "years")
        if _dates(_year_first(months)).all() or _dates(_year_first(months, True)).all():
            raise TimeError("a date with the day or month first", "write 2024-12-31", 0)
    low, high = _SPREADSHEET_DAYS
    if np.all((numbers >= low) & (numbers < high + 1)):
        raise TimeError(
            "a spreadsheet's number of days", "format the column as dates such as 2024-12-31", 0
        )
    unit = f"numbers from {numbers.min():.15g} to {numbers.max():.15g}, an order without times"
    return Times(numbers, None, unit=unit)


def _year_first(numbers: np.ndarray, month_first: bool = False) -> np.ndarray:
    """Converts numbers such as ddmmyyyy, or mmddyyyy if `month_first`, to yyyymmdd."""
    year, first, later = numbers % 10000, numbers // 1_000_000, numbers // 10000 % 100
    month, day = (first, later) if month_first else (later, first)
    return (year * 100 + month) * 100 + day


def _in_years(numbers: np.ndarray) -> np.ndarray:
    return (numbers >= _YEARS[0]) & (numbers <= _YEARS[1])


def _dates(numbers: np.ndarray) -> np.ndarray:
    """Returns which numbers are dates in the form yyyymmdd, bool [n]."""
    pieces = range(0, len(numbers), _PIECE)
    return np.concatenate(
        [~np.isnat(_calendar(numbers[first : first + _PIECE], 8)) for first in pieces]
    )


def _calendar_digits(numbers: np.ndarray, digits: int) -> np.ndarray | None:
    """Converts dates written as digits to datetime64[us] [n]; None if a number is not a date."""
    found = np.empty(len(numbers), "datetime64[us]")
    for first in range(0, len(numbers), _PIECE):
        piece = slice(first, first + _PIECE)
        found[piece] = _calendar(numbers[piece], digits)
        if np.isnat(found[piece]).any():
            return None
    return found


def _calendar(numbers: np.ndarray, digits: int) -> np.ndarray:
    """Converts numbers such as yyyymmdd or yyyymmddhhmmss to datetime64[us] [n]; NaT for others."""
    size = 10.0 ** (digits - 8)
    fits = (numbers >= _YEARS[0] * 1e4 * size) & (numbers < (_YEARS[1] + 1) * 1e4 * size)
    fits &= numbers == np.floor(numbers)
    kept = np.where(fits, numbers, 0).astype(np.int64)
    date, clock = np.divmod(kept, int(size))
    clock = clock * 10 ** (14 - digits)
    year, month, day = date // 10000, date // 100 % 100, date % 100
    hour, minute, second = clock // 10000, clock // 100 % 100, clock % 100
    fits &= (month >= 1) & (month <= 12) & (day >= 1) & (hour < 24) & (minute < 60) & (second < 60)
    months = np.where(fits, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    found = months.astype("datetime64[D]") + np.where(fits, day - 1, 0).astype("timedelta64[D]")
    fits &= found.astype("datetime64[M]") == months
    time = ((hour * 60 + minute) * 60 + second).astype("timedelta64[s]")
    found = found.astype("datetime64[us]") + time
    return np.where(fits, found, np.datetime64("NaT", "us"))


def _of_local(local: np.ndarray, unit: str) -> Times:
    return Times(local.astype(np.int64) / 1e6, local, unit=unit)
