"""Boxes (x1, y1, x2, y2) in pixels, where x2 - x1 is the width.

Functions take the float32 arrays of a single image, with static shapes; use `jax.vmap` for batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from attention import shapes

Array = jax.Array

# Maximum d_w and d_h in `decode`: a side grows at most by a factor of 62.5.
LARGEST_LOG_SCALE = math.log(1000 / 16)
# Sides are raised to this length in pixels before divisions and logarithms, because the sides of
# padding are 0.
LEAST_SIDE = 1e-3


def area(boxes: Array) -> Array:
    """Computes areas [...] of boxes [..., 4]; 0 if x2 < x1 or y2 < y1."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def iou(a: Array, b: Array) -> Array:
    """Computes the intersection over union of each box of `a` with each of `b`.

    Args:
      a: [n, 4].
      b: [m, 4].

    Returns:
      [n, m] in [0, 1]; 0 if both areas are 0.

    Raises:
      ValueError: shapes do not fit.
    """
    intersection, union = _intersection_and_union(a, b)
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def generalized_iou(a: Array, b: Array) -> Array:
    """Computes the generalized IoU (Rezatofighi et al. 2019, algorithm 1).

        GIoU = IoU - (C - U) / C

    C is the area of the smallest box that encloses both boxes, and U is the area of their union.

    Args:
      a: [n, 4].
      b: [m, 4].

    Returns:
      [n, m] in [-1, 1]; 0 if the enclosing box has no area.

    Raises:
      ValueError: shapes do not fit.
    """
    intersection, union = _intersection_and_union(a, b)
    low = jnp.minimum(a[:, None, :2], b[None, :, :2])
    high = jnp.maximum(a[:, None, 2:], b[None, :, 2:])
    enclosing = area(jnp.concatenate([low, high], axis=-1))
    ratio = jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)
    rest = (enclosing - union) / jnp.where(enclosing > 0, enclosing, 1)
    return jnp.where(enclosing > 0, ratio - rest, 0)


def _intersection_and_union(a: Array, b: Array) -> tuple[Array, Array]:
    shapes.expect("a", a, "n 4", {"4": 4})
    shapes.expect("b", b, "m 4", {"4": 4})
    low = jnp.maximum(a[:, None, :2], b[None, :, :2])
    high = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = area(jnp.concatenate([low, high], axis=-1))
    return intersection, area(a)[:, None] + area(b)[None] - intersection


def clip(boxes: Array, height: Array | float, width: Array | float) -> Array:
    """Clips boxes [..., 4] to an image of `height` x `width` pixels."""
    limit = jnp.stack([jnp.asarray(side, boxes.dtype) for side in (width, height) * 2])
    return jnp.clip(boxes, 0, limit)


def encode(reference: Array, boxes: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Encodes boxes as deltas from reference boxes (Ren et al. 2015, equation 2).

        d = (w_x (x - x_r) / W_r, w_y (y - y_r) / H_r, w_w log(W / W_r), w_h log(H / H_r))

    (x, y) is the center of a box, W and H are its width and height, and r marks the reference box.
    Sides below 0.001 pixels are raised to 0.001, so that the deltas of padding are finite.

    Args:
      reference: anchors or proposals, [..., 4].
      boxes: boxes to encode, [..., 4].
      weights: factors of the deltas, (w_x, w_y, w_w, w_h).

    Returns:
      Deltas d, [..., 4].
    """
    reference_center, reference_sides = _center_and_sides(reference)
    center, sides = _center_and_sides(boxes)
    scale = jnp.asarray(weights, boxes.dtype)
    reference_sides = jnp.maximum(reference_sides, LEAST_SIDE)
    shift = (center - reference_center) / reference_sides
    growth = jnp.log(jnp.maximum(sides, LEAST_SIDE) / reference_sides)
    return jnp.concatenate([shift, growth], axis=-1) * scale


def decode(deltas: Array, reference: Array, weights: Sequence[float] = (1, 1, 1, 1)) -> Array:
    """Decodes deltas from reference boxes; inverts `encode`.

    The log scales d_w / w_w and d_h / w_h (see `encode`) are clipped to at most log(1000 / 16).

    Args:
      deltas: deltas from the references, [..., 4].
      reference: anchors or proposals, [..., 4].
      weights: weights that were passed to `encode`.

    Returns:
      Boxes [..., 4], not clipped to the image.
    """
    center, sides = _center_and_sides(reference)
    deltas = deltas / jnp.asarray(weights, deltas.dtype)
    center = center + deltas[..., :2] * sides
    half = 0.5 * sides * jnp.exp(jnp.minimum(deltas[..., 2:], LARGEST_LOG_SCALE))
    return jnp.concatenate([center - half, center + half], axis=-1)


def _center_and_sides(boxes: Array) -> tuple[Array, Array]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides
