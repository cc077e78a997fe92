"""Multiplicative alignments of a recurrent decoder, and the control without any.

Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", section
3.1. How they are called: `attention.recurrent.memory`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.numerics import accumulator, softmax
from attention.projection import Projection
from attention.recurrent.memory import Memory, Stateless, context, validate_query, validate_states

Array = jax.Array


def dot_scores(query: Array, keys: Array) -> Array:
    """How well each key fits the query: the score "dot" (Luong et al. 2015, equation 8).

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
    """One step of dot-product alignment (Luong et al. 2015, equations 7 and 8).

        a = softmax_s(q · k_s),   c = Σ_s a_s h_s

    Args:
      query: [B, Q], the decoder's state.
      memory: keys k [B, S, Q], values h [B, S, D] and which of them are real.

    Returns:
      The context c [B, D] and the weights a [B, S], float32. Both are 0 where the memory is empty.

    Raises:
      ValueError: the query does not fit the keys.
    """
    weights = softmax(jnp.where(memory.valid, dot_scores(query, memory.keys), -jnp.inf))
    recording.record(lambda: weights)
    return context(weights, memory.values), weights


def expect_equal_sizes(query_size: int, memory_size: int) -> None:
    """A product of query and states needs equal sizes.

    Raises:
      ValueError: they differ.
    """
    if query_size != memory_size:
        expected = f"memory_size={memory_size}, or the score 'general'"
        raise ValueError(f"query_size: got {query_size}, expected {expected}")


class DotAlignment(Stateless, nnx.Module):
    """The score "dot" of Luong et al. 2015. It has no weights of its own.

        a = softmax_s(q · h_s),   c = Σ_s a_s h_s

    Args:
      query_size: Q of the decoder's state.
      memory_size: D of the encoder's states, the same.
      dtype: of the computation.

    Raises:
      ValueError: the sizes differ.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        expect_equal_sizes(query_size, memory_size)
        self.query_size, self.memory_size, self.dtype = query_size, memory_size, dtype

    def prepare(self, states: Array, *, valid: Array | None = None) -> Memory:
        """Encoder states [B, S, D] and bool [B, S] -> what `step` takes."""
        states, valid = validate_states(states, valid, self.memory_size, self.dtype)
        return Memory(states, states, valid)

    def step(self, query: Array, memory: Memory, state: Any = ()) -> tuple[Array, Array, Any]:
        """query [B, Q] -> context [B, D], weights [B, S], state."""
        query = validate_query(query, memory, self.query_size, self.dtype)
        return *dot_step(query, memory), state


class GeneralAlignment(Stateless, nnx.Module):
    """The score "general" of Luong et al. 2015. W h_s is computed once, in `prepare`.

        a = softmax_s(qᵀ W h_s),   c = Σ_s a_s h_s

    Args:
      query_size: Q of the decoder's state.
      memory_size: D of the encoder's states.
      dtype: of the computation; weights are float32.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.query_size, self.memory_size, self.dtype = query_size, memory_size, dtype
        self.key = Projection((memory_size,), (query_size,), use_bias=False, dtype=dtype, rngs=rngs)

    def prepare(self, states: Array, *, valid: Array | None = None) -> Memory:
        """Encoder states [B, S, D] and bool [B, S] -> what `step` takes."""
        states, valid = validate_states(states, valid, self.memory_size, self.dtype)
        return Memory(self.key(states), states, valid)

    def step(self, query: Array, memory: Memory, state: Any = ()) -> tuple[Array, Array, Any]:
        """query [B, Q] -> context [B, D], weights [B, S], state."""
        query = validate_query(query, memory, self.query_size, self.dtype)
        return *dot_step(query, memory), state


class NoAlignment(Stateless, nnx.Module):
    """The control: every step gets one fixed vector, the last valid state (Sutskever et al. 2014).

        c = h_S,   a_s = 1 where s = S, the last valid position, else 0

    Args:
      query_size: of the decoder's state, which is not looked at.
      memory_size: D of the encoder's states.
      dtype: of the computation.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.query_size, self.memory_size, self.dtype = query_size, memory_size, dtype

    def prepare(self, states: Array, *, valid: Array | None = None) -> Memory:
        """Encoder states [B, S, D] and bool [B, S] -> what `step` takes."""
        states, valid = validate_states(states, valid, self.memory_size, self.dtype)
        return Memory(states, states, valid)

    def step(self, query: Array, memory: Memory, state: Any = ()) -> tuple[Array, Array, Any]:
        """query [B, Q] (not looked at) -> context [B, D], weights [B, S], state."""
        validate_query(query, memory, self.query_size, self.dtype)
        following = jnp.cumsum(memory.valid[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1]
        weights = (memory.valid & (following == 1)).astype(jnp.float32)
        recording.record(lambda: weights)
        return context(weights, memory.values), weights, state
