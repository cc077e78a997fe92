"""Coordinate attention: a gate for each row times a gate for each column (Hou et al. 2021).

Dimension letters are defined in `attention.image.maps`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention.image.batch_norm import BatchNorm
from attention.image.maps import MapGate, expect_map, expect_positive, reduced
from attention.numerics import accumulator
from attention.projection import Projection

Array = jax.Array


def coordinate_pools(x: Array) -> Array:
    """Computes the mean of each row, then of each column (Hou et al. 2021, equations 4 and 5).

        z^h_yc = Σ_x x_yxc / X,   z^w_xc = Σ_y x_yxc / Y

    Args:
      x: [B, Y, X, C].

    Returns:
      [z^h; z^w], [B, Y + X, C] in at least float32.

    Raises:
      ValueError: x is not [B, Y, X, C].
    """
    expect_map(x)
    wide = x.astype(accumulator(x))
    return jnp.concatenate([jnp.mean(wide, axis=2), jnp.mean(wide, axis=1)], axis=1)


def coordinate_gate(rows: Array, columns: Array) -> Array:
    """Computes the gate of each position from its row and column (Hou et al. 2021, equation 8).

        g_yxc = σ(r_yc) · σ(s_xc)

    Args:
      rows: r, [B, Y, C].
      columns: s, [B, X, C].

    Returns:
      g, [B, Y, X, C]; multiplies the map.

    Raises:
      TypeError: B or C differ.
    """
    return jax.nn.sigmoid(rows)[:, :, None] * jax.nn.sigmoid(columns)[:, None]


class Coordinate(MapGate):
    """Coordinate attention (Hou et al. 2021): gates of rows and of columns for each channel.

        y_yxc = x_yxc · σ(f^h_y W_h + b_h)_c · σ(f^w_x W_w + b_w)_c
        [f^h; f^w] = hswish(BN([mean_x x; mean_y x] W + b)),   hswish(a) = a · relu6(a + 3) / 6

    Args:
      channels: C, number of channels.
      reduction: r; f has max(⌊C / r⌋, least) channels.
      least: smallest number of channels of f.
      options: `dtype`, as for `MapGate`.

    Raises:
      ValueError: a number is below 1.
    """

    def __init__(
        self, channels: int, *, reduction: int = 32, least: int = 8, rngs: nnx.Rngs, **options: Any
    ):
        super().__init__(channels, **options)
        expect_positive(least=least)
        R = reduced(channels, reduction, least)
        self.reduce = Projection((channels,), (R,), rngs=rngs)
        self.norm = BatchNorm(R)
        self.rows = Projection((R,), (channels,), rngs=rngs)
        self.columns = Projection((R,), (channels,), rngs=rngs)

    def gate(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        hidden = self.reduce(coordinate_pools(x))
        hidden = jax.nn.hard_swish(self.norm(hidden, valid=valid, training=training))
        rows, columns = jnp.split(hidden, [x.shape[1]], axis=1)
        return coordinate_gate(self.rows(rows), self.columns(columns))
