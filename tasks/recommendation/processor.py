"""Processor of recommendation: parses queries (`user:NAME` or titles), and decodes ranked items."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.data.cells import label_value
from tasks.recommendation.data import PAD, DataConfig, RecommendationData
from tasks.recommendation.metrics import TOP
from tasks.recommendation.sequences import Histories, padded
from tasks.task import ArraySpec, ProcessingSteps, Processor

_USER = "user:"
# Prefix of the outputs with terms of the scores.
_PART = "part_"
# Number of attributions shown per item.
_SHOWN = 3
# Exported models accept queries with up to this many items, or up to the length of the longest
# history, if that is more.
_NAMED = 1000


@dataclasses.dataclass(frozen=True)
class UserQuery:
    """A parsed query.

    Attributes:
      history: indices of the known items, oldest first, int32 [n].
      ages: days from each item to the last item, float32 [n].
      user: row of the training matrix; -1 for a user who is not in the data.
      name: name of the user; None for a list of titles.
      unknown: mapping from input parts that match no item to the most similar title, or to None.
    """

    history: np.ndarray
    ages: np.ndarray
    user: int = PAD
    name: str | None = None
    unknown: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


# Maximum number of unknown titles for which a similar title is searched, because that takes long.
_MOST_SUGGESTIONS = 20


class QueryParser:
    """Parser of `user:NAME`, or of titles or item names separated by semicolons, oldest first.

    The case of titles and item names is ignored. The history of a user contains all events in the
    data set, including the test event.
    """

    def __init__(self, data: RecommendationData):
        """Builds the parser from all events of the data set."""
        self._data = data
        self._users = {name: number for number, name in enumerate(data.users)}
        # If several items have the same title, the title stands for the most popular item. Titles
        # take precedence over names.
        order = np.argsort(np.bincount(data.items, minlength=data.num_items), kind="stable")
        names = {data.names[item].casefold(): int(item) for item in order}
        self._items = names | {data.titles[item].casefold(): int(item) for item in order}

    def __call__(self, raw: str) -> UserQuery:
        """Parses an input."""
        text = raw.strip()
        if text.casefold().startswith(_USER):
            return self._user_query(text[len(_USER) :].strip())
        whole = self._items.get(text.casefold())
        parts = [text] if whole is not None else [part.strip() for part in text.split(";")]
        found: dict[int, None] = {}
        unknown: dict[str, str | None] = {}
        for part in filter(None, parts):
            item = self._items.get(part.casefold(), self._items.get(_name(part).casefold()))
            if item is None:
                few = len(unknown) < _MOST_SUGGESTIONS
                unknown[part] = self._nearest(part) if few else None
            else:
                found[item] = None
        history = np.array(list(found), np.int32)
        return UserQuery(history, np.zeros(len(history), np.float32), unknown=unknown)

    def _user_query(self, name: str) -> UserQuery:
        number = self._users.get(name, self._users.get(_name(name)))
        if number is None:
            return UserQuery(np.zeros(0, np.int32), np.zeros(0, np.float32), name=name)
        chosen = slice(*self._data.starts[number : number + 2])
        history, ages = self._data.items[chosen], self._data.ages
        ages = np.zeros(len(history), np.float32) if ages is None else ages[chosen]
        return UserQuery(history, ages, number, name)

    def _nearest(self, title: str) -> str | None:
        near = difflib.get_close_matches(_words(title), self._titles, n=1, cutoff=0.6)
        return self._titles[near[0]] if near else None

    @functools.cached_property
    def _titles(self) -> dict[str, str]:
        return {_words(title): title for title in self._data.titles}


def _name(text: str) -> str:
    """Normalizes a name as in the reading of event files, where 1.0 becomes 1."""
    return label_value(text, "input", "name") if text.strip() else text


def _words(title: str) -> str:
    """Sorts words, so that "Les Misérables" is similar to "Misérables, Les (1995)"."""
    return " ".join(sorted(re.findall(r"\w+", title.casefold())))


class UserQueries(Histories):
    """Random access to the examples of queries, with the fields of `HeldOut` except `target`."""

    def __init__(self, queries: Sequence[UserQuery], data: RecommendationData, config: DataConfig):
        """Initializes the examples.

        Args:
          queries: parsed queries.
          data: events of all users.
          config: config with the length of sequences.
        """
        super().__init__(config, len(queries))
        self._queries = queries
        self._longest = max(data.longest, *(len(query.history) for query in queries))

    def __len__(self) -> int:
        return len(self._queries)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        query, ages = self._queries[index], np.zeros(self._length, np.float32)
        latest = query.history[-self._length :]
        ages[: len(latest)] = query.ages[-self._length :]
        return {
            "items": padded(latest, self._length),
            "ages": ages,
            "user": np.int32(query.user),
            "seen": padded(query.history, self._longest),
        }


@dataclasses.dataclass(frozen=True)
class RecommendationProcessor(Processor):
    """Processor that parses queries and returns the titles of recommended items.

    Attributes:
      events: all events of the data set, because a query may name any of its users.
      with_validation: whether the model was trained on the validation events.
    """

    events: RecommendationData
    with_validation: bool = False

    def signature(self) -> dict[str, ArraySpec]:
        """Returns the specifications of the arrays in `UserQueries`."""
        return {
            "items": ArraySpec(("batch", self.data.max_length), "int32", PAD),
            "ages": ArraySpec(("batch", self.data.max_length), "float32", 0),
            "user": ArraySpec(("batch",), "int32"),
            "seen": ArraySpec(("batch", "seen"), "int32", PAD),
        }

    def steps(self) -> ProcessingSteps:
        """Returns the steps before and after an exported model.

        They parse queries, and convert outputs to recommended items with titles.
        """
        events = self.events
        titles = None if events.titles == events.names else events.titles
        catalog = {"users": events.users, "names": events.names, "titles": titles}
        arrays = {"starts": events.starts, "items": events.items}
        if events.ages is not None:
            arrays["ages"] = events.ages
        files = {"catalog": "catalog.json", "events": "events.safetensors"}
        common = {**files, "length": self.data.max_length}
        ranked = {"popular": self._popular().tolist(), "shown": _SHOWN}
        return ProcessingSteps(
            "text",
            [{"op": "history", **common}],
            [{"op": "recommend", **common, **ranked}],
            {
                files["catalog"]: json.dumps(catalog, ensure_ascii=False),
                files["events"]: arrays,
            },
        )

    def export_sizes(self) -> list[dict[str, int]]:
        """Returns a size of `seen` that fits the history of every user and long queries."""
        return [{"seen": min(max(self.events.longest, _NAMED), self.events.num_items)}]

    def _popular(self, count: int = TOP) -> np.ndarray:
        popularity = self.events.popularity(self.with_validation)
        return np.argsort(-popularity, kind="stable")[:count]

    @property
    def input_column(self) -> str:
        """Name of the column of users in input tables."""
        return self.data.user_column or "user"

    def table_input(self, value: str, folder: Path) -> str:
        """Returns the query of a user."""
        return f"{_USER}{value}"

    @functools.cached_property
    def _parse(self) -> Any:
        # Cached, because `encode` and `decode` parse the same inputs.
        return functools.lru_cache(maxsize=4096)(QueryParser(self.events))

    def history(self, raw: str) -> np.ndarray:
        """Returns the items of the history that a query names, oldest first, int32 [n]."""
        return self._parse(raw).history

    def encode(self, raw: Sequence[str]) -> UserQueries:
        """Parses queries, see `QueryParser`."""
        return UserQueries([self._parse(text) for text in raw], self.events, self.data)

    def decode(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray], count: int = TOP
    ) -> list[dict[str, Any]]:
        """Returns the best unseen items of each query.

        Each item has its score; its attributions "because", which are items or users with their
        fractions of the score; and "parts", the terms of the score, if the model has any.

        Args:
          raw: queries.
          outputs: outputs of `Recommendation.predict`.
          count: number of popular items for queries without a history.
        """
        popular = self._popular(count).tolist()
        answers = []
        for index, text in enumerate(raw):
            query = self._parse(text)
            own = {name: value[index] for name, value in outputs.items()}
            listed = [
                {
                    **self._item(item),
                    "score": round(float(own["top_scores"][rank]), 4),
                    "because": self._reasons(own, rank, query.history),
                    **_parts(own, rank),
                }
                for rank, item in enumerate(own["top"].tolist())
                if item >= 0
            ]
            cold = not len(query.history)
            if cold:
                listed = [self._item(item) for item in popular]
            answers.append(
                {
                    "input": text,
                    "cold": cold,
                    "unknown": dict(query.unknown),
                    "recommendations": listed,
                    "text": _line(query, listed, cold),
                }
            )
        return answers

    def attributions(
        self, outputs: Mapping[str, np.ndarray], rank: int, history: np.ndarray
    ) -> list[tuple[str, float]]:
        """Returns the largest attributions of a recommended item.

        Args:
          outputs: outputs for one user, see `Recommendation.predict`.
          rank: rank of the item, from 0.
          history: items of the user's history, oldest first.

        Returns:
          Names of items or users with their fractions of the score, in descending order.
        """
        reasons = self._reasons(outputs, rank, history)
        return [(reason["what"], reason["share"]) for reason in reasons]

    def _reasons(
        self, outputs: Mapping[str, np.ndarray], rank: int, history: np.ndarray
    ) -> list[dict[str, Any]]:
        if "reason_items" in outputs:
            latest = history[-self.data.max_length :]
            weights = outputs["reason_items"][rank][: len(latest)]
            names, titles = self.events.names, self.events.titles
            sources = [{"what": titles[item], "item": names[item]} for item in latest]
        elif "reason_neighbours" in outputs:
            users = [self.events.users[u] for u in outputs["reason_neighbour_ids"].tolist()]
            weights = outputs["reason_neighbours"][rank]
            sources = [{"what": f"user {user}", "user": user} for user in users]
        else:
            return []
        order = np.argsort(-weights, kind="stable")[:_SHOWN]
        shares = [(sources[i], round(float(weights[i]), 3)) for i in order if weights[i]]
        return [{**source, "share": share} for source, share in shares]

    def _item(self, item: int) -> dict[str, str]:
        return {"item": self.events.names[item], "title": self.events.titles[item]}


def _parts(outputs: Mapping[str, np.ndarray], rank: int) -> dict[str, dict[str, float]]:
    """Returns the terms of the score of an item under the key "parts", if there are any."""
    found = {
        name.removeprefix(_PART): round(float(values[rank]), 4)
        for name, values in outputs.items()
        if name.startswith(_PART)
    }
    return {"parts": found} if found else {}


def _line(query: UserQuery, listed: Sequence[Mapping[str, Any]], cold: bool) -> str:
    notes = [
        f"{title!r} is not a known title" + (f", did you mean {near!r}?" if near else "")
        for title, near in query.unknown.items()
    ]
    if cold and query.name is not None:
        notes.append(f"there is no user {query.name!r}")
    if cold:
        notes.append("no history, so these are the most popular items")
    shown = []
    for entry in listed:
        sources = [f"{source['what']} {source['share']:.2f}" for source in entry.get("because", ())]
        shown.append(entry["title"] + (f" [{', '.join(sources[:1])}]" if sources else ""))
    recommended = "; ".join(shown) or "nothing is left to recommend"
    return f"({'; '.join(notes)}) {recommended}" if notes else recommended
