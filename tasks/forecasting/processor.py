"""What a person wants forecast: files, and how many steps ahead from the end of each.

L look-back, F horizon, C channels, K features of the calendar.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.errors import UserError
from tasks.forecasting import timestamps as clock
from tasks.forecasting.data import DataConfig, calendar_of
from tasks.forecasting.timestamps import Step
from tasks.forecasting.user_files import NO_TIMES, Reading, read_series

MOST_STEPS = 100_000


@dataclasses.dataclass(frozen=True)
class Known:
    """What a trained model knows of its series.

    Attributes:
      names: of the channels.
      mean, std: float64 [C], in the data's own units.
      step: None where there were no time stamps.
      time_column, decimal, date_order: as in the data config.
      reading: how the file of the series was read.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    step: Step | None
    time_column: str = ""
    decimal: str = ""
    date_order: str = ""
    reading: Reading = dataclasses.field(default_factory=Reading)

    def assets(self) -> dict[str, object]:
        """As JSON values, without those that stand in the data config."""
        return {
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "step": self.step and dataclasses.asdict(self.step),
            "reading": dataclasses.asdict(self.reading),
        }

    @classmethod
    def from_assets(cls, assets: Mapping[str, object], data: DataConfig) -> Known:
        """The inverse of `assets`; those of older runs have no "reading"."""
        return cls(
            tuple(assets["names"]),
            np.array(assets["mean"], np.float64),
            np.array(assets["std"], np.float64),
            Step(**assets["step"]) if assets["step"] else None,
            data.time_column,
            data.decimal,
            data.date_order,
            Reading(**assets.get("reading", {})),
        )


@dataclasses.dataclass(frozen=True)
class History:
    """The end of one file.

    Attributes:
      past: float64 [L, C] in its own units, NaN where it is missing or before the first.
      steps: how many are wanted ahead.
      start: stamp of the first time of the file; None where there are no stamps.
      length: number of times from there to the end.
    """

    past: np.ndarray
    steps: int
    start: np.datetime64 | None
    length: int


def read_history(raw: str, known: Known, lookback: int, horizon: int) -> History:
    """The history of "FILE", or of "FILE,steps=N" for N steps ahead instead of the horizon.

    Raises:
      UserError: steps is no number, the file cannot be read, lacks a channel, has another step than
        the model, or has nothing within the look-back.
    """
    name, _, steps = re.fullmatch(r"(.*?)(,steps=(.*))?", raw, re.DOTALL).groups()
    if steps is not None and not (steps.isdecimal() and 1 <= int(steps) <= MOST_STEPS):
        raise UserError(f"input {raw!r}: steps is {steps!r}, expected a number to {MOST_STEPS}")
    column = known.time_column or ("" if known.step else NO_TIMES)
    series = read_series(
        name,
        column,
        known.names,
        known.step,
        trained=True,
        decimal=known.decimal,
        date_order=known.date_order,
        likely=known.reading,
    )
    past = np.full((lookback, len(known.names)), np.nan)
    kept = series.values[-lookback:]
    past[lookback - len(kept) :] = kept
    if np.isnan(past).all():
        raise UserError(
            f"{name}: has no value within the last {lookback} times, which the model looks back at"
        )
    return History(past, int(steps or horizon), series.start, len(series.values))


class Histories:
    """What the model sees of histories: as `tasks.forecasting.data.Windows`, without a future; the
    calendar goes on to the end of the longest forecast, [L + a multiple of F, K].
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(self, histories: Sequence[History], known: Known, horizon: int):
        self._histories, self._known = histories, known
        blocks = max((-(-history.steps // horizon) for history in histories), default=1)
        self._ahead = blocks * horizon

    def __len__(self) -> int:
        return len(self._histories)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        history, known = self._histories[index], self._known
        valid = ~np.isnan(history.past)
        scaled = np.where(valid, (history.past - known.mean) / known.std, 0)
        first = history.length - len(history.past)
        places = np.arange(first, history.length + self._ahead)
        return {
            "past": scaled.astype(np.float32),
            "past_valid": valid,
            "calendar": calendar_of(history.start, known.step, places),
        }


def times_ahead(history: History, step: Step | None) -> list[str]:
    """The stamps of a forecast, or the numbers of its steps where there are none."""
    places = np.arange(history.steps)
    if step is None:
        return [str(place + 1) for place in places]
    return clock.spell(clock.stamps(history.start, step, history.length + places))
