"""A linear map between groups of axes, with a kernel that keeps the head axis."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes


class Projection(nnx.Module):
    """Linear map y = x·W + b from the last axes of x to new last axes.

    The kernel has shape [*inputs, *outputs], so that a sharding rule can name its head axis. The
    product is one matrix multiplication with sums in float32.

    Args:
      inputs: sizes of the last axes of x, which are contracted.
      outputs: sizes of the last axes of y.
      use_bias: whether to add b, of shape `outputs`.
      dtype: dtype of the computation; parameters are float32.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        use_bias: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.inputs, self.outputs, self.dtype = tuple(inputs), tuple(outputs), dtype
        fan_in, fan_out = math.prod(inputs), math.prod(outputs)
        limit = math.sqrt(6.0 / (fan_in + fan_out))  # Glorot & Bengio 2010
        kernel = jax.random.uniform(rngs.params(), (*inputs, *outputs), minval=-limit, maxval=limit)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        axes = len(self.inputs)
        if x.shape[-axes:] != self.inputs:
            got, expected = shapes.show(x.shape), ", ".join(map(str, self.inputs))
            raise ValueError(f"x: got shape {got}, expected [..., {expected}]")
        rows, sums = x.shape[:-axes], jnp.promote_types(self.dtype, jnp.float32)
        kernel = self.kernel[...].astype(self.dtype).reshape(math.prod(self.inputs), -1)
        # Flattened to two axes: with more, XLA copies an operand for the kernel's gradient.
        flat = x.astype(self.dtype).reshape(-1, kernel.shape[0])
        y = jnp.matmul(flat, kernel, preferred_element_type=sums)
        if self.bias is not None:
            y = y + self.bias[...].reshape(-1)
        return y.astype(self.dtype).reshape(*rows, *self.outputs)
