"""Anchors: boxes of fixed sizes around each cell of the feature maps (Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def anchors(
    sides: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
) -> np.ndarray:
    """Returns the anchors of all levels, ordered by level, row, column, ratio and size.

    An anchor of ratio r and size s is a box of height s·√r and width s/√r. Its center is the upper
    left corner of a cell, (x · stride, y · stride). Half of each side length is rounded to an
    integer.

    Args:
      sides: height and width of the feature map of each level, in cells.
      strides: pixels per cell of each level.
      sizes: anchor sizes of each level, which are square roots of anchor areas in pixels.
      ratios: height / width, the same for all levels.

    Returns:
      Boxes (x1, y1, x2, y2) of the A anchors, float32 [A, 4], not clipped to the image. A is the
      sum over levels of the number of cells times the numbers of sizes and of ratios.

    Raises:
      ValueError: the numbers of strides, sizes and levels differ.
    """
    for name, given in (("strides", strides), ("sizes", sizes)):
        if len(given) != len(sides):
            raise ValueError(f"{name}: got {len(given)} levels, expected {len(sides)} as in sides")
    levels = []
    for (rows, columns), stride, level_sizes in zip(sides, strides, sizes, strict=True):
        around = base_anchors(level_sizes, ratios)
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        corners = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4) * stride
        levels.append((corners + around).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def base_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Returns the anchors around (0, 0), ordered by ratio and size, float32 [ratios · sizes, 4]."""
    root = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    scale = np.asarray(sizes, np.float32)
    width, height = (1 / root * scale).ravel(), (root * scale).ravel()
    return np.round(np.stack([-width, -height, width, height], axis=1) / 2)
