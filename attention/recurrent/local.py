"""Local alignment: the decoder predicts a position and attends to a window around it.

Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation", section
3.2, "local-p". `attention.recurrent.memory` defines the interface of alignments and the dimension
letters. In this module, however, D is the number of states in the window on each side of its
center, and D_h is the size of the encoder's states.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.numerics import softmax
from attention.projection import Projection
from attention.recurrent.dot_product import dot_scores, expect_equal_sizes
from attention.recurrent.memory import Alignment, Memory, recorded_context, validate_query

Array = jax.Array


def local_step(query: Array, memory: Memory, center: Array, *, window: int) -> tuple[Array, Array]:
    """Computes a step of alignment in a window around a position (Luong et al. 2015, equation 10).

        a_s = softmax_s(q · k_s) · exp(-(s - p)² / 2σ²),   σ = D / 2,   c = Σ_s a_s h_s

    The softmax is over |s - p| <= D only; other weights are 0. As in the paper, the softmax is
    multiplied by the Gaussian, so the weights sum to less than 1.

    Positions s = 0, 1, ... count valid states only, so padding does not shift them.

    Args:
      query: q, [B, Q].
      memory: keys k [B, S, Q], values h [B, S, D_h] and valid positions.
      center: p, the center of the window, float [B]; its gradient passes through the Gaussian.
      window: D, number of states on each side of the center, at least 1.

    Returns:
      The context c [B, D_h] and the weights a [B, S], float32. Both are 0 for an empty memory.

    Raises:
      ValueError: shapes, dtypes or the window do not fit.
    """
    scores = dot_scores(query, memory.keys)
    shapes.expect("center", center, "B", {"B": scores.shape[0]})
    expect_window(window)
    positions = jnp.cumsum(memory.valid, axis=1) - 1
    distance = positions.astype(scores.dtype) - center.astype(scores.dtype)[:, None]
    seen = memory.valid & (jnp.abs(distance) <= window)
    weights = softmax(jnp.where(seen, scores, -jnp.inf))
    weights = weights * jnp.exp(-jnp.square(distance) / (2 * (window / 2) ** 2))
    return recorded_context(weights, memory.values), weights


class LocalAlignment(Alignment):
    """Local alignment with a predicted position, "local-p" of Luong et al. 2015.

        p = S · sigmoid(v · tanh(W_p q))
        a_s = softmax_s(score(q, h_s)) · exp(-(s - p)² / 2σ²),   |s - p| <= D,   σ = D / 2

    S is the number of valid states of each example, and s = 0 ... S - 1 counts them. The score is
    Luong's "general", qᵀ W h_s, or "dot". The weights sum to less than 1, as the Gaussian comes
    after the softmax.

    Parameters: position/kernel [Q, Q] (W_p), position_score [Q] (v) and, for "general", key/kernel
    [D_h, Q].

    Args:
      query_size: Q of the decoder's state.
      memory_size: D_h of the encoder's states.
      window: D, number of states on each side of the center; 10 in the paper.
      score: "general" or "dot".
      dtype: dtype of the computation; parameters and position are float32.

    Raises:
      ValueError: the window is below 1, the score is unknown, or the sizes differ with "dot".
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        window: int = 10,
        score: str = "general",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        expect_window(window)
        if score not in ("general", "dot"):
            raise ValueError(f"score: got {score!r}, expected 'general' or 'dot'")
        if score == "dot":
            expect_equal_sizes(query_size, memory_size)
        Q = query_size
        super().__init__(query_size, memory_size, dtype=dtype, rngs=rngs)
        self.window = window
        # At least float32: a position rounded to bfloat16 could move the edge of the window.
        wide = jnp.promote_types(dtype, jnp.float32)
        self.position = Projection((Q,), (Q,), use_bias=False, dtype=wide, rngs=rngs)
        self.position_score = nnx.Param(jax.random.normal(rngs.params(), (Q,)) * Q**-0.5)
        self.key = (
            None
            if score == "dot"
            else Projection((memory_size,), (Q,), use_bias=False, dtype=dtype, rngs=rngs)
        )

    def _keys(self, states: Array) -> Array:
        return states if self.key is None else self.key(states)

    def step(self, query: Array, memory: Memory, state: Any = ()) -> tuple[Array, Array, Any]:
        """Computes one step of the decoder.

        Args:
          query: the decoder's state, [B, Q].
          memory: memory returned by `prepare`.
          state: empty; alignments of this kind have no state.

        Returns:
          The context, [B, D_h]; the weights, [B, S]; and the state.
        """
        center = self.predict(query, memory)
        query = query.astype(self.dtype)
        return *local_step(query, memory, center, window=self.window), state

    def predict(self, query: Array, memory: Memory) -> Array:
        """Predicts the position p for a query [B, Q].

        Returns:
          p, [B], from 0 to the number of valid states.
        """
        query = validate_query(query, memory, self.query_size, self.position.dtype)
        fraction = jax.nn.sigmoid(jnp.tanh(self.position(query)) @ self.position_score[...])
        return jnp.sum(memory.valid, axis=1) * fraction


def expect_window(window: int) -> None:
    """Raises ValueError for a window below 1."""
    if window < 1:
        raise ValueError(f"window: got {window}, expected at least 1")
