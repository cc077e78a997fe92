"""From a mask head's small squares to masks of the picture, on the host; run-length encoding."""

from __future__ import annotations

from typing import Any

import numpy as np

RunLength = dict[str, Any]
"""A mask as COCO has it: {"size": [Y, X], "counts": str}."""

# From this probability on a pixel belongs to the object.
THRESHOLD = 0.5


def paste(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, aligned: bool = True
) -> np.ndarray:
    """Each mask stretched over its box, by bilinear interpolation.

    A pixel's centre is placed among the centres of the square's cells, and beyond the square is 0
    (as Detectron2 does it, the inverse of `roi_align.mask_targets`). What lies outside the picture
    is dropped.

    Args:
      masks: float [n, M, M], probabilities.
      boxes: [n, 4] in pixels.
      height, width: of the picture.
      aligned: as said; False: as Mask R-CNN's authors and torchvision do it, who grow square and
        box by a cell all around, cut the corners to whole pixels and include both, so that a mask
        comes out up to a pixel larger on every side. What that costs small objects: exact squares
        of 28 x 28 of 24 test pictures of nuclei come back with a mask AP of 0.76, aligned of 1.00.

    Returns:
      float32 [n, height, width], 0 outside the boxes; at THRESHOLD and above is the object.

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
        centre = (boxes[:, :2] + boxes[:, 2:]) * np.float32(0.5)
        half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * np.float32((cells + 2) / cells)
        boxes = np.trunc(np.concatenate([centre - half, centre + half], axis=1)).astype(np.int64)
        along, cells = stretch, cells + 2
    result = np.zeros((len(masks), height, width), np.float32)
    for mask, canvas, (left, top, right, bottom) in zip(masks, result, boxes, strict=True):
        y, rows = along(top, bottom, cells, height)
        x, columns = along(left, right, cells, width)
        canvas[y, x] = rows @ mask @ columns.T
    return result


def _along(low: float, high: float, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """The pixels of an axis that a box touches, and what each cell counts in each of them."""
    scale = cells / max(high - low, 1e-6)
    first, last = (int(np.clip(end, 0, length)) for end in (low - 1 / scale, high + 1 / scale + 1))
    at = (np.arange(first, last) + 0.5 - low) * scale - 0.5
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)
    return slice(first, last), weights


def stretch(low: int, high: int, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """The pixels of an axis from `low` to `high`, both included, and what each of `cells` stretched
    over them counts in each: a slice within [0, length) and float32 [pixels, cells].
    """
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


def pasted_codes(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> list[RunLength]:
    """Run-length codes of masks [n, S, S] over boxes [n, 4] in a picture of that size, each pasted
    where its box is: of a large picture all at once would not fit into memory.
    """
    # Columns first, as the code wants it.
    canvas, found = np.zeros(size[::-1], np.uint8).T, []
    for mask, box in zip(masks, boxes, strict=True):
        # Half a cell around the box may belong to the mask.
        around = (box[2:] - box[:2]) / mask.shape[0] + 1
        low = np.maximum(np.floor(box[:2] - around), 0).astype(int)
        high = np.minimum(np.ceil(box[2:] + around), size[::-1]).astype(int)
        part = canvas[low[1] : high[1], low[0] : high[0]]
        moved = (box - np.tile(low, 2))[None]
        part[...] = paste(mask[None], moved, *part.shape)[0] >= THRESHOLD
        found += to_rle(canvas[None])
        part[...] = 0
    return found
