"""The non-local block: attention between all positions of a map (Wang et al. 2018).

H and V sizes of a head; the other dimension letters are defined in `attention.image.maps`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.dot_product import attend, attention_weights
from attention.image.batch_norm import BatchNorm
from attention.image.maps import MapAttention, expect_positive
from attention.numerics import accumulator, mix_heads
from attention.projection import Projection

Array = jax.Array

SIMILARITIES = ("embedded_gaussian", "dot_product")


def non_local(
    query: Array, key: Array, value: Array, *, similarity: str = "embedded_gaussian"
) -> Array:
    """Computes a weighted sum over all positions (Wang et al. 2018, equations 1, 4 and 5).

        y_p = Σ_q f(p, q) v_q
        embedded_gaussian: f = softmax_q(q_p·k_q),   dot_product: f = q_p·k_q / P

    As in the paper, logits are not divided by sqrt(H). For the dot product, Σ_q k_q v_qᵀ is
    computed first, at a cost of O(P·H·V).

    Args:
      query: θ(x), [B, P, N, H].
      key: φ(x), [B, P, N, H].
      value: g(x), [B, P, N, V].
      similarity: one of SIMILARITIES.

    Returns:
      y, [B, P, N, V] in the query's dtype.

    Raises:
      ValueError: shapes or dtypes do not fit, or the similarity is unknown.
    """
    _expect_similarity(similarity)
    if similarity == "embedded_gaussian":
        return attend(query, key, value, scale=1.0)
    shapes.expect_attention(query, key, value)
    sums = accumulator(query)
    # In at least float32, since a sum over a large map would lose bits in a 16-bit dtype.
    kept = jnp.einsum("BPNH,BPNV->BNHV", key, value, preferred_element_type=sums) / key.shape[1]
    y = jnp.einsum("BPNH,BNHV->BPNV", query.astype(sums), kept)
    return recording.record_result(
        y.astype(query.dtype),
        lambda: non_local_weights(query, key, similarity=similarity),
        mix=lambda weights: mix_heads(weights, value),
    )


def non_local_weights(query: Array, key: Array, *, similarity: str = "embedded_gaussian") -> Array:
    """Computes the weights of `non_local` (Wang et al. 2018, equations 4 and 5).

        embedded_gaussian: f = softmax_q(q_p·k_q),   dot_product: f = q_p·k_q / P

    Args:
      query, key, similarity: as for `non_local`.

    Returns:
      f, [B, N, P, P] in at least float32; may be negative with the dot product.

    Raises:
      ValueError: shapes or dtypes do not fit, or the similarity is unknown.
    """
    _expect_similarity(similarity)
    if similarity == "embedded_gaussian":
        return attention_weights(query, key, scale=1.0)
    shapes.expect_attention(query, key)
    sums = accumulator(query)
    return jnp.einsum("BPNH,BQNH->BNPQ", query, key, preferred_element_type=sums) / key.shape[1]


def _expect_similarity(similarity: str) -> None:
    if similarity not in SIMILARITIES:
        expected = f"one of {', '.join(map(repr, SIMILARITIES))}"
        raise ValueError(f"similarity: got {similarity!r}, expected {expected}")


class NonLocal(MapAttention):
    """The non-local block (Wang et al. 2018, "Non-local Neural Networks", equation 6).

        y = x + BN(non_local(x W_θ, x W_φ, x W_g) W_z)

    The scale of the batch norm is initialized to 0; without a norm, W_z is initialized to 0. So the
    block can be added to a trained network without changing its output. The paper has one head.

    Args:
      channels: C, number of channels.
      num_heads: N, number of heads.
      head_size: H; if None, half of the channels divided by N, rounded down, but at least 1.
      similarity: "embedded_gaussian" or "dot_product".
      norm: whether to use batch norm.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: a number is below 1, or the similarity is unknown.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 1,
        head_size: int | None = None,
        similarity: str = "embedded_gaussian",
        norm: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        expect_positive(channels=channels, num_heads=num_heads)
        H = max(channels // 2 // num_heads, 1)
        H = shapes.head_size(channels, num_heads, H if head_size is None else head_size)
        _expect_similarity(similarity)
        self.channels, self.similarity, self.dtype = channels, similarity, dtype
        options = {"dtype": dtype, "rngs": rngs}
        self.query = Projection((channels,), (num_heads, H), **options)
        self.key = Projection((channels,), (num_heads, H), **options)
        self.value = Projection((channels,), (num_heads, H), **options)
        self.out = Projection((num_heads, H), (channels,), **options)
        self.norm = BatchNorm(channels, zero=True) if norm else None
        if not norm:
            self.out.kernel[...] = jnp.zeros_like(self.out.kernel[...])

    def _apply(self, x, *, valid, training):
        B, Y, X, _ = x.shape
        flat = x.reshape(B, Y * X, self.channels)
        query, key = self.query(flat), self.key(flat)
        options = {"similarity": self.similarity}
        added = self.out(non_local(query, key, self.value(flat), **options))
        if self.norm is not None:
            added = self.norm(added, valid=valid, training=training)
        return x + added.reshape(x.shape), functools.partial(
            non_local_weights, query, key, **options
        )
