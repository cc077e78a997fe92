"""Losses of detectors for one picture, as sums and counts, so that a batch's mean is exact whatever
stands in its padding rows.

N anchors, regions or queries, K classes, M places for objects.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


class LossTerm(NamedTuple):
    """One term of a loss.

    Attributes:
      total: sum over what counts, [].
      count: by which the sum of a batch is divided, [].
    """

    total: Array
    count: Array


def mean(part: LossTerm, real: Array) -> Array:
    """Σ_b total_b / max(Σ_b count_b, 1) over the real rows of a batch.

    Args:
      part: total and count [B].
      real: bool [B].
    """
    total = jnp.sum(jnp.where(real, part.total, 0))
    return total / jnp.maximum(jnp.sum(jnp.where(real, part.count, 0)), 1)


def smooth_l1(predictions: Array, targets: Array, beta: float = 1 / 9) -> Array:
    """0.5 d² / β where |d| < β, else |d| - β / 2, with d their difference (Girshick 2015).

    Girshick has β = 1; Faster R-CNN's code 1 / 9.
    """
    distance = jnp.abs(predictions - targets)
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - beta / 2)


def objectness(logits: Array, positive: Array, counted: Array) -> LossTerm:
    """Binary cross-entropy of an object being there (Ren et al. 2015, equation 1).

    Args:
      logits: float [N].
      positive, counted: bool [N].
    """
    losses = optax.sigmoid_binary_cross_entropy(logits, positive.astype(logits.dtype))
    return LossTerm(jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(counted, dtype=logits.dtype))


def boxes(deltas: Array, targets: Array, positive: Array, counted: Array) -> LossTerm:
    """Smooth L1 of the box codes of positives, divided by all that counts (Ren et al. 2015,
    equation 1).

    Args:
      deltas: float [N, 4].
      targets: float [N, 4], of any value where not positive.
      positive, counted: bool [N].
    """
    positive = (positive & counted)[:, None]
    # What is not counted must not be infinite either, or its gradient is NaN.
    losses = smooth_l1(deltas, jnp.where(positive, targets, 0))
    total = jnp.sum(jnp.where(positive, losses, 0))
    return LossTerm(total, jnp.sum(counted, dtype=deltas.dtype))


def classes(logits: Array, labels: Array, counted: Array) -> LossTerm:
    """Cross-entropy (Girshick 2015, equation 1).

    Args:
      logits: float [N, K].
      labels: int [N].
      counted: bool [N].
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return LossTerm(jnp.sum(jnp.where(counted, losses, 0)), jnp.sum(counted, dtype=logits.dtype))


def masks(logits: Array, targets: Array, positive: Array) -> LossTerm:
    """Binary cross-entropy of each pixel of the true class' mask (He et al. 2017, section 3).

    Args:
      logits: float [N, S, S].
      targets: [N, S, S], between 0 and 1.
      positive: bool [N].
    """
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype))
    per_region = jnp.mean(losses, axis=(1, 2))
    return LossTerm(
        jnp.sum(jnp.where(positive, per_region, 0)), jnp.sum(positive, dtype=logits.dtype)
    )
