"""Differential attention: the difference of two softmax maps, which cancels common-mode noise.

Ye et al. 2024, "Differential Transformer".

H size of each query and key of a pair; the other dimension letters are defined in
`attention.shapes`.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.dot_product import attend, attention_weights
from attention.dropout import dropout
from attention.normalization import RMSNorm
from attention.numerics import accumulator, mix_heads
from attention.positions import build_positions
from attention.sequence.base import CachedAttention

Array = jax.Array
Biases = tuple[Array | None, Array | None]


def lambda_init_of_layer(layer: int) -> float:
    """Computes λ_init of a layer by its depth (Ye et al. 2024, section 2.1).

        λ_init = 0.8 - 0.6 exp(-0.3 (l - 1))

    Args:
      layer: l, at least 1.

    Returns:
      A number in [0.2, 0.8).

    Raises:
      ValueError: layer is below 1.
    """
    shapes.expect_positive(layer=layer)
    return 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))


def differential_attention(
    query: Array,
    key: Array,
    value: Array,
    lam: Array | float,
    *,
    mask: masks.Mask | Array | None = None,
    biases: Biases = (None, None),
    scale: float | None = None,
    implementation: str = "auto",
) -> Array:
    """Computes attention with the difference of two softmax maps (Ye et al. 2024, equation 1).

        o = (softmax(q₁k₁ᵀ / sqrt(H)) - λ softmax(q₂k₂ᵀ / sqrt(H))) v

    The norm of the paper is not applied. A query that may attend to nothing gives 0, with finite
    gradients.

    Args:
      query: [B, T, N, 2H], q₁ and q₂ concatenated.
      key: [B, S, K, 2H], k₁ and k₂ concatenated; K divides N.
      value: [B, S, K, V].
      lam: λ, a scalar.
      mask: as for `attend`, for both maps.
      biases: two biases, for the logits of the first map and of the second map.
      scale, implementation: as for `attend`.

    Returns:
      [B, T, N, V] in at least float32, not rounded to the query's dtype.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
      NotImplementedError: see `attend`.
    """
    pairs = _pairs(query, key, value)
    with recording.suppressed():
        first, second = (
            attend(
                q, k, value, mask=mask, bias=bias, scale=scale, implementation=implementation
            ).astype(accumulator(value))
            for (q, k), bias in zip(pairs, biases, strict=True)
        )
    return first - lam * second


def differential_weights(
    query: Array,
    key: Array,
    lam: Array | float,
    *,
    mask: masks.Mask | Array | None = None,
    biases: Biases = (None, None),
    scale: float | None = None,
) -> Array:
    """Computes the weights of `differential_attention` (Ye et al. 2024).

        w = softmax(q₁k₁ᵀ / sqrt(H)) - λ softmax(q₂k₂ᵀ / sqrt(H))

    The weights may be negative.

    Args:
      query, key, lam, mask, biases, scale: as for `differential_attention`; query is
        [B, T, N, 2H], key [B, S, K, 2H].

    Returns:
      [B, N, T, S] in at least float32; rows sum to 1 - λ.

    Raises:
      ValueError: as for `differential_attention`.
    """
    first, second = (
        attention_weights(q, k, mask=mask, bias=bias, scale=scale)
        for (q, k), bias in zip(_pairs(query, key), biases, strict=True)
    )
    return first - lam * second


class DifferentialAttention(CachedAttention):
    """Multi-head self-attention by `differential_attention` (Ye et al. 2024).

        λ = exp(λ_q1·λ_k1) - exp(λ_q2·λ_k2) + λ_init,   head_n = (1 - λ_init) · rmsnorm(o_n)

    All heads share λ and the norm's scale. A head has two queries and two keys of H features each,
    and one value of 2H features. With the default sizes there are as many parameters as in
    multi-head attention with twice as many heads. The returned weights are those before the norm.

    Parameters: query/kernel [D, N, 2H], key and value: kernel [D, K, 2H], their biases; lambda_q1,
      lambda_k1, lambda_q2, lambda_k2 [H]; norm/scale [2H]; out: kernel [N, 2H, D], bias [D]; the
      parameters of the positions.

    Args:
      model_size: D of x and of the result.
      num_heads: N, number of heads.
      key_value_heads: K, number of key/value heads; divides N. N if None.
      head_size: H, size of a query or key of a pair; D / 2N if None.
      lambda_init: in [0, 1); the paper uses `lambda_init_of_layer`.
      positions: "none", or a spec of `attention.positions.POSITIONS`, for both maps.
      epsilon: epsilon of the norm.
      implementation: as for `attend`.
      options: those of `SequenceMixer`. Dropout is applied to the heads after the norm.

    Raises:
      ValueError: a size does not divide another, or lambda_init or epsilon is out of range.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        key_value_heads: int | None = None,
        head_size: int | None = None,
        lambda_init: float = 0.8,
        positions: str = "none",
        epsilon: float = 1e-5,
        implementation: str = "auto",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        if num_heads < 1 or (head_size is None and model_size % (2 * num_heads)):
            expected = f"2 x num_heads to divide model_size={model_size} (or give head_size)"
            raise ValueError(f"num_heads: got {num_heads}, expected {expected}")
        H = shapes.head_size(model_size, 2 * num_heads, head_size)
        K = shapes.key_heads("key_value_heads", num_heads, key_value_heads)
        if not 0 <= lambda_init < 1:
            raise ValueError(f"lambda_init: got {lambda_init}, expected a number in [0, 1)")
        if not epsilon > 0:
            raise ValueError(f"epsilon: got {epsilon}, expected a number above 0")
        super().__init__(model_size, **options)
        self.cache_sizes, self.implementation = (K, 2 * H, 2 * H), implementation
        self.lambda_init, self.scale = lambda_init, H**-0.5
        projection = self._projection(rngs)
        self.query = projection((model_size,), (num_heads, 2 * H))
        self.key = projection((model_size,), (K, 2 * H))
        self.value = projection((model_size,), (K, 2 * H))
        self.out = projection((num_heads, 2 * H), (model_size,))
        self.norm = RMSNorm(2 * H, epsilon=epsilon)
        self.positions = build_positions(positions, num_heads, H, rngs=rngs)

        def vector():
            return nnx.Param(0.1 * jax.random.normal(rngs.params(), (H,)))  # As in the paper.

        self.lambda_q1, self.lambda_k1 = vector(), vector()
        self.lambda_q2, self.lambda_k2 = vector(), vector()

    def lambda_value(self) -> Array:
        """Computes λ from the current parameters, float32 []."""
        first = jnp.exp(jnp.sum(self.lambda_q1[...] * self.lambda_k1[...]))
        second = jnp.exp(jnp.sum(self.lambda_q2[...] * self.lambda_k2[...]))
        return first - second + self.lambda_init

    def _query(self, x: Array, positions: Array) -> Array:
        return self._rotate(self.query(x), positions)

    def _key_value(self, x: Array, positions: Array) -> tuple[Array, Array]:
        return self._rotate(self.key(x), positions), self.value(x)

    def _rotate(self, x: Array, positions: Array) -> Array:
        """Rotates both halves of queries or keys x, [B, T, N, 2H], by their positions."""
        if self.positions is None:
            return x
        halves = [self.positions.rotate(half, positions) for half in jnp.split(x, 2, axis=-1)]
        return jnp.concatenate(halves, axis=-1)

    def _bias(self, query: Array, query_positions: Array, key_positions: Array) -> Biases:
        if self.positions is None:
            return None, None
        first, second = (
            self.positions.bias(half, query_positions, key_positions, scale=self.scale)
            for half in jnp.split(query, 2, axis=-1)
        )
        return first, second

    def _weights(self, query, key, *, mask, bias) -> Array:
        return differential_weights(
            query, key, self.lambda_value(), mask=mask, biases=bias, scale=self.scale
        )

    def _attend(self, x, query, key, value, *, mask, bias, dropout_key=None) -> Array:
        heads = differential_attention(
            query,
            key,
            value,
            self.lambda_value(),
            mask=mask,
            biases=bias,
            scale=self.scale,
            implementation=self.implementation,
        )
        heads = recording.record_result(
            heads,
            lambda: self._weights(query, key, mask=mask, bias=bias),
            mix=lambda weights: mix_heads(weights, value),
            values=value,
        )
        heads = (1 - self.lambda_init) * self.norm(heads)
        rate = 0.0 if dropout_key is None else self.dropout_rate
        return self.out(dropout(heads.astype(self.dtype), rate, dropout_key))


def _pairs(query, key, value=None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Splits queries and keys into the pairs (q₁, k₁) and (q₂, k₂), after checking the shapes."""
    H, odd = divmod(shapes.expect_attention(query, key, value)["H"], 2)
    if odd:
        got = shapes.show(jnp.shape(query))
        raise ValueError(
            f"query: got shape {got}, expected an even last axis, because each head has two queries"
        )
    return (query[..., :H], key[..., :H]), (query[..., H:], key[..., H:])
