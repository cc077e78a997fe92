"""Multiplicative alignments of a recurrent decoder, and the control without alignment.

Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", section
3.1. `attention.recurrent.memory` defines their interface and the dimension letters.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.numerics import accumulator, softmax
from attention.projection import Projection
from attention.recurrent.memory import Alignment, Memory, recorded_context

Array = jax.Array


def dot_scores(query: Array, keys: Array) -> Array:
    """Computes the score "dot" of keys for a query (Luong et al. 2015, equation 8).

        e_s = q · k_s

    Args:
      query: q, [B, Q].
      keys: k, [B, S, Q], of the same dtype.

    Returns:
      e, [B, S] in at least float32.

    Raises:
      ValueError: the query does not fit the keys.
    """
    B, _, Q = keys.shape
    shapes.expect("query", query, "B Q", {"B": B, "Q": Q})
    shapes.expect_same_dtype(query=query, memory=keys)
    return jnp.einsum("BQ,BSQ->BS", query, keys, preferred_element_type=accumulator(query))


def dot_step(query: Array, memory: Memory) -> tuple[Array, Array]:
    """Computes a step of dot-product alignment (Luong et al. 2015, equations 7 and 8).

        a = softmax_s(q · k_s),   c = Σ_s a_s h_s

    Args:
      query: [B, Q], the decoder's state.
      memory: keys k [B, S, Q], values h [B, S, D] and valid positions.

    Returns:
      The context c [B, D] and the weights a [B, S], float32. Both are 0 for an empty memory.

    Raises:
      ValueError: the query does not fit the keys.
    """
    weights = softmax(jnp.where(memory.valid, dot_scores(query, memory.keys), -jnp.inf))
    return recorded_context(weights, memory.values), weights


def expect_equal_sizes(query_size: int, memory_size: int) -> None:
    """Raises ValueError unless the sizes are equal."""
    if query_size != memory_size:
        expected = f"memory_size={memory_size}, or the score 'general'"
        raise ValueError(f"query_size: got {query_size}, expected {expected}")


class DotAlignment(Alignment):
    """The score "dot" of Luong et al. 2015, without parameters.

        a = softmax_s(q · h_s),   c = Σ_s a_s h_s

    Args:
      query_size: Q of the decoder's state.
      memory_size: D of the encoder's states, equal to Q.
      options: those of `Alignment`.

    Raises:
      ValueError: the sizes differ.
    """

    def __init__(self, query_size: int, memory_size: int, **options: Any):
        expect_equal_sizes(query_size, memory_size)
        super().__init__(query_size, memory_size, **options)

    def _step(self, query: Array, memory: Memory) -> tuple[Array, Array]:
        return dot_step(query, memory)


class GeneralAlignment(Alignment):
    """The score "general" of Luong et al. 2015. W h_s is computed once, in `prepare`.

        a = softmax_s(qᵀ W h_s),   c = Σ_s a_s h_s

    Args:
      query_size, memory_size, options: those of `Alignment`.
    """

    def __init__(self, query_size: int, memory_size: int, *, rngs: nnx.Rngs, **options: Any):
        super().__init__(query_size, memory_size, rngs=rngs, **options)
        shared: dict[str, Any] = {"dtype": self.dtype, "rngs": rngs}
        self.key = Projection((memory_size,), (query_size,), use_bias=False, **shared)

    def _keys(self, states: Array) -> Array:
        return self.key(states)

    def _step(self, query: Array, memory: Memory) -> tuple[Array, Array]:
        return dot_step(query, memory)


class NoAlignment(Alignment):
    """Control: the last valid state is the context of every step (Sutskever et al. 2014).

        c = h_S,   a_s = 1 where s = S, the last valid position, else 0

    Args:
      query_size: Q of the decoder's state; has no effect.
      memory_size: D of the encoder's states.
      dtype: dtype of the computation.
    """

    def _step(self, query: Array, memory: Memory) -> tuple[Array, Array]:
        following = jnp.cumsum(memory.valid[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]
        weights = (memory.valid & (following == 1)).astype(jnp.float32)
        return recorded_context(weights, memory.values), weights
