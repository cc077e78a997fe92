"""What every recommendation model answers: scores of all items, their reasons, and a loss.

B users, S places of a history, I items, U users of the train split, R items asked about, k
neighbours, D model size. A batch has the fields of `tasks.recommendation.data`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
Batch = Mapping[str, Array]


class Kept(nnx.Variable):
    """What a model keeps of the train split beside its weights: saved with them, not trained."""


class Recommender(nnx.Module, abc.ABC):
    """Base of the models."""

    @abc.abstractmethod
    def scores(
        self, batch: Batch, *, return_weights: bool = False
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Scores of all items as the event after each history.

        Args:
          batch: examples; neither "target" nor "next" is read.
          return_weights: also return attention weights by name.

        Returns:
          float32 [B, I], items of the history not left out; or that and the weights, of which
          "items" [B, S] are over the places of "items", and "neighbours" [B, k] over the users
          "neighbour_ids" int32 [B, k].
        """

    @abc.abstractmethod
    def reasons(self, batch: Batch, items: Array) -> dict[str, Array]:
        """On what the scores of some items rest.

        Args:
          batch: examples.
          items: int [B, R].

        Returns:
          "items" [B, R, S], shares of the places of "items"; or "neighbours" [B, R, k] and
          "neighbour_ids" int32 [B, k], shares of users. Shares are at least 0 and sum to 1, or to
          0 where there is nothing to point at.
        """

    @abc.abstractmethod
    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Mean loss of the events to be predicted, rows by "weight", and further metrics.

        Args:
          batch: train examples.
          key: of dropout and of what is sampled.

        Returns:
          float32 [], and metrics by name.
        """


def is_event(items: Array) -> Array:
    """Which places hold an event: bool, as the items' shape."""
    return items >= 0


def known(items: Array) -> Array:
    """Items with 0 for padding, to look up rows that are not used."""
    return jnp.maximum(items, 0)


def last_places(items: Array) -> Array:
    """Where the latest event stands, int32 [B]; 0 for an empty history. items [B, S]."""
    return jnp.maximum(jnp.sum(is_event(items), axis=1, dtype=jnp.int32) - 1, 0)


def at_places(x: Array, places: Array) -> Array:
    """x [B, S, ...] at one place each, places int [B] -> [B, ...]."""
    return x[jnp.arange(len(x)), places]


def weighted_mean(values: Array, weights: Array) -> Array:
    """Σ w v / Σ w over all entries; 0 where all weights are 0."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-9)


def shares(contributions: Array) -> Array:
    """What speaks for something, as shares of the whole: max(c, 0) over its sum along the last
    axis, 0 where nothing does.
    """
    positive = jnp.maximum(contributions, 0)
    total = jnp.sum(positive, axis=-1, keepdims=True)
    return positive / jnp.where(total > 0, total, 1)
