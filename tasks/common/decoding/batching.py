"""Rows of arrays in any tree: what decoding does to all that its steps carry.

B examples, K rows of each, T steps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def take_rows(leaf: Array, places: Array) -> Array:
    """leaf [B, K, ...], places [B, N] -> [B, N, ...]."""
    return jnp.take_along_axis(leaf, places.reshape(*places.shape, *[1] * (leaf.ndim - 2)), axis=1)


def unflatten_beams(leaf: Array, K: int) -> Array:
    """[B·K, ...] -> [B, K, ...]."""
    return leaf.reshape(len(leaf) // K, K, *leaf.shape[1:])


def flatten_beams(leaf: Array) -> Array:
    """[B, K, ...] -> [B·K, ...]."""
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


def write_step(buffers: Any, t: Array, values: Any) -> Any:
    """Each buffer [T, ...] with the value of step t."""
    return jax.tree.map(lambda buffer, value: buffer.at[t].set(value), buffers, values)


def mask_leaves(kept: Array, tree: Any) -> Any:
    """Each leaf, which has the axes of `kept` first, 0 where it is False."""

    def cleared(leaf: Array) -> Array:
        kept_here = kept.reshape(*kept.shape, *[1] * (leaf.ndim - kept.ndim))
        return jnp.where(kept_here, leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(cleared, tree)
