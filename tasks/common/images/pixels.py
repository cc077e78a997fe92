"""Conversion of pixel values, and grids of cells over images.

In shapes, Y and X are height and width of an image, and y and x are those of a map.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def to_unit(images: jax.Array) -> jax.Array:
    """Scales uint8 images to [0, 1] by dividing them by 255; other images are unchanged."""
    return images / jnp.float32(255) if images.dtype == jnp.uint8 else images


def center(images: jax.Array) -> jax.Array:
    """Maps pixels from [0, 1] to [-2, 2].

    Images then have nearly unit variance, which the initialization of models assumes.
    """
    return 4 * images - 2


def drawable(image: np.ndarray) -> np.ndarray:
    """Removes the channel axis of a gray image [Y, X, 1]; other images are unchanged."""
    return image[..., 0] if image.shape[-1] == 1 else image


def grid_areas(rows: int, columns: int) -> np.ndarray:
    """Returns the corners x1, y1, x2, y2 of the cells of a grid, as fractions of an image.

    Args:
      rows, columns: number of cells.

    Returns:
      [rows * columns, 4], with the cells in row-major order.
    """
    y, x = np.divmod(np.arange(rows * columns), columns)
    return np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=1)


def grid_labels(rows: int, columns: int) -> list[str]:
    """Returns a label of each cell of a grid: its row and column, such as "0,3"."""
    return [f"{row},{column}" for row in range(rows) for column in range(columns)]


def on_grid(weights: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Resamples a map to a grid: each cell gets the mean of the map over the area of the cell.

    Args:
      weights: map, [y, x].
      grid: numbers of rows and columns of cells, smaller or larger than those of the map.
    """
    rows = np.arange(np.lcm(weights.shape[0], grid[0]))
    columns = np.arange(np.lcm(weights.shape[1], grid[1]))
    fine = weights[
        np.ix_(rows * weights.shape[0] // len(rows), columns * weights.shape[1] // len(columns))
    ]
    blocks = fine.reshape(grid[0], len(rows) // grid[0], grid[1], len(columns) // grid[1])
    return blocks.mean(axis=(1, 3))
