"""Axial attention: along the rows, then along the columns (Ho et al. 2019; Wang et al. 2020).

Dimension letters are defined in `attention.image.maps`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording
from attention.image.maps import MapAttention, expect_map, expect_positive
from attention.multi_head import MultiHeadAttention

Array = jax.Array

AXES = ("row", "column")


def along(x: Array, axis: str, mix: Callable[[Array], Array]) -> Array:
    """Applies a sequence mixer to each row or each column (Ho et al. 2019, section 3).

        y[i, :] = mix(x[i, :]) for each row i,   or   y[:, j] = mix(x[:, j]) for each column j

    Args:
      x: [B, Y, X, C].
      axis: "row" or "column".
      mix: the mixer, a function that maps B' independent sequences [B', T, C] to [B', T, C'].

    Returns:
      [B, Y, X, C'].

    Raises:
      ValueError: x is not [B, Y, X, C], or the axis is unknown.
    """
    expect_map(x)
    if axis not in AXES:
        raise ValueError(f"axis: got {axis!r}, expected 'row' or 'column'")
    lines = x if axis == "row" else jnp.swapaxes(x, 1, 2)
    mixed = mix(lines.reshape(-1, *lines.shape[2:]))
    mixed = mixed.reshape(*lines.shape[:3], mixed.shape[-1])
    return mixed if axis == "row" else jnp.swapaxes(mixed, 1, 2)


def between_positions(weights: Array, Y: int, X: int, axis: str) -> Array:
    """Expands weights along rows or columns to pairs of positions (Ho et al. 2019, section 3).

        row: w'_(y,x)(y',x') = w_y,xx' if y = y', else 0
        column: w'_(y,x)(y',x') = w_x,yy' if x = x', else 0

    Args:
      weights: weights along rows [B·Y, N, X, X], or along columns [B·X, N, Y, Y].
      Y, X: the map's sizes.
      axis: "row" or "column".

    Returns:
      w', [B, N, P, P] with P = Y·X.

    Raises:
      ValueError: the axis is unknown.
    """
    if axis not in AXES:
        raise ValueError(f"axis: got {axis!r}, expected 'row' or 'column'")
    lines, length = (Y, X) if axis == "row" else (X, Y)
    N = weights.shape[1]
    weights = weights.reshape(-1, lines, N, length, length)
    same = jnp.eye(lines, dtype=weights.dtype)
    order = "BlNts,lm->BNltms" if axis == "row" else "BlNts,lm->BNtlsm"
    return jnp.einsum(order, weights, same).reshape(-1, N, Y * X, Y * X)


class Axial(MapAttention):
    """Axial attention: along the rows, then along the columns (Ho et al. 2019, "Axial Attention in
    Multidimensional Transformers"; Wang et al. 2020, "Axial-DeepLab").

        h = x + rows(x),   y = h + columns(h)

    with one `MultiHeadAttention` for rows and one for columns. After both, every position depends
    on all others, at a cost of O(P·(Y + X)). The weights [B, 2N, P, P] contain the N heads of the
    rows, then the N heads of the columns.

    Args:
      channels: C, number of channels.
      num_heads: N, number of heads of each attention; divides C.
      positions: "none" or a spec of `attention.positions.POSITIONS` for both attentions, such as
        "rope" or "shaw" (Wang et al. 2020 use relative positions).
      residual: whether to use the residual connections (x and h above).
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: num_heads does not divide channels, or positions are unknown.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 4,
        positions: str = "none",
        residual: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        expect_positive(channels=channels)
        self.channels, self.residual, self.dtype = channels, residual, dtype
        options = {"positions": positions, "dtype": dtype, "rngs": rngs}
        self.rows = MultiHeadAttention(channels, num_heads, **options)
        self.columns = MultiHeadAttention(channels, num_heads, **options)

    def _apply(self, x, *, valid, training):
        Y, X = x.shape[1:3]
        with recording.suppressed():
            h = self._passed(x, "row", self.rows)
            y = self._passed(h, "column", self.columns)

        def weights() -> Array:
            parts = [
                between_positions(_weights(module, z, axis), Y, X, axis)
                for axis, module, z in (("row", self.rows, x), ("column", self.columns, h))
            ]
            return jnp.concatenate(parts, axis=1)

        recording.record(weights)
        return y, weights

    def _passed(self, x: Array, axis: str, module: MultiHeadAttention) -> Array:
        mixed = along(x, axis, cast(Callable[[Array], Array], module))
        return x + mixed if self.residual else mixed


def _weights(module: MultiHeadAttention, x: Array, axis: str) -> Array:
    """Recomputes the weights [B', N, T, T] of all rows or columns."""
    found = []

    def keep(lines: Array) -> Array:
        mixed, weights = module(lines, return_weights=True)
        found.append(weights)
        return mixed

    with recording.suppressed():
        along(x, axis, keep)
    return found[0]
