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


class Buffer(nnx.Variable):
    """What a model keeps of the train split beside its weights: saved with them, not trained."""


class Recommender(nnx.Module, abc.ABC):
    """Base of the models."""

    @abc.abstractmethod
    def scores(self, batch: Batch) -> Array:
        """Scores of all items as the event after each history.

        Args:
          batch: examples; neither "target" nor "next" is read.

        Returns:
          float32 [B, I], items of the history not left out.
        """

    @abc.abstractmethod
    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
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


def safe_ids(items: Array) -> Array:
    """Items with 0 for padding, to look up rows that are not used."""
    return jnp.maximum(items, 0)


def last_positions(items: Array) -> Array:
    """Where the latest event stands, int32 [B]; 0 for an empty history. items [B, S]."""
    return jnp.maximum(jnp.sum(is_event(items), axis=1, dtype=jnp.int32) - 1, 0)


def gather_positions(x: Array, places: Array) -> Array:
    """x [B, S, ...] at one place each, places int [B] -> [B, ...]."""
    return x[jnp.arange(len(x)), places]


def events(items: Array, following: Array) -> Array:
    """Histories and what comes after each: int [B, S] and [B] -> [B, S + 1]."""
    wide = jnp.pad(items, ((0, 0), (0, 1)), constant_values=-1)
    return wide.at[jnp.arange(len(items)), jnp.sum(is_event(items), axis=1)].set(following)


def sample_positions(key: Array, following: Array, count: int) -> tuple[Array, Array, Array]:
    """Places that a step learns from, drawn evenly, with repeats, from those that have a next item.

    Args:
      key: of `jax.random`.
      following: "next", int [B, S].
      count: T.

    Returns:
      Places int32 [B, T]; what came next there, int [B, T]; and weights [B, 1], so that rows with
      fewer than T such places count for as much as they have.
    """
    some = jnp.sum(is_event(following), axis=1)[:, None]
    drawn = (jax.random.uniform(key, (len(following), count)) * some).astype(jnp.int32)
    places = jnp.clip(drawn, 0, jnp.maximum(some - 1, 0))
    targets = jnp.take_along_axis(following, places, axis=1)
    return places, targets, jnp.minimum(some, count).astype(jnp.float32)


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
