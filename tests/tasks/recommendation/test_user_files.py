"""Files of events: which column is which, ratings, ids, and times in any one unit."""

import numpy as np
import pytest

from tasks.common.data.splits import SplitSummary
from tasks.common.errors import UserError
from tasks.recommendation import models
from tasks.recommendation.columns import Wanted
from tasks.recommendation.data import DataConfig, in_order
from tasks.recommendation.processor import QueryParser
from tasks.recommendation.task import TASK
from tasks.recommendation.user_files import read_events


@pytest.fixture
def read(tmp_path):
    def done(text, name="mine.csv", **wanted):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return read_events(str(path), Wanted(**wanted))

    return done


def pairs(events):
    """Names of user and item, and the time, by line."""
    times = events.order if events.seconds is None else events.seconds
    times = np.arange(len(events.user)) if times is None else times
    return [
        (events.users[user], events.names[item], float(time))
        for user, item, time in zip(events.user, events.item, times, strict=True)
    ]


@pytest.mark.parametrize(
    ("label", "first", "second", "days"),
    [
        ("seconds", "1609459200", "1609545600", 1),
        ("milliseconds", "1609459200000", "1609545600000", 1),
        ("microseconds", "1609459200000000", "1609545600000000", 1),
        ("nanoseconds", "1609459200000000000", "1609545600000000000", 1),
        ("yyyymmdd", "20210101", "20210102", 1),
        ("years", "2019", "2020", 365),
        ("", "2021-01-01", "2021-01-02", 1),
        ("UTC offset", "2021-01-01T00:00+02:00", "2021-01-01T23:00+01:00", 1),
        ("", "2021-01-01T00:00Z", "2021-01-01T12:00Z", 0.5),
        ("day first", "31.12.2020", "01.01.2021", 1),
        ("month first", "12/31/2020 12:00 AM", "01/01/2021 12:00 PM", 1.5),
    ],
)
def test_ages_are_in_days_whatever_the_unit(read, capsys, label, first, second, days):
    text = f"user,item,timestamp\nu,a,{first}\nu,b,{second}\n"
    assert float(in_order(read(text))[0].ages[0]) == days
    told = capsys.readouterr().err
    assert told.count("\n") == bool(label)
    assert label in told


def test_small_numbers_order_events_and_are_no_times(read, capsys):
    events = read("user,item,timestamp\nu,b,2\nu,a,1\nu,c,30\n")
    data, _ = in_order(events)
    assert data.ages is None
    assert [data.names[item] for item in data.items] == ["a", "b", "c"]
    assert "numbers from 1 to 30, an order without times" in capsys.readouterr().err


MOVIELENS = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n"


@pytest.mark.parametrize(
    ("text", "name", "wanted", "expected"),
    [
        (MOVIELENS, "u.data", {}, [("196", "242", 881250949), ("186", "302", 891717742)]),
        ("A1,B1,5.0,1385769600\n", "a.csv", {}, [("A1", "B1", 1385769600)]),
        (
            "userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n",
            "ratings.csv",
            {},
            [("1", "31", 1260759144)],
        ),
        ("Timestamp;ITEM;User\n2021-01-01;i;u\n", "a.csv", {}, [("u", "i", 1609459200)]),
        (
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t881250949\n",
            "a.inter",
            {},
            [("1", "2", 881250949)],
        ),
        (
            "overall,unixReviewTime,asin,reviewerID\n5,1385769600,B1,A1\n",
            "a.csv",
            {},
            [("A1", "B1", 1385769600)],
        ),
        ("u,a,1385769600,Alien\n", "a.csv", {}, [("u", "a", 1385769600)]),
        (
            "1385769600,i,u\n",
            "a.csv",
            {"user": "3", "item": "2", "time": "1"},
            [("u", "i", 1385769600)],
        ),
        (
            "kunde,artikel,wann\nu,i,2021-01-01\n",
            "a.csv",
            {"user": "kunde", "item": "artikel", "time": "wann"},
            [("u", "i", 1609459200)],
        ),
        ("u,b\nu,a\n", "a.csv", {"time": "none"}, [("u", "b", 0), ("u", "a", 1)]),
        ("user,item,rating\nu,b,5\n", "a.csv", {"time": "none"}, [("u", "b", 0)]),
        (
            '{"user": 1, "item": "a", "timestamp": 1609459200000}\n'
            '{"user": 1.0, "item": 7, "timestamp": 1609545600000, "title": "x\u2028y"}\n',
            "a.jsonl",
            {},
            [("1", "a", 1609459200), ("1", "7", 1609545600)],
        ),
    ],
)
def test_columns_are_found(read, text, name, wanted, expected):
    assert pairs(read(text, name, **wanted)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "u,a,5\nu,b,4\nu,c,5\n",
            "column 3 seems to contain ratings, not times; set --user",
        ),
        ("u,a,3.5\nv,b,4\n", "column 3 seems to contain ratings"),
        (
            "user,item,rating\nu,a,5\n",
            r"no column 'timestamp'; .*set --time to the column of the timestamp, or to 'none'",
        ),
        ("1609459200,u,a\n", "times seem to be in column 1; set --user"),
        (
            "kunde,artikel,wann\nu,a,2021-01-01\n",
            "no column 'user'; the columns are: kunde, artikel",
        ),
        (
            "who,what,when\nann,milk,monday\nbob,milk,today\n",
            r"line 1 is not user,item,timestamp; if it is a header, set --user, "
            r".*to its columns: who, what, when; else correct the time 'when'",
        ),
        ("user_id,userId,item,time\nu,v,a,1\n", "'user_id' and 'userId' can both be the column"),
        ("1::1193::5::978300760\n", r"line 1: got 1 fields, .*instead of '::'"),
        ("u a 1609459200\n", r"line 1: got 1 fields, .*instead of ' '"),
        ("u,a,1,t,x\n", "has 5 columns and no header; set --user"),
        ("u,a,1609459200\nu,b\n", "line 2 has 2 fields"),
        (
            "u,a,1609459200\nu,b,1609459200000\n",
            "line 2: timestamp '1609459200000' is a number of m",
        ),
        ("u,a,1\nnan,b,2\n", "line 2: user is 'nan', expected a name"),
        ("u,a,1\n1.23457E+12,b,2\n", r"line 2: user is '1.23457E\+12', expected a name"),
        ("u,a,1\n  ,b,2\n", "line 2: a field is empty"),
        ("u,a,01/02/2024\n", "line 1: .*allows both orders .*config.data.date_order"),
        ("u,a,45000.5\nu,b,45001.5\n", "line 1: .*spreadsheet's number of days"),
    ],
)
def test_files_that_leave_something_open_are_refused(read, text, message):
    with pytest.raises(UserError, match=message):
        read(text)


def test_json_values_that_are_no_ids_are_refused(read):
    for value in ("null", "true", "NaN", "[1]", '""'):
        line = f'{{"user": {value}, "item": "a", "timestamp": 1}}\n'
        with pytest.raises(UserError, match=r"line 1: (user is .*, expected a name|a field is em)"):
            read(line, "a.jsonl")


def test_ratings_are_named_or_left_out(read, capsys):
    text = "user,item,rating,timestamp\nu,a,5,1609459200\nu,b,2,1609459201\nu,c,4,1609459202\n"
    assert len(read(text).user) == 3
    assert "column 'rating' is ignored; set config.data.min_rating" in (capsys.readouterr().err)
    assert [item for _, item, _ in pairs(read(text, min_rating=4.0))] == ["a", "c"]
    assert "1 of 3 events have a rating below 4; they are left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="line 3: rating is 'x', expected a number"):
        read(text.replace("b,2", "b,x"), min_rating=4.0)
    with pytest.raises(UserError, match="no column has ratings; set config"):
        read("user,item,timestamp\nu,a,1609459200\n", min_rating=4.0)
    # The line that is named counts those that are left out.
    with pytest.raises(UserError, match="line 4: timestamp '1609459202000' is a number of milli"):
        read(text.replace("1609459202", "1609459202000"), min_rating=4.0)


def test_one_and_one_point_zero_are_one_id(read):
    data, _ = in_order(read("1,7,1609459200\n1.0,8.0,1609459201\n01,8,1609459202\n"))
    assert data.users == ("1", "01")
    assert set(data.names) == {"7", "8"}
    ask = QueryParser(data)
    assert ask("user:1.0").user == ask("user:1").user == 0
    assert ask("7.0; 8").unknown == {}
    assert ask("user: ").user == -1


def test_splits_are_counted_and_checked(tmp_path):
    path = tmp_path / "mine.csv"
    lines = [f"u{user},i{item},{1609459200 + item}\n" for user in (1, 2) for item in range(5)]
    path.write_text("".join(lines) + "u3,i1,1609459200\n")
    config = DataConfig(path=str(path), max_length=2)
    task = TASK.prepare(config, models.MODEL_CONFIGS["hybrid"](), None)
    held_out = SplitSummary(2, unit="users", ignored=1, ignored_as="with fewer than 3 events")
    assert task.summary() == {
        # Two transitions of each user are learned at a time.
        "train": SplitSummary(
            2, unit="users", ignored=1, ignored_as="with a single event in train"
        ),
        "validation": held_out,
        "test": held_out,
    }
    path.write_text("u,a,1\nu,b,2\nu,c,3\n")
    with pytest.raises(UserError, match="none of 1 users has two training events"):
        TASK.prepare(config, models.MODEL_CONFIGS["hybrid"](), None)


def test_options_of_user_files_need_one():
    for field, value in (("user_column", "u"), ("min_rating", 4.0), ("date_order", "dmy")):
        with pytest.raises(
            ValueError, match=f"{field}: got a value, but the data set movielens_100k defines it"
        ):
            DataConfig(**{field: value})
    with pytest.raises(ValueError, match="date_order: got 'ymd', expected 'dmy' or 'mdy'"):
        DataConfig(path="a.csv", date_order="ymd")
