"""From a mask head's small squares to masks of the picture, on the host; run-length encoding."""

from __future__ import annotations

from typing import Any

import numpy as np

RunLength = dict[str, Any]
"""A mask as COCO has it: {"size": [Y, X], "counts": str}."""


def paste(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each mask stretched over its box (as Mask R-CNN's authors and torchvision do it).

    A border of zeros, one cell wide, is put around the square and the box grown by as much; its
    corners are cut to whole pixels, both included, and the square is stretched over them by
    bilinear interpolation. What lies outside the picture is dropped.

    Args:
      masks: float [n, M, M], probabilities.
      boxes: [n, 4] in pixels.
      height, width: of the picture.

    Returns:
      float32 [n, height, width], 0 outside the boxes; at 0.5 and above is the object.

    Raises:
      ValueError: shapes do not fit.
    """
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float32)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks: got shape {list(masks.shape)}, expected [n, M, M]")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes: got shape {list(boxes.shape)}, expected [{len(masks)}, 4]")
    side = masks.shape[1]
    masks = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    centre = (boxes[:, :2] + boxes[:, 2:]) * np.float32(0.5)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((side + 2) / side)
    low, high = (np.trunc(corner).astype(np.int64) for corner in (centre - half, centre + half))
    rows = _stretch(low[:, 1], high[:, 1], side + 2, height)
    columns = _stretch(low[:, 0], high[:, 0], side + 2, width)
    return rows @ masks @ columns.transpose(0, 2, 1)


def _stretch(low: np.ndarray, high: np.ndarray, cells: int, length: int) -> np.ndarray:
    """What each cell counts in each pixel of an axis: float32 [n, length, cells]."""
    sides = np.maximum(high - low + 1, 1)[:, None]
    pixels = np.arange(length) - low[:, None]
    at = np.clip((pixels + 0.5) * (cells / sides) - 0.5, 0, cells - 1)
    weights = np.maximum(1 - np.abs(at[..., None] - np.arange(cells)), 0)
    inside = (pixels >= 0) & (pixels < sides)
    return np.where(inside[..., None], weights, 0).astype(np.float32)


def to_rle(masks: np.ndarray) -> list[RunLength]:
    """Masks bool [n, Y, X], run-length encoded as COCO has it."""
    from pycocotools import mask as coco

    columns_first = np.asfortranarray(np.asarray(masks, np.uint8).transpose(1, 2, 0))
    encoded = coco.encode(columns_first)
    return [{"size": list(e["size"]), "counts": e["counts"].decode("ascii")} for e in encoded]


def from_rle(encoded: list[RunLength], height: int, width: int) -> np.ndarray:
    """bool [n, height, width] of what `to_rle` gives; all of one size."""
    from pycocotools import mask as coco

    if not encoded:
        return np.zeros((0, height, width), bool)
    return np.ascontiguousarray(coco.decode(encoded).transpose(2, 0, 1)).astype(bool)
