"""Functions and base classes shared by attention over feature maps.

B examples, Y height, X width, C channels, O output channels, P = Y·X positions in row-major order,
N heads. A gate is an array of factors that multiply a map. Pooled vectors and gates are computed in
at least float32; a map keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.kernels import convolution
from attention.numerics import accumulator
from attention.shapes import expect_positive

Array = jax.Array


def global_average(x: Array) -> Array:
    """Computes the mean of each channel over all positions (Lin et al. 2014, "Network In Network").

        z_c = Σ_yx x_yxc / (Y X)

    Args:
      x: [B, Y, X, C].

    Returns:
      z, [B, C] in at least float32.

    Raises:
      ValueError: x is not [B, Y, X, C].
    """
    expect_map(x)
    return jnp.mean(x, axis=(1, 2), dtype=accumulator(x))


def maximum(x: Array, axis: int) -> Array:
    """Computes the maximum along an axis, with its gradient at the first argmax (Woo et al. 2018).

        y = max_i x_i,   dy / dx_i = 1 where i = argmax x, else 0

    In contrast, the gradient of `jnp.max` goes to all entries that equal the maximum. If the
    compiler recomputes x for this comparison with different rounding, no entry or a wrong entry may
    equal the maximum.

    Args:
      x: [..., I, ...].
      axis: index of the axis I.

    Returns:
      y, [..., ...] in at least float32, without that axis.

    Raises:
      ValueError: the axis is empty or missing.
    """
    index = jnp.expand_dims(jnp.argmax(jax.lax.stop_gradient(x), axis=axis), axis)
    return jnp.take_along_axis(x, index, axis=axis).squeeze(axis).astype(accumulator(x))


def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Computes a cross-correlation with zero padding (LeCun et al. 1989).

        y_ijo = Σ_uvc k_uvco · x_(i·s + u - a)(j·s + v - b)c

    where a and b are the numbers of zero rows above and zero columns on the left ("SAME" padding).
    For stride 1 and an odd kernel size, the kernel is centered on x_ij.

    Args:
      x: [B, Y, X, C].
      kernel: [height, width, C, O].
      stride: s.

    Returns:
      y, [B, ceil(Y / s), ceil(X / s), O] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = expect_map(x)
    shapes.expect("kernel", kernel, "height width C O", {"C": sizes["C"]})
    wide = jnp.promote_types(accumulator(x), kernel.dtype)
    padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME")
    rows, columns = ((int(before), int(after)) for before, after in padding)
    around = rows, columns
    return convolution.convolve(x.astype(wide), kernel.astype(wide), stride=stride, padding=around)


def reduced(channels: int, reduction: int, least: int = 1) -> int:
    """Computes the number of channels of a bottleneck (Hu et al. 2018, section 3.2).

        R = max(⌊C / r⌋, least)

    Args:
      channels: C, number of channels.
      reduction: r.
      least: smallest result.

    Returns:
      R.

    Raises:
      ValueError: channels or reduction is below 1.
    """
    expect_positive(channels=channels, reduction=reduction)
    return max(channels // reduction, least)


def expect_map(x: Array, channels: int | None = None) -> dict[str, int]:
    """Checks that x is a map [B, Y, X, C] with at least one position.

    Args:
      x: the map.
      channels: C, number of channels; any number if None.

    Returns:
      A dict of the sizes by dimension letter.

    Raises:
      ValueError: x is not a floating-point array [B, Y, X, C], or has no position or channel.
    """
    sizes = {} if channels is None else {"C": channels}
    shapes.expect_floating("x", x)
    shapes.expect("x", x, "B Y X C", sizes)
    if not sizes["Y"] * sizes["X"] * sizes["C"]:
        raise ValueError(f"x: got shape {shapes.show(x.shape)}, expected at least one position")
    return sizes


def expect_valid(valid: Array | None, sizes: dict[str, int]) -> None:
    """Raises ValueError unless `valid` is None or bool [B]."""
    if valid is not None:
        shapes.expect_boolean("valid", valid, true_means="a real example")
        shapes.expect("valid", valid, "B", sizes)


def kernel_init(rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """Initializes a kernel [height, width, C, O] for ReLU (He et al. 2015)."""
    height, width, inputs, _ = shape
    deviation = (2.0 / (height * width * inputs)) ** 0.5
    return nnx.Param(deviation * jax.random.normal(rngs.params(), shape))


class MapAttention(nnx.Module):
    """Base class of attention over feature maps.

    A subclass sets `channels` and `dtype`, defines `_apply`, and records its weights.
    """

    channels: int
    dtype: jnp.dtype

    def _apply(
        self, x: Array, *, valid: Array | None, training: bool
    ) -> tuple[Array, Callable[[], Array]]:
        """Returns the new map [B, Y, X, C] and a function that computes the weights.

        Args:
          x: [B, Y, X, C] in `dtype`, checked.
          valid, training: as for `__call__`.
        """
        raise NotImplementedError

    def __call__(
        self,
        x: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Applies the attention to a map.

        Args:
          x: [B, Y, X, C].
          valid: bool [B], examples to include in batch statistics; all if None. It has no effect
            without batch statistics.
          training: whether to normalize by the statistics of the batch and to update the running
            statistics.
          return_weights: whether to return the weights too.

        Returns:
          The new map, [B, Y, X, C] in `dtype`; with `return_weights`, also the weights. The weights
          of a gate are the factors of x, [B, Y or 1, X or 1, C or 1]. Those of attention between
          pixels are [B, N, P, P].

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        expect_valid(valid, expect_map(x, self.channels))
        y, weights = self._apply(x.astype(self.dtype), valid=valid, training=training)
        return (y, weights()) if return_weights else y


class MapGate(MapAttention):
    """Base class of attention that multiplies a map by a gate: y = x · gate(x).

    Args:
      channels: C, number of channels.
      dtype: dtype of the map; gates and parameters are float32.
    """

    def __init__(self, channels: int, *, dtype: jnp.dtype = jnp.float32):
        expect_positive(channels=channels)
        self.channels, self.dtype = channels, dtype

    def gate(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        """Computes the gate of x, [B, Y or 1, X or 1, C or 1] in at least float32."""
        raise NotImplementedError

    def _apply(self, x, *, valid, training):
        gate = self.gate(x, valid=valid, training=training)
        y = recording.record_result(
            (x * gate).astype(x.dtype), lambda: gate, mix=lambda gate: x * gate
        )
        return y, lambda: gate
