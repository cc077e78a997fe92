"""Concurrent spatial and channel squeeze and excitation (Roy et al. 2018).

Dimension letters are defined in `attention.image.maps`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention.image.channel import squeeze_excite, weights_of
from attention.image.maps import MapGate, expect_map, reduced
from attention.numerics import accumulator
from attention.projection import Projection

Array = jax.Array


def spatial_squeeze_excite(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """Computes the spatial gate, sSE (Roy et al. 2018, section 2.2).

        g_yx = σ(Σ_c w_c x_yxc + b)

    Args:
      x: [B, Y, X, C].
      kernel: w, [C, 1].
      bias: b, [1]; 0 if None.

    Returns:
      g, [B, Y, X, 1] in at least float32.

    Raises:
      ValueError: x is not [B, Y, X, C].
    """
    expect_map(x, kernel.shape[0])
    logits = x.astype(accumulator(x)) @ kernel
    return jax.nn.sigmoid(logits if bias is None else logits + bias)


def joined(x: Array, channel: Array, spatial: Array, join: str = "add") -> Array:
    """Combines a channel gate and a spatial gate (scSE, Roy et al. 2018; maximum: Roy et al. 2019).

        add: g = g_c + g_s,   max: g = g_c if x · g_c >= x · g_s, else g_s

    Args:
      x: [B, Y, X, C].
      channel: g_c, [B, 1, 1, C].
      spatial: g_s, [B, Y, X, 1].
      join: "add" or "max".

    Returns:
      g, [B, Y, X, C]; multiplies the map.

    Raises:
      ValueError: join is neither "add" nor "max".
    """
    if join == "add":
        return channel + spatial
    if join == "max":
        return jnp.where(x * channel >= x * spatial, channel, spatial)
    raise ValueError(f"join: got {join!r}, expected 'add' or 'max'")


class ChannelAndSpatial(MapGate):
    """scSE (Roy et al. 2018): squeeze-and-excitation and a spatial gate in parallel.

        y = x · σ(relu(z W_1 + b_1) W_2 + b_2) + x · σ(x w + b),   z = mean_yx x

    Args:
      channels: C, number of channels.
      reduction: r; the bottleneck has ⌊C / r⌋ channels, at least one.
      join: "add" as above, or "max" of both terms.
      options: `dtype`, as for `MapGate`.

    Raises:
      ValueError: a number is below 1, or join is neither "add" nor "max".
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 2,
        join: str = "add",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(channels, **options)
        if join not in ("add", "max"):
            raise ValueError(f"join: got {join!r}, expected 'add' or 'max'")
        R, self.join = reduced(channels, reduction), join
        self.reduce = Projection((channels,), (R,), rngs=rngs)
        self.expand = Projection((R,), (channels,), rngs=rngs)
        self.spatial = Projection((channels,), (1,), rngs=rngs)

    def gate(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        channel = squeeze_excite(x, *weights_of(self.reduce, self.expand))
        parameters = (p[...] for p in (self.spatial.kernel, self.spatial.bias) if p is not None)
        spatial = spatial_squeeze_excite(x, *parameters)
        return joined(x, channel, spatial, self.join)
