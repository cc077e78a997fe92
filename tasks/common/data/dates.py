"""Parser of dates and times in common notations, for single cells of text.

The notations are calendar dates (`2024-12-31`, `2024/12/31`, `31.12.2024`, `12/31/2024`), dates
with English month names (`Dec 31, 2024`), and months, quarters and ISO weeks (`2024-12`, `2024-Q4`,
`2024-W52`). A time of day and a UTC offset may follow a calendar date or a date with a month name.

Whether `01.02.2024` begins with the day or the month is decided for the complete column, see
`tasks.common.data.timestamps`.
"""

from __future__ import annotations

import datetime
import re
from typing import NamedTuple

# NO_DATE marks a date that does not exist in one of the two orders of day and month. NO_OFFSET
# marks a missing UTC offset.
NO_DATE = -(2**63)
NO_OFFSET = -(2**31)
# Seconds east of UTC by name. Ambiguous names, such as CST and IST, are not supported.
ZONES = {
    **dict.fromkeys(("Z", "UTC", "GMT", "WET"), 0),
    **dict.fromkeys(("CET", "MEZ", "WEST"), 3600),
    **dict.fromkeys(("CEST", "MESZ", "EET"), 7200),
    **dict.fromkeys(("EEST", "MSK"), 10800),
    **{"EST": -18000, "EDT": -14400, "CDT": -18000, "MST": -25200, "MDT": -21600},
    **{"PST": -28800, "PDT": -25200, "JST": 32400, "KST": 32400},
    **{"AEST": 36000, "AEDT": 39600, "NZST": 43200, "NZDT": 46800},
}
ISO, NAMED, QUARTER = "ISO 8601", "dates with month names", "quarters"
# Dates in this notation can be read with the day or the month first.
DAY_AND_MONTH = "dates as 31{0}12{0}2024 or 12{0}31{0}2024"
_EPOCH = datetime.date(1970, 1, 1).toordinal()
_DAY = 86_400_000_000
_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            ("jan", "january"),
            ("feb", "february"),
            ("mar", "march"),
            ("apr", "april"),
            ("may",),
            ("jun", "june"),
            ("jul", "july"),
            ("aug", "august"),
            ("sep", "sept", "september"),
            ("oct", "october"),
            ("nov", "november"),
            ("dec", "december"),
        ),
        1,
    )
    for name in names
}
_MONTH = "(?P<name>" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\b\.?"
_WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
_OFFSET = (
    r"(?:(?:utc|gmt)?\s?(?P<sign>[+\-\u2212])(?P<east>\d\d?)"
    r"(?::?(?P<minutes>\d\d)(?::?(?P<odd>\d\d))?)?)"
)
_ZONE = rf"(?:\s*(?:{_OFFSET}|(?P<zone>[a-z][a-z/_]+|z))(?:\s?[\[(][\w/+ \-]+[\])])?)?"
_CLOCK = (
    r"(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?)?"
    r"(?:\s?(?P<half>[ap])\.?m\.?)?"
)
_COMPACT_CLOCK = (
    r"(?P<hour>\d\d)(?:(?P<minute>\d\d)(?:(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?)?)?"
)


def _pattern(whole: str) -> re.Pattern[str]:
    return re.compile(whole, re.IGNORECASE | re.ASCII)


def _patterns(date: str) -> tuple[re.Pattern[str], ...]:
    # A named group may occur only once in a pattern, so the two clocks need separate patterns.
    return (
        _pattern(rf"{date}(?:(?:T|\s*,\s*|\s+){_CLOCK}{_ZONE})?"),
        _pattern(rf"{date}T{_COMPACT_CLOCK}{_ZONE}"),
    )


_FORMS = (
    *_patterns(r"(?P<year>\d{4})(?P<mark>-)(?P<month>\d\d)-(?P<day>\d\d)"),
    *_patterns(r"(?P<year>\d{4})(?P<mark>[/.])(?P<month>\d\d?)(?P=mark)(?P<day>\d\d?)"),
    *_patterns(r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)"),
    *_patterns(r"(?P<first>\d\d?)(?P<mark>[-/.])\s?(?P<later>\d\d?)(?P=mark)\s?(?P<year>\d{4})"),
    _pattern(r"(?P<year>\d{4})(?P<mark>[-/])(?P<month>\d\d)"),
    _pattern(r"(?P<month>\d\d?)(?P<mark>[-/])(?P<year>\d{4})"),
    _pattern(r"(?P<year>\d{4})-?W(?P<week>\d\d)(?:-?(?P<weekday>[1-7]))?"),
    _pattern(r"(?P<year>\d{4})[-_/ ]?Q(?P<quarter>[1-4])"),
    _pattern(r"Q(?P<quarter>[1-4])[-_/ ]?(?P<year>\d{4})"),
    *_patterns(
        rf"{_WEEKDAY}(?P<day>\d\d?)(?:st|nd|rd|th)?[-./ ]\s?{_MONTH}[-/, ]\s?(?P<year>\d{{4}})"
    ),
    *_patterns(rf"{_WEEKDAY}{_MONTH}[-/ ]\s?(?P<day>\d\d?)(?:st|nd|rd|th)?,?\s?(?P<year>\d{{4}})"),
    *_patterns(rf"(?P<year>\d{{4}})[-/ ]{_MONTH}[-/ ](?P<day>\d\d?)"),
    _pattern(rf"{_MONTH}[-/, ]\s?(?P<year>\d{{4}})"),
    # The format of the C function `ctime`, optionally with an offset before the year.
    _pattern(rf"{_WEEKDAY}{_MONTH}\s+(?P<day>\d\d?)\s+{_CLOCK}{_ZONE}\s+(?P<year>\d{{4}})"),
)
_SHORT_YEAR = re.compile(
    r"(?:\d\d?[-/.]){2}\d\d(?:\D.*)?|\d\d?[-/ ][a-z]{3}[-/ ]\d\d(?:\D.*)?", re.I
)


class Moment(NamedTuple):
    """A date or time.

    Attributes:
      notation: description of the notation; all cells of a column must have the same one.
      day_first: local time as written, in microseconds since 1970. An ambiguous date is read with
        the day before the month; `NO_DATE` if there is no such date.
      month_first: the same, but an ambiguous date is read with the month before the day.
      offset: UTC offset in seconds, positive to the east; `NO_OFFSET` if the text has none.
    """

    notation: str
    day_first: int
    month_first: int
    offset: int


def parse(text: str) -> Moment:
    """Parses one date or time.

    Raises:
      ValueError: the text has none of the notations of this module, or the date or time does not
        exist. The message is the reason or advice for the user, and may be empty.
    """
    text = text.strip()
    if text[4:5] == "-" and text.isascii():
        # Most files use this format. `fromisoformat` is 20 times as fast as the patterns below.
        try:
            return _of_datetime(datetime.datetime.fromisoformat(text))
        except ValueError:
            pass
    for form in _FORMS:
        if found := form.fullmatch(text):
            return _moment(found.groupdict())
    if _SHORT_YEAR.fullmatch(text):
        raise ValueError("write years with four digits")
    raise ValueError


def _of_datetime(found: datetime.datetime) -> Moment:
    time = ((found.hour * 60 + found.minute) * 60 + found.second) * 1_000_000 + found.microsecond
    local = (found.toordinal() - _EPOCH) * _DAY + time
    offset = found.utcoffset()
    return Moment(ISO, local, local, NO_OFFSET if offset is None else int(offset.total_seconds()))


def _moment(found: dict[str, str | None]) -> Moment:
    get = found.get
    year, mark = int(found["year"]), get("mark")
    time, offset = _time(found), _offset(found)
    if week := get("week"):
        day = datetime.date.fromisocalendar(year, int(week), int(get("weekday") or 1)).toordinal()
        first = last = (day - _EPOCH) * _DAY
        notation = ISO
    elif quarter := get("quarter"):
        first = last = _days(year, 3 * int(quarter) - 2, 1) * _DAY
        notation = QUARTER
    elif name := get("name"):
        first = last = _days(year, _MONTHS[name.lower()], int(get("day") or 1)) * _DAY + time
        notation = NAMED
    elif left := get("first"):
        notation = DAY_AND_MONTH.format(mark)
        first, last = (
            _allowed(year, int(month), int(day), time)
            for day, month in ((left, found["later"]), (found["later"], left))
        )
        if first == last == NO_DATE:
            raise ValueError("the date does not exist")
    else:
        first = last = _days(year, int(found["month"]), int(get("day") or 1)) * _DAY + time
        notation = ISO if mark in (None, "-") else f"dates as 2024{mark}12{mark}31"
    return Moment(notation, first, last, offset)


def _days(year: int, month: int, day: int) -> int:
    try:
        return datetime.date(year, month, day).toordinal() - _EPOCH
    except ValueError:
        raise ValueError("the date does not exist") from None


def _allowed(year: int, month: int, day: int, time: int) -> int:
    try:
        return _days(year, month, day) * _DAY + time
    except ValueError:
        return NO_DATE


def _time(found: dict[str, str | None]) -> int:
    """Returns microseconds since midnight; finer fractions are truncated."""
    if not found.get("hour"):
        return 0
    hour, minute = int(found["hour"]), int(found.get("minute") or 0)
    second = int(found.get("second") or 0)
    micro = int((found.get("fraction") or "")[:6].ljust(6, "0"))
    if half := found.get("half"):
        if not 1 <= hour <= 12:
            raise ValueError("the time of day does not exist")
        hour = hour % 12 + 12 * (half.lower() == "p")
    midnight = hour == 24 and not (minute or second or micro)
    if (hour > 23 and not midnight) or minute > 59 or second > 59:
        raise ValueError("the time of day does not exist")
    return ((hour * 60 + minute) * 60 + second) * 1_000_000 + micro


def _offset(found: dict[str, str | None]) -> int:
    if zone := found.get("zone"):
        if zone.upper() not in ZONES:
            raise ValueError(
                f"the time zone {zone!r} has no fixed offset; write an offset such as +01:00"
            )
        return ZONES[zone.upper()]
    if not found.get("sign"):
        return NO_OFFSET
    hours, minutes = int(found["east"]), int(found["minutes"] or 0)
    if hours > 23 or minutes > 59:
        raise ValueError("the UTC offset does not exist")
    east = (hours * 60 + minutes) * 60 + int(found["odd"] or 0)
    return east if found["sign"] == "+" else -east
