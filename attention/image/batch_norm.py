"""Batch normalization with running statistics (Ioffe & Szegedy 2015).

B examples, C channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.image.maps import expect_valid
from attention.numerics import accumulator

Array = jax.Array


def batch_moments(x: Array, valid: Array | None = None) -> tuple[Array, Array, Array]:
    """Computes mean and variance of each channel over a batch (Ioffe & Szegedy 2015, algorithm 1).

        μ_c = Σ_i x_ic / n,   σ²_c = Σ_i (x_ic - μ_c)² / n

    over the n positions i of all valid examples. On a mesh, the statistics are computed over the
    global batch.

    Args:
      x: [B, ..., C].
      valid: bool [B], True = a real example; all if None.

    Returns:
      μ [C] and σ² [C] in at least float32 (0 without valid examples), and the scalar n.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    shapes.expect_floating("x", x)
    expect_valid(valid, {"B": x.shape[0]})
    axes, wide = tuple(range(x.ndim - 1)), x.astype(accumulator(x))
    if valid is None:
        valid = jnp.ones(x.shape[:1], bool)
    counted = valid.reshape(-1, *[1] * (x.ndim - 1))
    n = jnp.sum(jnp.broadcast_to(counted, (*x.shape[:-1], 1)), dtype=wide.dtype)
    mean = jnp.sum(jnp.where(counted, wide, 0), axis=axes) / jnp.maximum(n, 1)
    squares = jnp.square(jnp.where(counted, wide - mean, 0))
    return mean, jnp.sum(squares, axis=axes) / jnp.maximum(n, 1), n


def batch_norm(
    x: Array, mean: Array, variance: Array, scale: Array, bias: Array, *, epsilon: float = 1e-5
) -> Array:
    """Normalizes each channel (Ioffe & Szegedy 2015, algorithm 1).

        y_c = (x_c - μ_c) / sqrt(σ²_c + ε) · scale_c + bias_c

    Args:
      x: [B, ..., C].
      mean, variance: μ and σ², [C], of the batch or running statistics.
      scale, bias: [C].
      epsilon: ε, above 0.

    Returns:
      y, [B, ..., C] in x's dtype.

    Raises:
      TypeError: an array does not broadcast against x.
    """
    wide = x.astype(accumulator(x))
    return ((wide - mean) * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(x.dtype)


class BatchNorm(nnx.Module):
    """`batch_norm` with its scale and bias, and running statistics for evaluation.

        running = (1 - m) · running + m · batch,   with the variance of the batch times n / (n - 1)

    The running statistics are `nnx.BatchStat`s, not parameters; the training step must keep their
    new values. n is the number of valid positions; if n is 0, the statistics do not change.

    Args:
      size: C, number of channels.
      momentum: m, the weight of the newest batch.
      epsilon: added to the variance.
      zero: whether the scale is initialized to 0, so that a residual branch that ends in the norm
        has no effect at first.

    Raises:
      ValueError: the momentum is out of range.
    """

    def __init__(
        self, size: int, *, momentum: float = 0.1, epsilon: float = 1e-5, zero: bool = False
    ):
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum: got {momentum}, expected a number in (0, 1]")
        self.momentum, self.epsilon = momentum, epsilon
        self.scale = nnx.Param(jnp.zeros((size,)) if zero else jnp.ones((size,)))
        self.bias = nnx.Param(jnp.zeros((size,)))
        self.mean = nnx.BatchStat(jnp.zeros((size,)))
        self.variance = nnx.BatchStat(jnp.ones((size,)))

    def __call__(self, x: Array, *, valid: Array | None = None, training: bool = False) -> Array:
        """Normalizes each channel of an array.

        Args:
          x: [B, ..., C].
          valid: bool [B], examples to include in the batch statistics; all if None.
          training: whether to normalize by the statistics of the batch and to update the running
            statistics.

        Returns:
          [B, ..., C] in x's dtype.
        """
        mean, variance = self.mean[...], self.variance[...]
        if training:
            mean, variance, n = batch_moments(x, valid)
            self._follow(mean, variance, n)
        scale, bias = self.scale[...], self.bias[...]
        return batch_norm(x, mean, variance, scale, bias, epsilon=self.epsilon)

    def _follow(self, mean: Array, variance: Array, n: Array) -> None:
        unbiased = variance * n / jnp.maximum(n - 1, 1)
        for running, batch in ((self.mean, mean), (self.variance, unbiased)):
            old = running[...]
            moved = old + self.momentum * (jax.lax.stop_gradient(batch).astype(old.dtype) - old)
            running[...] = jnp.where(n > 0, moved, old)
