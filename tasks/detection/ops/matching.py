"""Matching of anchors or proposals with objects, and their sampling for losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from attention import shapes

Array = jax.Array

BACKGROUND = -1
BETWEEN = -2


def match(
    iou: Array, valid: Array, high: float, low: float, allow_low_quality: bool = False
) -> Array:
    """Matches each anchor with an object (Ren et al. 2015, section 3.1.2).

    An anchor is matched with the object of largest IoU if this IoU is at least `high`. If it is
    below `low`, the anchor is background; between `low` and `high` the anchor is neither. With
    `allow_low_quality`, the anchors that have the largest IoU with an object, ties included, are
    always matched. Each of these anchors is matched with the object with which it has the largest
    IoU.
    Objects that overlap no anchor have no match.

    Args:
      iou: IoU of each pair, [objects, anchors].
      valid: bool [objects], False for padding.
      high: minimum IoU of positive anchors.
      low: IoU below which an anchor is background; at most `high`.
      allow_low_quality: whether to match the best anchors of each object in any case; True for
        anchors, False for proposals.

    Returns:
      int32 [anchors]: index of the matched object; BACKGROUND; or BETWEEN for an anchor that is
      neither matched nor background.

    Raises:
      ValueError: shapes do not fit, or low > high.
    """
    sizes: dict[str, int] = {}
    shapes.expect("iou", iou, "objects anchors", sizes)
    shapes.expect("valid", valid, "objects", sizes)
    if low > high:
        raise ValueError(f"low: got {low}, expected at most high, {high}")
    iou = jnp.where(valid[:, None], iou, -1)
    best = iou.max(axis=0)
    owner = iou.argmax(axis=0).astype(jnp.int32)
    matches = jnp.where(best >= high, owner, jnp.where(best >= low, BETWEEN, BACKGROUND))
    if allow_low_quality:
        greatest = iou.max(axis=1, keepdims=True)
        rescued = ((iou == greatest) & (greatest > 0)).any(axis=0)
        matches = jnp.where(rescued, owner, matches)
    return matches.astype(jnp.int32)


def sample(
    matches: Array, key: Array, count: int, positive_fraction: float
) -> tuple[Array, Array, Array]:
    """Samples anchors with a limited fraction of positives (Girshick 2015, section 2.3).

    Of n positives, min(n, ⌊count · positive_fraction⌋) are sampled. They come first in the result;
    sampled background anchors follow.

    Args:
      matches: int [anchors], as returned by `match`.
      key: random key of the sampling.
      count: number of samples.
      positive_fraction: maximum fraction of positives, in [0, 1].

    Returns:
      indices: int32 [count], indices of anchors. No anchor occurs twice where `valid` is True.
      is_positive: bool [count], True for anchors that match an object.
      valid: bool [count]; False for the remaining positions if there are too few anchors.

    Raises:
      ValueError: count or positive_fraction is out of range.
    """
    shapes.expect("matches", matches, "anchors", {})
    if count < 1:
        raise ValueError(f"count: got {count}, expected at least 1")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction: got {positive_fraction}, expected a number in [0, 1]")
    most = int(count * positive_fraction)
    drawn = jax.random.uniform(key, matches.shape)
    positives = _drawn(drawn, matches >= 0, most)
    negatives = _drawn(drawn, matches == BACKGROUND, count)
    # In the result, positives come first, and negative i has the index i + number of positives.
    number = (positives >= 0).sum()
    indices = jnp.arange(count)
    is_positive = indices < number
    padding = jnp.full(count, -1, jnp.int32)
    positives = padding.at[:most].set(positives)
    chosen = jnp.where(is_positive, positives, negatives[jnp.maximum(indices - number, 0)])
    return jnp.maximum(chosen, 0), is_positive, chosen >= 0


def _drawn(drawn: Array, eligible: Array, count: int) -> Array:
    """Returns up to `count` random eligible indices, int32 [count], padded with -1."""
    most = min(count, drawn.shape[0])
    values, indices = jax.lax.top_k(jnp.where(eligible, drawn, -1), most)
    indices = jnp.where(values >= 0, indices, -1).astype(jnp.int32)
    return jnp.pad(indices, (0, count - most), constant_values=-1)
