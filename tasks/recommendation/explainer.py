"""Explanations of recommendations, with the items of the history as positions.

Items whose gate is 0 are removed from the history, and those whose gate is 1 are kept. The
explainer measures how this changes a score of the recommendation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tasks.explainer import AttentionPath, Description, Explainer, Subject, log_odds, repeated
from tasks.explanation import AttentionMap, Axis
from tasks.processor import Arrays


class RecommendationExplainer(Explainer):
    """Explains the log-odds of the first recommended item by the items of the history."""

    replacement = "nothing: items are removed from the history"
    quantity = "probability of the item among unseen items"
    differentiable = False

    def target(self, outputs: Arrays) -> dict[str, np.ndarray]:
        """Returns the first recommended "item", int [1]."""
        return {"item": np.maximum(outputs["top"][:, 0], 0)}

    def positions(self, inputs: Arrays) -> np.ndarray:
        """Returns True for items and False for padding, bool [S]."""
        return inputs["items"][0] >= 0

    def score(self, model: Any, inputs: Mapping[str, Any], gates: Any, target: Any) -> Any:
        """Computes the log-odds of the item among unseen items, for gated histories."""
        batch = {name: repeated(array, gates) for name, array in inputs.items()}
        kept = (gates > 0.5) & (batch["items"] >= 0)
        # Kept items move to the front, in the same order.
        order = jnp.argsort(~kept, axis=1, stable=True)
        count = jnp.sum(kept, axis=1, keepdims=True)
        real = jnp.arange(kept.shape[1]) < count
        items = jnp.take_along_axis(batch["items"], order, axis=1)
        ages = jnp.take_along_axis(batch["ages"], order, axis=1)
        # Ages are days before the latest item. If it is removed, they are shifted to the latest
        # kept item.
        latest = jnp.take_along_axis(ages, jnp.maximum(count - 1, 0), axis=1)
        batch["items"] = jnp.where(real, items, -1)
        batch["ages"] = jnp.where(real, ages - latest, 0)
        scores = model.scores(batch)
        seen = inputs["seen"][0]
        outside = jnp.where(seen >= 0, seen, scores.shape[1])
        scores = scores.at[:, outside].set(-jnp.inf, mode="drop")
        return log_odds(scores, target["item"])

    def attention_path(self, subject: Subject) -> AttentionPath | None:
        """Returns the attributions of the first item to the history, if the model has them."""
        weights = subject.attention.get("reason_items")
        if weights is None:
            return None
        return AttentionPath(weights[0][: int(self.positions(subject.inputs).sum())])

    def describe(self, subject: Subject) -> Description:
        """Returns history and recommended items, and the attributions of the model."""
        events, target, name = self.task.processor.events, None, subject.raw
        titles, users = events.titles, events.users
        if name is None:
            part = self.task.examples(subject.split)
            name = f"user:{part.names[subject.index]}"
            target = titles[part.target[subject.index]]
        history = subject.inputs["items"][0][self.positions(subject.inputs)].tolist()
        best = [item for item in subject.outputs["top"][0].tolist() if item >= 0]
        axes = {
            "history": Axis("item", [titles[item] for item in history]),
            "recommended": Axis("item", [titles[item] for item in best]),
        }
        maps, attention = [], subject.attention
        if "reason_items" in attention:
            weights = attention["reason_items"][: len(best), : len(history)]
            maps.append(AttentionMap("history", weights[None, None], "recommended", "history"))
        if "reason_neighbours" in attention:
            ids = attention["reason_neighbour_ids"].tolist()
            axes["users"] = Axis("user", [users[user] for user in ids])
            weights = attention["reason_neighbours"][: len(best)]
            maps.append(AttentionMap("similar users", weights[None, None], "recommended", "users"))
        first = titles[best[0]] if best else ""
        return Description(
            input=name,
            prediction=first,
            explained=f"log-odds of {first} among unseen items",
            axis="history",
            axes=axes,
            maps=maps,
            target=target,
            correct=None if target is None else target == first,
        )
