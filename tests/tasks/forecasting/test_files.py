"""Own files: what is read of them, what is told of them, and what is wrong with them."""

import numpy as np
import pytest

from tasks.common.errors import UserError
from tasks.forecasting.files import read_series
from tasks.forecasting.times import Step


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
        "1 lines are empty, the first is line 5; left out",
        "left out, as they hold no numbers: note",
        "not in the order of time (line 3 is the first); sorted",
        "1 rows stand there twice, first line 6",
        "1 of 5 times are off the grid of one every 1 d (2024-01-07 01:00:00); each taken for the "
        "nearest",
        "3 of 8 times, one every 1 d, have no row (after 2024-01-02 00:00:00, 2024-01-04 00:00:00)"
        "; masked",
        "3 of 10 values are missing (Größe 1, b 2); masked",
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
    assert "left out, as it has no name: column 1" in capsys.readouterr().err
    series = read_series(write("date,a\n2024-01-01,5\n"), step=Step(3600), trained=True)
    assert series.values.tolist() == [[5]]


def test_what_is_wrong_with_a_file_is_named(write):
    def refused(text, message, *options, **keywords):
        with pytest.raises(UserError, match=message):
            read_series(write(text), *options, **keywords)

    days = "".join(f"2024-01-0{day},{day}\n" for day in range(1, 8))
    refused("", "the file is empty")
    refused("date,a\n", "a header and no rows")
    refused("2024-01-01,5\n", "line 1 has numbers; expected the names")
    refused("date,a,a\n2024-01-01,1,2\n", "column 'a' stands in the header twice")
    refused("date,a\n2024-01-01,1,2\n", "line 2 has 3 fields, the header has 2")
    refused('date,a\n2024-01-01,"1\n', "line 2 is malformed")
    refused("day,a\n2024-01-01,1\n", r"config.data.time_column \(day, a\), or 'none'")
    refused("date,a\n" + days, r"no column 'dat' \(did you mean 'date'\?\)", "dat")
    refused("date,load\n" + days, r"no column 'lod' \(did you mean 'load'\?\)", "", ["lod"])
    refused("date,a\n2024-01-01,1\n2024-01-02,x\n2024-01-03,2\n", "line 3: 'a' is 'x', expected")
    refused("date,a\n2024-01-01,x\n", "no column holds numbers")
    refused("date,a\n1.1.2024,1\n", "line 2: 'date' is '1.1.2024', expected a time such as")
    refused("date,a\n2024-01-01,1\n", "has one time; its step cannot be told")
    refused("date,a\n" + days + "2024-01-03,9\n", "lines 4 and 9 have one time, 2024-01-03, and")
    refused("date,a\n" + days + "2024-01-07 06:00,9\n", "nearer than half a step of 1 d; give")
    far = "2024-01-01 00:00:00,1\n2024-01-01 00:00:01,1\n2024-01-01 00:00:02,1\n2024-02-01,2\n"
    refused("date,a\n" + far, r"4 rows lie on a grid of 2678401 times, one every 1 s; give the")
    hours = {"step": Step(3600), "trained": True}
    refused(
        "date,a\n" + days, "rows are 1 d apart; the model was trained on one every 1 h", **hours
    )
