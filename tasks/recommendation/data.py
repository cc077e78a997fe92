"""Who had what in which order, split by leaving each user's last two events out.

Of a user with three events or more the last is test and the one before it validation; all others
are train. Every event is a positive, whatever was thought of the item. Of events of one user with
equal time stamps the one on the earlier line is earlier. An item that a user has again counts where
it was had first, since what is ranked are items that the user has not had.

U users, I items, n events, S events of a sequence, M of the longest history.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import math
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.sources import fetch
from tasks.common.data.splits import SplitSummary
from tasks.common.data.timestamps import DATE_ORDERS
from tasks.common.data.user_files import LATER, expect_one_of, results_name
from tasks.common.errors import UserError
from tasks.recommendation import user_files
from tasks.recommendation.columns import Wanted
from tasks.recommendation.datasets import DATA_SETS

# Events that a user must have to be tested: one to learn from, one to validate, one to test.
LEAST = 3
PAD = -1
_DAY = 86400.0
_SEED = 0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which events, and how much of them a model sees at once.

    Attributes:
      name: one of the project's data sets. With path it only names the results, and is
        own_<its name> unless something else is given.
      path: user file of events, CSV or JSON lines: user,item,timestamp[,title] or
        user,item,rating,timestamp, or columns in any order under a header. Times are seconds,
        milliseconds, microseconds or nanoseconds since 1970, dates such as 2024-05-31T13:00+02:00,
        31.05.2024, 05/31/2024 or 20240531, or years; small numbers are an order. See
        `tasks.recommendation.user_files.read_own`.
      max_length: S, events of a sequence; of a longer history an evaluation sees the latest, and
        training sees all of it, in several sequences.
      user_column, item_column, time_column, rating_column: headers of the user file, or numbers
        from 1 of columns without a header; "": found. `time_column` "none": there are no times,
        and lines are in order.
      min_rating: least rating of an event of the user file that counts; None: every event counts.
      date_order: "dmy" or "mdy" for dates such as 01/02/2024 of the user file; "": found from the
        column, which is refused if no date of it tells.
    """

    name: str = "movielens_100k"
    path: str | None = None
    max_length: int = 50
    user_column: str = dataclasses.field(default="", metadata=LATER)
    item_column: str = dataclasses.field(default="", metadata=LATER)
    time_column: str = dataclasses.field(default="", metadata=LATER)
    rating_column: str = dataclasses.field(default="", metadata=LATER)
    min_rating: float | None = dataclasses.field(default=None, metadata=LATER)
    date_order: str = dataclasses.field(default="", metadata=LATER)

    def __post_init__(self):
        if self.max_length < 1:
            raise ValueError(f"max_length: got {self.max_length}, expected at least 1")
        name = results_name(self.name, DATA_SETS, self.path, "; path takes your own events")
        object.__setattr__(self, "name", name)
        expect_one_of("date_order", self.date_order, DATE_ORDERS)
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            raise ValueError(f"min_rating: got {self.min_rating}, expected a finite number")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata == LATER and self.path is None and value != field.default:
                raise ValueError(f"{field.name}: {name} has its own; it is for files of path alone")

    @property
    def wanted(self) -> Wanted:
        """Which columns of the user file are read, and which events."""
        return Wanted(
            self.user_column,
            self.item_column,
            self.time_column,
            self.rating_column,
            self.min_rating,
            self.date_order,
        )


@dataclasses.dataclass(frozen=True)
class RecommendationData:
    """The events of all users, each user's in the order of time; 8 bytes an event.

    Items are numbered at random: how a publisher numbers them may tell when they came.

    Attributes:
      starts: int64 [U + 1]; the events of user u are those from starts[u] to starts[u + 1].
      items: int32 [n].
      ages: float32 [n], days from each event to the last one of its user; None where no time is
        known.
      users: names of the users.
      names: of the items, as the publisher has them.
      titles: of the items, for people.
      features: float32 [I, G], what is known of the items; None if nothing.
    """

    starts: np.ndarray
    items: np.ndarray
    ages: np.ndarray | None
    users: tuple[str, ...]
    names: tuple[str, ...]
    titles: tuple[str, ...]
    features: np.ndarray | None = None

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.titles)

    @functools.cached_property
    def tested(self) -> np.ndarray:
        """int [users with enough events], those of validation and test."""
        return np.flatnonzero(np.diff(self.starts) >= LEAST)

    @functools.cached_property
    def longest(self) -> int:
        """M, events of the longest history."""
        return int(np.diff(self.starts).max())

    def train_ends(self, with_validation: bool = False) -> np.ndarray:
        """int64 [U], where the train events of each user end."""
        ends = self.starts[1:].copy()
        ends[self.tested] -= 1 if with_validation else 2
        return ends

    def train_matrix(self, with_validation: bool = False) -> csr_matrix:
        """Sparse float32 [U, I] of train, with the validation events if asked.

        An entry is the place of the event in its user's history, counted from 1.
        """
        lengths = self.train_ends(with_validation) - self.starts[:-1]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        place = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        columns = self.items[place + np.repeat(self.starts[:-1], lengths)]
        entries = (place + 1).astype(np.float32)
        matrix = csr_matrix((entries, columns, starts), (self.num_users, self.num_items))
        matrix.sort_indices()
        return matrix

    def popularity(self, with_validation: bool = False) -> np.ndarray:
        """int64 [I], train events of each item."""
        counts = np.bincount(self.items, minlength=self.num_items)
        held_out = self.starts[self.tested + 1][:, None] - ([1] if with_validation else [1, 2])
        return counts - np.bincount(self.items[held_out].ravel(), minlength=self.num_items)

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        return {
            "users": digests.of_rows(self.users),
            "items": digests.of_rows(self.names),
            "titles": digests.of_rows(self.titles),
            "events": digests.of_rows([self.starts, self.items]),
            "times of events": digests.of_rows([self.ages]),
            "features of items": digests.of_rows([self.features]),
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all parts."""
        return digests.joined(self.parts)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values, about 4 bytes an event."""
        arrays = {name: getattr(self, name) for name in ("starts", "items", "ages", "features")}
        packed = {name: None if array is None else _pack(array) for name, array in arrays.items()}
        titles = None if self.titles == self.names else list(self.titles)
        return {**packed, "users": list(self.users), "names": list(self.names), "titles": titles}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RecommendationData:
        """Inverts `to_json`."""
        packed = {name: saved[name] for name in ("starts", "items", "ages", "features")}
        arrays = {name: None if text is None else _unpack(text) for name, text in packed.items()}
        names = tuple(saved["names"])
        titles = names if saved["titles"] is None else tuple(saved["titles"])
        return cls(**arrays, users=tuple(saved["users"]), names=names, titles=titles)


def load(config: DataConfig, paths: Paths | None) -> RecommendationData:
    """Reads a data set; says how many users are too short to be tested, and what was left out.

    Raises:
      UserError: a source cannot be had, what is wrong with an own file, or nobody has enough events
        to be tested.
    """
    if config.path is not None:
        events = user_files.read_own(config.path, config.wanted)
    else:
        data_set = DATA_SETS[config.name]
        found = {source.name: fetch(source, paths) for source in data_set.sources}
        events = data_set.read(found)
    data, repeated = in_order(events)
    if config.path is not None:
        _say(
            f"{config.name}: {len(data.items):,} events of {data.num_users:,} users with "
            f"{data.num_items:,} items"
        )
    if repeated:
        _say(f"{config.name}: {repeated:,} events repeat an item of their user; the first counts")
    short = data.num_users - len(data.tested)
    if not len(data.tested):
        raise UserError(
            f"config.data: none of {data.num_users:,} users of {config.path or config.name} has "
            f"{LEAST} events or more, one each to learn from, to validate and to test"
        )
    if short:
        _say(
            f"{config.name}: {short:,} of {data.num_users:,} users have fewer than {LEAST} events "
            "and are train only"
        )
    return data


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def in_order(events: user_files.Events) -> tuple[RecommendationData, int]:
    """Events sorted by user and time, each item of a user once, and how many others there were."""
    user, item, seconds = events.user, events.item, events.seconds
    sorted_by = events.order if seconds is None else seconds
    # Sorting is stable: among equals the earlier line stays the earlier.
    order = np.lexsort((user,) if sorted_by is None else (sorted_by, user)).astype(np.int64)
    num_users, num_items = len(events.users), len(events.names)
    pairs = user[order].astype(np.int64) * num_items + item[order]
    first = np.unique(pairs, return_index=True)[1]
    kept = order[np.sort(first)]
    repeated = len(order) - len(kept)
    user, item = user[kept], item[kept]
    starts = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=num_users))])
    ages = None
    if seconds is not None:
        last = np.repeat(seconds[kept][starts[1:] - 1], np.diff(starts))
        ages = ((last - seconds[kept]) / _DAY).astype(np.float32)
    # Number of each item from now on, and the item of each number.
    order = np.random.default_rng(_SEED).permutation(num_items)
    number = np.empty(num_items, np.int32)
    number[order] = np.arange(num_items)
    features = None if events.features is None else events.features[order]
    names = tuple(events.names[i] for i in order)
    titles = names if events.titles is None else tuple(events.titles[i] for i in order)
    data = RecommendationData(
        starts.astype(np.int64), number[item], ages, tuple(events.users), names, titles, features
    )
    return data, repeated


def padded(items: np.ndarray, size: int) -> np.ndarray:
    """Items int [any] -> int32 [size], -1 after them."""
    found = np.full(size, PAD, np.int32)
    found[: len(items)] = items
    return found


class _Sequences:
    """What the splits have in common: reading stretches of histories."""

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(self, data: RecommendationData, config: DataConfig):
        self._data, self._length = data, config.max_length

    def _padded(self, begin: int, end: int, size: int) -> np.ndarray:
        return padded(self._data.items[begin:end], size)

    def _ages(self, begin: int, end: int) -> np.ndarray:
        found = np.zeros(self._length, np.float32)
        ages = self._data.ages
        if ages is not None and end > begin:
            found[: end - begin] = ages[begin:end] - ages[end - 1]
        return found

    def _example(self, user: int, begin: int, end: int, seen_end: int) -> dict[str, np.ndarray]:
        """The history that ends at `end`, of the user's events from `begin` on."""
        first = max(begin, end - self._length)
        return {
            "items": self._padded(first, end, self._length),
            "ages": self._ages(first, end),
            "user": np.int32(user),
            "seen": self._padded(begin, seen_end, self._data.longest),
        }


class TrainSequences(_Sequences):
    """Random access to the train events of users in sequences of S of them and what came next.

    A user's events but the first are each `next` once: of a long history there is a sequence of the
    latest S, one of the S before these, and so on. An example has `items` int32 [S], oldest first,
    and `next` int32 [S], what came after each; `ages` float32 [S], days between each of `items` and
    the last of them, 0 where no time is known; `user` int32, the row of the train matrix; `seen`
    int32 [M], all train items of the user; `target` int32, -1. Filled up with -1, `ages` with 0.
    """

    def __init__(self, data: RecommendationData, config: DataConfig, with_validation: bool):
        """Of users with two train events at least.

        Raises:
          UserError: there are none.
        """
        super().__init__(data, config)
        self._ends = data.train_ends(with_validation)
        transitions = np.maximum(self._ends - data.starts[:-1] - 1, 0)
        count = -(-transitions // self._length)
        if not count.any():
            raise UserError(
                f"config.data: none of {data.num_users:,} users has two events in train, so "
                "nothing says what comes next; give longer histories"
            )
        self.user = np.repeat(np.arange(data.num_users, dtype=np.int32), count)
        number = np.arange(len(self.user)) - np.repeat(np.cumsum(count) - count, count)
        # Where `next` of each sequence ends.
        self.end = self._ends[self.user] - number * self._length

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        user, end = int(self.user[index]), int(self.end[index])
        begin = int(self._data.starts[user])
        first = max(begin, end - 1 - self._length)
        return {
            **self._example(user, begin, end - 1, int(self._ends[user])),
            "next": self._padded(first + 1, end, self._length),
            "target": np.int32(PAD),
        }


class HeldOut(_Sequences):
    """Random access to one event of each tested user and the history before it.

    An example has `target` int32, the item; `items` int32 [S], the latest S before it, oldest
    first; `ages` float32 [S], days between each and the last of them; `user` int32, the row of the
    train matrix; `seen` int32 [M], all items before it. Filled up with -1, `ages` with 0.

    Attributes:
      target: int32 [users].
      users: int [users], their numbers.
    """

    def __init__(self, data: RecommendationData, config: DataConfig, split: str):
        super().__init__(data, config)
        self.users = data.tested
        self.end = data.starts[self.users + 1] - {"test": 1, "validation": 2}[split]
        self.target = data.items[self.end]

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        user, end = int(self.users[index]), int(self.end[index])
        example = self._example(user, int(self._data.starts[user]), end, end)
        return {**example, "target": self.target[index]}

    def history(self, index: int) -> np.ndarray:
        """int32 [any], all items before the target, oldest first."""
        return self._data.items[self._data.starts[self.users[index]] : self.end[index]]

    def seen(self, chosen: np.ndarray) -> np.ndarray:
        """int32 [chosen, M], the field `seen` of some examples."""
        begins = self._data.starts[self.users[chosen]]
        pairs = zip(begins.tolist(), self.end[chosen].tolist(), strict=True)
        return np.stack([self._padded(*pair, self._data.longest) for pair in pairs])

    def matrix(self, decay: float = 1.0, window: int | None = None) -> csr_matrix:
        """Sparse float32 [users, I]: decay^p for the item p places before the end of a history.

        Args:
          decay: γ; 1 counts all alike.
          window: places that count at most; all if None.
        """
        lengths = self.end - self._data.starts[self.users]
        lengths = lengths if window is None else np.minimum(lengths, window)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        back = np.repeat(starts[1:], lengths) - 1 - np.arange(starts[-1])
        columns = self._data.items[np.repeat(self.end, lengths) - 1 - back]
        weights = np.power(np.float32(decay), back, dtype=np.float32)
        return csr_matrix((weights, columns, starts), (len(self), self._data.num_items))


class RecommendationDataset:
    """Events and their splits.

    Attributes:
      events: of all users.
      with_validation: whether the training split has the validation events.
    """

    def __init__(
        self, events: RecommendationData, config: DataConfig, with_validation: bool = False
    ):
        """Args: the events; config; whether the training split has the validation events."""
        self.events, self.with_validation, self._config = events, with_validation, config

    @functools.cached_property
    def splits(self) -> dict[str, TrainSequences | HeldOut]:
        """Examples by split."""
        return {
            "train": TrainSequences(self.events, self._config, self.with_validation),
            "validation": HeldOut(self.events, self._config, "validation"),
            "test": HeldOut(self.events, self._config, "test"),
        }

    @functools.cached_property
    def train_matrix(self) -> csr_matrix:
        """See `RecommendationData.train_matrix`."""
        return self.events.train_matrix(self.with_validation)

    @property
    def fingerprint(self) -> str:
        """Hash of the events and titles."""
        return self.events.fingerprint

    @property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data."""
        return self.events.parts

    def summary(self) -> dict[str, SplitSummary]:
        """Returns counts of training sequences and of evaluated users."""
        short = self.events.num_users - len(self.events.tested)
        ignored = {"ignored": short, "ignored_as": f"with fewer than {LEAST} events"}
        return {
            split: SplitSummary(len(examples))
            if split == "train"
            else SplitSummary(len(examples), unit="users", **ignored)
            for split, examples in self.splits.items()
        }


def _pack(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue(), 6)).decode()


def _unpack(text: str) -> np.ndarray:
    buffer = io.BytesIO(zlib.decompress(base64.b64decode(text)))
    return np.load(buffer, allow_pickle=False)
