"""RoIAlign (He et al. 2017, section 3), by bilinear interpolation.

The four pixels around each sampling point are gathered from the map, or from the concatenated maps
of a pyramid. Interpolation by two matrix products per box took two to three times as long on a CPU.
This was measured with 64 to 128 boxes on maps of 64 x 64 to 8 x 8.

In shapes, Y and X are height and width of a map, C is the number of channels, and n the number of
boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes
from tasks.detection.ops.boxes import area

Array = jax.Array


def roi_align(
    features: Array,
    boxes: Array,
    scale: float,
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Array:
    """Pools each box to `size` x `size` bins.

    A bin is the mean of sampling_ratio² points on a regular grid. The value at a point is
    interpolated between the four nearest pixels. Border pixels are repeated for one pixel beyond
    the map; values further outside are 0. Gradients do not flow to the boxes, as in the paper.

    Args:
      features: feature map, [Y, X, C].
      boxes: [n, 4] in pixels of the image.
      scale: 1 / stride of the map, which converts pixels of the image to pixels of the map.
      size: number of bins along each side.
      sampling_ratio: number of sampling points per bin along each axis.
      aligned: whether pixel centers are at half-integers, which shifts boxes by -0.5 on the map.
        False is the method as first published: boxes are not shifted, and their sides are at least
        one pixel of the map.

    Returns:
      Pooled features, [n, size, size, C].

    Raises:
      ValueError: shapes do not fit, or size or sampling_ratio is below 1.
    """
    sizes = {"4": 4}
    shapes.expect("features", features, "Y X C", sizes)
    shapes.expect("boxes", boxes, "n 4", sizes)
    level = jnp.zeros(sizes["n"], jnp.int32)
    return _pooled([features], boxes, level, [scale], size, sampling_ratio, aligned)


def multilevel_roi_align(
    maps: Sequence[Array],
    boxes: Array,
    strides: Sequence[int],
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Array:
    """Applies `roi_align` to the pyramid level of each box (Lin et al. 2017, equation 1).

        level = ⌊canonical_level + log2(√area / canonical_size)⌋

    Level l is the map of stride 2^l. A level below the first or above the last map is replaced by
    the level of that map.

    Args:
      maps: feature maps by ascending stride, [Y_i, X_i, C] each.
      boxes: [n, 4] in pixels of the image.
      strides: strides of the maps: consecutive powers of 2.
      size, sampling_ratio, aligned: as for `roi_align`.
      canonical_size: √area in pixels of boxes that are assigned to canonical_level.
      canonical_level: level of boxes of that size.

    Returns:
      Pooled features, [n, size, size, C].

    Raises:
      ValueError: as for `roi_align`; or strides are not consecutive powers of 2.
    """
    if len(maps) != len(strides):
        raise ValueError(f"strides: got {len(strides)}, expected {len(maps)}, one for each map")
    sizes = {"4": 4}
    shapes.expect("boxes", boxes, "n 4", sizes)
    lowest = round(math.log2(strides[0]))
    if list(strides) != [2 ** (lowest + i) for i in range(len(strides))]:
        raise ValueError(f"strides: got {tuple(strides)}, expected consecutive powers of 2")
    level = box_level(boxes, lowest, len(maps), canonical_size, canonical_level)
    for number, features in enumerate(maps):
        sizes.pop("Y", None), sizes.pop("X", None)
        shapes.expect(f"maps[{number}]", features, "Y X C", sizes)
    scales = [1 / stride for stride in strides]
    return _pooled(maps, boxes, level, scales, size, sampling_ratio, aligned)


def box_level(
    boxes: Array, lowest: int, count: int, canonical_size: float, canonical_level: int
) -> Array:
    """Returns the index of the map from which each box is pooled.

    Args:
      boxes: [n, 4] in pixels of the image.
      lowest: level of the first map, whose stride is 2^lowest.
      count: number of maps.
      canonical_size, canonical_level: as for `multilevel_roi_align`.

    Returns:
      int32 [n] in [0, count).
    """
    scale = jnp.sqrt(area(boxes)) / canonical_size
    level = jnp.floor(canonical_level + jnp.log2(jnp.maximum(scale, 1e-6)) + 1e-6)
    return jnp.clip(level - lowest, 0, count - 1).astype(jnp.int32)


def mask_targets(
    instances: Array,
    objects: Array,
    boxes: Array,
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Array:
    """Computes the targets of the mask head: `roi_align` of the mask of each box's object.

    Args:
      instances: int [Y, X], k + 1 at pixels of object k, 0 at pixels without an object.
      objects: int [n], index of the object of each box, or -1 for a box without an object, whose
        targets are 0.
      boxes: [n, 4] in pixels.
      size, sampling_ratio, aligned: as for `roi_align`.

    Returns:
      float32 [n, size, size] in [0, 1], the fraction of each bin that the object covers.

    Raises:
      ValueError: shapes do not fit.
    """
    sizes = {"4": 4}
    shapes.expect("instances", instances, "Y X", sizes)
    shapes.expect("objects", objects, "n", sizes)
    shapes.expect("boxes", boxes, "n 4", sizes)
    rows, columns = (
        _points(boxes[:, axis], boxes[:, axis + 2], side, size, sampling_ratio, aligned)
        for axis, side in ((1, sizes["Y"]), (0, sizes["X"]))
    )
    objects = objects.astype(jnp.int32)[:, None, None]
    covered = 0.0
    for y, weight_y in rows:
        for x, weight_x in columns:
            mine = instances[y[:, :, None], x[:, None]].astype(jnp.int32) == objects + 1
            covered = covered + mine * weight_y[:, :, None] * weight_x[:, None]
    return _mean(jnp.where(objects >= 0, covered, 0)[..., None], size)[..., 0]


def _pooled(
    maps: Sequence[Array],
    boxes: Array,
    level: Array,
    scales: Sequence[float],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Array:
    """Pools each box from the map of its level, with one gather from the concatenated maps."""
    height, width = (
        jnp.array([features.shape[axis] for features in maps])[level] for axis in (0, 1)
    )
    first = np.cumsum([0] + [features.shape[0] * features.shape[1] for features in maps])[:-1]
    pixels = jnp.concatenate([features.reshape(-1, features.shape[-1]) for features in maps])
    boxes = jax.lax.stop_gradient(boxes) * jnp.asarray(scales, boxes.dtype)[level][:, None]
    rows, columns = (
        _points(boxes[:, axis], boxes[:, axis + 2], side, size, sampling_ratio, aligned)
        for axis, side in ((1, height), (0, width))
    )
    start = jnp.asarray(first, jnp.int32)[level][:, None, None]
    result = 0.0
    for y, weight_y in rows:
        for x, weight_x in columns:
            index = start + y[:, :, None] * width[:, None, None] + x[:, None]
            weight = (weight_y[:, :, None] * weight_x[:, None])[..., None]
            result = result + pixels[index] * weight.astype(pixels.dtype)
    return _mean(result, size)


def _points(
    start: Array, end: Array, length: Array | int, size: int, sampling_ratio: int, aligned: bool
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Returns the two pixels next to each sampling point on an axis, and their weights.

    Args:
      start, end: coordinates of the two sides of each box on this axis, [n].
      length: number of pixels of the map on this axis; a number, or [n].
      size, sampling_ratio, aligned: as for `roi_align`.

    Returns:
      Index and weight of the lower pixel, and index and weight of the upper pixel; each is
      [n, points] with points = size · sampling_ratio.
    """
    for name, value in (("size", size), ("sampling_ratio", sampling_ratio)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    points = size * sampling_ratio
    side = end - start if aligned else jnp.maximum(end - start, 1)
    offset = 0.5 if aligned else 0.0
    length = jnp.broadcast_to(length, start.shape)[:, None]
    at = start[:, None] - offset + side[:, None] * (jnp.arange(points) + 0.5) / points
    inside = (at >= -1) & (at <= length)
    at = jnp.clip(at, 0, length - 1)
    low = jnp.floor(at)
    part = at - low
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, length - 1)
    return (low, jnp.where(inside, 1 - part, 0)), (high, jnp.where(inside, part, 0))


def _mean(values: Array, size: int) -> Array:
    """Averages the points of each bin: [n, points, points, C] -> [n, size, size, C]."""
    n, points, _, channels = values.shape
    ratio = points // size
    return values.reshape(n, size, ratio, size, ratio, channels).mean(axis=(2, 4))
