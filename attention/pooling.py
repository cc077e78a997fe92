"""Pooling of a sequence of states to one vector. Each pool also returns weights.

All functions take `valid` (bool [B, T], True = a real position) and return 0 for a sequence without
valid positions. All modules have the signature of `Pool`.

B sequences, T positions, D model size, A hidden size of the scoring network.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.dot_product import attend, attention_weights
from attention.dropout import dropout, dropout_options
from attention.numerics import mix_heads, product, softmax
from attention.projection import Projection

Array = jax.Array


def mean_pool(states: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """Computes the mean of the valid states (a baseline of Yang et al. 2016).

        s = Σ_t x_t / T,   t over the T valid positions

    Args:
      states: [B, T, D].
      valid: bool [B, T], valid positions; all if None.

    Returns:
      s, [B, D], and the weights [B, 1, T].

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    valid = validate_valid(states, valid)
    count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    weights = valid / count.astype(jnp.float32)
    pooled = recording.record_result(
        product("BT,BTD->BD", weights, states),
        lambda: weights[:, None],
        mix=lambda w: product("BT,BTD->BD", w[:, 0], states),
    )
    return pooled, weights[:, None]


def max_pool(states: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """Computes the largest valid value of each channel (Collobert et al. 2011).

        s_d = max_t x_td

    Args:
      states: [B, T, D].
      valid: bool [B, T], valid positions; all if None.

    Returns:
      s, [B, D], and the weights [B, 1, T]. The weight of t is the fraction of channels whose first
      maximum is at t.

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
    # argmax selects the first of equal maxima, so only the first one gets weight and gradient.
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
    """Computes a weighted mean of states, with the softmax of scores (Yang et al. 2016).

        s = Σ_t α_t x_t,   α = softmax_t(scores)

    Args:
      states: [B, T, D].
      scores: [B, T], logits of the weights.
      valid: bool [B, T], valid positions; all if None.
      dropout_rate, dropout_key: rate and random key of the dropout applied to the weights.

    Returns:
      s, [B, D], and the weights before dropout, [B, 1, T].

    Raises:
      ValueError: shapes, dtypes or the rate do not fit.
    """
    valid = validate_valid(states, valid)
    shapes.expect("scores", scores, "B T", {"B": states.shape[0], "T": states.shape[1]})
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    weights = softmax(jnp.where(valid, wide, -jnp.inf))
    dropped = dropout(weights, dropout_rate, dropout_key)
    pooled = recording.record_result(
        product("BT,BTD->BD", dropped, states),
        lambda: weights[:, None],
        mix=None if dropout_rate else lambda w: product("BT,BTD->BD", w[:, 0], states),
    )
    return pooled, weights[:, None]


class Pool(nnx.Module):
    """Base class of pools; a subclass defines `_pool`.

    Args:
      model_size: D, size of a state and of the result.
      dropout_rate: dropout rate, active if a dropout_key is given. The subclass determines to which
        array dropout is applied.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: the rate is out of range.
    """

    def __init__(
        self, model_size: int, *, dropout_rate: float = 0.0, dtype: jnp.dtype = jnp.float32
    ):
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        self.model_size, self.dropout_rate, self.dtype = model_size, dropout_rate, dtype

    def _pool(self, states: Array, valid: Array | None, **dropout: Any) -> tuple[Array, Array]:
        """Returns the pooled states and the weights.

        Args:
          states: [B, T, D] in `dtype`.
          valid: as for `__call__`.
          dropout: dropout_rate and dropout_key, as for `attend`.
        """
        raise NotImplementedError

    def __call__(
        self, states: Array, *, valid: Array | None = None, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        """Pools the states of each sequence.

        Args:
          states: [B, T, D].
          valid: bool [B, T], valid positions; all if None.
          dropout_key: random key for dropout; None for evaluation.

        Returns:
          The pooled states, [B, D], and the weights before dropout, [B, heads, T]. Both are 0 for a
          sequence without valid states.

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        shapes.expect("states", states, "B T D", {"D": self.model_size})
        dropout = dropout_options(self.dropout_rate, dropout_key)
        return self._pool(states.astype(self.dtype), valid, **dropout)


class _FunctionPool(Pool):
    """Base class of pools without parameters, in which dropout_key has no effect."""

    def __init__(self, model_size: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        super().__init__(model_size, dtype=dtype)


class MeanPool(_FunctionPool):
    """`mean_pool` as a module without parameters (a baseline of Yang et al. 2016).

        s = Σ_t x_t / T

    Args:
      model_size, dtype: those of `Pool`.
    """

    def _pool(self, states: Array, valid: Array | None, **dropout: Any) -> tuple[Array, Array]:
        return mean_pool(states, valid)


class MaxPool(_FunctionPool):
    """`max_pool` as a module without parameters (Collobert et al. 2011).

        s_d = max_t x_td

    Args:
      model_size, dtype: those of `Pool`.
    """

    def _pool(self, states: Array, valid: Array | None, **dropout: Any) -> tuple[Array, Array]:
        return max_pool(states, valid)


class AttentionPool(Pool):
    """Attention with a learned context vector (Yang et al. 2016, "Hierarchical Attention
    Networks").

        u_t = tanh(W x_t + b),   α = softmax_t(u_t · u_w),   s = Σ_t α_t x_t

    Args:
      hidden_size: A, the size of u; D if None.
      model_size, options: those of `Pool`. Dropout is applied to α.

    Raises:
      ValueError: the rate is out of range.
    """

    def __init__(
        self, model_size: int, *, hidden_size: int | None = None, rngs: nnx.Rngs, **options: Any
    ):
        super().__init__(model_size, **options)
        A = model_size if hidden_size is None else hidden_size
        self.hidden = Projection((model_size,), (A,), dtype=self.dtype, rngs=rngs)
        self.context = nnx.Param(jax.random.normal(rngs.params(), (A,)) * A**-0.5)

    def _pool(self, states: Array, valid: Array | None, **dropout: Any) -> tuple[Array, Array]:
        scores = jnp.tanh(self.hidden(states)).astype(jnp.float32) @ self.context[...]
        return attention_pool(states, scores, valid, **dropout)


class MultiHeadPool(Pool):
    """Multi-head attention with learned queries (PMA of the Set Transformer, Lee et al. 2019).

        s = concat_in(attend(seed_in, x W_k,n, x W_v,n)) W_o,   i = 1 ... queries

    With one query this is PMA (pooling by multi-head attention) with one seed vector. Several
    queries attend independently, and W_o combines their results. There is no output bias, so that a
    sequence without valid states gives 0. The weights are [B, I·N, T]: first the N heads of query
    1, then those of query 2, and so on.

    Parameters: seed [I, N, H], key/kernel and value/kernel [D, N, H], biases [N, H], out/kernel
    [N, I·H, D].

    Args:
      num_heads: N, number of heads; divides D. The size H of a head is D / N.
      queries: I, number of learned queries.
      model_size, options: those of `Pool`. Dropout is applied to the attention weights.

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
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(model_size, **options)
        if num_heads < 1 or model_size % num_heads:
            expected = f"a positive divisor of model_size={model_size}"
            raise ValueError(f"num_heads: got {num_heads}, expected {expected}")
        shapes.expect_positive(queries=queries)
        N, H = num_heads, model_size // num_heads
        shared: dict[str, Any] = {"dtype": self.dtype, "rngs": rngs}
        self.seed = nnx.Param(jax.random.normal(rngs.params(), (queries, N, H)))
        self.key = Projection((model_size,), (N, H), **shared)
        self.value = Projection((model_size,), (N, H), **shared)
        # The head axis comes first, as in every `out`, so that it can be sharded.
        self.out = Projection((N, queries * H), (model_size,), use_bias=False, **shared)

    def _pool(self, states: Array, valid: Array | None, **dropout: Any) -> tuple[Array, Array]:
        valid = validate_valid(states, valid)
        seed = self.seed[...].astype(self.dtype)
        B, T, _ = states.shape
        queries, N, H = seed.shape
        query = jnp.broadcast_to(seed, (B, *seed.shape))
        key, value = self.key(states), self.value(states)
        mask = masks.valid(key=valid)
        with recording.suppressed():
            pooled = attend(query, key, value, mask=mask, **dropout)
        weights = attention_weights(query, key, mask=mask)
        weights = jnp.swapaxes(weights, 1, 2).reshape(B, queries * N, T)

        def mix(weights: Array) -> Array:
            by_query = weights.reshape(B, queries, N, T)
            return mix_heads(jnp.swapaxes(by_query, 1, 2), value)

        drops = dropout.get("dropout_rate", 0.0) > 0
        pooled = recording.record_result(pooled, lambda: weights, mix=None if drops else mix)
        return self.out(jnp.swapaxes(pooled, 1, 2).reshape(B, N, queries * H)), weights


def validate_valid(states: Array, valid: Array | None) -> Array:
    """Returns the valid positions of states [B, T, D], bool [B, T]; all True if `valid` is None.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes = shapes.expect_arrays({"states": (states, "B T D")})
    if valid is None:
        return jnp.ones(states.shape[:2], bool)
    shapes.expect_boolean("valid", valid, true_means="a real position")
    shapes.expect("valid", valid, "B T", sizes)
    return jnp.asarray(valid)
