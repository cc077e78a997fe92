"""Columns of times: units, the order of day and month, time zones, and errors."""

import numpy as np
import pytest

from tasks.common.data.timestamps import TimeColumn, TimeError, looks_like_times


def read(cells, **options):
    column = TimeColumn(**options)
    for cell in cells:
        column.add(cell)
    return column.read()


def refused(cells, **options):
    with pytest.raises(TimeError) as caught:
        read(cells, **options)
    return caught.value


# 1 and 2 January 2021.
SECONDS = [1609459200.0, 1609545600.0]


@pytest.mark.parametrize(
    ("cells", "unit"),
    [
        (["1609459200", "1609545600"], "seconds since 1970"),
        (["1609459200.0", 1609545600], "seconds since 1970"),
        (["1609459200000", "1609545600000"], "milliseconds since 1970"),
        (["1609459200000000", "1609545600000000"], "microseconds since 1970"),
        (["1609459200000000000", "1609545600000000000"], "nanoseconds since 1970"),
        (["20210101", "20210102"], "dates as yyyymmdd"),
        (["20210101.0", "20210102.0"], "dates as yyyymmdd"),
        (["2021010100", "2021010200"], "dates as yyyymmddhh"),
        (["202101010000", "202101020000"], "dates as yyyymmddhhmm"),
        (["20210101000000", "20210102000000"], "dates as yyyymmddhhmmss"),
        (["2021-01-01", "2021-01-02T00:00"], ""),
        (["2021-01-01T00:00Z", "2021-01-02"], ""),
        (["2021-01-01", "1609545600"], "ISO 8601 and seconds since 1970"),
        (["2021-01-01T01:00+01:00", "2021-01-01T23:00-01:00"], "times with UTC offsets -01:00 to "),
        (["Jan 1, 2021", "2 January 2021"], ""),
    ],
)
def test_one_unit_is_found_for_a_column(cells, unit):
    found = read(cells)
    assert found.seconds.tolist() == SECONDS
    assert found.utc.tolist() == np.array(["2021-01-01", "2021-01-02"], "datetime64[us]").tolist()
    assert found.unit.startswith(unit)
    assert bool(found.unit) == bool(unit)
    if unit:
        assert found.assumption.endswith("(first: 2021-01-01 00:00:00)")


def test_years_and_months_are_dates():
    assert np.diff(read(["2019", "2020"]).seconds) == 365 * 86400
    assert np.diff(read(["202001", "202003"]).seconds) == 60 * 86400


def test_small_numbers_are_an_order():
    for cells in (["3", "1", "2"], ["0", "14"], ["0.5", "7"], ["-1", "5"]):
        found = read(cells)
        assert found.is_order
        assert found.seconds.tolist() == [float(cell) for cell in cells]
        assert "an order without times" in found.assumption


def test_the_column_tells_the_order_of_day_and_month():
    for cells, order, months in (
        (["01.02.2024", "13.02.2024"], "dmy", [2, 2]),
        (["01/02/2024", "01/13/2024"], "mdy", [1, 1]),
    ):
        found = read(cells)
        assert found.date_order == order
        assert (found.local.astype("datetime64[M]").astype(int) % 12 + 1).tolist() == months
    both = ["01/02/2024", "02/02/2024"]
    error = refused(both)
    assert "allows both orders" in error.reason
    assert error.index == 0
    assert "config.data.date_order" in error.remedy
    for option in ("date_order", "likely_order"):
        assert str(read(both, **{option: "mdy"}).utc[0]).startswith("2024-01-02")
        assert str(read(both, **{option: "dmy"}).utc[0]).startswith("2024-02-01")
    # The likely order is used only if the column is ambiguous; a configured order is always used.
    assert read(["13/02/2024"], likely_order="mdy").date_order == "dmy"
    assert refused(["01/02/2024", "13/02/2024"], date_order="mdy").index == 1
    assert refused(["13/01/2024", "01/02/2024", "01/13/2024"]).index == 2


@pytest.mark.parametrize(
    ("cells", "reason", "index"),
    [
        (["1609459200", "1609459200000"], "milliseconds since 1970 among seconds", 1),
        (["1609459200", "20210101"], "not seconds since 1970", 1),
        (["5", "1609459200"], "not seconds since 1970", 0),
        (["20210101", "20210132"], "not a date as yyyymmdd", 1),
        (["20210101", "20210102", "7"], "not a date as yyyymmdd", 2),
        (["31122020", "01012021"], "with the day or month first", 0),
        (["45000", "45001.5"], "a spreadsheet's number of days", 0),
        # 100 nanoseconds since the year 1, microseconds since 1601.
        (["637450560000000000"], "not a time in any known unit", 0),
        (["13253932800000000"], "not a time in any known unit", 0),
        (["1.60946E+12"], "a rounded number", None),
        (["2021-01-01", "5"], "a small number among dates", 1),
        (["2021-01-01T00:00+01:00", "2021-01-02"], "without a time zone", 1),
        (
            ["31.12.2020", "2021-01-01"],
            "in another notation (ISO 8601) than the cells above (dates",
            None,
        ),
        (["2021-Q1", "1609459200"], "a number among quarters", 1),
        (["nan"], "not a finite number", None),
        (["1e999"], "not a finite number", None),
    ],
)
def test_units_that_are_mixed_or_unknown_are_refused(cells, reason, index):
    error = refused(cells)
    assert reason in error.reason
    assert error.index == index


def test_no_times_at_all():
    for cell in ("soon", "", "1_000", "１", True, None, [1]):
        with pytest.raises(TimeError):
            TimeColumn().add(cell)
    assert looks_like_times(["01/02/2024"])
    assert not looks_like_times(["1", "2"])
    assert not looks_like_times([])


def test_strays_near_1970_are_named():
    found = read(["0", "1609459200", "1609545600"], stray=True)
    assert found.seconds.tolist() == [0, *SECONDS]
    assert found.remark.startswith("1 of 3 times are close to 1970, the first is 0")
    reason = refused(["20210101", "1609459200"], stray=True).reason
    assert "since 1970, unlike other times" in reason
