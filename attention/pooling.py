"""Pooling of a sequence of states to one vector, with weights.

All functions take `valid` (bool [B, T], True = a real position) and return 0 for a sequence without
valid positions. All modules are called as `pooled, weights = pool(states, valid=...,
dropout_key=None)`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.dot_product import attend, attention_weights
from attention.dropout import dropout
from attention.numerics import softmax
from attention.projection import Projection

Array = jax.Array


def mean_pool(states: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """Computes the mean of the valid states (the control of Yang et al. 2016).

        s = Σ_t x_t / T, t over the T that are valid

    Args:
      states: [B, T, D].
      valid: bool [B, T]; all if None.

    Returns:
      [B, D], and the weights [B, 1, T].

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    valid = validate_valid(states, valid)
    count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    weights = valid / count.astype(jnp.float32)
    recording.record(lambda: weights[:, None])
    return _weighted_sum(weights, states), weights[:, None]


def max_pool(states: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """Computes the largest valid value of each channel (Collobert et al. 2011).

        s_d = max_t x_td

    Args:
      states: [B, T, D].
      valid: bool [B, T]; all if None.

    Returns:
      [B, D], and the weights [B, 1, T]: the fraction of channels whose first maximum is at t.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    valid = validate_valid(states, valid)
    B, T, D = states.shape
    if not T:
        weights = jnp.zeros((B, 1, 0))
        recording.record(lambda: weights)
        return jnp.zeros((B, D), states.dtype), weights
    masked = jnp.where(valid[..., None], states, -jnp.inf)
    # The gradient goes to the first maximum alone, in agreement with the weights.
    winner = jnp.argmax(masked, axis=1)
    pooled = jnp.take_along_axis(states, winner[:, None], axis=1)[:, 0]
    any_valid = jnp.any(valid, axis=1, keepdims=True)
    weights = (jnp.sum(jax.nn.one_hot(winner, T), axis=1) / D * any_valid)[:, None]
    recording.record(lambda: weights)
    return jnp.where(any_valid, pooled, 0), weights


def attention_pool(
    states: Array,
    scores: Array,
    valid: Array | None = None,
    *,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> tuple[Array, Array]:
    """Computes the mean of states weighted by the softmax of their scores (Yang et al. 2016).

        s = Σ_t α_t x_t,   α = softmax_t(scores)

    Args:
      states: [B, T, D].
      scores: [B, T].
      valid: bool [B, T]; all if None.
      dropout_rate, dropout_key: of the weights.

    Returns:
      [B, D], and the weights before dropout [B, 1, T].

    Raises:
      ValueError: shapes, dtypes or the rate do not fit.
    """
    valid = validate_valid(states, valid)
    shapes.expect("scores", scores, "B T", {"B": states.shape[0], "T": states.shape[1]})
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    weights = softmax(jnp.where(valid, wide, -jnp.inf))
    recording.record(lambda: weights[:, None])
    dropped = dropout(weights, dropout_rate, dropout_key)
    return _weighted_sum(dropped, states), weights[:, None]


class MeanPool(nnx.Module):
    """`mean_pool` as a module without parameters (the control of Yang et al. 2016).

        s = Σ_t x_t / T

    Args:
      model_size: D.
      dtype: dtype of the computation.
    """

    def __init__(self, model_size: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.model_size, self.dtype = model_size, dtype

    def __call__(
        self, states: Array, *, valid: Array | None = None, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        """Pools states [B, T, D] to [B, D], with weights [B, 1, T]; dropout_key has no effect."""
        expect_size(states, self.model_size)
        return mean_pool(states.astype(self.dtype), valid)


class MaxPool(nnx.Module):
    """`max_pool` as a module without parameters (Collobert et al. 2011).

        s_d = max_t x_td

    Args:
      model_size: D.
      dtype: dtype of the computation.
    """

    def __init__(self, model_size: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.model_size, self.dtype = model_size, dtype

    def __call__(
        self, states: Array, *, valid: Array | None = None, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        """Pools states [B, T, D] to [B, D], with weights [B, 1, T]; dropout_key has no effect."""
        expect_size(states, self.model_size)
        return max_pool(states.astype(self.dtype), valid)


class AttentionPool(nnx.Module):
    """Attention with a learned context vector (Yang et al. 2016, "Hierarchical Attention
    Networks").

        u_t = tanh(W x_t + b),   α = softmax_t(u_t · u_w),   s = Σ_t α_t x_t

    Args:
      model_size: D.
      hidden_size: A, the size of u; D if None.
      dropout_rate: dropout rate of α, active if a dropout_key is given.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: the rate is out of range.
    """

    def __init__(
        self,
        model_size: int,
        *,
        hidden_size: int | None = None,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        A = model_size if hidden_size is None else hidden_size
        self.model_size, self.dropout_rate, self.dtype = model_size, dropout_rate, dtype
        self.hidden = Projection((model_size,), (A,), dtype=dtype, rngs=rngs)
        self.context = nnx.Param(jax.random.normal(rngs.params(), (A,)) * A**-0.5)

    def __call__(
        self, states: Array, *, valid: Array | None = None, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        """Pools states [B, T, D] to [B, D], with α [B, 1, T]."""
        expect_size(states, self.model_size)
        states = states.astype(self.dtype)
        scores = jnp.tanh(self.hidden(states)).astype(jnp.float32) @ self.context[...]
        rate = 0.0 if dropout_key is None else self.dropout_rate
        return attention_pool(states, scores, valid, dropout_rate=rate, dropout_key=dropout_key)


class MultiHeadPool(nnx.Module):
    """Multi-head attention with learned queries (Lee et al. 2019, Set Transformer: PMA).

        s = concat_in(attend(seed_in, x W_k,n, x W_v,n)) W_o,   i = 1 ... queries

    With one query this is PMA with one seed vector. Several queries attend independently, and W_o
    combines their results.

    Parameters: seed [I, N, H], key/kernel and value/kernel [D, N, H], biases [N, H], out/kernel
    [N, I·H, D].

    Args:
      model_size: D.
      num_heads: N, divides D.
      queries: I, number of learned queries.
      dropout_rate: dropout rate of the attention weights, active if a dropout_key is given.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: num_heads does not divide model_size, queries is below 1, or the rate is out of
        range.
    """

    def __init__(
        self,
        model_size: int,
        *,
        num_heads: int = 4,
        queries: int = 1,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or model_size % num_heads:
            expected = f"a positive divisor of model_size={model_size}"
            raise ValueError(f"num_heads: got {num_heads}, expected {expected}")
        if queries < 1:
            raise ValueError(f"queries: got {queries}, expected at least 1")
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        N, H = num_heads, model_size // num_heads
        self.model_size, self.dropout_rate, self.dtype = model_size, dropout_rate, dtype
        self.seed = nnx.Param(jax.random.normal(rngs.params(), (queries, N, H)))
        self.key = Projection((model_size,), (N, H), dtype=dtype, rngs=rngs)
        self.value = Projection((model_size,), (N, H), dtype=dtype, rngs=rngs)
        # Heads first, as in every `out`: a mesh shards that axis.
        self.out = Projection(
            (N, queries * H), (model_size,), use_bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, states: Array, *, valid: Array | None = None, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        """Pools states [B, T, D] to [B, D], with weights [B, I·N, T] ordered by query, then head.

        There is no output bias, so that a sequence without valid states gives 0.
        """
        expect_size(states, self.model_size)
        valid = validate_valid(states, valid)
        seed = self.seed[...].astype(self.dtype)
        B, T, _ = states.shape
        queries, N, H = seed.shape
        query = jnp.broadcast_to(seed, (B, *seed.shape))
        key, value = self.key(states), self.value(states)
        mask = masks.valid(key=valid)
        with recording.suppressed():
            pooled = attend(
                query,
                key,
                value,
                mask=mask,
                dropout_rate=0.0 if dropout_key is None else self.dropout_rate,
                dropout_key=dropout_key,
            )
        weights = attention_weights(query, key, mask=mask)
        weights = jnp.swapaxes(weights, 1, 2).reshape(B, queries * N, T)
        recording.record(lambda: weights)
        return self.out(jnp.swapaxes(pooled, 1, 2).reshape(B, N, queries * H)), weights


def _weighted_sum(weights: Array, states: Array) -> Array:
    """Returns Σ_t w x, [B, D] in the states' dtype, summed in at least float32."""
    sums = jnp.promote_types(states.dtype, jnp.float32)
    weights = weights.astype(states.dtype)
    total = jnp.einsum("BT,BTD->BD", weights, states, preferred_element_type=sums)
    return total.astype(states.dtype)


def validate_valid(states: Array, valid: Array | None) -> Array:
    """Returns bool [B, T] for states [B, T, D]; all are valid if None.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect_floating("states", states)
    shapes.expect("states", states, "B T D", sizes)
    if valid is None:
        return jnp.ones(states.shape[:2], bool)
    shapes.expect_boolean("valid", valid, true_means="a real position")
    shapes.expect("valid", valid, "B T", sizes)
    return jnp.asarray(valid)


def expect_size(states: Array, model_size: int) -> None:
    """Raises ValueError unless the states are [B, T, model_size]."""
    shapes.expect("states", states, "B T D", {"D": model_size})
