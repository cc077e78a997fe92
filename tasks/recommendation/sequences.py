"""Examples of recommendation: sequences of training events, and held-out events.

In shapes, U is the number of users, I the number of items, n a number of events or examples, S the
number of events of a sequence, and M the number of events of the longest history.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_matrix

from tasks.common.data.splits import SplitSummary
from tasks.common.errors import UserError
from tasks.recommendation.data import LEAST, PAD, DataConfig, RecommendationData


def padded(items: np.ndarray, size: int) -> np.ndarray:
    """Pads item indices [n] with -1 at the end, to int32 [size]."""
    found = np.full(size, PAD, np.int32)
    found[: len(items)] = items
    return found


class Histories:
    """Base class of examples whose histories are padded to S or to the length of a bucket.

    Attributes:
      lengths, padded: see `tasks.common.data.pipeline.Examples`.
    """

    def __init__(self, config: DataConfig, count: int):
        """Initializes examples that are all padded to S.

        Args:
          config: config with the length of sequences.
          count: number of examples.
        """
        self._length = config.max_length
        self.padded: Mapping[str, float] = {}
        self.lengths: np.ndarray | None = None
        if config.bucketed:
            self.padded = {"items": PAD, "ages": 0.0, "next": PAD}
            self.lengths = np.full(count, config.max_length)


class _Sequences(Histories):
    """Base class of the examples of a split."""

    def __init__(self, data: RecommendationData, config: DataConfig, count: int):
        super().__init__(config, count)
        self._data = data

    def _padded(self, begin: int, end: int, size: int) -> np.ndarray:
        return padded(self._data.items[begin:end], size)

    def _ages(self, begin: int, end: int) -> np.ndarray:
        found = np.zeros(self._length, np.float32)
        ages = self._data.ages
        if ages is not None and end > begin:
            found[: end - begin] = ages[begin:end] - ages[end - 1]
        return found

    def _example(self, user: int, begin: int, end: int, seen_end: int) -> dict[str, np.ndarray]:
        """Returns an example whose history is the last S events of a user before `end`.

        Args:
          user: index of the user.
          begin: index in `data.items` of the first event of the user.
          end: index in `data.items` after the last event of the history.
          seen_end: index in `data.items` after the last event of the field `seen`.
        """
        first = max(begin, end - self._length)
        return {
            "items": self._padded(first, end, self._length),
            "ages": self._ages(first, end),
            "user": np.int32(user),
            "seen": self._padded(begin, seen_end, self._data.longest),
        }


class TrainSequences(_Sequences):
    """Random access to sequences of S training events and their next items.

    Histories longer than S are cut into several sequences, starting from the latest event. Each
    training event of a user, except the first, occurs exactly once in `next`.

    An example has the following fields. Padding is 0 in `ages` and -1 in the other fields.

    * `items`, int32 [S]: items of the sequence, oldest first.
    * `next`, int32 [S]: the item after each of `items`.
    * `ages`, float32 [S]: days from each of `items` to the last one; 0 without times.
    * `user`, int32: row of the training matrix.
    * `seen`, int32 [M]: all training items of the user.
    * `target`, int32: always -1.
    """

    def __init__(self, data: RecommendationData, config: DataConfig, with_validation: bool):
        """Cuts the training events into sequences.

        Args:
          data: events of all users.
          config: config with the length of sequences.
          with_validation: whether validation events are part of the training split.

        Raises:
          UserError: no user has two training events.
        """
        self._ends = data.train_ends(with_validation)
        transitions = np.maximum(self._ends - data.starts[:-1] - 1, 0)
        count = -(-transitions // config.max_length)
        if not count.any():
            raise UserError(
                f"config.data: none of {data.num_users:,} users has two training events; provide "
                "longer histories"
            )
        self.user = np.repeat(np.arange(data.num_users, dtype=np.int32), count)
        number = np.arange(len(self.user)) - np.repeat(np.cumsum(count) - count, count)
        # For each sequence, the index in `data.items` after the last event of the field `next`.
        self.end = self._ends[self.user] - number * config.max_length
        super().__init__(data, config, len(self.user))
        if self.lengths is not None:
            before = self.end - 1 - data.starts[self.user]
            self.lengths = np.minimum(before, config.max_length)

    def __len__(self) -> int:
        return len(self.user)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        user, end = int(self.user[index]), int(self.end[index])
        begin = int(self._data.starts[user])
        first = max(begin, end - 1 - self._length)
        example = {
            **self._example(user, begin, end - 1, int(self._ends[user])),
            "next": self._padded(first + 1, end, self._length),
            "target": np.int32(PAD),
        }
        # The pipeline pads again, to the length of a bucket.
        return example | {field: example[field][: end - 1 - first] for field in self.padded}


class HeldOut(_Sequences):
    """Random access to the held-out event of each user and the history before it.

    An example has the following fields. Padding is 0 in `ages` and -1 in the other fields.

    * `target`, int32: the held-out item.
    * `items`, int32 [S]: the latest S items before the target, oldest first.
    * `ages`, float32 [S]: days from each of `items` to the last one; 0 without times.
    * `user`, int32: row of the training matrix.
    * `seen`, int32 [M]: all items before the target.

    Attributes:
      target: int32 [users], held-out item of each user.
      users: int [users], indices of the users.
    """

    def __init__(self, data: RecommendationData, config: DataConfig, split: str):
        self.users = data.tested
        super().__init__(data, config, len(self.users))
        self.end = data.starts[self.users + 1] - {"test": 1, "validation": 2}[split]
        self.target = data.items[self.end]

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        user, end = int(self.users[index]), int(self.end[index])
        example = self._example(user, int(self._data.starts[user]), end, end)
        return {**example, "target": self.target[index]}

    @property
    def names(self) -> list[str]:
        """Names of the users."""
        return [self._data.users[user] for user in self.users]

    def history(self, index: int) -> np.ndarray:
        """Returns all n items before the target, oldest first, int32 [n]."""
        return self._data.items[self._data.starts[self.users[index]] : self.end[index]]

    def seen(self, chosen: np.ndarray) -> np.ndarray:
        """Returns the field `seen` of the examples `chosen`, int32 [chosen, M]."""
        begins = self._data.starts[self.users[chosen]]
        pairs = zip(begins.tolist(), self.end[chosen].tolist(), strict=True)
        return np.stack([self._padded(*pair, self._data.longest) for pair in pairs])

    def matrix(self, decay: float = 1.0, window: int | None = None) -> csr_matrix:
        """Returns the weighted histories as sparse float32 [users, I].

        The item p positions before the end of a history has the weight decay^p.

        Args:
          decay: decay of the weight per position.
          window: number of latest events with a weight; None for all events.
        """
        lengths = self.end - self._data.starts[self.users]
        lengths = lengths if window is None else np.minimum(lengths, window)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        back = np.repeat(starts[1:], lengths) - 1 - np.arange(starts[-1])
        columns = self._data.items[np.repeat(self.end, lengths) - 1 - back]
        weights = np.power(np.float32(decay), back, dtype=np.float32)
        return csr_matrix((weights, columns, starts), (len(self), self._data.num_items))


class RecommendationDataset:
    """Events of all users, and their splits.

    Attributes:
      events: events of all users.
      with_validation: whether validation events are part of the training split.
    """

    def __init__(
        self, events: RecommendationData, config: DataConfig, with_validation: bool = False
    ):
        """Initializes the data set.

        Args:
          events: events of all users.
          config: config with the length of sequences.
          with_validation: whether validation events are part of the training split.
        """
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
        """Training events as sparse float32 [U, I]; see `RecommendationData.train_matrix`."""
        return self.events.train_matrix(self.with_validation)

    @property
    def fingerprint(self) -> str:
        """Hash of the events and titles."""
        return self.events.fingerprint

    @property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        return self.events.parts

    def summary(self) -> dict[str, SplitSummary]:
        """Returns counts of training sequences and of evaluated users."""
        events = self.events.train_ends(self.with_validation) - self.events.starts[:-1]
        left = {"train": (int(np.sum(events > 1)), "with a single event in train")}
        held_out = (len(self.events.tested), f"with fewer than {LEAST} events")
        return {
            split: SplitSummary(
                len(examples),
                unit="users",
                ignored=self.events.num_users - used,
                ignored_as=reason,
            )
            for split, examples in self.splits.items()
            for used, reason in [left.get(split, held_out)]
        }
