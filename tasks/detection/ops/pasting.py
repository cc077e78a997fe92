"""Pasting of predicted masks into images on the host, and run-length encoding.

In shapes, Y and X are height and width of an image, n is the number of masks, and M or S is the
number of cells along each side of a mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RunLength = dict[str, Any]
"""A mask in COCO's encoding: {"size": [Y, X], "counts": str}."""

# Minimum probability at which a pixel belongs to an object.
THRESHOLD = 0.5


def paste(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, aligned: bool = True
) -> np.ndarray:
    """Resizes each mask to its box by bilinear interpolation.

    The value at the center of a pixel is interpolated between the centers of the nearest cells, as
    in Detectron2. Cells beyond the mask count as 0. This inverts `roi_align.mask_targets`. Pixels
    outside the image are dropped.

    Args:
      masks: probabilities of the cells, float [n, M, M].
      boxes: [n, 4] in pixels.
      height, width: size of the image.
      aligned: whether to interpolate as above. False is the method of Mask R-CNN and torchvision:
        mask and box are padded by a cell, the corners of the box are truncated to integers, and
        the pixels at the corners are included. A mask then grows by up to a pixel on every side.
        With the true masks of 24 test images of nuclei, resized to 28 x 28 cells, as predictions,
        the mask AP is 1.00 if True and 0.76 if False.

    Returns:
      float32 [n, height, width], 0 outside the boxes. Pixels with a value of at least THRESHOLD
      belong to the object.

    Raises:
      ValueError: shapes do not fit.
    """
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float32)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks: got shape {list(masks.shape)}, expected [n, M, M]")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"boxes: got shape {list(boxes.shape)}, expected [{len(masks)}, 4]")
    cells = masks.shape[1]
    along = _along
    if not aligned:
        masks = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
        center = (boxes[:, :2] + boxes[:, 2:]) * np.float32(0.5)
        half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((cells + 2) / cells)
        boxes = np.trunc(np.concatenate([center - half, center + half], axis=1)).astype(np.int64)
        along, cells = stretch, cells + 2
    result = np.zeros((len(masks), height, width), np.float32)
    for mask, canvas, (left, top, right, bottom) in zip(masks, result, boxes, strict=True):
        y, rows = along(top, bottom, cells, height)
        x, columns = along(left, right, cells, width)
        canvas[y, x] = rows @ mask @ columns.T
    return result


def _along(low: float, high: float, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """Computes the weights of linear interpolation of a mask, along one axis of an image.

    Args:
      low, high: bounds of the box that contains the mask, in pixels; may be outside the image.
      cells: number of elements of the mask on this axis.
      length: number of pixels of the image on this axis.

    Returns:
      Slice of the pixels that the box covers, within [0, length), and the weights of the elements
      at each of these pixels, float32 [pixels, cells].
    """
    scale = cells / max(high - low, 1e-6)
    first, last = (int(np.clip(end, 0, length)) for end in (low - 1 / scale, high + 1 / scale + 1))
    at = (np.arange(first, last) + 0.5 - low) * scale - 0.5
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)
    return slice(first, last), weights


def stretch(low: int, high: int, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """Computes the weights of a bilinear resize of cells to pixels on one axis.

    Args:
      low, high: first and last pixel of the resized cells; may be outside the image.
      cells: number of cells.
      length: number of pixels of the image on this axis.

    Returns:
      Slice of the pixels within [0, length), and weights float32 [pixels, cells].
    """
    pixels = np.arange(max(low, 0), max(min(max(high, low) + 1, length), 0))
    at = np.clip((pixels - low + 0.5) * (cells / max(high - low + 1, 1)) - 0.5, 0, cells - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)
    return slice(pixels[0], pixels[-1] + 1) if len(pixels) else slice(0, 0), weights


def to_rle(masks: np.ndarray) -> list[RunLength]:
    """Encodes masks bool [n, Y, X] in COCO's run-length encoding."""
    from pycocotools import mask as coco

    columns_first = np.asfortranarray(np.asarray(masks, np.uint8).transpose(1, 2, 0))
    encoded = coco.encode(columns_first)
    return [{"size": list(e["size"]), "counts": e["counts"].decode("ascii")} for e in encoded]


def pasted_codes(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[RunLength]:
    """Pastes masks [n, S, S] over boxes [n, 4], and returns their run-length encodings.

    Masks are pasted one at a time, because the masks of a large image together may exceed memory.
    """
    # The canvas is column-major, like COCO's encoding.
    canvas, found = np.zeros(size[::-1], np.uint8).T, []
    for mask, box in zip(masks, boxes, strict=True):
        # The mask may extend beyond the box by half a cell.
        around = (box[2:] - box[:2]) / mask.shape[0] + 1
        low = np.maximum(np.floor(box[:2] - around), 0).astype(int)
        high = np.minimum(np.ceil(box[2:] + around), size[::-1]).astype(int)
        part = canvas[low[1] : high[1], low[0] : high[0]]
        moved = (box - np.tile(low, 2))[None]
        part[...] = paste(mask[None], moved, *part.shape)[0] >= THRESHOLD
        found += to_rle(canvas[None])
        part[...] = 0
    return found
