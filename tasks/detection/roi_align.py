"""Features of boxes: RoIAlign (He et al. 2017, section 3), by bilinear interpolation.

Interpolation is separable, and so is its mean over the points of a bin. A box is therefore two
small matrices, its rows' and its columns' weights over the map, and pooling is two matrix products
whose gradients are matrix products too: no gathering forwards, no scattering backwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from attention import shapes
from tasks.detection.boxes import area

Array = jax.Array

# A weight picks a pixel: low precision would pick its neighbours too.
_PRECISION = jax.lax.Precision.HIGHEST


def roi_align(
    features: Array,
    boxes: Array,
    scale: float,
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Array:
    """Each box's part of a map, as `size` x `size` bins.

    A bin is the mean of sampling_ratio² points on a regular grid in it; each point is interpolated
    between the four pixels around it, those of the border being continued for one pixel and 0
    beyond. There is no gradient to the boxes, as in the paper.

    Args:
      features: [Y, X, C].
      boxes: [n, 4] in pixels of the picture.
      scale: pixels of the map to one of the picture: 1 / stride.
      size: bins a side.
      sampling_ratio: points a bin has each way.
      aligned: pixel centres at halves, so that a box is moved by -0.5 on the map; False, as first
        published, moves nothing and takes boxes for one pixel of the map wide at least.

    Returns:
      [n, size, size, C].

    Raises:
      ValueError: shapes do not fit, or size or sampling_ratio is below 1.
    """
    sizes = {"4": 4}
    shapes.expect("features", features, "Y X C", sizes)
    shapes.expect("boxes", boxes, "n 4", sizes)
    rows, columns = _weights(boxes, scale, size, sampling_ratio, aligned, sizes["Y"], sizes["X"])
    return _pooled(features, rows, columns)


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
    """`roi_align` from the level of a pyramid that fits each box (Lin et al. 2017, equation 1).

        level = ⌊canonical_level + log2(√area / canonical_size)⌋

    level l being the map of stride 2^l, and the nearest one there is.

    Args:
      maps: [Y_i, X_i, C] each, strides ascending.
      boxes: [n, 4] in pixels of the picture.
      strides: of the maps: powers of 2, each the double of the one before.
      size, sampling_ratio, aligned: as `roi_align`.
      canonical_size: root of the area of a box that belongs to canonical_level.
      canonical_level: its level.

    Returns:
      [n, size, size, C].

    Raises:
      ValueError: as `roi_align`; strides are not as said.
    """
    if len(maps) != len(strides):
        raise ValueError(f"strides: got {len(strides)}, expected {len(maps)} as maps")
    sizes = {"4": 4}
    shapes.expect("boxes", boxes, "n 4", sizes)
    lowest = round(math.log2(strides[0]))
    if list(strides) != [2 ** (lowest + i) for i in range(len(strides))]:
        raise ValueError(f"strides: got {tuple(strides)}, expected powers of 2, one after another")
    level = box_level(boxes, lowest, len(maps), canonical_size, canonical_level)
    result = 0
    for number, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        sizes.pop("Y", None), sizes.pop("X", None)
        shapes.expect(f"maps[{number}]", features, "Y X C", sizes)
        rows, columns = _weights(
            boxes, 1 / stride, size, sampling_ratio, aligned, sizes["Y"], sizes["X"]
        )
        mine = (level == number).astype(rows.dtype)
        result = result + _pooled(features, rows * mine[:, None, None], columns)
    return result


def box_level(
    boxes: Array, lowest: int, count: int, canonical_size: float, canonical_level: int
) -> Array:
    """int32 [n]: which of `count` maps a box belongs to, the first having the stride 2^lowest."""
    scale = jnp.sqrt(area(boxes)) / canonical_size
    level = jnp.floor(canonical_level + jnp.log2(jnp.maximum(scale, 1e-6)) + 1e-6)
    return jnp.clip(level - lowest, 0, count - 1).astype(jnp.int32)


def crop_targets(
    instances: Array,
    objects: Array,
    boxes: Array,
    size: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Array:
    """What a mask head is to say of each box: its object's mask, by `roi_align` of the mask.

    Args:
      instances: int [Y, X], k + 1 where object k is, 0 where none is.
      objects: int [n], number of the object of each box; with -1 the result is 0.
      boxes: [n, 4] in pixels.
      size, sampling_ratio, aligned: as `roi_align`.

    Returns:
      float32 [n, size, size] in [0, 1], the share of each bin that the object covers.

    Raises:
      ValueError: shapes do not fit.
    """
    sizes = {"4": 4}
    shapes.expect("instances", instances, "Y X", sizes)
    shapes.expect("objects", objects, "n", sizes)
    shapes.expect("boxes", boxes, "n 4", sizes)
    rows, columns = _weights(boxes, 1.0, size, sampling_ratio, aligned, sizes["Y"], sizes["X"])
    objects = objects.astype(jnp.int32)
    masks = (instances.astype(jnp.int32) == objects[:, None, None] + 1) & (
        objects[:, None, None] >= 0
    )
    half = jnp.einsum("niy,nyx->nix", rows, masks.astype(rows.dtype), precision=_PRECISION)
    return jnp.einsum("nix,njx->nij", half, columns, precision=_PRECISION)


def _pooled(features: Array, rows: Array, columns: Array) -> Array:
    dtype = features.dtype
    rows, columns = rows.astype(dtype), columns.astype(dtype)
    half = jnp.einsum("niy,yxc->nixc", rows, features, precision=_PRECISION)
    return jnp.einsum("nixc,njx->nijc", half, columns, precision=_PRECISION)


def _weights(
    boxes: Array,
    scale: float,
    size: int,
    sampling_ratio: int,
    aligned: bool,
    height: int,
    width: int,
) -> tuple[Array, Array]:
    """What each row and each column of the map counts in each bin: [n, size, Y], [n, size, X]."""
    for name, value in (("size", size), ("sampling_ratio", sampling_ratio)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    boxes = jax.lax.stop_gradient(boxes) * scale - (0.5 if aligned else 0.0)
    points = (jnp.arange(size * sampling_ratio, dtype=boxes.dtype) + 0.5) / (size * sampling_ratio)

    def along(start: Array, end: Array, length: int) -> Array:
        side = end - start if aligned else jnp.maximum(end - start, 1)
        at = start[:, None] + side[:, None] * points
        inside = (at >= -1) & (at <= length)
        at = jnp.clip(at, 0, length - 1)
        weights = jnp.maximum(1 - jnp.abs(at[..., None] - jnp.arange(length)), 0)
        weights = jnp.where(inside[..., None], weights, 0)
        return weights.reshape(-1, size, sampling_ratio, length).mean(axis=2)

    return along(boxes[:, 1], boxes[:, 3], height), along(boxes[:, 0], boxes[:, 2], width)
