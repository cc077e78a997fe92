"""The loss of a set of queries that each find an object or none (Carion et al. 2020, section 3.1).

Q queries, M places for objects, K classes. Boxes are shares here: middle y and x, height and width,
by the picture's own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tasks.detection.models import losses
from tasks.detection.ops.boxes import generalized_iou

Array = jax.Array


def to_normalized_cyxhw(boxes: Array, Y: int, X: int) -> Array:
    """Corners x1, y1, x2, y2 in pixels -> middle y and x, height and width as shares of Y and X."""
    x1, y1, x2, y2 = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    parts = (y1 + y2) / (2 * Y), (x1 + x2) / (2 * X), (y2 - y1) / Y, (x2 - x1) / X
    return jnp.stack(parts, axis=-1)


def to_xyxy(shares: Array, Y: int, X: int) -> Array:
    """The inverse of `to_normalized_cyxhw`."""
    y, x, height, width = jnp.moveaxis(shares, -1, 0)
    left, right = (x - width / 2) * X, (x + width / 2) * X
    return jnp.stack([left, (y - height / 2) * Y, right, (y + height / 2) * Y], axis=-1)


def hungarian_match(costs: Array, there: Array) -> tuple[Array, Array]:
    """The cheapest way to give each object a query of its own (Kuhn 1955).

    Args:
      costs: [Q, M], Q at least M.
      there: bool [M], which objects are there.

    Returns:
      number of each query's object, int [Q], any where it has none; and whether it has one, bool
      [Q].
    """
    Q = len(costs)
    # Objects that are not there cost the same everywhere and so change nothing; a cost that is not
    # finite would keep the search from ending.
    costs = jnp.where(there, jnp.nan_to_num(costs, nan=1e6, posinf=1e6, neginf=-1e6), 0)
    queries, objects = optax.assignment.hungarian_algorithm(costs)
    taken = jnp.zeros((Q,), bool).at[queries].set(there[objects])
    return jnp.zeros((Q,), jnp.int32).at[queries].set(objects.astype(jnp.int32)), taken


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
    """Losses of one picture after one layer (Carion et al. 2020, equations 1 and 2).

    Args:
      logits: [Q, 1 + K], no object first.
      boxes: [Q, 4], shares.
      true_boxes: [M, 4], shares.
      labels: int [M], -1 where there is no object.
      class_weight, box_weight, overlap_weight: weights of the three losses, in the matching too.
      no_object_weight: weight of the class "no object" in the classification loss.
    """
    there = labels >= 0
    # Any real box in the empty places, so that nothing is divided by nothing.
    true_boxes = jnp.where(there[:, None], true_boxes, 0.5)
    distances = jnp.sum(jnp.abs(boxes[:, None] - true_boxes), axis=-1)
    overlaps = generalized_iou(to_xyxy(boxes, 1, 1), to_xyxy(true_boxes, 1, 1))
    probabilities = jax.nn.softmax(logits)[:, jnp.maximum(labels, 0) + 1]
    costs = box_weight * distances - overlap_weight * overlaps - class_weight * probabilities
    objects, taken = hungarian_match(jax.lax.stop_gradient(costs), there)
    wanted = jnp.where(taken, labels[objects] + 1, 0)
    weights = jnp.where(taken, 1.0, no_object_weight)
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    count = jnp.sum(taken, dtype=logits.dtype)

    def of_taken(values: Array) -> Array:
        own = jnp.take_along_axis(values, objects[:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(taken, own, 0))

    return {
        "class": losses.LossTerm(class_weight * jnp.sum(weights * entropies), jnp.sum(weights)),
        "box": losses.LossTerm(box_weight * of_taken(distances), count),
        "overlap": losses.LossTerm(overlap_weight * of_taken(1 - overlaps), count),
    }
