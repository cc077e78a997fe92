"""Which anchors or proposals stand for which object, and which of them a loss looks at."""

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
    """The object that each anchor stands for (Ren et al. 2015, section 3.1.2).

    An anchor takes the object with which its IoU is greatest, where that is at least `high`; below
    `low` it is background, between the two it is neither. With `allow_low_quality` the anchors
    with which an object has its own greatest IoU, ties included, are never background or between:
    they keep the object with which their IoU is greatest, so that every object that meets an anchor
    has one. (An object that meets none leaves the anchors as they are.)

    Args:
      iou: [objects, anchors].
      valid: bool [objects], False for rows of padding.
      high: IoU from which on an anchor is positive.
      low: IoU below which it is background; at most `high`.
      allow_low_quality: see above; for anchors, not for proposals.

    Returns:
      int32 [anchors]: number of the object, BACKGROUND or BETWEEN.

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
    matches: Array, key: Array, count: int, positive_share: float
) -> tuple[Array, Array, Array]:
    """Some anchors at random, of which a share at most are positive (Girshick 2015, section 2.3).

    There are min(positives, ⌊count · positive_share⌋) positives, first in the result; as many of
    background as there are fill the rest.

    Args:
      matches: int [anchors], as `match` gives.
      key: random key.
      count: how many.
      positive_share: in [0, 1].

    Returns:
      indices: int32 [count] of anchors, each at most once among the valid ones.
      is_positive: bool [count].
      valid: bool [count]; False where anchors did not suffice.

    Raises:
      ValueError: count or positive_share is out of range.
    """
    shapes.expect("matches", matches, "anchors", {})
    if count < 1:
        raise ValueError(f"count: got {count}, expected at least 1")
    if not 0 <= positive_share <= 1:
        raise ValueError(f"positive_share: got {positive_share}, expected one in [0, 1]")
    most = int(count * positive_share)
    drawn = jax.random.uniform(key, matches.shape)
    positives = _drawn(drawn, matches >= 0, most)
    negatives = _drawn(drawn, matches == BACKGROUND, count)
    # Positives first, then negatives, so that place i of the negatives is taken at i + positives.
    number = (positives >= 0).sum()
    places = jnp.arange(count)
    is_positive = places < number
    padding = jnp.full(count, -1, jnp.int32)
    positives = padding.at[:most].set(positives)
    chosen = jnp.where(is_positive, positives, negatives[jnp.maximum(places - number, 0)])
    return jnp.maximum(chosen, 0), is_positive, chosen >= 0


def _drawn(drawn: Array, eligible: Array, count: int) -> Array:
    """Up to `count` of the eligible at random: int32 [count], -1 from where there are no more."""
    most = min(count, drawn.shape[0])
    values, indices = jax.lax.top_k(jnp.where(eligible, drawn, -1), most)
    indices = jnp.where(values >= 0, indices, -1).astype(jnp.int32)
    return jnp.pad(indices, (0, count - most), constant_values=-1)
