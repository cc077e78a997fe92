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
    result = np.zeros((len(masks), height, width), np.float32)
    for mask, canvas, (left, top), (right, bottom) in zip(masks, result, low, high, strict=True):
        y, rows = stretch(top, bottom, side + 2, height)
        x, columns = stretch(left, right, side + 2, width)
        canvas[y, x] = rows @ mask @ columns.T
    return result


def stretch(low: int, high: int, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """The pixels of an axis that a box covers, and what each cell counts in each of them."""
    pixels = np.arange(max(low, 0), max(min(max(high, low) + 1, length), 0))
    at = np.clip((pixels - low + 0.5) * (cells / max(high - low + 1, 1)) - 0.5, 0, cells - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)
    return slice(pixels[0], pixels[-1] + 1) if len(pixels) else slice(0, 0), weights


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
