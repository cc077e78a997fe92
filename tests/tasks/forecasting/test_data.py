"""Splits, windows and standardized values of user files and built-in data sets."""

import csv

import numpy as np
import pytest

from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tasks.forecasting.data import SPLITS, DataConfig, load
from tests.tasks.public import needed


@pytest.fixture
def own(tmp_path):
    """Loads values [time, C], NaN for a missing cell, from a CSV with a row an hour."""

    def loaded(values, **fields):
        path = tmp_path / "mine.csv"
        start = np.datetime64("2024-01-01T00", "h")
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["time", *(f"c{c}" for c in range(values.shape[1]))])
            for hour, row in enumerate(values):
                writer.writerow([start + np.timedelta64(hour, "h"), *row])
        return load(DataConfig(**{"path": str(path), "lookback": 8, "horizon": 3} | fields), None)

    return loaded


def test_windows_of_an_own_file(own):
    values = np.random.default_rng(0).normal(5, 3, (100, 2))
    values[20:24, 0] = values[90, 1] = np.nan
    data = own(values, noise_levels=(0.5,))
    assert data.bounds == {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}
    counts = {split: len(data.splits[split]) for split in SPLITS}
    assert counts == {"train": 70 - 8 - 3 + 1, "validation": 8, "test": 18}
    assert (data.period, data.names) == (24, ("c0", "c1"))
    np.testing.assert_allclose(data.mean, np.nanmean(values[:70], axis=0))
    np.testing.assert_allclose(data.std, np.nanstd(values[:70], axis=0))

    scaled = (values - data.mean) / data.std
    there = ~np.isnan(values)
    example = data.splits["test"][10]
    past, future = slice(82, 90), slice(90, 93)
    for name, where in (("past", past), ("future", future)):
        expected = np.where(there[where], scaled[where], 0)
        np.testing.assert_allclose(example[name], expected, rtol=1e-5)
        np.testing.assert_array_equal(example[f"{name}_valid"], there[where])
        assert example[name].dtype == np.float32
    assert not example["future_valid"][0, 1]
    # 4 January, 18:00, is hour 90.
    assert example["calendar"].shape == (11, 4)
    np.testing.assert_allclose(example["calendar"][8, :3], [18 / 23 - 0.5, 0, 3 / 30 - 0.5])
    noise = example["noise"]
    np.testing.assert_array_equal(noise, data.splits["test"][10]["noise"])
    assert np.any(noise != data.splits["test"][9]["noise"])
    assert "noise" not in data.splits["train"][0]

    error = np.abs(scaled[24:70] - scaled[:46])
    np.testing.assert_allclose(data.seasonal_error, np.nanmean(error, axis=0), rtol=1e-5)
    assert own(values).fingerprint != data.fingerprint != own(values + 1).fingerprint


def test_windows_with_nothing_to_see_or_to_forecast_are_left_out(own):
    values = np.arange(200.0)[:, None]
    values[30:45] = np.nan
    origins = own(values).origins("train")
    # Nothing ahead at 30 to 42, nothing behind at 38 to 45.
    assert sorted(set(range(8, 138)) - set(origins.tolist())) == list(range(30, 46))
    with pytest.raises(UserError, match="no window of the test split has a value in the look-back"):
        own(np.where(np.arange(200)[:, None] < 160, values, np.nan))


def test_a_constant_series_is_told(own, capsys):
    data = own(np.full((60, 1), 0.1))
    assert "columns that are constant in the train split: c0" in capsys.readouterr().err
    assert np.all(np.abs(data.series) < 1e-6)
    assert data.seasonal_error == 0


def test_series_that_are_too_short_are_refused(own):
    for rows, message in (
        (1, "got a single time"),
        (10, "the train split has 7 time steps, but look-back and horizon take 11"),
        (28, "the validation split has 4 time steps, but the horizon take"),
    ):
        with pytest.raises(UserError, match=message):
            own(np.ones((rows, 1)), horizon=3 if rows < 28 else 5)
    empty = np.stack([np.arange(60.0), np.where(np.arange(60) < 45, np.nan, 1)], axis=-1)
    with pytest.raises(UserError, match="'c1' has no value in the train split"):
        own(empty)
    split = own(np.arange(60.0)[:, None], split=(1, 1, 1), targets=("c0",), step=7200.0 / 2)
    assert split.bounds["test"] == (40, 60)


def test_configs_that_cannot_be_are_refused():
    for fields, message in (
        ({"name": "ettm1"}, r"got 'ettm1' \(did you mean 'etth1'"),
        ({"lookback": 0}, "lookback: got 0, expected at least 1"),
        ({"horizon": -1}, "horizon: got -1"),
        ({"split": (7, 3)}, "split: got"),
        ({"split": (7, 1, 2)}, "split: got a value, but the data set etth1 defines it"),
        ({"time_column": "date"}, "time_column: got a value, but the data set etth1 defines it"),
        ({"noise_levels": (0.0,)}, "noise_levels: got"),
        ({"period": -1}, "period: got -1"),
        ({"step": -1.0}, "step: got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig(**fields)
    assert DataConfig(path="etth1.csv").name == "own_etth1"


def test_the_composed_trend_leaves_what_its_past_spans():
    data = load(DataConfig(name="trend", lookback=96, targets=("falling",)), None)
    windows = data.splits["test"]
    below = [np.mean(w["future"][-24:] < w["past"].min()) for w in map(windows.__getitem__, (0, 9))]
    assert min(below) > 0.6
    with pytest.raises(UserError, match="got 'up', expected channels of trend: rising, falling"):
        load(DataConfig(name="trend", targets=("up",)), None)


def test_etth1_has_every_test_window():
    with needed():
        data = load(DataConfig(), Paths.default())
    assert [len(data.splits[split]) for split in SPLITS] == [8209, 2785, 2785]
    np.testing.assert_allclose(data.series[:8640].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(data.series[:8640].std(axis=0), 1, atol=1e-4)
    assert data.calendar.shape == (14400, 4)
    assert data.names[-1] == "OT"


def test_values_too_large_to_be_squared_are_refused(tmp_path):
    # Train has 70 % of 192 rows, from 24e300 to 157e300.
    rows = [f"2024-01-{day:02d} {hour:02d}:00,{day * 24 + hour}e300,1" for day in range(1, 9)
            for hour in range(24)]  # fmt: skip
    (tmp_path / "a.csv").write_text("\n".join(["date,a,b", *rows]))
    config = DataConfig(path=str(tmp_path / "a.csv"), lookback=8, horizon=2)
    with pytest.raises(
        UserError, match=r"^config.data: 'a' has values up to 1\.57e\+302, too larg"
    ):
        load(config, None)
