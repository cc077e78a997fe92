"""Losses of detectors for one image, as sums and counts.

Sums and counts give the exact mean over a batch without its padding rows. In shapes, B is the batch
size, N the number of anchors, regions or queries, K the number of classes, and S the side of a
mask.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tasks.common.losses import cross_entropy

Array = jax.Array


class LossTerm(NamedTuple):
    """A term of a loss.

    Attributes:
      total: sum of the loss over the elements of an image that contribute to it, [].
      count: number by which the total is divided, [], after both are summed over a batch.
    """

    total: Array
    count: Array


def mean(term: LossTerm, real: Array) -> Array:
    """Computes Σ_b total_b / max(Σ_b count_b, 1) over the real rows of a batch.

    Args:
      term: total and count [B].
      real: bool [B], False for padding rows.
    """
    total = jnp.sum(jnp.where(real, term.total, 0))
    return total / jnp.maximum(jnp.sum(jnp.where(real, term.count, 0)), 1)


def smooth_l1(predictions: Array, targets: Array, beta: float = 1 / 9) -> Array:
    """Computes the smooth L1 loss of each element (Girshick 2015).

    It is 0.5 d² / β if |d| < β, else |d| - β / 2, for the difference d of prediction and target.
    Girshick uses β = 1, the code of Faster R-CNN uses β = 1 / 9.
    """
    distance = jnp.abs(predictions - targets)
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - beta / 2)


def objectness(logits: Array, positive: Array, counted: Array) -> LossTerm:
    """Computes binary cross-entropy of objectness (Ren et al. 2015, equation 1).

    Args:
      logits: objectness logits, float [N].
      positive: bool [N], True for anchors that match an object.
      counted: bool [N], True for anchors that contribute to the loss.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits, positive.astype(logits.dtype))
    return LossTerm(jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(counted, dtype=logits.dtype))


def boxes(deltas: Array, targets: Array, positive: Array, counted: Array) -> LossTerm:
    """Computes the smooth L1 loss of the deltas of positives (Ren et al. 2015, equation 1).

    The count of the term includes negatives, which have no box loss.

    Args:
      deltas: predicted deltas, float [N, 4].
      targets: target deltas, float [N, 4]; ignored if not positive.
      positive: bool [N], True for anchors or regions that match an object.
      counted: bool [N], True for anchors or regions that are counted.
    """
    positive = (positive & counted)[:, None]
    # Targets that do not count are replaced, because infinite ones would make the gradient NaN.
    losses = smooth_l1(deltas, jnp.where(positive, targets, 0))
    total = jnp.sum(jnp.where(positive, losses, 0))
    return LossTerm(total, jnp.sum(counted, dtype=deltas.dtype))


def classes(logits: Array, labels: Array, counted: Array) -> LossTerm:
    """Computes cross-entropy (Girshick 2015, equation 1).

    Args:
      logits: class logits, float [N, K].
      labels: true classes, int [N].
      counted: bool [N], True for elements that contribute to the loss.
    """
    losses = cross_entropy(logits, labels)
    return LossTerm(jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(counted, dtype=logits.dtype))


def masks(logits: Array, targets: Array, positive: Array) -> LossTerm:
    """Computes binary cross-entropy of masks (He et al. 2017, section 3).

    Args:
      logits: float [N, S, S], for the true class of each region.
      targets: true masks, [N, S, S], between 0 and 1.
      positive: bool [N], True for regions that match an object.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    per_region = jnp.mean(losses, axis=(1, 2))
    return LossTerm(
        jnp.sum(jnp.where(positive, per_region, 0)), jnp.sum(positive, dtype=logits.dtype)
    )
