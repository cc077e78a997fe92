"""What mixers of a sequence with itself share: projections to heads and back."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.projection import Projection


class MultiHeadMixer(nnx.Module):
    """Query, key, value of as many heads each, and the way back; a subclass mixes them.

    Weights: query/kernel, key/kernel, value/kernel [D, N, H], out/kernel [N, H, D], and biases
      [N, H], [D].

    Args:
      model_size: D of x and of the result.
      num_heads: N.
      head_size: H; D / N if None.
      use_bias: whether the projections have biases.
      dropout_rate: active where a dropout_key is given; the subclass says of what.
      dtype: of the computation; weights are float32.

    Raises:
      ValueError: an argument does not fit the others.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        head_size: int | None = None,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        H = shapes.head_size(model_size, num_heads, head_size)
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        self.model_size, self.num_heads, self.head_size = model_size, num_heads, H
        self.dropout_rate, self.dtype = dropout_rate, dtype
        options = {"use_bias": use_bias, "dtype": dtype, "rngs": rngs}
        self.query = Projection((model_size,), (num_heads, H), **options)
        self.key = Projection((model_size,), (num_heads, H), **options)
        self.value = Projection((model_size,), (num_heads, H), **options)
        self.out = Projection((num_heads, H), (model_size,), **options)
