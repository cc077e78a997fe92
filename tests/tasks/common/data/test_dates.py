"""Single dates and times: notations, UTC offsets, and errors."""

import datetime

import numpy as np
import pytest

from tasks.common.data.dates import NO_DATE, NO_OFFSET, parse


@pytest.mark.parametrize(
    ("text", "expected", "offset"),
    [
        ("2024-12-31", "2024-12-31", None),
        ("2024-12-31 13:05", "2024-12-31T13:05", None),
        ("2024-12-31T13:05:06.123456789Z", "2024-12-31T13:05:06.123456", 0),
        ("2024-12-31T13:05:06,5+0530", "2024-12-31T13:05:06.5", 19800),
        ("20241231T130506-03", "2024-12-31T13:05:06", -10800),
        ("2024-03-31T02:00:00+02:00[Europe/Berlin]", "2024-03-31T02:00", 7200),
        ("2024-03-31 02:00 CET", "2024-03-31T02:00", 3600),
        ("2024-07-04 09:30 EDT", "2024-07-04T09:30", -14400),
        ("2024-12-31 24:00", "2025-01-01", None),
        ("2024-02", "2024-02-01", None),
        ("2024-W05", "2024-01-29", None),
        ("2020-W53-5", "2021-01-01", None),
        ("2024-Q3", "2024-07-01", None),
        ("2024Q1", "2024-01-01", None),
        ("Q4 2024", "2024-10-01", None),
        ("2024/12/31 13:00", "2024-12-31T13:00", None),
        ("Dec 31, 2024", "2024-12-31", None),
        ("31-Dec-2024 1:05 PM", "2024-12-31T13:05", None),
        ("December 2024", "2024-12-01", None),
        ("Tue, 31 Dec 2024 13:00:00 GMT", "2024-12-31T13:00", 0),
        ("Tue Dec 31 13:00:00 +0100 2024", "2024-12-31T13:00", 3600),
        ("5/17/2024 12:30 AM", "2024-05-17T00:30", None),
        ("17.05.2024", "2024-05-17", None),
    ],
)
def test_moments_are_read(text, expected, offset):
    found = parse(f" {text} ")
    readings = {found.day_first, found.month_first} - {NO_DATE}
    assert readings == {np.datetime64(expected, "us").astype(int)}
    assert found.offset == (NO_OFFSET if offset is None else offset)


def test_days_and_months_that_can_change_places_have_two_readings():
    found = parse("03/04/2024")
    assert np.datetime64(found.day_first, "us") == np.datetime64("2024-04-03")
    assert np.datetime64(found.month_first, "us") == np.datetime64("2024-03-04")
    assert parse("31.12.2024").month_first == NO_DATE


def test_the_calendar_agrees_with_that_of_the_standard_library():
    first = datetime.date(1899, 12, 30)
    for days in range(0, 80_000, 997):
        day = first + datetime.timedelta(days)
        for form in ("%Y/%m/%d", "%d %b %Y", "%G-W%V-%u", "%Y%m%dT00"):
            found = np.datetime64(parse(day.strftime(form)).day_first, "us")
            assert found == np.datetime64(day), (day, form)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2024-02-30", "the date does not exist"),
        ("32.01.2024", "the date does not exist"),
        ("2024-01-01 25:00", "the time of day does not exist"),
        ("2024-01-01 13:00 PM", "the time of day does not exist"),
        ("2024-01-01 10:00+25:00", "the UTC offset does not exist"),
        ("2024-01-01 10:00 CST", "'CST' has no fixed offset"),
        ("2024-01-01 10:00 Europe/Berlin", "has no fixed offset"),
        ("31/12/24", "four digits"),
        ("31-Dec-24", "four digits"),
        # Cut off at the end of a file.
        ("2024-01-1", "^$"),
        ("now", "^$"),
        ("1.2.3", "^$"),
        ("", "^$"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
