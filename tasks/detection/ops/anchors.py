"""Anchors: boxes of fixed sizes around every place of the feature maps (Ren et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def anchors(
    sides: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
) -> np.ndarray:
    """The anchors of all levels, level by level, row by row, place by place.

    Those of a place are for each ratio r, and within it for each size s, a box around the place's
    upper left corner (x · stride, y · stride), of height s·√r and width s/√r. Half sides are
    rounded to whole pixels.

    Args:
      sides: Y and X of each level's map.
      strides: pixels between two places of each level.
      sizes: of each level, roots of the areas in pixels.
      ratios: height by width, the same for all levels.

    Returns:
      float32 [A, 4], A = Σ Y·X·len(sizes)·len(ratios); they may reach outside the picture.

    Raises:
      ValueError: not as many strides or sizes as levels.
    """
    for name, given in (("strides", strides), ("sizes", sizes)):
        if len(given) != len(sides):
            raise ValueError(f"{name}: got {len(given)} levels, expected {len(sides)} as in sides")
    levels = []
    for (rows, columns), stride, level_sizes in zip(sides, strides, sizes, strict=True):
        around = base_anchors(level_sizes, ratios)
        y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        places = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4) * stride
        levels.append((places + around).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def base_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """The anchors around (0, 0): float32 [len(ratios) · len(sizes), 4], ratios the slower."""
    root = np.sqrt(np.asarray(ratios, np.float32))[:, None]
    scale = np.asarray(sizes, np.float32)
    width, height = (1 / root * scale).ravel(), (root * scale).ravel()
    return np.round(np.stack([-width, -height, width, height], axis=1) / 2)
