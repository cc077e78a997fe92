"""Run-length codes read back."""

import numpy as np
from pycocotools import mask as coco


def from_rle(encoded, height, width):
    """Decodes the result of `ops.pasting.to_rle` to bool [n, height, width]."""
    if not encoded:
        return np.zeros((0, height, width), bool)
    return np.ascontiguousarray(coco.decode(encoded).transpose(2, 0, 1)).astype(bool)
