"""Time stamps: parsing, the regular grid, and calendar features."""

import numpy as np
import pytest

from tasks.forecasting import timestamps as clock
from tasks.forecasting.timestamps import Step


def read(*texts):
    return np.array([clock.read_time(text) for text in texts])


def test_stamps_of_all_kinds_are_read():
    expected = np.datetime64("2024-02-29T13:00:00", "us")
    for text in (
        "2024-02-29 13:00",
        "2024-02-29T13:00:00Z",
        " 20240229T130000 ",
        "2024-02-29T14:00:00+01:00",
        "1709211600",
        "1709211600.0",
        "1709211600000",
    ):
        assert clock.read_time(text) == expected, text
    assert clock.read_time("2024-02") == np.datetime64("2024-02-01", "us")
    assert clock.read_time("1990") == np.datetime64("1990-01-01", "us")
    for text in ("", "5", "NaT", "now", "31/12/2024", "2024-02-30"):
        with pytest.raises(ValueError):
            clock.read_time(text)


@pytest.mark.parametrize(
    ("texts", "step", "spelled", "period", "places"),
    [
        (("2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 02:00"), Step(3600), "1 h", 24, 4),
        (("2024-01-01", "2024-01-02", "2024-01-05", "2024-01-06"), Step(86400), "1 d", 7, 3),
        (("2024-01-01 10:00", "2024-01-01 10:10", "2024-01-01 10:20"), Step(600), "10 min", 144, 5),
        (("2024-01-15", "2024-02-15", "2024-04-15", "2024-05-15"), Step(months=1), "month", 12, 1),
        (("2024-01-31", "2024-02-29", "2024-03-31"), Step(months=1, ends=True), "month", 12, 1),
        (("2021-01", "2021-04", "2021-07"), Step(months=3), "3 months", 4, 1),
        (("2020", "2021", "2022"), Step(months=12), "12 months", 1, 1),
    ],
)
def test_the_step_is_found_and_leads_back_to_the_stamps(texts, step, spelled, period, places):
    times = read(*texts)
    found = clock.regular_step(times)
    assert (found, str(found), found.period) == (step, spelled, period)
    on = clock.grid_index(times, times[0], found)
    np.testing.assert_array_equal(clock.stamps(times[0], found, on), times)
    assert clock.calendar_size(found) == clock.calendar(times, found).shape[1] == places


def test_months_before_the_first_and_past_the_last():
    start, step = clock.read_time("2024-01-31"), Step(months=1, ends=True)
    around = clock.format_times(clock.stamps(start, step, np.array([-2, 1, 13])))
    assert around == ["2023-11-30", "2024-02-29", "2025-02-28"]


def test_the_calendar_is_that_of_informer():
    # Sunday, 31 December 2023, 23:59: the last of everything but of 366 days.
    found = clock.calendar(read("2023-12-31 23:59", "2024-01-01 00:00"), Step(60))
    np.testing.assert_allclose(found[0], [0.5, 0.5, 0.5, 0.5, 364 / 365 - 0.5], rtol=1e-6)
    np.testing.assert_allclose(found[1], [-0.5] * 5, rtol=1e-6)
    assert clock.calendar_size(None) == 0


@pytest.mark.parametrize(
    ("late", "every", "expected"),
    [
        # Read 0, 1, 2, 0, 1, 2 ... s late: differences are 3601, 3601, 3598 s, the median 3601.
        (lambda place: place % 3, 3600, 3600),
        (lambda place: 2 - place % 2, 600, 600),
        # A month later the grid of 3601 s would be 12 minutes off.
        (lambda place: place * 7 % 5, 86_400, 86_400),
        # A clock that truly ticks so.
        (lambda place: 0, 3601, 3601),
        (lambda place: 0, 37, 37),
        (lambda place: 0, 0.3, 0.3),
    ],
)
def test_stamps_that_are_late_have_the_step_that_was_set(late, every, expected):
    start = np.datetime64("2024-01-01", "us")
    seconds = [place * every + late(place) for place in range(2000)]
    times = start + np.round(np.array(seconds) * 1e6).astype("timedelta64[us]")
    step = clock.regular_step(times)
    assert step == Step(seconds=expected)
    assert clock.grid_index(times, times[0], step).tolist() == list(range(2000))
