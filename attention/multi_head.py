"""Multi-head attention: the module that owns the weights around `attend`.

Vaswani et al. 2017; grouped-query attention: Ainslie et al. 2023; rotary positions: Su et al. 2021.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, shapes
from attention.dot_product import attend, attention_weights
from attention.positions import rotary
from attention.projection import Projection

Array = jax.Array


class MultiHeadAttention(nnx.Module):
    """Self-attention, cross-attention and grouped-query attention.

        head_n = attend(x W_q,n, m W_k,n', m W_v,n'),   y = concat_n(head_n) W_o

    where m is x itself, or the memory given, and n' = n // (num_heads / key_value_heads).

    Weights: query/kernel [D, N, H], key/kernel [D_m, K, H], value/kernel [D_m, K, V], out/kernel
      [N, V, D], and
    biases [N, H], [K, H], [K, V], [D].

    Args:
      model_size: D of x and of the result.
      num_heads: N.
      key_value_heads: K, divides N; N if None. 1 is multi-query attention (Shazeer 2019).
      head_size: H; D / N if None.
      value_head_size: V; H if None.
      memory_size: D_m of the memory; D if None.
      use_bias: whether the projections have biases.
      positions: "none", or "rope" to turn query and key.
      rope_base: base of the wavelengths.
      dropout_rate: of the attention weights, active where a dropout_key is given.
      scale, logit_cap, implementation: as for `attend`.
      dtype: of the computation; weights are float32.

    Raises:
      ValueError: an argument does not fit the others.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        key_value_heads: int | None = None,
        head_size: int | None = None,
        value_head_size: int | None = None,
        memory_size: int | None = None,
        use_bias: bool = True,
        positions: str = "none",
        rope_base: float = 10000.0,
        dropout_rate: float = 0.0,
        scale: float | None = None,
        logit_cap: float | None = None,
        implementation: str = "auto",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or (head_size is None and model_size % num_heads):
            expected = f"a positive divisor of model_size={model_size} (or give head_size)"
            raise ValueError(f"num_heads: got {num_heads}, expected {expected}")
        K = num_heads if key_value_heads is None else key_value_heads
        if K < 1 or num_heads % K:
            expected = f"a positive divisor of num_heads={num_heads}"
            raise ValueError(f"key_value_heads: got {K}, expected {expected}")
        if positions not in ("none", "rope"):
            raise ValueError(f"positions: got {positions!r}, expected 'none' or 'rope'")
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        H = model_size // num_heads if head_size is None else head_size
        if positions == "rope" and H % 2:
            raise ValueError(f"head_size: got {H}, expected an even one for rope")
        V = H if value_head_size is None else value_head_size
        D_m = model_size if memory_size is None else memory_size
        self.model_size, self.memory_size = model_size, D_m
        self.positions, self.rope_base = positions, rope_base
        self.dropout_rate, self.scale, self.logit_cap = dropout_rate, scale, logit_cap
        self.implementation = implementation
        options = {"use_bias": use_bias, "dtype": dtype, "rngs": rngs}
        self.query = Projection((model_size,), (num_heads, H), **options)
        self.key = Projection((D_m,), (K, H), **options)
        self.value = Projection((D_m,), (K, V), **options)
        self.out = Projection((num_heads, V), (model_size,), **options)

    def __call__(
        self,
        x: Array,
        memory: Array | None = None,
        *,
        mask: masks.Mask | Array | None = None,
        bias: Array | None = None,
        query_positions: Array | None = None,
        key_positions: Array | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Attends from x to itself, or to the memory.

        Args:
          x: [B, T, D].
          memory: [B, S, D_m]; x if None.
          mask, bias: as for `attend`.
          query_positions, key_positions: int [T] or [B, T], [S] or [B, S], for rope. Without a
            memory both are 0, 1, ... unless given; with one, both must be given.
          dropout_key: None for evaluation.
          return_weights: also return the weights before dropout.

        Returns:
          [B, T, D], or that and the weights [B, N, T, S].

        Raises:
          ValueError: shapes do not fit, or positions are missing or not used.
        """
        sizes = {"D": self.model_size, "M": self.memory_size}
        shapes.expect("x", x, "B T D", sizes)
        source = x if memory is None else memory
        shapes.expect("x" if memory is None else "memory", source, "B S M", sizes)
        query, key, value = self.query(x), self.key(source), self.value(source)
        if self.positions == "rope":
            query_positions, key_positions = _rope_positions(
                x, memory, query_positions, key_positions
            )
            query = rotary(query, query_positions, base=self.rope_base)
            key = rotary(key, key_positions, base=self.rope_base)
        elif query_positions is not None or key_positions is not None:
            raise ValueError(
                "query_positions: got positions, expected none without positions='rope'"
            )
        options = {"mask": mask, "bias": bias, "scale": self.scale, "logit_cap": self.logit_cap}
        heads = attend(
            query,
            key,
            value,
            dropout_rate=0.0 if dropout_key is None else self.dropout_rate,
            dropout_key=dropout_key,
            implementation=self.implementation,
            **options,
        )
        result = self.out(heads)
        if return_weights:
            return result, attention_weights(query, key, **options)
        return result


def _rope_positions(x, memory, query_positions, key_positions) -> tuple[Array, Array]:
    if memory is None:
        default = jnp.arange(x.shape[1])
        query_positions = default if query_positions is None else query_positions
        key_positions = query_positions if key_positions is None else key_positions
    if query_positions is None or key_positions is None:
        name = "query_positions" if query_positions is None else "key_positions"
        raise ValueError(f"{name}: got none, expected both with rope and a memory")
    return query_positions, key_positions
