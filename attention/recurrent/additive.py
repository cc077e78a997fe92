"""Additive alignments: the score is a network with one hidden layer.

Bahdanau et al. 2015, "Neural Machine Translation by Jointly Learning to Align and Translate", and
the score "concat" of Luong et al. 2015. `attention.recurrent.memory` defines their interface and
the dimension letters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.numerics import accumulator, softmax
from attention.projection import Projection
from attention.recurrent.memory import Alignment, Memory, recorded_context

Array = jax.Array


def additive_scores(query: Array, keys: Array, vector: Array) -> Array:
    """Computes additive scores of keys for a query (Bahdanau et al. 2015, appendix A.1.2).

        e_s = v · tanh(q + k_s)

    Args:
      query: q, [B, A], a projection of the decoder's state.
      keys: k, [B, S, A], projections of the encoder's states, of the same dtype.
      vector: v, [A].

    Returns:
      e, [B, S] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect("keys", keys, "B S A", sizes)
    shapes.expect("query", query, "B A", sizes)
    shapes.expect("vector", vector, "A", sizes)
    shapes.expect_same_dtype(keys=keys, query=query)
    hidden = jnp.tanh(query[:, None] + keys)
    vector = vector.astype(hidden.dtype)
    return jnp.einsum("BSA,A->BS", hidden, vector, preferred_element_type=accumulator(hidden))


def additive_step(query: Array, memory: Memory, vector: Array) -> tuple[Array, Array]:
    """Computes a step of additive alignment (Bahdanau et al. 2015, equations 5 and 6).

        a = softmax_s(v · tanh(q + k_s)),   c = Σ_s a_s h_s

    Args:
      query: q, [B, A], with A units of the score network.
      memory: keys k [B, S, A], values h [B, S, D] and valid positions.
      vector: v, [A].

    Returns:
      The context c [B, D] and the weights a [B, S], float32. Both are 0 for an empty memory.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    scores = additive_scores(query, memory.keys, vector)
    weights = softmax(jnp.where(memory.valid, scores, -jnp.inf))
    return recorded_context(weights, memory.values), weights


class _ScoredByNetwork(Alignment):
    """Base class of the two additive alignments, which apply `additive_step` to projections.

    A subclass defines `_project`, which builds the projections, and `_query`.
    """

    _project: Callable[..., None]
    _query: Callable[[Array], Array]

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        hidden_size: int | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(query_size, memory_size, dtype=dtype, rngs=rngs)
        A = validate_hidden_size(hidden_size, memory_size)
        self._project(A, dtype=dtype, rngs=rngs)
        self.score = nnx.Param(jax.random.normal(rngs.params(), (A,)) * A**-0.5)

    def _step(self, query: Array, memory: Memory) -> tuple[Array, Array]:
        return additive_step(self._query(query), memory, self.score[...])


class AdditiveAlignment(_ScoredByNetwork):
    """The additive alignment of Bahdanau et al. 2015; U h_s + b is computed once, in `prepare`.

        a = softmax_s(v · tanh(W q + U h_s + b)),   c = Σ_s a_s h_s

    Parameters: query/kernel [Q, A] (W), key/kernel [D, A] (U), key/bias [A], score [A] (v).

    Args:
      query_size: Q of the decoder's state. The caller chooses which state is the query. In the
        paper it is the state before the step that receives the context.
      memory_size: D of the encoder's states.
      hidden_size: A, size of the hidden layer; D if None.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: hidden_size is below 1.
    """

    def _project(self, A: int, **options: Any) -> None:
        self.query = Projection((self.query_size,), (A,), use_bias=False, **options)
        self.key = Projection((self.memory_size,), (A,), **options)

    def _query(self, query: Array) -> Array:
        return self.query(query)

    def _keys(self, states: Array) -> Array:
        return self.key(states)


class ConcatAlignment(_ScoredByNetwork):
    """The score "concat" of Luong et al. 2015: one matrix for the concatenated query and state.

        a = softmax_s(v · tanh(W [q; h_s])),   c = Σ_s a_s h_s

    Because W [q; h] = W_1 q + W_2 h, this is `AdditiveAlignment` without its bias. W_2 h_s is also
    computed once, in `prepare`. The initialization is different: W is one kernel with Q + D inputs.
    In Luong et al. the query is the decoder's state after its step, in Bahdanau et al. the state
    before the step.

    Parameters: hidden/kernel [Q + D, A] (W), score [A] (v).

    Args:
      query_size, memory_size, hidden_size, dtype: those of `AdditiveAlignment`.

    Raises:
      ValueError: hidden_size is below 1.
    """

    def _project(self, A: int, **options: Any) -> None:
        inputs = (self.query_size + self.memory_size,)
        self.hidden = Projection(inputs, (A,), use_bias=False, **options)

    def _query(self, query: Array) -> Array:
        return self._product(query, slice(self.query_size))

    def _keys(self, states: Array) -> Array:
        return self._product(states, slice(self.query_size, None))

    def _product(self, x: Array, rows: slice) -> Array:
        """Returns the product of x and some rows of the kernel."""
        kernel = self.hidden.kernel[...][rows].astype(self.dtype)
        return jnp.matmul(x, kernel, preferred_element_type=accumulator(x)).astype(self.dtype)


def validate_hidden_size(hidden_size: int | None, memory_size: int) -> int:
    """Returns the hidden size A of an additive score: hidden_size, or memory_size if it is None.

    Raises:
      ValueError: hidden_size is below 1.
    """
    if hidden_size is not None and hidden_size < 1:
        raise ValueError(f"hidden_size: got {hidden_size}, expected at least 1, or None")
    return memory_size if hidden_size is None else hidden_size
