"""Linear attention: with kernel features instead of the softmax, all queries share sums over keys.

Katharopoulos et al. 2020, "Transformers are RNNs". F features, C positions in a chunk; the other
dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from attention import masks, shapes
from attention.dropout import dropout
from attention.masks import MaskLike
from attention.numerics import accumulator
from attention.sequence.base import MultiHeadMixer, RecurrentMixer

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LinearState:
    """Sums over the past keys and values, a frozen pytree.

    Attributes:
      sums: Σ_s φ(k_s) v_sᵀ, [B, N, F, V].
      total: Σ_s φ(k_s), [B, N, F].
    """

    sums: Array
    total: Array


jax.tree_util.register_dataclass(LinearState, data_fields=["sums", "total"], meta_fields=[])


def elu_features(x: Array) -> Array:
    """Computes the positive features of linear attention (Katharopoulos et al. 2020, equation 7).

        φ(x) = elu(x) + 1 = x + 1 if x > 0, else exp(x)

    Features are limited to at least exp(-34) = 1.7e-15, which is negligible relative to typical
    features. Without the limit, the products would underflow for a query whose keys all have tiny
    features.

    Args:
      x: [..., H].

    Returns:
      [..., H], in at least float32.

    Raises:
      ValueError: x does not hold floating-point numbers.
    """
    shapes.expect_floating("x", x)
    x = x.astype(accumulator(x))
    # elu(x) + 1 would round small features to multiples of 2^-24.
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.clip(x, -34, 0)))


def linear_attention(
    query_features: Array,
    key_features: Array,
    value: Array,
    *,
    causal: bool = False,
    query_valid: Array | None = None,
    key_valid: Array | None = None,
    chunk_size: int = 64,
    state: LinearState | None = None,
    return_state: bool = False,
) -> Array | tuple[Array, LinearState]:
    """Computes linear attention (Katharopoulos et al. 2020, equations 5, 6 and 9 to 12).

        o_t = φ(q_t)ᵀ S_t / φ(q_t)·z_t,   S_t = Σ_s φ(k_s) v_sᵀ,   z_t = Σ_s φ(k_s)

    over all s, or if causal over s <= t. The causal form uses chunks of C positions, with dense
    weights in a chunk and sums over all chunks before it. It stores O(T·C) weights and O(T/C)
    sums. A query that may attend to nothing, or whose denominator is subnormal, gives 0 with finite
    gradients. Sums are in at least float32.

    Args:
      query_features: φ(q), [B, T, N, F], at least 0.
      key_features: φ(k), [B, S, N, F], at least 0.
      value: [B, S, N, V].
      causal: whether query t attends only to keys s <= t; then S = T.
      query_valid: bool [B, T], True = a real query; other queries give 0.
      key_valid: bool [B, S], True = a real key; other keys have no effect.
      chunk_size: C, number of positions in a chunk.
      state: sums over earlier keys and values, visible to all queries.
      return_state: whether to return the updated sums.

    Returns:
      o, [B, T, N, V] in the value's dtype; with `return_state`, also the state.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
    """
    sizes = expect_features(
        query_features, key_features, value, causal, query_valid, key_valid, chunk_size
    )
    wide = jnp.promote_types(accumulator(query_features), value.dtype)
    query, key, values = (x.astype(wide) for x in (query_features, key_features, value))
    # The scale of a query's features cancels. A maximum of 1 keeps the denominator away from 0.
    highest = jax.lax.stop_gradient(jnp.max(query, axis=-1, keepdims=True))
    query = query / jnp.where(highest > 0, highest, 1)
    values = append_ones(values)
    if key_valid is not None:
        seen = key_valid[:, :, None, None]
        key, values = jnp.where(seen, key, 0), jnp.where(seen, values, 0)
    B, N, F = (sizes[letter] for letter in "BNF")
    before = jnp.zeros((B, N, F, values.shape[-1]), wide)
    if state is not None:
        before = _joined(state, sizes).astype(wide)
    if causal:
        sums, after = _causal_sums(query, key, values, before, min(chunk_size, max(sizes["T"], 1)))
    else:
        after = before + jnp.einsum("BSNF,BSNV->BNFV", key, values)
        sums = jnp.einsum("BTNF,BNFV->BTNV", query, after)
    out = normalize_sums(sums, query_valid).astype(value.dtype)
    return (out, LinearState(after[..., :-1], after[..., -1])) if return_state else out


def _causal_sums(
    query: Array, key: Array, values: Array, before: Array, C: int
) -> tuple[Array, Array]:
    """Computes the numerators of causal linear attention in chunks.

    Args:
      query, key: features φ(q) and φ(k), [B, T, N, F].
      values: v, [B, T, N, V].
      before: sums over earlier keys and values, [B, N, F, V].
      C: positions in a chunk.

    Returns:
      φ(q_t)ᵀ (before + Σ_{s <= t} φ(k_s) v_sᵀ), [B, T, N, V]; and the final sums, [B, N, F, V].
    """
    query_chunks, key_chunks, value_chunks = (split_into_chunks(x, C) for x in (query, key, values))
    sums = jnp.einsum("BcSNF,BcSNV->BcNFV", key_chunks, value_chunks)
    sums = jnp.cumsum(jnp.concatenate([before[:, None], sums], axis=1), axis=1)
    inside = jnp.einsum("BcTNF,BcSNF->BcNTS", query_chunks, key_chunks)
    inside = jnp.where(jnp.tri(C, dtype=bool), inside, 0)
    result = jnp.einsum("BcNTS,BcSNV->BcTNV", inside, value_chunks)
    result = result + jnp.einsum("BcTNF,BcNFV->BcTNV", query_chunks, sums[:, :-1])
    return join_chunks(result, query.shape[1]), sums[:, -1]


def expect_features(
    query_features: Array,
    key_features: Array,
    value: Array,
    causal: bool,
    query_valid: Array | None,
    key_valid: Array | None,
    chunk_size: int,
) -> dict[str, int]:
    """Checks the arguments of `linear_attention` and returns the size of each letter."""
    features = {"query_features": (query_features, "B T N F")}
    features |= {"key_features": (key_features, "B S N F")}
    sizes = shapes.expect_arrays(features | {"value": (value, "B S N V")})
    shapes.expect_same_dtype(query_features=query_features, key_features=key_features)
    if causal:
        shapes.expect_known_length("query_features", query_features)
    if causal and sizes["S"] != sizes["T"]:
        raise ValueError(
            f"key_features: got S={sizes['S']} keys, expected T={sizes['T']} keys with "
            f"causal=True; pass the sums over earlier keys as state"
        )
    given = ("query_valid", query_valid, "B T"), ("key_valid", key_valid, "B S")
    for name, marks, letters in given:
        if marks is not None:
            shapes.expect_boolean(name, marks, true_means="a real position")
            shapes.expect(name, marks, letters, sizes)
    expect_chunk_size(chunk_size)
    return sizes


def expect_chunk_size(chunk_size: int) -> None:
    """Raises ValueError unless chunk_size is an int of at least 1."""
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}, expected an int of at least 1")


def split_into_chunks(x: Array, C: int, fill: float = 0.0) -> Array:
    """Splits x, [B, T, ...], into chunks [B, ceil(T / C), C, ...], and pads the last one."""
    B, T = x.shape[:2]
    widths = [(0, 0), (0, -T % C), *[(0, 0)] * (x.ndim - 2)]
    return jnp.pad(x, widths, constant_values=fill).reshape(B, -(-T // C), C, *x.shape[2:])


def join_chunks(x: Array, T: int) -> Array:
    """Joins chunks [B, ceil(T / C), C, ...] to [B, T, ...]."""
    B, count, C = x.shape[:3]
    return x.reshape(B, count * C, *x.shape[3:])[:, :T]


def append_ones(value: Array) -> Array:
    """Appends a feature of 1 to each value, so that sums over values include their denominator."""
    return jnp.concatenate([value, jnp.ones((*value.shape[:-1], 1), value.dtype)], axis=-1)


def normalize_sums(sums: Array, query_valid: Array | None) -> Array:
    """Divides sums over values by their last feature, the sum of the ones from `append_ones`.

    The result is 0 for queries that are not valid or that may attend to nothing.
    """
    total = sums[..., -1:]
    some = total > jnp.finfo(total.dtype).tiny
    if query_valid is not None:
        some = some & query_valid[:, :, None, None]
    return jnp.where(some, sums[..., :-1] / jnp.where(some, total, 1), 0)


def _joined(state: LinearState, sizes: dict[str, int]) -> Array:
    shapes.expect("state.sums", state.sums, "B N F V", sizes)
    shapes.expect("state.total", state.total, "B N F", sizes)
    return jnp.concatenate([state.sums, state.total[..., None]], axis=-1)


class FeatureAttention(RecurrentMixer, MultiHeadMixer):
    """Base class of mixers that compute linear attention from features of queries and keys.

    A subclass defines `_linear_attention` and `_empty_state`.

    Parameters: those of `MultiHeadMixer`.

    Args:
      chunk_size: positions in a chunk of the causal form.
      options: those of `MultiHeadMixer`. Dropout is applied to the outputs of the heads, because
        the weights are never computed.

    Raises:
      ValueError: an argument does not fit the others.
    """

    name = "a feature attention"

    def __init__(self, model_size: int, num_heads: int, *, chunk_size: int = 64, **options: Any):
        expect_chunk_size(chunk_size)
        super().__init__(model_size, num_heads, **options)
        self.chunk_size = chunk_size

    def _linear_attention(self, query: Array, key: Array, value: Array, **options: Any) -> Any:
        """Computes linear attention from projected queries, keys and values.

        The options are those of `linear_attention`.
        """
        raise NotImplementedError(f"{self.name} has no feature map; override _linear_attention")

    def _mix(
        self, x: Array, mask: MaskLike | None, dropout_rate: float, dropout_key: Array | None
    ) -> tuple[Array, Callable[[], Array]]:
        B, T = x.shape[:2]
        padding = masks.padding(mask, B, T, T, of=self.name)
        options: dict[str, Any] = {"causal": padding.causal}
        options |= {"query_valid": padding.query, "key_valid": padding.key}
        query, key, value = self.query(x), self.key(x), self.value(x)
        heads = self._linear_attention(query, key, value, **options)
        weights = functools.partial(self._weights, query, key, **options)
        return dropout(heads, dropout_rate, dropout_key), weights

    def _weights(self, query: Array, key: Array, **options: Any) -> Array:
        """Returns the weights [B, N, T, S], which are the result for one-hot values."""
        B, S, N, _ = key.shape
        one_hot = jnp.broadcast_to(jnp.eye(S, dtype=accumulator(key))[:, None], (B, S, N, S))
        return self._linear_attention(query, key, one_hot, **options).transpose(0, 2, 1, 3)

    def _decode(self, x: Array, state: Any, valid: Array | None) -> tuple[Array, Any]:
        options = {"causal": True, "key_valid": valid, "state": state, "return_state": True}
        return self._linear_attention(self.query(x), self.key(x), self.value(x), **options)


class LinearAttention(FeatureAttention):
    """Linear attention with `elu_features` of queries and keys (Katharopoulos et al. 2020).

        head_n = linear_attention(φ(x W_q,n), φ(x W_k,n), x W_v,n),   y = concat_n(head_n) W_o

    Parameters: those of `MultiHeadMixer`.

    Args:
      options: those of `FeatureAttention`.
    """

    name = "linear"

    def _linear_attention(self, query: Array, key: Array, value: Array, **options: Any) -> Any:
        features = elu_features(query), elu_features(key)
        return linear_attention(*features, value, chunk_size=self.chunk_size, **options)

    def _empty_state(self, batch_size: int, dtype: jnp.dtype) -> LinearState:
        shape = (batch_size, self.num_heads, self.head_size)
        return LinearState(jnp.zeros((*shape, self.head_size), dtype), jnp.zeros(shape, dtype))
