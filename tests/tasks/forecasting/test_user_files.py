"""User files: values that are read, messages, and errors."""

import dataclasses
import datetime
import json
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from tasks.common.errors import UserError
from tasks.forecasting.data import DataConfig
from tasks.forecasting.processor import ForecastingProcessor
from tasks.forecasting.timestamps import Step
from tasks.forecasting.user_files import Reading, read_series


@pytest.fixture
def write(tmp_path):
    def written(text, name="mine.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return written


def test_what_is_missing_uneven_or_twice_is_masked_and_named(write, capsys):
    path = write(
        "Date;Größe;b;note\n"
        "2024-01-04;4;40;x\n"
        "2024-01-01;1;;x\n"
        "2024-01-02;nan;20;y\n"
        "\n"
        "2024-01-04;4;40;z\n"
        "2024-01-07 01:00;7;inf;z\n"
        "2024-01-08;8;-1e1;z\n"
    )
    series = read_series(path)
    assert series.names == ("Größe", "b")
    assert (series.start, series.step) == (np.datetime64("2024-01-01", "us"), Step(86400))
    n = np.nan
    expected = [[1, n], [n, 20], [n, n], [4, 40], [n, n], [n, n], [7, n], [8, -10]]
    np.testing.assert_array_equal(series.values, expected)
    told = capsys.readouterr().err.splitlines()
    assert [line.removeprefix(f"{path}: ") for line in told] == [
        "1 empty lines are ignored; the first is line 5",
        "columns without numbers are left out: note",
        "rows are not in the order of time from line 3 on; they are sorted",
        "1 rows are repeated, the first is line 6",
        "1 of 5 times are not on a grid with the step 1 d (2024-01-07 01:00:00); they are moved "
        "to the nearest grid time",
        "3 of the 8 times of the grid with the step 1 d have no row (after 2024-01-02 00:00:00, "
        "2024-01-04 00:00:00)"
        "; they are masked",
        "3 of 10 values are missing (Größe 1, b 2); they are masked",
    ]


def test_columns_are_chosen_and_times_may_be_none(write, capsys):
    path = write("when\ta\tb\n2024-01-01\t1\t2\n2024-01-02\t3\t4\n")
    series = read_series(path, "when", ["b"])
    assert series.names == ("b",)
    np.testing.assert_array_equal(series.values, [[2], [4]])
    series = read_series(write("a,b\n1,2\n3,4\n"), "none")
    assert (series.names, series.start, series.step) == (("a", "b"), None, None)
    # An index without a name: time stamps are taken for what they are, numbers are no channel.
    series = read_series(write(",a\n2024-01-01,1\n2024-01-02,3\n"))
    assert (series.names, series.step) == (("a",), Step(86400))
    series = read_series(write(",date,a\n0,2024-01-01,1\n1,2024-01-02,3\n"))
    assert series.names == ("a",)
    assert "column 1 has no name and is left out" in capsys.readouterr().err
    series = read_series(write("date,a\n2024-01-01,5\n"), step=Step(3600), trained=True)
    assert series.values.tolist() == [[5]]


def test_what_is_wrong_with_a_file_is_named(write):
    def refused(text, message, *options, **keywords):
        with pytest.raises(UserError, match=message):
            read_series(write(text), *options, **keywords)

    days = "".join(f"2024-01-0{day},{day}\n" for day in range(1, 8))
    refused("", "the file is empty")
    refused("date,a\n", "a header and no rows")
    refused("2024-01-01,5\n", "line 1 contains numbers, expected the names")
    refused("date,a,a\n2024-01-01,1,2\n", "column 'a' is in the header twice")
    refused("date,a\n2024-01-01,1,2\n", "line 2 has 3 fields, expected 2 as in the header")
    refused('date,a\n2024-01-01,"1\n', "line 2 is malformed")
    refused("day,a\n2024-01-01,1\n", r"--time to .* one of day, a, or to 'none'")
    refused("date,a\n" + days, r"no column 'dat' \(did you mean 'date'\?\)", "dat")
    refused("date,load\n" + days, r"no column 'lod' \(did you mean 'load'\?\)", "", ["lod"])
    refused("date,a\n2024-01-01,1\n2024-01-02,x\n2024-01-03,2\n", "line 3: 'a' is 'x', expected")
    refused("date,a\n2024-01-01,x\n", "no column contains numbers")
    refused("date,a\n1.1.2024,1\n", "line 2: 'date' is '1.1.2024', expected a time such as")
    refused("date,a\n2024-01-01,1\n", "got a single time, expected two or more")
    refused(
        "date,a\n" + days + "2024-01-03,9\n", "lines 4 and 9 have the same time, 2024-01-03, but"
    )
    refused("date,a\n" + days + "2024-01-07 06:00,9\n", "closer than half a step of 1 d; set")
    far = "2024-01-01 00:00:00,1\n2024-01-01 00:00:01,1\n2024-01-01 00:00:02,1\n2024-02-01,2\n"
    refused(
        "date,a\n" + far, r"got 4 rows, but the times span 2678401 steps of 1 s; .* set config.data"
    )
    hours = {"step": Step(3600), "trained": True}
    refused("date,a\n" + days, "of times is 1 d, expected 1 h as in training", **hours)


def local_times(start, count, step, zone="Europe/Berlin", **change):
    """Returns ISO 8601 times with the UTC offset of a zone, on a regular grid of local time."""
    found = []
    for number in range(count):
        moment = start + step * number if not change else shifted(start, number, **change)
        found.append(moment.replace(tzinfo=ZoneInfo(zone)).isoformat())
    return found


def shifted(start, number, months):
    year, month = divmod(start.month - 1 + number * months, 12)
    return start.replace(year=start.year + year, month=month + 1)


def rows(times):
    return "date,a\n" + "".join(f"{time},{number}\n" for number, time in enumerate(times))


DAY = datetime.timedelta(days=1)
JANUARY = datetime.datetime(2024, 1, 1)


@pytest.mark.parametrize(
    ("times", "step"),
    [
        (local_times(datetime.datetime(2024, 3, 1), 60, DAY), Step(86400)),
        (local_times(datetime.datetime(2024, 10, 1), 60, DAY, "America/New_York"), Step(86400)),
        (local_times(JANUARY, 30, 7 * DAY), Step(7 * 86400)),
        (local_times(JANUARY, 30, DAY, months=1), Step(months=1)),
        (local_times(JANUARY, 9, DAY, months=3), Step(months=3)),
        (local_times(JANUARY, 5, DAY, months=12), Step(months=12)),
        (local_times(datetime.datetime(2024, 3, 25), 40, DAY / 2), Step(43200)),
    ],
)
def test_local_midnights_lie_on_a_grid_under_daylight_saving(write, capsys, times, step):
    series = read_series(write(rows(times)))
    np.testing.assert_array_equal(series.values[:, 0], np.arange(len(times)))
    assert (series.start, series.step) == (np.datetime64(times[0][:19], "us"), step)
    assert series.reading.clock == "local"
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "date: times with UTC offset" in told
    assert "in local time (first: 2024-" in told


def test_hours_with_an_offset_are_those_of_utc(write, capsys):
    start = datetime.datetime(2024, 10, 26, 12, tzinfo=datetime.UTC)
    hours = [start + datetime.timedelta(hours=hour) for hour in range(24)]
    local = [hour.astimezone(ZoneInfo("Europe/Berlin")) for hour in hours]
    series = read_series(write(rows([hour.isoformat() for hour in local])))
    assert (series.start, series.step) == (np.datetime64("2024-10-26T12", "us"), Step(3600))
    assert len(series.values) == 24
    assert "UTC offsets +01:00 to +02:00, in UTC" in capsys.readouterr().err
    # Without an offset the repeated hour is refused, or named if its rows are equal.
    naive = [hour.replace(tzinfo=None).isoformat() for hour in local]
    with pytest.raises(
        UserError, match=r"the same time, 2024-10-27 02:.*if the clock was set back"
    ):
        read_series(write(rows(naive)))
    read_series(write("date,a\n" + "".join(f"{time},5\n" for time in naive)))
    assert "1 rows are repeated, the first is line 15; if the clock" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("times", "start", "step"),
    [
        (["31.12.2024", "01.01.2025"], "2024-12-31", Step(86400)),
        (["12/31/2024", "01/01/2025"], "2024-12-31", Step(86400)),
        (["31/12/2024 13:00", "31/12/2024 14:00"], "2024-12-31T13", Step(3600)),
        (['"Dec 31, 2024"', '"Jan 1, 2025"'], "2024-12-31", Step(86400)),
        (["2024/12/31", "2025/01/01"], "2024-12-31", Step(86400)),
        (["20241231", "20250101"], "2024-12-31", Step(86400)),
        (["2024-Q1", "2024-Q2"], "2024-01-01", Step(months=3)),
        (["2024-W05", "2024-W06"], "2024-01-29", Step(7 * 86400)),
        (["1609459200000000", "1609462800000000"], "2021-01-01", Step(3600)),
        (["1609459200000000000", "1609462800000000000"], "2021-01-01", Step(3600)),
    ],
)
def test_times_of_other_programs_are_read(write, times, start, step):
    series = read_series(write(rows(times)))
    assert (series.start, series.step) == (np.datetime64(start, "us"), step)


def test_times_with_two_readings_or_units_are_refused(write):
    for times, message in (
        (["01/02/2024", "02/02/2024"], "line 2: 'date' is '01/02/2024', .*config.data.date_order"),
        (["45000", "45001"], "spreadsheet's number of days; format the column"),
        (["1", "2"], "line 2: 'date' is '1', .*set --time to 'none'"),
        (["1609459200", "1609462800000"], "line 3: .*milliseconds since 1970 among seconds"),
    ):
        with pytest.raises(UserError, match=message):
            read_series(write(rows(times)))
    series = read_series(write(rows(["01/02/2024", "02/02/2024"])), date_order="dmy")
    assert (series.start, series.step) == (np.datetime64("2024-02-01", "us"), Step(86400))


def test_numbers_with_commas_are_read_or_refused_but_not_left_out(write, capsys):
    path = write(
        'date,sales,stock\n2024-01-01,"1,234.5",1\n2024-01-02,"2,345.0",2\n2024-01-03,12,3\n'
    )
    series = read_series(path)
    assert series.names == ("sales", "stock")
    assert series.values.tolist() == [[1234.5, 1], [2345, 2], [12, 3]]
    assert (
        "numbers with decimal points and commas between thousands: sales (first: 1,234.5)"
        in capsys.readouterr().err
    )
    german = "date;t;z\n2024-01-01;1,5;1.234\n2024-01-02;2,5;2\n"
    with pytest.raises(UserError, match=r"line 2: 'z' is '1.234', and 't' has decimal commas"):
        read_series(write(german))
    assert read_series(write(german), decimal=",").values.tolist() == [[1.5, 1234], [2.5, 2]]
    with pytest.raises(
        UserError, match=r"line 2: 'a' is '1,234', which can mean 1.234 or 1234.*decimal"
    ):
        read_series(write('date,a\n2024-01-01,"1,234"\n2024-01-02,5\n'))
    with pytest.raises(UserError, match="line 2: 'a' is '5 %', expected a number or an"):
        read_series(write("date,a,b\n2024-01-01,5 %,1\n2024-01-02,6 %,2\n"))


def test_a_later_file_is_read_as_the_first_where_it_leaves_that_open(write):
    days = "".join(f"{day}.02.2024;{day},{day}\n" for day in range(1, 20))
    first = read_series(write("date;a\n" + days))
    assert first.reading == Reading({"a": ","}, "dmy", "")
    data, scales = DataConfig(lookback=3, horizon=2), (np.zeros(1), np.ones(1))
    known = ForecastingProcessor(data, None, ("a",), *scales, first.step, 7, first.reading)
    assets = json.loads(json.dumps(known.assets()))
    known = ForecastingProcessor.from_assets(data, None, assets)
    history = known.read(write("date;a\n01.03.2024;1,125\n02.03.2024;2,125\n"))
    np.testing.assert_array_equal(history.past[:, 0], [np.nan, 1.125, 2.125])
    assert history.start == np.datetime64("2024-03-01", "us")
    assert history.times_ahead(known.step) == ["2024-03-03", "2024-03-04"]
    unsure = dataclasses.replace(known, reading=Reading())
    with pytest.raises(
        UserError, match="of the column shows which; write numbers with a decimal point"
    ):
        unsure.read(write("date;a\n2024-03-01;1,125\n"))
    with pytest.raises(UserError, match="allows both orders of day and month; write dates as"):
        unsure.read(write("date;a\n01.03.2024;1\n"))
    # Runs of before have no such entry.
    del assets["reading"]
    assert ForecastingProcessor.from_assets(data, None, assets).reading == Reading()


def test_json_lines_hold_series(write, capsys):
    text = '{"date": 1609459200000, "a": 1}\n{"date": 1609462800000, "a": null, "b": 2.5}\n'
    series = read_series(write(text, "mine.jsonl"))
    assert series.names == ("a", "b")
    np.testing.assert_array_equal(series.values, [[1, np.nan], [np.nan, 2.5]])
    assert "2 of 4 values are missing (a 1, b 1)" in capsys.readouterr().err
    with pytest.raises(UserError, match="line 1: 'a' is \\[1\\], expected a text"):
        read_series(write('{"date": "2024-01-01", "a": [1]}\n', "mine.jsonl"))
