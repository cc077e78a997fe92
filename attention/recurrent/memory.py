"""Memory and base class of alignments.

    memory = alignment.prepare(states, valid=valid)                  # once, outside the scan
    state = alignment.initial_state(memory)
    context, weights, state = alignment.step(query, memory, state)   # every step

B examples, S states of the encoder, D their size, Q size of the decoder's state, A hidden size of
the scoring network, N heads, H head size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.numerics import product

Array = jax.Array


class Memory(NamedTuple):
    """Encoder states prepared for the steps of a decoder.

    Attributes:
      keys: states or their projections, from which scores are computed, [B, S, Q], [B, S, A] or
        [B, S, N, H].
      values: states or their projections, which the weights average, [B, S, D] or [B, S, N, H].
      valid: bool [B, S], True = a real position.
    """

    keys: Array
    values: Array
    valid: Array


def context(weights: Array, values: Array) -> Array:
    """Computes the context vector of a step (Bahdanau et al. 2015, equation 5).

        c = Σ_s a_s h_s

    Args:
      weights: a, [B, S].
      values: h, [B, S, D].

    Returns:
      c, [B, D] in the values' dtype, summed in at least float32.

    Raises:
      TypeError: shapes do not fit.
    """
    return product("BS,BSD->BD", weights, values)


def recorded_context(weights: Array, values: Array) -> Array:
    """Returns `context(weights, values)` and records the weights for `inspect.capture`."""
    return recording.record_result(
        context(weights, values), lambda: weights, mix=lambda weights: context(weights, values)
    )


def validate_states(
    states: Array, valid: Array | None, memory_size: int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Checks the states of an encoder and its valid positions.

    Returns:
      The states, [B, S, D] in dtype; and the valid positions, bool [B, S], all True if `valid` is
      None.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = shapes.expect_arrays({"states": (states, "B S D")}, {"D": memory_size})
    if valid is None:
        return states.astype(dtype), jnp.ones(states.shape[:2], bool)
    shapes.expect_boolean("valid", valid, true_means="a real position")
    shapes.expect("valid", valid, "B S", sizes)
    return states.astype(dtype), jnp.asarray(valid)


def validate_query(query: Array, memory: Any, query_size: int, dtype: jnp.dtype) -> Array:
    """Checks the query of a step and returns it in dtype.

    Raises:
      ValueError: the shape does not fit the memory, or the dtype is not floating point.
    """
    sizes = {"B": memory.valid.shape[0], "Q": query_size}
    shapes.expect_arrays({"query": (query, "B Q")}, sizes)
    return query.astype(dtype)


class Alignment(nnx.Module):
    """Base class of alignments without a state.

    A subclass defines `_step`, and `_keys` if keys are not the encoder's states.

    Args:
      query_size: Q of the decoder's state.
      memory_size: D of the encoder's states.
      dtype: dtype of the computation; parameters are float32.
    """

    def __init__(
        self, query_size: int, memory_size: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.query_size, self.memory_size, self.dtype = query_size, memory_size, dtype

    def _keys(self, states: Array) -> Array:
        return states

    def _step(self, query: Array, memory: Memory) -> tuple[Array, Array]:
        """Returns the context [B, D] and the weights [B, S] of a step, and records the weights."""
        raise NotImplementedError

    def prepare(self, states: Array, *, valid: Array | None = None) -> Memory:
        """Prepares the encoder's states for `step`.

        Args:
          states: [B, S, D].
          valid: bool [B, S], True = a real position; all if None.
        """
        states, valid = validate_states(states, valid, self.memory_size, self.dtype)
        return Memory(self._keys(states), states, valid)

    def initial_state(self, memory: Memory) -> tuple[()]:
        """Returns the initial state, which is empty."""
        return ()

    def step(self, query: Array, memory: Memory, state: Any = ()) -> tuple[Array, Array, Any]:
        """Computes one step of the decoder.

        Args:
          query: the decoder's state, [B, Q].
          memory: memory returned by `prepare`.
          state: state returned by `initial_state`, or by the previous step.

        Returns:
          The context, [B, D]; the weights, [B, S], or [B, N, S] with several heads; and the state.
        """
        query = validate_query(query, memory, self.query_size, self.dtype)
        return *self._step(query, memory), state
