"""Multiplicative alignments of a recurrent decoder, and the control without any.

Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", section
3.1.

    memory = alignment.prepare(states, valid=valid)                  # once, outside the scan
    state = alignment.initial_state(memory)
    context, weights, state = alignment.step(query, memory, state)   # once a step
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.kernels.reference import softmax
from attention.projection import Projection

Array = jax.Array


class Memory(NamedTuple):
    """What a decoder looks at.

    Attributes:
      keys: [B, S, Q], compared with the query.
      values: [B, S, D], what the context is made of.
      valid: bool [B, S], True = a real position.
    """

    keys: Array
    values: Array
    valid: Array


def dot_step(query: Array, memory: Memory) -> tuple[Array, Array]:
    """One step of dot-product alignment (Luong et al. 2015, equations 7 and 8).

        a = softmax_s(q · k_s),   c = Σ_s a_s h_s

    Args:
      query: [B, Q], the decoder's state.
      memory: keys k, values h and which of them are real.

    Returns:
      The context [B, D] and the weights a [B, S], float32. Both are 0 where the memory is empty.

    Raises:
      ValueError: the query does not fit the keys.
    """
    B, _, Q = memory.keys.shape
    shapes.expect("query", query, "B Q", {"B": B, "Q": Q})
    shapes.expect_same_dtype(query=query, memory=memory.keys)
    sums = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("BQ,BSQ->BS", query, memory.keys, preferred_element_type=sums)
    weights = softmax(jnp.where(memory.valid, scores, -jnp.inf))
    recording.record(lambda: weights)
    return _context(weights, memory.values), weights


class DotAlignment(nnx.Module):
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
        if query_size != memory_size:
            expected = f"memory_size={memory_size}, or the alignment 'general'"
            raise ValueError(f"query_size: got {query_size}, expected {expected}")
        self.memory_size, self.dtype = memory_size, dtype

    def prepare(self, states: Array, *, valid: Array | None = None) -> Memory:
        """Encoder states [B, S, D] and bool [B, S] -> what `step` takes."""
        states, valid = _checked(states, valid, self.memory_size, self.dtype)
        return Memory(states, states, valid)

    def initial_state(self, memory: Memory) -> tuple[()]:
        """Nothing is carried from step to step."""
        return ()

    def step(self, query: Array, memory: Memory, state: Any = ()) -> tuple[Array, Array, Any]:
        """query [B, Q] -> context [B, D], weights [B, S], state."""
        context, weights = dot_step(query.astype(self.dtype), memory)
        return context, weights, state


class GeneralAlignment(nnx.Module):
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
        self.memory_size, self.dtype = memory_size, dtype
        self.key = Projection((memory_size,), (query_size,), use_bias=False, dtype=dtype, rngs=rngs)

    def prepare(self, states: Array, *, valid: Array | None = None) -> Memory:
        """Encoder states [B, S, D] and bool [B, S] -> what `step` takes."""
        states, valid = _checked(states, valid, self.memory_size, self.dtype)
        return Memory(self.key(states), states, valid)

    def initial_state(self, memory: Memory) -> tuple[()]:
        """Nothing is carried from step to step."""
        return ()

    def step(self, query: Array, memory: Memory, state: Any = ()) -> tuple[Array, Array, Any]:
        """query [B, Q] -> context [B, D], weights [B, S], state."""
        context, weights = dot_step(query.astype(self.dtype), memory)
        return context, weights, state


class NoAlignment(nnx.Module):
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
        self.memory_size, self.dtype = memory_size, dtype

    def prepare(self, states: Array, *, valid: Array | None = None) -> Memory:
        """Encoder states [B, S, D] and bool [B, S] -> what `step` takes."""
        states, valid = _checked(states, valid, self.memory_size, self.dtype)
        return Memory(states, states, valid)

    def initial_state(self, memory: Memory) -> tuple[()]:
        """Nothing is carried from step to step."""
        return ()

    def step(self, query: Array, memory: Memory, state: Any = ()) -> tuple[Array, Array, Any]:
        """query [B, Q] (not looked at) -> context [B, D], weights [B, S], state."""
        shapes.expect("query", query, "B Q", {"B": memory.values.shape[0]})
        S = memory.valid.shape[1]
        last = S - 1 - jnp.argmax(memory.valid[:, ::-1], axis=1)
        weights = jax.nn.one_hot(last, S) * memory.valid
        recording.record(lambda: weights)
        return _context(weights, memory.values), weights, state


def _context(weights: Array, values: Array) -> Array:
    sums = jnp.promote_types(values.dtype, jnp.float32)
    weights = weights.astype(values.dtype)
    context = jnp.einsum("BS,BSD->BD", weights, values, preferred_element_type=sums)
    return context.astype(values.dtype)


def _checked(
    states: Array, valid: Array | None, memory_size: int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    sizes = {"D": memory_size}
    shapes.expect_floating("states", states)
    shapes.expect("states", states, "B S D", sizes)
    if valid is None:
        return states.astype(dtype), jnp.ones(states.shape[:2], bool)
    shapes.expect_boolean("valid", valid, true_means="a real position")
    shapes.expect("valid", valid, "B S", sizes)
    return states.astype(dtype), jnp.asarray(valid)
