"""Masks of objects as one map, and the boxes around them."""

from __future__ import annotations

import numpy as np


def boxes_of(masks: np.ndarray) -> np.ndarray:
    """The smallest boxes around masks.

    Args:
      masks: bool [n, Y, X].

    Returns:
      float32 [n, 4], (x1, y1, x2, y2): the corners of the outermost pixels, so that a mask of one
      pixel has a box of one; 0 for a mask of none.
    """
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def stacked(masks: np.ndarray) -> np.ndarray:
    """Masks as one map, the smaller on top: bool [n, Y, X] to uint16 [Y, X], k + 1 where mask k is,
    0 where none is.

    Raises:
      ValueError: more masks than the numbers of the map.
    """
    if len(masks) >= 1 << 16:
        raise ValueError(f"masks: got {len(masks)}, expected at most {(1 << 16) - 1}")
    instances = np.zeros(masks.shape[1:], np.uint16)
    for number in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        instances[masks[number]] = number + 1
    return instances
