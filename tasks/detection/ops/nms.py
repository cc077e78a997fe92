"""Greedy non-maximum suppression with static shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from attention import shapes
from tasks.detection.ops.boxes import iou

Array = jax.Array


def nms(
    boxes: Array, scores: Array, valid: Array, threshold: float, count: int
) -> tuple[Array, Array]:
    """The boxes that greedy suppression keeps, best first.

    From the best score down, a box is kept unless its IoU with a box kept before it is greater than
    `threshold`; of equal scores the earlier box comes first. Instead of one box after another, all
    are judged at once by those that stand now, until nothing changes:

        k_j <- valid_j and not any_{i before j} (k_i and IoU_ij > threshold)

    whose one fixed point is the greedy answer. It takes as many rounds as the longest chain of
    boxes in which each decides on the next: a few, where one box after another would take
    n. Time and memory n².

    Args:
      boxes: [n, 4].
      scores: [n], finite where valid.
      valid: bool [n]; the others are neither kept nor suppress any.
      threshold: greatest IoU of two that are kept.
      count: how many to give at most.

    Returns:
      indices: int32 [count], by falling score; 0 where there are no more.
      valid: bool [count].

    Raises:
      ValueError: shapes do not fit.
    """
    return batched_nms(boxes, scores, jnp.zeros(scores.shape, jnp.int32), valid, threshold, count)


def batched_nms(
    boxes: Array, scores: Array, labels: Array, valid: Array, threshold: float, count: int
) -> tuple[Array, Array]:
    """`nms` in which only boxes of one class suppress each other; `labels` are int [n]."""
    sizes = {"4": 4}
    shapes.expect("boxes", boxes, "n 4", sizes)
    for name, array in (("scores", scores), ("labels", labels), ("valid", valid)):
        shapes.expect(name, array, "n", sizes)
    n = sizes["n"]
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
    ordered, classes, standing = boxes[order], labels[order], valid[order]
    before = jnp.arange(n)[:, None] < jnp.arange(n)[None]
    suppresses = (iou(ordered, ordered) > threshold) & before & (classes[:, None] == classes[None])

    def judge(kept):
        return standing & ~(suppresses & kept[:, None]).any(axis=0)

    kept, _ = jax.lax.while_loop(
        lambda state: state[1],
        lambda state: ((new := judge(state[0])), (new != state[0]).any()),
        (standing, jnp.array(True)),
    )
    (places,) = jnp.nonzero(kept, size=count, fill_value=0)
    found = jnp.arange(count) < kept.sum()
    return jnp.where(found, order[places], 0).astype(jnp.int32), found
