"""Linformer: attention over a fixed number of learned mixtures of the keys and values.

Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity".

R mixtures; the other dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.dot_product import attend, attention_weights
from attention.masks import MaskLike
from attention.numerics import accumulator
from attention.sequence.base import MultiHeadMixer

Array = jax.Array

SHARING = ("none", "heads", "key_value")


def linformer(
    query: Array,
    key: Array,
    value: Array,
    key_projection: Array,
    value_projection: Array,
    *,
    mask: MaskLike | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Computes attention to R mixtures of the S keys and values (Wang et al. 2020, equation 7).

        o = softmax(q (Eᵀk)ᵀ / sqrt(H)) · (Fᵀv)

    Hidden rows of k and v are set to 0 before they are mixed and so have no effect. Without visible
    keys the result is 0.

    Args:
      query: [B, T, N, H].
      key: [B, S, N, H].
      value: [B, S, N, V].
      key_projection: E, [N, S, R], or [1, S, R] if all heads share it.
      value_projection: F, [N, S, R] or [1, S, R].
      mask: conjunction of `masks.lengths` and `masks.valid`, or None.
      dropout_rate: dropout rate of the weights on the R mixtures.
      dropout_key: required if dropout_rate > 0.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
      NotImplementedError: the mask has another term; the mixtures cannot be causal.
    """
    seen = _checked(query, key, value, key_projection, value_projection, mask)
    with recording.suppressed():
        return attend(
            query,
            _mixed(key, key_projection, seen.key),
            _mixed(value, value_projection, seen.key),
            mask=None if seen.query is None else masks.valid(query=seen.query),
            dropout_rate=dropout_rate,
            dropout_key=dropout_key,
        )


def linformer_weights(
    query: Array,
    key: Array,
    key_projection: Array,
    value_projection: Array,
    *,
    mask: MaskLike | None = None,
) -> Array:
    """Computes the matrix that maps values to the result of `linformer` (Wang et al. 2020).

        w = softmax(q (Eᵀk)ᵀ / sqrt(H)) · Fᵀ

    The weights may be negative. They are 0 at hidden keys.

    Args:
      query: [B, T, N, H].
      key: [B, S, N, H].
      key_projection, value_projection: E, F, [1 or N, S, R].
      mask: as for `linformer`.

    Returns:
      [B, N, T, S] in at least float32.

    Raises:
      ValueError, NotImplementedError: as for `linformer`.
    """
    seen = _checked(query, key, key, key_projection, value_projection, mask)
    queries = None if seen.query is None else masks.valid(query=seen.query)
    weights = attention_weights(query, _mixed(key, key_projection, seen.key), mask=queries)
    N, (S, R) = query.shape[2], value_projection.shape[1:]
    spread = jnp.broadcast_to(value_projection.astype(weights.dtype), (N, S, R))
    weights = jnp.einsum("BNTR,NSR->BNTS", weights, spread)
    return weights if seen.key is None else jnp.where(seen.key[:, None, None], weights, 0.0)


class Linformer(MultiHeadMixer):
    """Multi-head self-attention by `linformer` (Wang et al. 2020).

        head_n = softmax(q (Eᵀk)ᵀ) (Fᵀv),   y = concat_n(head_n) W_o

    Row s of E and F belongs to position s of the sequence, including hidden positions; a shorter
    sequence uses the first rows.

    Parameters: those of `MultiHeadMixer`, and key_projection, value_projection
    [1 or N, max_length, R].

    Args:
      max_length: maximum sequence length, the number of rows of E and F.
      projected_length: R, the number of mixtures ("k" in the paper).
      sharing: "none": each head has its own E and F; "heads": all heads share E and F; "key_value":
        all heads share E, and F = E.
      options: those of `MultiHeadMixer`. Dropout is applied to the weights of the mixtures.

    Raises:
      ValueError: a size is below 1 or does not divide another, or sharing is unknown.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        max_length: int = 512,
        projected_length: int = 128,
        sharing: str = "none",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        shapes.expect_positive(max_length=max_length, projected_length=projected_length)
        if sharing not in SHARING:
            raise ValueError(f"sharing: got {sharing!r}, expected one of {list(SHARING)}")
        super().__init__(model_size, num_heads, rngs=rngs, **options)
        self.max_length = max_length
        shape = (num_heads if sharing == "none" else 1, max_length, projected_length)
        limit = math.sqrt(6.0 / (max_length + projected_length))  # Glorot & Bengio 2010

        def mixtures():
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit))

        self.key_projection = mixtures()
        self.value_projection = None if sharing == "key_value" else mixtures()

    def _mix(
        self, x: Array, mask: MaskLike | None, dropout_rate: float, dropout_key: Array | None
    ) -> tuple[Array, Callable[[], Array]]:
        shapes.expect_known_length("x", x)
        length = x.shape[1]
        if length > self.max_length:
            expected = f"at most max_length={self.max_length}"
            raise ValueError(f"x: got length {length}, expected {expected}")
        query, key, value = self.query(x), self.key(x), self.value(x)
        E = self.key_projection[...][:, :length].astype(self.dtype)
        F = E
        if self.value_projection is not None:
            F = self.value_projection[...][:, :length].astype(self.dtype)
        heads = linformer(
            query, key, value, E, F, mask=mask, dropout_rate=dropout_rate, dropout_key=dropout_key
        )
        return heads, functools.partial(linformer_weights, query, key, E, F, mask=mask)


def _checked(query, key, value, key_projection, value_projection, mask) -> masks.Padding:
    sizes = shapes.expect_attention(query, key, value)
    shapes.expect("key", key, "B S N H", sizes)
    arrays = {"key_projection": key_projection, "value_projection": value_projection}
    for name, array in arrays.items():
        shapes.expect_floating(name, array)
        sizes.setdefault("R", jnp.shape(array)[-1] if jnp.ndim(array) else 0)
        shapes.expect_broadcastable(name, array, "N S R", sizes, free="N")
    return masks.padding(mask, sizes["B"], sizes["T"], sizes["S"], of="linformer", causal=False)


def _mixed(rows: Array, projection: Array, seen: Array | None) -> Array:
    """Computes R mixtures of the visible rows of each head, [B, R, N, H].

    Args:
      rows: keys or values, [B, S, N, H].
      projection: E or F, [1 or N, S, R].
      seen: visible rows, bool [B, S]; all if None.
    """
    if seen is not None:
        rows = jnp.where(seen[:, :, None, None], rows, jnp.zeros((), rows.dtype))
    projection = jnp.broadcast_to(projection, (rows.shape[2], *projection.shape[1:]))
    # Transposed afterwards: XLA on CPU cannot sum a bfloat16 product in float32 for "BRNH".
    mixed = jnp.einsum("BSNH,NSR->NBHR", rows, projection, preferred_element_type=accumulator(rows))
    return mixed.transpose(1, 3, 0, 2).astype(rows.dtype)
