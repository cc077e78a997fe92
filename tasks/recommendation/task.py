"""Recommendation of the next item for each user, with leave-one-out evaluation.

In shapes, B is the number of users of a batch, S the number of positions of a history, R the number
of recommended items, and k the number of similar users."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.sparse import csr_matrix

from tasks.answers import AnswerOptions
from tasks.common.backbones.transformer import SHARDING_RULES
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import check_splits
from tasks.common.data.summary import row_codes, segment_codes
from tasks.common.errors import UserError, check_max_length
from tasks.common.metrics.descriptions import fraction, lower
from tasks.figures import Curves, Figure, Recommendations, SplitResults
from tasks.recommendation import models
from tasks.recommendation.baselines import Baselines
from tasks.recommendation.data import DataConfig, load
from tasks.recommendation.explainer import RecommendationExplainer
from tasks.recommendation.labeled_files import FileDataset
from tasks.recommendation.metrics import TOP, list_metrics, ndcg, ranked, ranking_metrics
from tasks.recommendation.models.base import Recommender
from tasks.recommendation.processor import RecommendationProcessor
from tasks.recommendation.sequences import RecommendationDataset
from tasks.recommendation.user_files import OWN_DATA
from tasks.task import Arrays, Axes, Batch, Columns, ExamplePrediction, Task

# Number of items of the history in figures.
_PAST = 8
# List lengths of the hit-rate curve.
_LENGTHS = (1, 2, 5, 10, 20, 50, 100)


class Recommendation(Task):
    """Scoring of all items as the next item of a user, given the user's items in order.

    In leave-one-out evaluation, the last item of each user is ranked among all items that the user
    has not seen before. With `config.training.refit`, the test model is also trained on the
    validation events.
    """

    data_config = DataConfig
    model_configs = models.MODEL_CONFIGS
    processor_type = RecommendationProcessor
    own_data = OWN_DATA
    primary_metric = "ndcg_at_10"
    drawn_examples = 6
    table_metrics = ("ndcg_at_10", "hr_at_10", "mrr", "coverage", "diversity")
    metric_table: ClassVar = {
        "ndcg_at_10": fraction("1 / log2(1 + rank) of the next item, 0 beyond rank 10"),
        "hr_at_10": fraction("users whose next item is among the first 10 of all unseen items"),
        "mrr": fraction("1 / rank of the next item"),
        "coverage": fraction("items that are in the first 10 of at least one user"),
        "diversity": fraction("1 - cosine of the user sets of two items, mean over a list's pairs"),
        "known_targets": fraction("next items that occur in the train split", None),
        "loss": lower("loss of the model's objective", "nats per event"),
    }
    sharding_rules = SHARDING_RULES
    baseline_version = 2
    answer_options: ClassVar[dict[str, str | None]] = {
        "top_k": None,
        "threshold": "scores of items are not probabilities",
    }

    # ------------------------------------------------------------------ construction

    @classmethod
    def check(cls, data: DataConfig, model: Any) -> None:
        """Checks that the model's maximum length is at least the length of the sequences."""
        longest = getattr(model, "max_length", None)
        check_max_length(longest, data.max_length, f"config.data.max_length={data.max_length}")

    @classmethod
    def load(cls, data: DataConfig, paths: Paths) -> RecommendationDataset:
        """Reads the events and checks the splits."""
        dataset = RecommendationDataset(load(data, paths), data)
        check_splits(f"config.data: {data.path or data.name}", dataset.summary())
        return dataset

    @classmethod
    def fit(
        cls, dataset: RecommendationDataset, data: DataConfig, model: Any, paths: Paths
    ) -> RecommendationProcessor:
        """Builds the processor with the events of all users."""
        return RecommendationProcessor(data, model, dataset.events, dataset.with_validation)

    def with_file(self, file: str, images: str | None = None) -> Task:
        """Reads a file of events, see `tasks.recommendation.labeled_files.FileUsers`."""
        processor = self.processor
        dataset = FileDataset(file, processor.events, self.data, processor.with_validation)
        return self._with_dataset(dataset)

    def columns(self, split: str) -> Columns:
        """Returns the history of each user, up to the split's last event, for the data summary.

        All splits have the same users, so histories of different splits are not compared.
        """
        events = self.dataset.events
        ends, users = events.train_ends(self.dataset.with_validation), np.arange(events.num_users)
        if split != "train":
            users, ends = self.examples(split).users, self.examples(split).end + 1
        else:
            users = np.flatnonzero(ends - events.starts[:-1] > 1)
            ends = ends[users]
        starts = events.starts[users]
        return Columns(
            len(users),
            codes=(segment_codes(row_codes(events.items), starts, ends), None),
            unit="users",
            name=lambda index: f"user {events.users[users[index]]}",
            sizes={"events of a user": ends - starts},
            facts={
                "data": f"{len(events.items):,} events of {events.num_users:,} users with "
                f"{events.num_items:,} items"
            },
            shares=False,
        )

    def with_validation(self) -> Recommendation:
        """Returns the task with the validation events added to the training split."""
        dataset = RecommendationDataset(self.dataset.events, self.data, True)
        processor = self.fit(dataset, self.data, self.model, None)
        return Recommendation(self.data, self.model, processor, dataset)

    @property
    def buckets(self) -> list[int] | None:
        """Lengths to which sequences are padded, ascending; None if all have `max_length`."""
        return self.data.buckets

    # ------------------------------------------------------------------ objective

    def build_model(self, rngs: nnx.Rngs) -> Recommender:
        """Builds the model with the co-occurrence counts of the training split.

        Without a data set the counts are 0 until they are restored from a checkpoint.
        """
        events = self.processor.events
        if self.dataset is None:
            matrix = csr_matrix((events.num_users, events.num_items), dtype=np.float32)
        else:
            matrix = self.dataset.train_matrix
        try:
            return models.build(self.model, events.num_items, events.features, matrix, rngs)
        except ValueError as error:
            raise UserError(f"config.model.{error}") from error

    def loss(
        self, model: Recommender, batch: Batch, dropout_key: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Computes the loss of the model; see `Recommender.loss`."""
        return model.loss(batch, dropout_key)

    def evaluate(self, model: Recommender, batch: Batch) -> tuple[dict, dict]:
        """Ranks the target of each user among the unseen items.

        Returns:
          The statistic "users", which is the number of users; and the outputs of `ranked`.
        """
        found = ranked(model.scores(batch), batch["seen"], batch["target"])
        return {"users": jnp.sum(batch["weight"])}, found

    def predict(
        self, model: Recommender, inputs: Batch, *, fast: bool = False
    ) -> dict[str, jax.Array]:
        """Finds the best items of each user, with their scores and attributions.

        Returns:
          The best items and their scores, see `ranked`. The attributions are `reason_items`
          [B, R, S]; or `reason_neighbours` [B, R, k] and `reason_neighbour_ids`; see
          `Recommender.attributions`. The terms of the scores are `part_<name>` [B, R]; see
          `Recommender.score_parts`.
        """
        found = ranked(model.scores(inputs), inputs["seen"], count=self.options.top_k or TOP)
        items = jnp.maximum(found["top"], 0)
        parts = model.score_parts(inputs, items)
        found |= {f"part_{name}": value for name, value in parts.items()}
        return found | self._attributions(model, inputs, found["top"])

    def attention(self, model: Recommender, inputs: Batch) -> dict[str, jax.Array]:
        """Returns the attributions of the best items."""
        top = ranked(model.scores(inputs), inputs["seen"])["top"]
        return self._attributions(model, inputs, top)

    def _attributions(
        self, model: Recommender, inputs: Batch, top: jax.Array
    ) -> dict[str, jax.Array]:
        found = model.attributions(inputs, jnp.maximum(top, 0))
        return {f"reason_{name}": value for name, value in found.items()}

    # ------------------------------------------------------------------ on the host

    @property
    def compiles_options(self) -> bool:
        """True with the option `top_k`, because it sets the length of the lists of `predict`."""
        return self.options.top_k is not None

    def answers(self, raw: Sequence[str], outputs: Arrays) -> list[dict[str, Any]]:
        """Returns the result of `RecommendationProcessor.decode`, with lists of `top_k` items."""
        return self.processor.decode(raw, outputs, self.options.top_k or TOP)

    @classmethod
    def chosen(cls, answer: dict[str, Any], options: AnswerOptions) -> dict[str, Any]:
        """Keeps the first `top_k` items of the list in an answer of an exported model."""
        if options.top_k is None:
            return answer
        if options.top_k > TOP:
            raise UserError(
                f"--top_k: got {options.top_k}, expected at most {TOP}, because an export lists "
                f"{TOP} items; give --workdir instead of the export"
            )
        listed = answer["recommendations"][: options.top_k]
        shown = "; ".join(entry["title"] for entry in listed)
        return {**answer, "recommendations": listed, "text": shown}

    @classmethod
    def rows(cls, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns one row for each item, best first, with its score, reasons and score terms.

        Without a history the items are the most popular ones, and have no score.
        """
        found = []
        for rank, entry in enumerate(answer["recommendations"], 1):
            reasons = [f"{each['what']} {each['share']}" for each in entry.get("because", ())]
            row = {"rank": rank, "item": entry["item"], "title": entry["title"]}
            row |= {"score": entry.get("score"), "because": "; ".join(reasons)}
            parts = {f"part_{name}": value for name, value in entry.get("parts", {}).items()}
            found.append({**row, **parts})
        return found

    def metrics(self, statistics: Arrays, outputs: Arrays, split: str) -> dict[str, float]:
        """Returns the metrics of `tasks.recommendation.metrics`, and `known_targets`.

        `known_targets` is the fraction of targets that occur in the training split. It is an upper
        bound of the hit rate of any recommender that recommends only items of the training split.
        """
        if split == "train":
            raise UserError(
                "--split: got train, expected validation or test, because only unseen items are "
                "ranked"
            )
        popularity = self.processor.events.popularity(self.processor.with_validation)
        known = popularity[self.examples(split).target] > 0
        return {
            **ranking_metrics(outputs["rank"]),
            **list_metrics(outputs["top"], self.dataset.train_matrix),
            "known_targets": float(known.mean()),
        }

    def example_ids(self, split: str) -> np.ndarray:
        """Returns for each example a hash of its user and held-out item.

        In the training split it is a hash of the sequence.
        """
        if split == "train":
            return super().example_ids(split)
        part, events = self.examples(split), self.processor.events
        return digests.ids(part.names, [events.names[item] for item in part.target])

    def example_scores(self, outputs: Arrays, split: str) -> np.ndarray:
        """Returns NDCG@10 of each user."""
        return ndcg(outputs["rank"]).astype(np.float32)

    def example_predictions(self, outputs: Arrays, split: str) -> list[ExamplePrediction]:
        """Returns for each user the title of the held-out item, and those of the best items.

        The input is the name of the user. The best items are listed from the best one on.
        """
        part, events = self.examples(split), self.processor.events
        rows = zip(part.names, part.target, outputs["top"].tolist(), strict=True)
        return [
            ExamplePrediction(
                f"user:{user}",
                events.titles[target],
                [events.titles[item] for item in top if item >= 0],
            )
            for user, target, top in rows
        ]

    def attention_axes(self, raw: str, outputs: Arrays, attention: Arrays) -> dict[str, Axes]:
        """Returns the labels of the axes: titles of items, and names of similar users."""
        titles, users = self.processor.events.titles, self.processor.events.users
        best = [titles[item] for item in outputs["top"][0].tolist() if item >= 0]
        latest = self.processor.history(raw)[-self.data.max_length :]
        neighbors = attention.get("reason_neighbour_ids", np.zeros(0, int)).tolist()
        names = [users[user] for user in neighbors]
        return {
            "reason_items": {"item": best, "history": [titles[item] for item in latest]},
            "reason_neighbours": {"item": best, "user": names},
            "reason_neighbour_ids": {"user": names},
        }

    def explainer(self) -> RecommendationExplainer:
        """Returns the explainer, which attributes predictions to items of the history."""
        return RecommendationExplainer(self)

    def figures(self, results: SplitResults) -> list[Figure]:
        """Returns figures of the hit rate by list length, and of recommendations for some users."""
        split, outputs = results.split, results.outputs
        ranks, events = outputs["rank"], self.processor.events
        lengths = [length for length in _LENGTHS if length <= events.num_items]
        rates = [float(np.mean(ranks <= length)) for length in lengths]
        drawn: list[Figure] = [
            Curves("fraction of users whose next item is in the list", "items in the list",
                   {split: (lengths, rates)})
        ]  # fmt: skip
        held, titles = self.examples(split), events.titles
        for row, example in enumerate(results.shown):
            index, history = example.index, held.history(example.index)
            top = [item for item in outputs["top"][index].tolist() if item >= 0]
            own = {name: value[row] for name, value in results.attention.items()}
            drawn.append(
                Recommendations(
                    results.caption(example, f"user {events.users[held.users[index]]}"),
                    [titles[item] for item in history[::-1][:_PAST]],
                    [titles[item] for item in top],
                    [self.processor.attributions(own, rank, history) for rank in range(len(top))],
                    titles[held.target[index]],
                )
            )
        return drawn

    @property
    def baseline_data(self) -> str:
        """Part of the baselines' cache key, set if they are fitted on the training split alone."""
        return "" if self.dataset.with_validation else "-train"

    def baselines(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Returns the baselines by name. A large data set has only the fast ones."""
        dataset = self.dataset
        held_out = self.examples("validation"), self.examples("test")
        fitted = Baselines(dataset.events, *held_out, with_validation=dataset.with_validation)
        return {name: functools.partial(fitted.metrics, name) for name in fitted.names}


TASK = Recommendation
