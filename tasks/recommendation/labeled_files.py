"""User files of events on which a run is evaluated: the last event of each user is predicted."""

from __future__ import annotations

import numpy as np

from tasks.common.errors import UserError, warn_once
from tasks.recommendation import user_files
from tasks.recommendation.data import PAD, DataConfig, RecommendationData, in_order
from tasks.recommendation.sequences import Histories, padded


class FileUsers(Histories):
    """Random access to the last event of each user of a user file, with the fields of `HeldOut`.

    Attributes:
      target: int32 [users], last item of each user.
      names: names of the users.
    """

    def __init__(self, file: str, data: RecommendationData, config: DataConfig):
        """Reads the events of a file.

        The last event of a user is predicted from the user's earlier events in the file. If the
        file has no earlier events of the user, it is predicted from the user's events in `data`.
        Items that are not in `data` are left out of histories. Users whose last item is not in
        `data` are left out.

        Args:
          file: file of events.
          data: events of the run.
          config: config of the run.

        Raises:
          UserError: the file cannot be read, or no user can be evaluated.
        """
        events, _ = in_order(user_files.read_events(file, config.wanted))
        number = {name: index for index, name in enumerate(data.names)}
        rows = {name: index for index, name in enumerate(data.users)}
        known = np.array([number.get(name, PAD) for name in events.names], np.int32)
        found, without, foreign, seen = [], 0, [], 0
        for user, name in enumerate(events.users):
            chosen = slice(*events.starts[user : user + 2])
            items = known[events.items[chosen]]
            ages = None if events.ages is None else events.ages[chosen]
            target, items = items[-1], items[:-1]
            if target == PAD:
                foreign.append(events.names[events.items[chosen][-1]])
                continue
            row = rows.get(name, PAD)
            trained = data.items[slice(*data.starts[row : row + 2])] if row != PAD else items[:0]
            seen += target in trained
            if not len(items):
                items = trained[trained != target]
                ages = None
            ages = np.zeros(len(items) + 1, np.float32) if ages is None else ages
            kept = items != PAD
            if not kept.any():
                without += 1
                continue
            items, ages = items[kept], ages[:-1][kept]
            found.append((name, row, items, ages - ages[-1], target))
        if foreign:
            warn_once(
                f"{file}: {len(foreign):,} of {events.num_users:,} users are left out, because the "
                f"run does not know their last item, such as {foreign[0]!r}"
            )
        if without:
            warn_once(
                f"{file}: {without:,} of {events.num_users:,} users are left out, because the run "
                "knows none of their earlier items"
            )
        if not found:
            raise UserError(
                f"{file}: no user has two events with items that the run knows; there is nothing "
                "to measure"
            )
        if seen:
            warn_once(
                f"{file}: the last events of {seen:,} users are also in the data of the run; "
                "metrics on them are biased"
            )
        self.names = [row[0] for row in found]
        self.target = np.array([row[-1] for row in found], np.int32)
        super().__init__(config, len(found))
        self._found = found
        self._longest = max(data.longest, *(len(row[2]) for row in found))

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        _, row, items, ages, target = self._found[index]
        latest = np.zeros(self._length, np.float32)
        latest[: len(ages[-self._length :])] = ages[-self._length :]
        return {
            "items": padded(items[-self._length :], self._length),
            "ages": latest,
            "user": np.int32(row),
            "seen": padded(items, self._longest),
            "target": target,
        }

    def history(self, index: int) -> np.ndarray:
        """Returns all n items before the target, oldest first, int32 [n]."""
        return self._found[index][2]


class FileDataset:
    """A user file of events as the split "test"; see `FileUsers`.

    Attributes:
      splits: the split "test".
      train_matrix: training events of the run, see `RecommendationData.train_matrix`.
    """

    def __init__(self, file: str, data: RecommendationData, config: DataConfig, validation: bool):
        """Reads the file.

        Args:
          file: file of events.
          data: events of the run.
          config: config of the run.
          validation: whether the model was also trained on the validation events.
        """
        self.splits = {"test": FileUsers(file, data, config)}
        self.train_matrix = data.train_matrix(validation)
