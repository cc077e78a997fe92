"""Sliding windows over large images (the overlap-tile strategy of Ronneberger et al. 2015).

Y X height and width of the image, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

# Number of rows that are blended at a time, which bounds memory.
_ROWS = 512


def window_starts(length: int, size: int, step: int) -> list[int]:
    """Returns evenly spaced starts of windows, so that the last one ends at the end of the axis.

    If the axis is not longer than a window, there is one window, at 0.

    Args:
      length: length of the axis.
      size: size of a window.
      step: largest distance of two successive starts.
    """
    if length <= size:
        return [0]
    count = math.ceil((length - size) / step) + 1
    return [round(number * (length - size) / (count - 1)) for number in range(count)]


def window_corners(Y: int, X: int, size: tuple[int, int], overlap: float) -> list[tuple[int, int]]:
    """Returns top and left of each window, row by row.

    Args:
      Y, X: height and width of the image.
      size: height and width of a window.
      overlap: overlap of adjacent windows as a fraction of a window, in [0, 1).
    """
    steps = [max(1, int(side * (1 - overlap))) for side in size]
    tops, lefts = window_starts(Y, size[0], steps[0]), window_starts(X, size[1], steps[1])
    return [(top, left) for top in tops for left in lefts]


def crop_window(image: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Returns a window of an image; edge pixels are repeated beyond the image.

    Args:
      image: [Y, X, ...].
      top, left: first row and first column of the window.
      size: height and width of the window.
    """
    height, width = size
    window = image[top : top + height, left : left + width]
    missing = (height - window.shape[0], width - window.shape[1])
    if not any(missing):
        return window
    rest = [(0, 0)] * (image.ndim - 2)
    return np.pad(window, [(0, missing[0]), (0, missing[1]), *rest], mode="edge")


def training_windows(
    image: np.ndarray, labels: np.ndarray, size: tuple[int, int], void: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields windows of an image and its labels. Each pixel is labeled in exactly one window.

    Args:
      image: pixels, [Y, X, C].
      labels: classes of the pixels, [Y, X].
      size: height and width of a window.
      void: label for pixels that an earlier window contains, and for pixels beyond the image.
    """
    taken = np.zeros(labels.shape, bool)
    for top, left in window_corners(*labels.shape, size, 0.0):
        here = (slice(top, top + size[0]), slice(left, left + size[1]))
        window = np.full(size, void, labels.dtype)
        inside = labels[here]
        window[: inside.shape[0], : inside.shape[1]] = np.where(taken[here], void, inside)
        taken[here] = True
        yield crop_window(image, top, left, size), window


def blend_windows(
    windows: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], Y: int, X: int
) -> np.ndarray:
    """Returns the most probable class of each pixel, from all windows that contain it.

        argmax_k Σ_windows w p_k

    with probabilities p_k of a window and a weight w that falls from the center of the window to
    its edges.

    Args:
      windows: probabilities [height, width, K] of each window, up to a common factor.
      corners: top and left of each window in the image.
      Y, X: height and width of the image.

    Returns:
      uint8 [Y, X].
    """
    height, width, classes = np.shape(windows[0])
    weight = (_ramp(height)[:, None] * _ramp(width))[..., None]
    labels = np.zeros((Y, X), np.uint8)
    for first in range(0, Y, _ROWS):
        last = min(first + _ROWS, Y)
        sums = np.zeros((last - first, X, classes), np.float32)
        for window, (top, left) in zip(windows, corners, strict=True):
            begin, end = max(top, first), min(top + height, last)
            if begin < end:
                right = min(left + width, X)
                rows, columns = slice(begin - top, end - top), slice(0, right - left)
                part = window[rows, columns] * weight[rows, columns]
                sums[begin - first : end - first, left:right] += part
        labels[first:last] = np.argmax(sums, axis=-1)
    return labels


def _ramp(size: int) -> np.ndarray:
    """Returns weights [size], 1 at the center and above 0 at the edges."""
    positions = np.arange(size) + 0.5
    return (np.minimum(positions, size - positions) / (size / 2)).astype(np.float32)
