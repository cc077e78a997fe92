"""ProbSparse attention: queries with sparse weights attend; the others get the mean of values.

Zhou et al. 2021, "Informer: Beyond Efficient Transformer for Long Sequence Time-Series
Forecasting".

A active queries, U sampled keys per query; the other dimension letters are defined in
`attention.shapes`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention import masks, shapes
from attention.dot_product import attend, attention_weights
from attention.masks import MaskLike
from attention.numerics import accumulator
from attention.sequence.base import MultiHeadMixer
from attention.sharding import top_k_by_example

Array = jax.Array


def prob_sparse(
    query: Array,
    key: Array,
    value: Array,
    samples: Array | np.ndarray,
    *,
    num_active: int,
    mask: MaskLike | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Computes attention of the A queries with the sparsest logits (Zhou et al. 2021, equation 4).

        M_i = max_(j ∈ R_i) s_ij - (1 / T) Σ_(j ∈ R_i) s_ij,     s_ij = q_i·k_j / sqrt(H)

        o_i = softmax(s_i) v   for the A largest M_i of a head,   mean_j v_j   for the others

    with R_i the sampled keys of query i. The A queries are called active. The factor 1 / T follows
    the authors' code. The choice of active queries has no gradient. Hidden positions are neither
    keys nor active queries. A query whose samples are all hidden is not active.

    Args:
      query, key: [B, T, N, H].
      value: [B, T, N, V].
      samples: R, int [T, U], positions of keys, the same for all examples and heads.
      num_active: A, from 1 to T.
      mask: conjunction of `masks.lengths` and `masks.valid`, or None.
      dropout_rate: dropout rate of the weights of active queries.
      dropout_key: required if dropout_rate > 0.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
      NotImplementedError: the mask has another term; causal() is not supported because the choice
        of active queries depends on later positions.
    """
    seen = _checked(query, key, value, samples, num_active, mask)
    active, chosen, there = _choose(query, key, samples, num_active, seen)
    heads = attend(
        chosen, key, value, mask=there, dropout_rate=dropout_rate, dropout_key=dropout_key
    )
    rows = jnp.einsum("BNAT,BANV->BTNV", active, heads.astype(active.dtype))
    value = value.astype(active.dtype)
    if seen is not None:
        value = jnp.where(seen[..., None, None], value, 0)
    mean = jnp.sum(value * _uniform(seen, value.shape[1])[..., None, None], axis=1, keepdims=True)
    inactive = 1 - jnp.swapaxes(jnp.sum(active, axis=2), 1, 2)[..., None]
    return (rows + inactive * mean).astype(query.dtype)


def prob_sparse_weights(
    query: Array,
    key: Array,
    samples: Array | np.ndarray,
    *,
    num_active: int,
    mask: MaskLike | None = None,
) -> Array:
    """Computes the matrix that maps values to the result of `prob_sparse` (Zhou et al. 2021).

        w_i = softmax(s_i) for an active query,   1 / T for the others

    Args:
      query, key, samples, num_active, mask: as for `prob_sparse`.

    Returns:
      w, [B, N, T, T] in at least float32; rows with a visible key sum to 1.

    Raises:
      ValueError, NotImplementedError: as for `prob_sparse`.
    """
    seen = _checked(query, key, key, samples, num_active, mask)
    active, chosen, there = _choose(query, key, samples, num_active, seen)
    weights = attention_weights(chosen, key, mask=there)
    rows = jnp.einsum("BNAT,BNAS->BNTS", active, weights.astype(active.dtype))
    inactive = 1 - jnp.sum(active, axis=2)[..., None]
    return rows + inactive * _uniform(seen, query.shape[1])[:, None, None]


class ProbSparse(MultiHeadMixer):
    """Multi-head self-attention by `prob_sparse` (Zhou et al. 2021).

        A = U = min(factor · ⌈ln(1 + T)⌉, T)

    A is the number of active queries and U the number of sampled keys per query, as for
    `prob_sparse`. The sampled keys depend only on the seed and the length, so that the same input
    gives the same result.

    Parameters: those of `MultiHeadMixer`.

    Args:
      factor: factor of the numbers A and U above; c in the paper.
      seed: seed of the sampled keys.
      options: those of `MultiHeadMixer`. Dropout is applied to the weights of active queries.

    Raises:
      ValueError: factor is below 1, or as for `MultiHeadMixer`.
    """

    def __init__(
        self, model_size: int, num_heads: int, *, factor: int = 5, seed: int = 0, **options: Any
    ):
        shapes.expect_positive(factor=factor)
        super().__init__(model_size, num_heads, **options)
        self.factor, self.seed = factor, seed

    def samples(self, length: int) -> np.ndarray:
        """Returns the sampled keys R for T = length, int [T, U]."""
        rng = np.random.default_rng(self.seed)
        return rng.integers(length, size=(length, self.num_active(length)))

    def num_active(self, length: int) -> int:
        """Returns the number of active queries A, which equals U, for T = length."""
        return min(length, self.factor * math.ceil(math.log1p(length)))

    def _mix(
        self, x: Array, mask: MaskLike | None, dropout_rate: float, dropout_key: Array | None
    ) -> tuple[Array, Callable[[], Array]]:
        shapes.expect_known_length("x", x)
        query, key, value = self.query(x), self.key(x), self.value(x)
        T = x.shape[1]
        samples, options = self.samples(T), {"num_active": self.num_active(T), "mask": mask}
        dropout = {"dropout_rate": dropout_rate, "dropout_key": dropout_key}
        heads = prob_sparse(query, key, value, samples, **options, **dropout)
        return heads, functools.partial(prob_sparse_weights, query, key, samples, **options)


def _checked(query, key, value, samples, num_active, mask) -> Array | None:
    """Checks the arguments and returns the visible positions, bool [B, T]; None for all."""
    sizes = shapes.expect_attention(query, key, value)
    shapes.expect("key", key, "B T N H", sizes)
    shapes.expect_integer("samples", samples)
    shapes.expect("samples", samples, "T U", sizes)
    if not sizes["T"]:
        got = shapes.show(query.shape)
        raise ValueError(f"query: got shape {got}, expected at least one query")
    if not 1 <= num_active <= sizes["T"]:
        expected = f"a number from 1 to T={sizes['T']}"
        raise ValueError(f"num_active: got {num_active}, expected {expected}")
    T = sizes["T"]
    found = masks.padding(mask, sizes["B"], T, T, of="prob_sparse", causal=False)
    if found.query is None or found.key is None:
        return found.key if found.query is None else found.query
    return found.query & found.key


def _choose(
    query: Array, key: Array, samples: Array | np.ndarray, num_active: int, seen: Array | None
) -> tuple[Array, Array, masks.Mask | None]:
    """Chooses the active queries.

    Returns:
      Their positions as one-hot rows, [B, N, A, T], with rows of 0 if there are fewer than A; their
      vectors, [B, A, N, H]; and the mask of the keys.
    """
    wide = accumulator(query)
    samples = jnp.asarray(samples)
    tried = jax.lax.stop_gradient(key)[:, samples]
    logits = jnp.einsum(
        "BTNH,BTUNH->BNTU", jax.lax.stop_gradient(query), tried, preferred_element_type=wide
    )
    hidden = jnp.zeros((), bool) if seen is None else ~seen[:, samples][:, None]
    most = jnp.max(jnp.where(hidden, -jnp.inf, logits), axis=-1)
    sparsity = most - jnp.sum(jnp.where(hidden, 0, logits), axis=-1) / query.shape[1]
    if seen is not None:
        sparsity = jnp.where(seen[:, None], sparsity, -jnp.inf)
    value, number = top_k_by_example(sparsity, num_active)
    active = jax.nn.one_hot(number, query.shape[1], dtype=wide)
    active = jnp.where(value[..., None] > -jnp.inf, active, 0)
    rows = jnp.take_along_axis(jnp.swapaxes(query, 1, 2), number[..., None], axis=2)
    return active, jnp.swapaxes(rows, 1, 2), None if seen is None else masks.valid(key=seen)


def _uniform(seen: Array | None, T: int) -> Array:
    """Returns uniform weights on the visible positions, [B or 1, T]; 0 if none is visible."""
    if seen is None:
        return jnp.full((1, T), 1 / T)
    return seen / jnp.maximum(jnp.sum(seen, axis=1, keepdims=True), 1)
