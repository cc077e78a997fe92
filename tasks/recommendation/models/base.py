"""Base class of recommendation models: scores of all items, their attributions, and a loss.

In shapes, B is the number of users of a batch, S the number of positions of a history, I the number
of items, U the number of users of the training split, R the number of items whose scores are
attributed, T the number of sampled positions, k the number of neighbors, and D the model size. A
batch has the fields of the examples in `tasks.recommendation.sequences`.
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
    """Non-trained array computed from the training split, and saved with the parameters."""


class Recommender(nnx.Module, abc.ABC):
    """Base class of recommendation models."""

    @abc.abstractmethod
    def scores(self, batch: Batch) -> Array:
        """Scores all items as the next event after each history.

        Args:
          batch: examples; "target" and "next" are ignored.

        Returns:
          Scores, float32 [B, I]; items of the history have scores too.
        """

    @abc.abstractmethod
    def attributions(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Attributes the scores of some items to the history or to users.

        Args:
          batch: examples.
          items: items whose scores are attributed, int [B, R].

        Returns:
          "items" [B, R, S], the fraction of the score that each position of the history
          contributes; or "neighbours" [B, R, k], the fraction that each similar user contributes,
          and "neighbour_ids" int32 [B, k]. Fractions are at least 0 and sum to 1, or to 0 without a
          history.
        """

    def score_parts(self, batch: Batch, items: Array) -> dict[str, Array]:
        """Splits the scores of some items into terms whose sum is the score.

        Args:
          batch: examples.
          items: items whose scores are split, int [B, R].

        Returns:
          Terms [B, R] by name; empty for a model whose scores are not sums.
        """
        return {}

    @abc.abstractmethod
    def loss(self, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Computes the mean loss of the next events, with the field "weight" as weights of rows.

        Args:
          batch: training examples.
          key: random key of dropout and sampling.

        Returns:
          Loss float32 [], and metrics by name.
        """


def is_event(items: Array) -> Array:
    """Returns True where `items` has an event, and False for padding."""
    return items >= 0


def safe_ids(items: Array) -> Array:
    """Replaces padding by 0, so that items index valid rows."""
    return jnp.maximum(items, 0)


def last_positions(items: Array) -> Array:
    """Returns the position of the latest event of `items` [B, S], int32 [B]; 0 if there is none."""
    return jnp.maximum(jnp.sum(is_event(items), axis=1, dtype=jnp.int32) - 1, 0)


def gather_positions(x: Array, positions: Array) -> Array:
    """Gathers one position of each row: x [B, S, ...] at positions int [B] gives [B, ...]."""
    # A gather with batch dimensions: XLA knows that rows are independent, and partitions them over
    # devices. Indexing under `vmap` also gives such a gather, but in a form that jax2onnx converts
    # wrongly.
    indices = jnp.expand_dims(positions, tuple(range(1, x.ndim)))
    return jnp.take_along_axis(x, indices, axis=1, mode="clip")[:, 0]


def events(items: Array, following: Array) -> Array:
    """Appends the following event to each history.

    Args:
      items: histories, int [B, S], padded with -1.
      following: next item of each history, int [B].

    Returns:
      int [B, S + 1].
    """
    wide = jnp.pad(items, ((0, 0), (0, 1)), constant_values=-1)
    ends = jnp.sum(is_event(items), axis=1)
    return jax.vmap(lambda row, end, item: row.at[end].set(item))(wide, ends, following)


def sample_positions(key: Array, following: Array, count: int) -> tuple[Array, Array, Array]:
    """Samples positions that have a next item, uniformly with replacement.

    Args:
      key: random key of `jax.random`.
      following: the field "next" of a batch, int [B, S], -1 for no next item.
      count: T, number of sampled positions.

    Returns:
      Positions int32 [B, T]; their next items, int [B, T]; and the weights of the rows in the loss,
      [B, 1]. The weight of a row is the smaller of T and its number of positions with a next item.
    """
    some = jnp.sum(is_event(following), axis=1)[:, None]
    drawn = (jax.random.uniform(key, (len(following), count)) * some).astype(jnp.int32)
    positions = jnp.clip(drawn, 0, jnp.maximum(some - 1, 0))
    targets = jnp.take_along_axis(following, positions, axis=1)
    return positions, targets, jnp.minimum(some, count).astype(jnp.float32)


def weighted_mean(values: Array, weights: Array) -> Array:
    """Computes Σ w v / Σ w over all entries of values v with weights w; 0 if all weights are 0."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1e-9)


def fractions(contributions: Array) -> Array:
    """Normalizes the positive part of contributions to sum to 1 along the last axis.

    The result is 0 if there is no positive contribution.
    """
    positive = jnp.maximum(contributions, 0)
    total = jnp.sum(positive, axis=-1, keepdims=True)
    return positive / jnp.where(total > 0, total, 1)
