"""Set prediction loss of DETR (Carion et al. 2020, section 3.1).

In shapes, Q is the number of queries, M the number of objects including padding, and K the number
of classes. Boxes are normalized: center y and x, height and width, as fractions of the height and
width of the image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tasks.common.losses import cross_entropy
from tasks.detection.models import losses
from tasks.detection.ops.boxes import generalized_iou

Array = jax.Array


def to_normalized_cyxhw(boxes: Array, Y: int, X: int) -> Array:
    """Converts boxes (x1, y1, x2, y2) in pixels to normalized boxes (y, x, height, width).

    Args:
      boxes: [..., 4].
      Y, X: height and width of the image.

    Returns:
      float32 [..., 4]; y and x are those of the center.
    """
    x1, y1, x2, y2 = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    parts = (y1 + y2) / (2 * Y), (x1 + x2) / (2 * X), (y2 - y1) / Y, (x2 - x1) / X
    return jnp.stack(parts, axis=-1)


def to_xyxy(normalized: Array, Y: int, X: int) -> Array:
    """Converts normalized boxes to boxes (x1, y1, x2, y2); inverts `to_normalized_cyxhw`."""
    y, x, height, width = jnp.moveaxis(normalized, -1, 0)
    left, right = (x - width / 2) * X, (x + width / 2) * X
    return jnp.stack([left, (y - height / 2) * Y, right, (y + height / 2) * Y], axis=-1)


def hungarian_match(costs: Array, real: Array) -> tuple[Array, Array]:
    """Matches each object with a different query at minimum total cost (Kuhn 1955).

    Args:
      costs: cost of each pair of a query and an object, [Q, M], with Q at least M.
      real: bool [M]; False for padding.

    Returns:
      Index of each query's object, int [Q], arbitrary for unmatched queries; and whether the query
      is matched, bool [Q].
    """
    Q = len(costs)
    # Padding has the same cost for all queries, so it does not affect the matching. With infinite
    # or NaN costs the search would not terminate.
    costs = jnp.where(real, jnp.nan_to_num(costs, nan=1e6, posinf=1e6, neginf=-1e6), 0)
    queries, objects = optax.assignment.hungarian_algorithm(costs)
    matched = jnp.zeros((Q,), bool).at[queries].set(real[objects])
    return jnp.zeros((Q,), jnp.int32).at[queries].set(objects.astype(jnp.int32)), matched


def set_losses(
    logits: Array,
    boxes: Array,
    true_boxes: Array,
    labels: Array,
    *,
    class_weight: float,
    box_weight: float,
    overlap_weight: float,
    no_object_weight: float,
) -> dict[str, losses.LossTerm]:
    """Computes the losses of one image at one decoder layer (Carion et al. 2020, equations 1, 2).

    Args:
      logits: class logits, [Q, 1 + K], "no object" first.
      boxes: predicted boxes, [Q, 4], normalized.
      true_boxes: true boxes, [M, 4], normalized.
      labels: true classes, int [M], -1 for padding.
      class_weight, box_weight, overlap_weight: weights of the losses, and of the matching costs.
      no_object_weight: weight of the class "no object" in the classification loss.
    """
    real = labels >= 0
    # Padding is replaced by an arbitrary box to avoid 0 / 0.
    true_boxes = jnp.where(real[:, None], true_boxes, 0.5)
    distances = jnp.sum(jnp.abs(boxes[:, None] - true_boxes), axis=-1)
    overlaps = generalized_iou(to_xyxy(boxes, 1, 1), to_xyxy(true_boxes, 1, 1))
    probabilities = jax.nn.softmax(logits)[:, jnp.maximum(labels, 0) + 1]
    costs = box_weight * distances - overlap_weight * overlaps - class_weight * probabilities
    objects, matched = hungarian_match(jax.lax.stop_gradient(costs), real)
    targets = jnp.where(matched, labels[objects] + 1, 0)
    weights = jnp.where(matched, 1.0, no_object_weight)
    entropies = cross_entropy(logits, targets)
    count = jnp.sum(matched, dtype=logits.dtype)

    def of_matched(values: Array) -> Array:
        own = jnp.take_along_axis(values, objects[:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(matched, own, 0))

    return {
        "class": losses.LossTerm(class_weight * jnp.sum(weights * entropies), jnp.sum(weights)),
        "box": losses.LossTerm(box_weight * of_matched(distances), count),
        "overlap": losses.LossTerm(overlap_weight * of_matched(1 - overlaps), count),
    }
