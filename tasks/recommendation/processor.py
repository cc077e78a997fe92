"""What a person asks: what a user of the data, or whoever had some items, would take next."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.data.cells import label_value
from tasks.recommendation.data import PAD, DataConfig, RecommendationData, padded

_USER = "user:"


@dataclasses.dataclass(frozen=True)
class Question:
    """One input, understood.

    Attributes:
      history: int32 [any], the items that are known, oldest first.
      ages: float32 [any], days from each to the last of them.
      user: the row of the train matrix, -1 for nobody of the data.
      name: of the user that was asked about; None for a list of titles.
      unknown: what is no item's title -> the nearest title; None where none is near.
    """

    history: np.ndarray
    ages: np.ndarray
    user: int = PAD
    name: str | None = None
    unknown: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


class Reader:
    """Understands inputs: `user:NAME`, or titles or names of items with semicolons between them,
    the oldest first, in any case of letters. Of a user all events of the data count, test too.
    """

    def __init__(self, data: RecommendationData):
        """Args: the events."""
        self._data = data
        self._users = {name: number for number, name in enumerate(data.users)}
        # Of several items of one title the most popular is meant; a title goes before a name.
        order = np.argsort(np.bincount(data.items, minlength=data.num_items), kind="stable")
        names = {data.names[item].casefold(): int(item) for item in order}
        self._items = names | {data.titles[item].casefold(): int(item) for item in order}

    def __call__(self, raw: str) -> Question:
        """The question that an input asks."""
        text = raw.strip()
        if text.casefold().startswith(_USER):
            return self._of_user(text[len(_USER) :].strip())
        whole = self._items.get(text.casefold())
        parts = [text] if whole is not None else [part.strip() for part in text.split(";")]
        found: dict[int, None] = {}
        unknown: dict[str, str | None] = {}
        for part in filter(None, parts):
            item = self._items.get(part.casefold(), self._items.get(_name(part).casefold()))
            if item is None:
                unknown[part] = self._nearest(part)
            else:
                found[item] = None
        history = np.array(list(found), np.int32)
        return Question(history, np.zeros(len(history), np.float32), unknown=unknown)

    def _of_user(self, name: str) -> Question:
        number = self._users.get(name, self._users.get(_name(name)))
        if number is None:
            return Question(np.zeros(0, np.int32), np.zeros(0, np.float32), name=name)
        chosen = slice(*self._data.starts[number : number + 2])
        history, ages = self._data.items[chosen], self._data.ages
        ages = np.zeros(len(history), np.float32) if ages is None else ages[chosen]
        return Question(history, ages, number, name)

    def _nearest(self, title: str) -> str | None:
        near = difflib.get_close_matches(_words(title), self._titles, n=1, cutoff=0.6)
        return self._titles[near[0]] if near else None

    @functools.cached_property
    def _titles(self) -> dict[str, str]:
        return {_words(title): title for title in self._data.titles}


def _name(text: str) -> str:
    """A name as files of events have it: 1.0 is 1."""
    return label_value(text, "input", "name") if text.strip() else text


def _words(title: str) -> str:
    """In any order: "Les Misérables" is near "Misérables, Les (1995)"."""
    return " ".join(sorted(re.findall(r"\w+", title.casefold())))


class Questions:
    """Random access to the examples of questions: those of `HeldOut` without `target`."""

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(self, questions: Sequence[Question], data: RecommendationData, config: DataConfig):
        """Args: the questions; the events; how long sequences are."""
        self._questions, self._length = questions, config.max_length
        self._longest = max(data.longest, *(len(question.history) for question in questions))

    def __len__(self) -> int:
        return len(self._questions)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        question, ages = self._questions[index], np.zeros(self._length, np.float32)
        latest = question.history[-self._length :]
        ages[: len(latest)] = question.ages[-self._length :]
        return {
            "items": padded(latest, self._length),
            "ages": ages,
            "user": np.int32(question.user),
            "seen": padded(question.history, self._longest),
        }
