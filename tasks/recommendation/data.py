"""Events of users in order, split by leave-one-out.

The last event of a user with three or more events is in the test split, the event before it in
the validation split; all other events are for training. Every event is a positive example,
regardless of its rating. Events of a user with equal time stamps are in the order of their lines.
If a user has several events with the same item, only the first one is kept, because only unseen
items are ranked.

In shapes, U is the number of users, I the number of items, G the number of item features, n the
number of events, S the number of events of a sequence, and M the number of events of the longest
history.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from tasks.common.configs import LATER, Config, FiniteFloat, PositiveInt, known_names
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.sources import fetch
from tasks.common.data.timestamps import DATE_ORDERS
from tasks.common.data.user_files import expect_one_of, results_name
from tasks.common.errors import UserError, say
from tasks.recommendation import user_files
from tasks.recommendation.columns import Wanted
from tasks.recommendation.datasets import DATA_SETS

# Minimum number of events of the users in validation and test, who need one event per split.
LEAST = 3
PAD = -1
_DAY = 86400.0
_SEED = 0


# Fields of `DataConfig` that apply to user files alone.
_OF_FILES = (
    "user_column", "item_column", "time_column", "rating_column", "min_rating", "date_order"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataConfig(Config):
    """Config of the events and the length of sequences.

    Attributes:
      name: name of a built-in data set. With `path`, name under which results are stored,
        own_<file> by default.
      path: user file of events, a folder of files or a glob pattern, CSV or JSON lines:
        user,item,timestamp[,title] or user,item,rating,timestamp, or columns in any order under a
        header. Times are seconds, milliseconds, microseconds or nanoseconds since 1970, dates such
        as 2024-05-31T13:00+02:00, 31.05.2024, 05/31/2024 or 20240531, or years. Numbers that are
        too small for times define only the order of events. See
        `tasks.recommendation.user_files.read_events`.
      max_length: S, number of events of a sequence. Evaluation uses the latest S events of longer
        histories; training splits them into several sequences.
      bucketed: whether each batch has training sequences of similar length, padded to the smallest
        sufficient length of 4, 8, 16, ... and S. Otherwise all sequences are padded to S. Buckets
        save time if most histories are short.
      user_column, item_column, time_column, rating_column: names of columns of the user file, or
        column numbers from 1 if it has no header; empty to detect them. `time_column` "none" means
        that there are no times and that lines are in the order of time.
      min_rating: minimum rating of an event of the user file; None for all events.
      date_order: "dmy" or "mdy", the order of day and month in dates such as 01/02/2024 of the user
        file; "" to detect it from the column. An ambiguous column is then an error.
    """

    name: known_names(*DATA_SETS) = "movielens_100k"
    path: str | None = None
    max_length: PositiveInt = 50
    bucketed: bool = dataclasses.field(default=False, metadata=LATER)
    user_column: str = dataclasses.field(default="", metadata=LATER)
    item_column: str = dataclasses.field(default="", metadata=LATER)
    time_column: str = dataclasses.field(default="", metadata=LATER)
    rating_column: str = dataclasses.field(default="", metadata=LATER)
    min_rating: FiniteFloat | None = dataclasses.field(default=None, metadata=LATER)
    date_order: str = dataclasses.field(default="", metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        name = results_name(self.name, DATA_SETS, self.path, "; set path to read user files")
        object.__setattr__(self, "name", name)
        expect_one_of("date_order", self.date_order, DATE_ORDERS)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _OF_FILES and self.path is None and value != field.default:
                raise ValueError(
                    f"{field.name}: got a value, but the data set {name} defines "
                    f"it; set it only together with path"
                )

    @property
    def buckets(self) -> list[int] | None:
        """Lengths to which sequences are padded, ascending; None if all have `max_length`."""
        if not self.bucketed:
            return None
        powers = (2**power for power in range(2, self.max_length.bit_length()))
        return [*(length for length in powers if length < self.max_length), self.max_length]

    @property
    def wanted(self) -> Wanted:
        """Settings for reading the user file."""
        return Wanted(
            self.user_column,
            self.item_column,
            self.time_column,
            self.rating_column,
            self.min_rating,
            self.date_order,
        )


@dataclasses.dataclass(frozen=True)
class RecommendationData(digests.Fingerprinted):
    """Events of all users, sorted by user and time; needs 8 bytes per event.

    Items have random indices, because published item numbers may reveal release dates.

    Attributes:
      starts: int64 [U + 1]; the events of user u are those from starts[u] to starts[u + 1].
      items: int32 [n], index of the item of each event.
      ages: float32 [n], days from each event to the last event of its user; None without times.
      users: names of the users.
      names: names of the items, as published.
      titles: titles of the items, for display.
      features: float32 [I, G], features of the items; None if there are none.
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
        """Indices of the users with validation and test events, int [n]."""
        return np.flatnonzero(np.diff(self.starts) >= LEAST)

    @functools.cached_property
    def longest(self) -> int:
        """M, number of events of the longest history."""
        return int(np.diff(self.starts).max())

    def train_ends(self, with_validation: bool = False) -> np.ndarray:
        """Returns the index in `items` after the last training event of each user, int64 [U]."""
        ends = self.starts[1:].copy()
        ends[self.tested] -= 1 if with_validation else 2
        return ends

    def train_matrix(self, with_validation: bool = False) -> csr_matrix:
        """Returns the training events as sparse float32 [U, I].

        An entry is the position of the event in the history of its user, from 1.
        """
        lengths = self.train_ends(with_validation) - self.starts[:-1]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        position = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        columns = self.items[position + np.repeat(self.starts[:-1], lengths)]
        entries = (position + 1).astype(np.float32)
        matrix = csr_matrix((entries, columns, starts), (self.num_users, self.num_items))
        matrix.sort_indices()
        return matrix

    def popularity(self, with_validation: bool = False) -> np.ndarray:
        """Returns the number of training events of each item, int64 [I]."""
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

    def to_json(self) -> dict[str, Any]:
        """Returns all fields as JSON values, about 4 bytes per event."""
        arrays = {name: getattr(self, name) for name in ("starts", "items", "ages", "features")}
        packed = {name: None if array is None else _pack(array) for name, array in arrays.items()}
        titles = None if self.titles == self.names else list(self.titles)
        return {**packed, "users": list(self.users), "names": list(self.names), "titles": titles}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> RecommendationData:
        """Builds the events from JSON values; the inverse of `to_json`."""
        packed = {name: saved[name] for name in ("starts", "items", "ages", "features")}
        arrays = {name: None if text is None else _unpack(text) for name, text in packed.items()}
        names = tuple(saved["names"])
        titles = names if saved["titles"] is None else tuple(saved["titles"])
        return cls(**arrays, users=tuple(saved["users"]), names=names, titles=titles)


def load(config: DataConfig, paths: Paths | None) -> RecommendationData:
    """Reads a data set, and prints how many users have too few events for evaluation.

    Raises:
      UserError: a source or user file cannot be read, or no user has enough events.
    """
    if config.path is not None:
        events = user_files.read_all_events(config.path, config.wanted)
    else:
        data_set = DATA_SETS[config.name]
        found = {source.name: fetch(source, paths) for source in data_set.sources}
        events = data_set.read(found)
    data, repeated = in_order(events)
    if config.path is not None:
        say(
            f"{config.name}: {len(data.items):,} events of {data.num_users:,} users with "
            f"{data.num_items:,} items"
        )
    if repeated:
        say(
            f"{config.name}: {repeated:,} events repeat an item of their user; only the first "
            f"is kept"
        )
    short = data.num_users - len(data.tested)
    if not len(data.tested):
        raise UserError(
            f"config.data: none of {data.num_users:,} users of {config.path or config.name} has "
            f"{LEAST} events or more, one for each split; provide longer histories"
        )
    if short:
        say(
            f"{config.name}: {short:,} of {data.num_users:,} users have fewer than {LEAST} events "
            "and are for training only"
        )
    return data


def in_order(events: user_files.Events) -> tuple[RecommendationData, int]:
    """Sorts events by user and time, and removes repeated items of a user.

    Returns:
      The sorted events, and the number of removed events."""
    user, item, seconds = events.user, events.item, events.seconds
    sorted_by = events.order if seconds is None else seconds
    # The sort is stable: equal times keep the order of lines.
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
    # `order` has the item of each new index, and `number` the new index of each item.
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


def _pack(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue(), 6)).decode()


def _unpack(text: str) -> np.ndarray:
    buffer = io.BytesIO(zlib.decompress(base64.b64decode(text)))
    return np.load(buffer, allow_pickle=False)
