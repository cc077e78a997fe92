"""Structured self-attention: several hops over a sequence, and a penalty on their overlap.

Lin et al. 2017, "A Structured Self-attentive Sentence Embedding". Called like the other pools
(`attention.pooling`):

    pooled, weights = pool(states, valid=valid, dropout_key=key)
    loss = loss + 0.3 * jnp.mean(structured_penalty(weights))
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.dropout import dropout
from attention.numerics import accumulator, softmax
from attention.pooling import expect_size, validate_valid
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
      valid: bool [B, T]; all if None.
      dropout_rate, dropout_key: of A.

    Returns:
      M, [B, R, D], and A before dropout, [B, R, T] in at least float32.

    Raises:
      ValueError: shapes, dtypes or the rate do not fit.
    """
    valid = validate_valid(states, valid)
    sizes = {"B": states.shape[0], "T": states.shape[1]}
    shapes.expect("scores", scores, "B R T", sizes)
    wide = scores.astype(accumulator(scores))
    weights = softmax(jnp.where(valid[:, None], wide, -jnp.inf))
    recording.record(lambda: weights)
    dropped = dropout(weights, dropout_rate, dropout_key).astype(states.dtype)
    sums = accumulator(states)
    pooled = jnp.einsum("BRT,BTD->BRD", dropped, states, preferred_element_type=sums)
    return pooled.astype(states.dtype), weights


def structured_penalty(weights: Array) -> Array:
    """Computes the penalty on overlapping or spread hops (Lin et al. 2017, equation 8).

        P = |A Aᵀ - I|²_F = Σ_ij ((A Aᵀ)_ij - [i = j])²

    It is 0 if each hop has all its weight on one position and no two on the same. It is added to a
    loss with a factor of 0.3 to 1 in the paper. A sequence without valid positions has P = R and
    gradient 0.

    Args:
      weights: A, [B, R, T], of `structured_pool` or of a pool with several heads.

    Returns:
      P, [B] in at least float32.

    Raises:
      ValueError: shape or dtype do not fit.
    """
    shapes.expect_floating("weights", weights)
    sizes: dict[str, int] = {}
    shapes.expect("weights", weights, "B R T", sizes)
    wide = weights.astype(accumulator(weights))
    overlap = jnp.einsum("BRT,BQT->BRQ", wide, wide)
    return jnp.sum(jnp.square(overlap - jnp.eye(sizes["R"], dtype=wide.dtype)), axis=(1, 2))


class StructuredPool(nnx.Module):
    """Several hops of attention by a two-layer network (Lin et al. 2017).

        A = softmax_t(W_2 tanh(W_1 xᵀ)),   s = concat_r(A x) W_o

    A hop is a row of A. The paper passes the R sums to a fully connected layer; here W_o combines
    them to one vector, as for other pools. `structured_penalty` discourages overlapping hops. There
    are no biases, as in the paper.

    Parameters: hidden/kernel [D, A] (W_1), hops/kernel [A, R] (W_2), out/kernel [R, D, D] (W_o).

    Args:
      model_size: D.
      hops: R.
      hidden_size: A; D if None.
      dropout_rate: dropout rate of the entries of A, active if a dropout_key is given.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: a size is below 1, or the rate is out of range.
    """

    def __init__(
        self,
        model_size: int,
        *,
        hops: int = 4,
        hidden_size: int | None = None,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden_size = model_size if hidden_size is None else hidden_size
        for name, size in (("hops", hops), ("hidden_size", hidden_size)):
            if size < 1:
                raise ValueError(f"{name}: got {size}, expected at least 1")
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        options = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.model_size, self.dropout_rate, self.dtype = model_size, dropout_rate, dtype
        self.hidden = Projection((model_size,), (hidden_size,), **options)
        self.hops = Projection((hidden_size,), (hops,), **options)
        self.out = Projection((hops, model_size), (model_size,), **options)

    def __call__(
        self, states: Array, *, valid: Array | None = None, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        """Pools states [B, T, D] to [B, D], with A [B, R, T]."""
        expect_size(states, self.model_size)
        states = states.astype(self.dtype)
        scores = jnp.swapaxes(self.hops(jnp.tanh(self.hidden(states))), 1, 2)
        rate = 0.0 if dropout_key is None else self.dropout_rate
        pooled, weights = structured_pool(
            states, scores, valid, dropout_rate=rate, dropout_key=dropout_key
        )
        return self.out(pooled), weights
