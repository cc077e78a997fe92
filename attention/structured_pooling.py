"""Structured self-attention: several hops over a sequence, and a penalty on their overlap.

Lin et al. 2017, "A Structured Self-attentive Sentence Embedding". A hop is one set of weights over
the positions. R hops; the other dimension letters are defined in `attention.pooling`. The module is
called like the other pools (`attention.pooling`):

    pooled, weights = pool(states, valid=valid, dropout_key=key)
    loss = loss + 0.3 * jnp.mean(structured_penalty(weights))
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.dropout import dropout
from attention.numerics import accumulator, product, softmax
from attention.pooling import Pool, validate_valid
from attention.projection import Projection

Array = jax.Array


def structured_pool(
    states: Array,
    scores: Array,
    valid: Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> tuple[Array, Array]:
    """Computes a weighted mean of valid states for each hop (Lin et al. 2017, equations 6 and 7).

        A = softmax_t(scores),   M = A X

    Args:
      states: X, [B, T, D].
      scores: [B, R, T], one row for each hop.
      valid: bool [B, T], valid positions; all if None.
      dropout_rate, dropout_key: rate and random key of the dropout applied to A.

    Returns:
      M, [B, R, D]; and A before dropout, [B, R, T] in at least float32.

    Raises:
      ValueError: shapes, dtypes or the rate do not fit.
    """
    valid = validate_valid(states, valid)
    sizes = {"B": states.shape[0], "T": states.shape[1]}
    shapes.expect("scores", scores, "B R T", sizes)
    wide = scores.astype(accumulator(scores))
    weights = softmax(jnp.where(valid[:, None], wide, -jnp.inf))
    dropped = dropout(weights, dropout_rate, dropout_key)
    pooled = recording.record_result(
        product("BRT,BTD->BRD", dropped, states),
        lambda: weights,
        mix=None if dropout_rate else lambda w: product("BRT,BTD->BRD", w, states),
    )
    return pooled, weights


def structured_penalty(weights: Array) -> Array:
    """Computes the penalty on overlapping or spread hops (Lin et al. 2017, equation 8).

        P = |A Aᵀ - I|²_F = Σ_ij ((A Aᵀ)_ij - [i = j])²

    The penalty is 0 if each hop has all its weight on one position and no two hops share a
    position. In the paper it is added to the loss with a factor of 0.3 to 1. For a sequence without
    valid positions, P is R and its gradient is 0.

    Args:
      weights: A, [B, R, T], from `structured_pool` or a pool with several heads.

    Returns:
      P, [B] in at least float32.

    Raises:
      ValueError: shape or dtype do not fit.
    """
    sizes = shapes.expect_arrays({"weights": (weights, "B R T")})
    wide = weights.astype(accumulator(weights))
    overlap = jnp.einsum("BRT,BQT->BRQ", wide, wide)
    return jnp.sum(jnp.square(overlap - jnp.eye(sizes["R"], dtype=wide.dtype)), axis=(1, 2))


class StructuredPool(Pool):
    """Pooling with several hops whose scores come from a two-layer network (Lin et al. 2017).

        A = softmax_t(W_2 tanh(W_1 xᵀ)),   s = concat_r(A x) W_o

    A hop is a row of A. The paper passes the R sums to a fully connected layer; here W_o combines
    them into one vector, as for other pools. `structured_penalty` discourages overlapping hops.
    There are no biases, as in the paper.

    Parameters: hidden/kernel [D, A] (W_1), hops/kernel [A, R] (W_2), out/kernel [R, D, D] (W_o).

    Args:
      hops: R, number of hops.
      hidden_size: size A of the hidden layer; D if None.
      model_size, options: those of `Pool`. Dropout is applied to the entries of A.

    Raises:
      ValueError: a size is below 1, or the rate is out of range.
    """

    def __init__(
        self,
        model_size: int,
        *,
        hops: int = 4,
        hidden_size: int | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(model_size, **options)
        A = model_size if hidden_size is None else hidden_size
        shapes.expect_positive(hops=hops, hidden_size=A)
        shared: dict[str, Any] = {"use_bias": False, "dtype": self.dtype, "rngs": rngs}
        self.hidden = Projection((model_size,), (A,), **shared)
        self.hops = Projection((A,), (hops,), **shared)
        self.out = Projection((hops, model_size), (model_size,), **shared)

    def _pool(self, states: Array, valid: Array | None, **dropout: Any) -> tuple[Array, Array]:
        scores = jnp.swapaxes(self.hops(jnp.tanh(self.hidden(states))), 1, 2)
        pooled, weights = structured_pool(states, scores, valid, **dropout)
        return self.out(pooled), weights
