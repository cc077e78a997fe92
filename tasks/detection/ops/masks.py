"""Instance maps and bounding boxes of masks.

In shapes, Y and X are height and width of an image, and n is the number of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tasks.detection.ops.pasting import RunLength


def masks_to_boxes(masks: np.ndarray) -> np.ndarray:
    """Returns the smallest boxes around masks.

    Args:
      masks: bool [n, Y, X].

    Returns:
      Boxes (x1, y1, x2, y2), float32 [n, 4]; 0 for an empty mask. Boxes enclose the outermost
      pixels completely, so that a mask of one pixel has a box of area 1.
    """
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def to_instance_map(masks: np.ndarray) -> np.ndarray:
    """Combines masks bool [n, Y, X] to one map uint16 [Y, X], with smaller masks on top.

    The map is k + 1 at pixels of mask k, and 0 at pixels without a mask.

    Raises:
      ValueError: there are more than 65,535 masks, the maximum of uint16.
    """
    return _laid(masks.shape[1:], masks.sum(axis=(1, 2)), masks.__getitem__)


def rle_to_instance_map(codes: Sequence[RunLength], height: int, width: int) -> np.ndarray:
    """Combines run-length encoded masks to one map, like `to_instance_map`.

    Masks are decoded one at a time, because the masks of a large image together may exceed memory.
    """
    from pycocotools import mask as coco

    def unpacked(number: int) -> np.ndarray:
        return coco.decode(codes[number]).view(bool)

    return _laid((height, width), np.array([coco.area(code) for code in codes]), unpacked)


def _laid(size: Sequence[int], areas: np.ndarray, mask: Callable[[int], np.ndarray]) -> np.ndarray:
    if len(areas) >= 1 << 16:
        raise ValueError(f"masks: got {len(areas)} masks, expected at most {(1 << 16) - 1}")
    instances = np.zeros(size, np.uint16)
    for number in np.argsort(-areas.astype(np.int64), kind="stable"):
        instances[mask(number)] = number + 1
    return instances
