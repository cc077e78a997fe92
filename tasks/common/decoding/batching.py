"""Operations on pytrees whose leaves contain the rows of a decoder.

In shapes, B is the number of examples, K the number of rows of each example, N the number of
selected rows, and T the number of steps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def take_rows(leaf: Array, rows: Array) -> Array:
    """Selects rows of each example.

    Args:
      leaf: [B, K, ...].
      rows: int [B, N], indices of the selected rows of each example.

    Returns:
      [B, N, ...].
    """
    return jnp.take_along_axis(leaf, rows.reshape(*rows.shape, *[1] * (leaf.ndim - 2)), axis=1)


def unflatten_beams(leaf: Array, K: int) -> Array:
    """Separates the rows of different examples: [B·K, ...] becomes [B, K, ...]."""
    return leaf.reshape(leaf.shape[0] // K, K, *leaf.shape[1:])


def flatten_beams(leaf: Array) -> Array:
    """Joins the rows of all examples: [B, K, ...] becomes [B·K, ...]."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def write_step(buffers: Any, t: Array, values: Any) -> Any:
    """Writes the values of step t into buffers whose leaves have shape [T, ...]."""
    return jax.tree.map(lambda buffer, value: buffer.at[t].set(value), buffers, values)


def mask_leaves(mask: Array, tree: Any) -> Any:
    """Sets the leaves of a tree to 0 where a mask is False.

    The axes of the mask are the first axes of every leaf.
    """

    def masked(leaf: Array) -> Array:
        aligned = mask.reshape(*mask.shape, *[1] * (leaf.ndim - mask.ndim))
        return jnp.where(aligned, leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(masked, tree)
