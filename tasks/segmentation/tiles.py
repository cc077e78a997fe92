"""A picture of any size by windows of one size (Ronneberger et al. 2015: "overlap-tile").

Y X height and width of the picture, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

# Rows of a large picture that are blended at a time: bounds memory.
_ROWS = 512


def window_starts(length: int, size: int, step: int) -> list[int]:
    """Where windows begin along a side, so that every place lies in one: evenly, the last ending
    where the side ends.

    Args:
      length: of the side.
      size: of a window.
      step: at most so far from one to the next.
    """
    if length <= size:
        return [0]
    count = math.ceil((length - size) / step) + 1
    return [round(number * (length - size) / (count - 1)) for number in range(count)]


def window_corners(Y: int, X: int, size: tuple[int, int], overlap: float) -> list[tuple[int, int]]:
    """Top and left of each window, row by row.

    Args:
      Y, X: of the picture.
      size: height and width of a window.
      overlap: share of a window that its neighbour has too, in [0, 1).
    """
    steps = [max(1, int(side * (1 - overlap))) for side in size]
    tops, lefts = window_starts(Y, size[0], steps[0]), window_starts(X, size[1], steps[1])
    return [(top, left) for top in tops for left in lefts]


def crop_window(picture: np.ndarray, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """A window [size, ...] of a picture [Y, X, ...]; what lies beyond repeats its edge."""
    height, width = size
    window = picture[top : top + height, left : left + width]
    missing = (height - window.shape[0], width - window.shape[1])
    if not any(missing):
        return window
    rest = [(0, 0)] * (picture.ndim - 2)
    return np.pad(window, [(0, missing[0]), (0, missing[1]), *rest], mode="edge")


def training_windows(
    image: np.ndarray, labels: np.ndarray, size: tuple[int, int], void: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows of a picture and its labels; each pixel is labelled in one of them alone.

    Args:
      image: [Y, X, C].
      labels: [Y, X].
      size: height and width of a window.
      void: label of what stands in another window too, and of what lies beyond the picture.
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
    tiles: Sequence[np.ndarray], places: Sequence[tuple[int, int]], Y: int, X: int
) -> np.ndarray:
    """The likeliest class of each pixel, by all the windows that it lies in.

        argmax_k Σ_tiles w p_k,   w highest in the middle of a window and falling to its edges

    Args:
      tiles: probabilities [height, width, K] of each window, in any unit.
      places: top and left of each.
      Y, X: of the picture.

    Returns:
      uint8 [Y, X].
    """
    height, width, classes = np.shape(tiles[0])
    weight = (_ramp(height)[:, None] * _ramp(width))[..., None]
    labels = np.zeros((Y, X), np.uint8)
    for first in range(0, Y, _ROWS):
        last = min(first + _ROWS, Y)
        sums = np.zeros((last - first, X, classes), np.float32)
        for tile, (top, left) in zip(tiles, places, strict=True):
            begin, end = max(top, first), min(top + height, last)
            if begin < end:
                right = min(left + width, X)
                rows, columns = slice(begin - top, end - top), slice(0, right - left)
                part = tile[rows, columns] * weight[rows, columns]
                sums[begin - first : end - first, left:right] += part
        labels[first:last] = np.argmax(sums, axis=-1)
    return labels


def _ramp(size: int) -> np.ndarray:
    """[size], 1 in the middle, and above 0 at the edges."""
    places = np.arange(size) + 0.5
    return (np.minimum(places, size - places) / (size / 2)).astype(np.float32)
