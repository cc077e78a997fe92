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
    """Applies greedy non-maximum suppression.

    In order of descending score, a box is kept unless its IoU with a kept box exceeds `threshold`.
    Boxes of equal score are taken in their given order. The flag k_j states whether box j is kept.
    All flags are updated at once until no flag changes:

        k_j <- valid_j and not any_{i before j} (k_i and IoU_ij > threshold)

    The only fixed point is the greedy result. The number of updates is the length of the longest
    chain of boxes in which each suppresses the next. It is usually far less than n. Time and memory
    are O(n²).

    Args:
      boxes: [n, 4].
      scores: [n], finite where valid.
      valid: bool [n]; a box with False is not kept and suppresses no other box.
      threshold: maximum IoU of two kept boxes.
      count: maximum number of results.

    Returns:
      indices: int32 [count], indices of the kept boxes by descending score, padded with 0.
      valid: bool [count], False for padding.

    Raises:
      ValueError: shapes do not fit.
    """
    return batched_nms(boxes, scores, jnp.zeros(scores.shape, jnp.int32), valid, threshold, count)


def batched_nms(
    boxes: Array, scores: Array, labels: Array, valid: Array, threshold: float, count: int
) -> tuple[Array, Array]:
    """Applies `nms` to each class separately.

    Args:
      boxes, scores, valid, threshold, count: as for `nms`.
      labels: class of each box, int [n].

    Returns:
      The results of `nms` for the boxes of all classes, by descending score.
    """
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
    (positions,) = jnp.nonzero(kept, size=count, fill_value=0)
    found = jnp.arange(count) < kept.sum()
    return jnp.where(found, order[positions], 0).astype(jnp.int32), found
