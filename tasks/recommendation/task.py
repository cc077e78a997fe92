"""Recommendation: the task contract over `data.py` and `models.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.sparse import csr_matrix

from tasks.common.backbones.transformer import SHARDING_RULES
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS, SplitSummary, check_splits
from tasks.common.errors import UserError
from tasks.figures import Curves, Figure, Recommendations
from tasks.recommendation import models
from tasks.recommendation.baselines import Baselines
from tasks.recommendation.data import (
    LEAST,
    DataConfig,
    HeldOut,
    RecommendationData,
    TrainSequences,
    examples,
    load,
)
from tasks.recommendation.metrics import TOP, list_metrics, ndcg, ranked, ranking_metrics
from tasks.recommendation.models.base import Recommender
from tasks.recommendation.processor import Question, Questions, Reader
from tasks.task import OldTask

# Users on the page of recommendations, what is told of their past, and reasons of each item.
_SHOWN, _PAST, _REASONS = 6, 8, 3
# Lengths of lists in the curve of what they hold.
_LENGTHS = (1, 2, 5, 10, 20, 50, 100)


class Recommendation(OldTask):
    """What a user had, in order -> scores of all items as the next.

    Tested by leaving one out: the last event of each user among all items that the user has not
    had. What is tested has seen validation too where `config.training.refit` says so.
    """

    data_config = DataConfig
    model_configs = models.MODEL_CONFIGS
    primary_metric = "ndcg_at_10"
    table_metrics = ("ndcg_at_10", "hr_at_10", "mrr", "coverage", "diversity")
    sharding_rules = SHARDING_RULES
    baseline_version = 2

    def __init__(
        self,
        data: DataConfig,
        model: Any,
        events: RecommendationData,
        with_validation: bool = False,
        restored: bool = False,
    ):
        """Use `prepare` or `restore`.

        Args:
          data, model: configs.
          events: of all users.
          with_validation: whether train holds the validation events.
          restored: whether weights are there, so that a model need count nothing in the events.
        """
        self.data, self.model, self.events = data, model, events
        self._with_validation, self._restored = with_validation, restored

    # ------------------------------------------------------------------ making

    @classmethod
    def prepare(cls, data: DataConfig, model: Any, paths: Paths) -> Recommendation:
        """See `Task.prepare`."""
        longest = getattr(model, "max_length", None)
        if longest is not None and longest < data.max_length:
            raise UserError(
                f"config.model.max_length must be at least {data.max_length}, as "
                f"config.data.max_length asks, got {longest}"
            )
        task = cls(data, model, load(data, paths))
        check_splits(f"config.data: {data.path or data.name}", task.summary())
        return task

    @classmethod
    def restore(cls, data: DataConfig, model: Any, assets: Mapping[str, Any]) -> Recommendation:
        """See `Task.restore`."""
        events = RecommendationData.restore(assets["events"])
        return cls(data, model, events, assets["with_validation"], restored=True)

    def with_validation(self) -> Recommendation:
        """See `Task.with_validation`."""
        return Recommendation(self.data, self.model, self.events, True, self._restored)

    def assets(self) -> dict[str, Any]:
        """All events, for a user of the data is a possible input."""
        return {"events": self.events.assets(), "with_validation": self._with_validation}

    @property
    def fingerprint(self) -> str:
        """Of the events and titles."""
        return self.events.fingerprint

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the parts of the data."""
        return self.events.parts

    # ------------------------------------------------------------------ data

    def examples(self, split: str) -> TrainSequences | HeldOut:
        """See `Task.examples`."""
        return self._splits[split]

    def summary(self) -> dict[str, SplitSummary]:
        """Sequences of train, and users of the other splits; users with too few events to be tested
        are named there.
        """
        short = self.events.num_users - len(self.events.tested)
        return {
            split: SplitSummary(len(self.examples(split)))
            if split == "train"
            else SplitSummary(
                len(self.examples(split)),
                unit="users",
                ignored=short,
                ignored_as=f"with fewer than {LEAST} events",
            )
            for split in SPLITS
        }

    @functools.cached_property
    def _splits(self) -> dict[str, TrainSequences | HeldOut]:
        return {
            split: examples(self.events, self.data, split, self._with_validation)
            for split in SPLITS
        }

    @functools.cached_property
    def _train_matrix(self) -> csr_matrix:
        return self.events.train_matrix(self._with_validation)

    # ------------------------------------------------------------------ model

    def build_model(self, rngs: nnx.Rngs) -> Recommender:
        """See `Task.build_model`."""
        matrix = self._train_matrix
        if self._restored:
            matrix = csr_matrix(matrix.shape, dtype=np.float32)
        items, features = self.events.num_items, self.events.features
        try:
            return models.build(self.model, items, features, matrix, rngs)
        except ValueError as error:
            raise UserError(f"config.model.{error}") from error

    def loss(
        self, model: Recommender, batch: Mapping[str, jax.Array], dropout_key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What the model learns by; see `Recommender.loss`."""
        return model.loss(batch, dropout_key)

    def batch_statistics(
        self, model: Recommender, batch: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """The number of users: all else comes of the ranks among the outputs."""
        return {"users": jnp.sum(batch["weight"])}

    def outputs(self, model: Recommender, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """See `ranked`; and of a question, which has no target, the reasons of `top`."""
        found = ranked(model.scores(batch), batch["seen"], batch.get("target"))
        return found if "target" in batch else found | self._reasons(model, batch, found["top"])

    def attention(self, model: Recommender, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Shares of what speaks for each of the best items; see `Recommender.reasons`."""
        return self._reasons(model, batch, ranked(model.scores(batch), batch["seen"])["top"])

    def _reasons(
        self, model: Recommender, batch: Mapping[str, jax.Array], top: jax.Array
    ) -> dict[str, jax.Array]:
        """`reason_items` [B, R, S], or `reason_neighbours` [B, R, k] and `reason_neighbour_ids`."""
        found = model.reasons(batch, jnp.maximum(top, 0))
        return {f"reason_{name}": value for name, value in found.items()}

    # ------------------------------------------------------------------ on the host

    def finalize(
        self, statistics: Mapping[str, Any], outputs: Mapping[str, np.ndarray], split: str
    ) -> dict[str, float]:
        """The metrics of `tasks.recommendation.metrics`; and `known_targets`, the share of targets
        that train holds: no recommender of known items has a higher hit rate.
        """
        if split == "train":
            raise UserError("--split=train: lists are for items not had; use validation or test")
        popularity = self.events.popularity(self._with_validation)
        known = popularity[self.examples(split).target] > 0
        return {
            **ranking_metrics(outputs["rank"]),
            **list_metrics(outputs["top"], self._train_matrix),
            "known_targets": float(known.mean()),
        }

    def example_ids(self, split: str) -> np.ndarray:
        """Of users and the item that is held out."""
        part, events = self.examples(split), self.events
        users = [events.users[user] for user in part.users]
        return digests.ids(users, [events.names[item] for item in part.target])

    def correctness(self, outputs: Mapping[str, np.ndarray], split: str) -> np.ndarray:
        """NDCG@10 of each user."""
        return ndcg(outputs["rank"]).astype(np.float32)

    def figures(
        self,
        statistics: Mapping[str, Any],
        outputs: Mapping[str, np.ndarray],
        split: str,
        attention: Mapping[str, np.ndarray],
    ) -> list[Figure]:
        """What longer lists would hold, and some users' recommendations with their reasons."""
        ranks = outputs["rank"]
        lengths = [length for length in _LENGTHS if length <= self.events.num_items]
        rates = [float(np.mean(ranks <= length)) for length in lengths]
        drawn: list[Figure] = [
            Curves("share of users whose next item is in the list", "items in the list",
                   {split: (lengths, rates)})
        ]  # fmt: skip
        held, titles = self.examples(split), self.events.titles
        for index in range(min(_SHOWN, len(held))):
            history = held.history(index)
            top = [item for item in outputs["top"][index].tolist() if item >= 0]
            own = {name: value[index] for name, value in attention.items() if len(value) > index}
            drawn.append(
                Recommendations(
                    f"user {self.events.users[held.users[index]]}",
                    [titles[item] for item in history[::-1][:_PAST]],
                    [titles[item] for item in top],
                    [self._why(own, rank, history) for rank in range(len(top))],
                    titles[held.target[index]],
                )
            )
        return drawn

    def _why(
        self, reasons: Mapping[str, np.ndarray], rank: int, history: np.ndarray
    ) -> list[tuple[str, float]]:
        """The greatest reasons of one user's item at a rank, with their shares."""
        if "reason_items" in reasons:
            latest = history[-self.data.max_length :]
            called = [self.events.titles[item] for item in latest]
            shares = reasons["reason_items"][rank][: len(latest)]
        elif "reason_neighbours" in reasons:
            users = reasons["reason_neighbour_ids"].tolist()
            called = [f"user {self.events.users[user]}" for user in users]
            shares = reasons["reason_neighbours"][rank]
        else:
            return []
        order = np.argsort(-shares, kind="stable")[:_REASONS]
        return [(called[place], round(float(shares[place]), 3)) for place in order if shares[place]]

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """See `tasks.recommendation.baselines`; fitted on train and validation."""
        fitted = Baselines(self.events, self.examples("validation"), self.examples("test"))
        return {name: functools.partial(fitted.metrics, name) for name in fitted.names}

    # ------------------------------------------------------------------ predict

    @functools.cached_property
    def _read(self) -> Callable[[str], Question]:
        # Answers are read as the questions were: once is enough.
        return functools.lru_cache(maxsize=4096)(Reader(self.events))

    def inputs(self, raw: Sequence[str]) -> Questions:
        """Users of the data or titles; see `tasks.recommendation.processor.Reader`."""
        return Questions([self._read(text) for text in raw], self.events, self.data)

    def describe(
        self, raw: Sequence[str], outputs: Mapping[str, np.ndarray]
    ) -> list[dict[str, Any]]:
        """The ten best items that were not had, each with its reasons; the most popular ones where
        nothing is known of who asks, which is told.
        """
        popular = np.argsort(-self.events.popularity(self._with_validation), kind="stable")
        answers = []
        for index, text in enumerate(raw):
            question, cold = self._read(text), False
            own = {name: value[index] for name, value in outputs.items()}
            listed = [
                {
                    **self._item(item),
                    "score": round(float(own["top_scores"][rank]), 4),
                    "because": [
                        {"what": what, "share": share}
                        for what, share in self._why(own, rank, question.history)
                    ],
                }
                for rank, item in enumerate(own["top"].tolist())
                if item >= 0
            ]
            if not len(question.history):
                cold, listed = True, [self._item(item) for item in popular[:TOP].tolist()]
            answers.append(
                {
                    "input": text,
                    "cold": cold,
                    "unknown": dict(question.unknown),
                    "recommendations": listed,
                    "text": _line(question, listed, cold),
                }
            )
        return answers

    def _item(self, item: int) -> dict[str, str]:
        return {"item": self.events.names[item], "title": self.events.titles[item]}


def _line(question: Question, listed: Sequence[Mapping[str, Any]], cold: bool) -> str:
    """An answer for people."""
    notes = [
        f"{title!r} is no known title" + (f", did you mean {near!r}?" if near else "")
        for title, near in question.unknown.items()
    ]
    if cold and question.name is not None:
        notes.append(f"there is no user {question.name!r}")
    if cold:
        notes.append("nothing is known of who asks, so these are the most popular")
    shown = []
    for entry in listed:
        reasons = [f"{reason['what']} {reason['share']:.2f}" for reason in entry.get("because", ())]
        shown.append(entry["title"] + (f" [{', '.join(reasons[:1])}]" if reasons else ""))
    recommended = "; ".join(shown) or "nothing is left to recommend"
    return f"({'; '.join(notes)}) {recommended}" if notes else recommended


TASK = Recommendation
