"""Attention gate of Attention U-Net: a coarse gating signal weights the features of a skip
connection (Oktay et al. 2018).

G channels of the gating signal, F hidden channels; the other dimension letters are defined in
`attention.image.maps`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.image.maps import (
    convolve,
    expect_map,
    expect_positive,
    expect_valid,
    kernel_init,
    reduced,
)
from attention.numerics import accumulator
from attention.projection import Projection

Array = jax.Array


def resize(x: Array, Y: int, X: int) -> Array:
    """Resizes a map by bilinear interpolation between pixel centers (Oktay et al. 2018).

        y_i = (1 - a) x_j + a x_(j+1),   j + a = (i + 1/2) · Y' / Y - 1/2, clipped at the edges

    Args:
      x: [B, Y', X', C].
      Y, X: the new sizes.

    Returns:
      [B, Y, X, C] in at least float32.

    Raises:
      ValueError: x is not [B, Y, X, C].
    """
    sizes = expect_map(x)
    shape = (sizes["B"], Y, X, sizes["C"])
    return jax.image.resize(x.astype(accumulator(x)), shape, "linear", antialias=False)


def additive_gate(
    x: Array,
    gating_signal: Array,
    x_kernel: Array,
    signal_kernel: Array,
    signal_bias: Array,
    score_kernel: Array,
    score_bias: Array,
) -> Array:
    """Computes the coefficients of the gate (Oktay et al. 2018, equations 1 and 2).

        α = σ(relu(x W_x + g W_g + b_g)·ψ + b_ψ)

    x W_x is a convolution whose stride is its kernel size, as in the authors' code, so the sum is
    on a coarse grid. `resize` brings g W_g to that grid and α back to the grid of x.

    Args:
      x: [B, Y, X, C].
      gating_signal: g, [B, Y', X', G], with Y' <= Y and X' <= X.
      x_kernel: W_x, [S, S, C, F].
      signal_kernel: W_g, [G, F].
      signal_bias: b_g, [F].
      score_kernel: ψ, [F, 1].
      score_bias: b_ψ, [1].

    Returns:
      α, [B, Y, X, 1] in at least float32, the factors of x.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = _expect_signal(x, gating_signal, x.shape[-1], signal_kernel.shape[0])
    seen = convolve(x, x_kernel, stride=x_kernel.shape[0])
    asked = gating_signal.astype(accumulator(gating_signal)) @ signal_kernel + signal_bias
    hidden = jax.nn.relu(seen + resize(asked, *seen.shape[1:3]))
    scores = jax.nn.sigmoid(hidden @ score_kernel + score_bias)
    return resize(scores, sizes["Y"], sizes["X"])


def _expect_signal(
    x: Array, gating_signal: Array, channels: int, signal_channels: int
) -> dict[str, int]:
    sizes = expect_map(x, channels)
    shapes.expect_floating("gating_signal", gating_signal)
    coarse = {"B": sizes["B"], "G": signal_channels}
    shapes.expect("gating_signal", gating_signal, "B Y' X' G", coarse)
    if not (0 < coarse["Y'"] <= sizes["Y"] and 0 < coarse["X'"] <= sizes["X"]):
        got, most = shapes.show(gating_signal.shape), f"{sizes['Y']} x {sizes['X']}"
        raise ValueError(
            f"gating_signal: got shape {got}, expected 1 x 1 to {most} positions, no finer than x"
        )
    return sizes


class AttentionGate(nnx.Module):
    """The attention gate (Oktay et al. 2018, "Attention U-Net").

        y = x · α,   α = σ(relu(x W_x + g W_g + b_g)·ψ + b_ψ)

    Args:
      channels: C of x.
      signal_channels: G of the gating signal g, from a coarser scale.
      hidden_size: F, number of hidden channels; half of C, at least 1, if None.
      stride: S, kernel size and stride of the convolution W_x.
      dtype: dtype of the map; gate and parameters are float32.

    Raises:
      ValueError: a number is below 1.
    """

    def __init__(
        self,
        channels: int,
        signal_channels: int,
        *,
        hidden_size: int | None = None,
        stride: int = 2,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        F = reduced(channels, 2) if hidden_size is None else hidden_size
        expect_positive(signal_channels=signal_channels, hidden_size=F, stride=stride)
        self.channels, self.signal_channels, self.dtype = channels, signal_channels, dtype
        self.kernel = kernel_init(rngs, stride, stride, channels, F)
        self.signal = Projection((signal_channels,), (F,), rngs=rngs)
        self.score = Projection((F,), (1,), rngs=rngs)

    def __call__(
        self,
        x: Array,
        gating_signal: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Applies the gate to a map.

        Args:
          x: [B, Y, X, C].
          gating_signal: [B, Y', X', G], with Y' <= Y and X' <= X.
          valid: bool [B]; has no effect, because examples are independent.
          training: has no effect.
          return_weights: whether to return the coefficients too.

        Returns:
          y, [B, Y, X, C] in `dtype`; with `return_weights`, also α, [B, Y, X, 1].

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        expect_valid(valid, _expect_signal(x, gating_signal, self.channels, self.signal_channels))
        x, gating_signal = x.astype(self.dtype), gating_signal.astype(self.dtype)
        projections = [
            p[...]
            for part in (self.signal, self.score)
            for p in (part.kernel, part.bias)
            if p is not None
        ]
        gate = additive_gate(x, gating_signal, self.kernel[...], *projections)
        y = recording.record_result(
            (x * gate).astype(x.dtype), lambda: gate, mix=lambda gate: x * gate
        )
        return (y, gate) if return_weights else y
