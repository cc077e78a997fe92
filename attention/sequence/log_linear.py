"""Linear attention with features given as logarithms, for kernels such as exp(q·k).

Choromanski et al. 2021 subtract the maximum over all positions before the exponential, so a late
key can make earlier keys underflow. Here, the maximum for a query is over the keys that are visible
to this query.

F features, C positions in a chunk; the other dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from attention import shapes
from attention.numerics import accumulator
from attention.sequence.linear import (
    append_ones,
    expect_features,
    join_chunks,
    normalize_sums,
    split_into_chunks,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LogLinearState:
    """Scaled sums over the past keys and values, a frozen pytree.

    Attributes:
      sums: Σ_s exp(log φ(k_s) - m) v_sᵀ, [B, N, F, V].
      total: Σ_s exp(log φ(k_s) - m), [B, N, F].
      highest: m = max_s log φ(k_s), [B, N, F]; -inf without keys.
    """

    sums: Array
    total: Array
    highest: Array


jax.tree_util.register_dataclass(
    LogLinearState, data_fields=["sums", "total", "highest"], meta_fields=[]
)


def log_linear_attention(
    log_query_features: Array,
    log_key_features: Array,
    value: Array,
    *,
    causal: bool = False,
    query_valid: Array | None = None,
    key_valid: Array | None = None,
    chunk_size: int = 64,
    state: LogLinearState | None = None,
    return_state: bool = False,
) -> Array | tuple[Array, LogLinearState]:
    """Computes `linear_attention` from logarithms of features (Choromanski et al. 2021).

        o_t = Σ_s φ(q_t)·φ(k_s) v_s / Σ_s φ(q_t)·φ(k_s),   φ = exp(log φ)

    There is no overflow: numerator and denominator are multiplied by exp(-M_t). M_t is the maximum
    of log φ_f(q_t) + log φ_f(k_s) over all features f and all keys s that are visible to t, so the
    denominator is at least 1. All exponents are at most 0, because each feature of a sum over keys
    is scaled by its maximum over these keys.

    In the causal form, a query uses only sums over earlier keys. In a chunk of C positions, the
    queries of the later half use sums over the keys of the earlier half. Each half is split again
    in the same way. In total there are O(T·F·log C) exponentials, O(T·C) weights and O(T/C) sums.

    Args:
      log_query_features: log φ(q), [B, T, N, F], finite.
      log_key_features: log φ(k), [B, S, N, F], finite.
      value: [B, S, N, V].
      causal, query_valid, key_valid: as for `linear_attention`.
      chunk_size: C, number of positions in a chunk; a power of two if causal.
      state: state of earlier keys and values, visible to all queries.
      return_state: whether to return the updated state.

    Returns:
      o, [B, T, N, V] in the value's dtype; with `return_state`, also the state. A query that may
      attend to nothing gives 0, with finite gradients.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
    """
    sizes = expect_features(
        log_query_features, log_key_features, value, causal, query_valid, key_valid, chunk_size
    )
    if causal:
        expect_power_of_two(chunk_size)
    wide = jnp.promote_types(accumulator(log_query_features), value.dtype)
    query, key, values = (x.astype(wide) for x in (log_query_features, log_key_features, value))
    values = append_ones(values)
    if key_valid is not None:
        seen = key_valid[:, :, None, None]
        key, values = jnp.where(seen, key, -jnp.inf), jnp.where(seen, values, 0)
    before = _before(state, sizes, wide)
    if causal:
        sums, after = _causal(query, key, values, before, chunk_size)
    else:
        after = _join(before, _summed(key, values))
        scale = _fixed(jnp.max(query + after[0][:, None], axis=-1, keepdims=True))
        sums = _read(query, scale, after)
    out = normalize_sums(sums, query_valid).astype(value.dtype)
    if not return_state:
        return out
    return out, LogLinearState(after[1][..., :-1], after[1][..., -1], after[0])


def expect_power_of_two(chunk_size: int) -> None:
    """Raises ValueError unless chunk_size is a power of two."""
    if chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size: got {chunk_size}, expected a power of two")


# The functions below represent sums over keys and values by a pair (m, Σ_s exp(log φ(k_s) - m) v_s)
# of shapes [..., N, F] and [..., N, F, V]. The result does not depend on m, so m has no gradient.


def _fixed(highest: Array) -> Array:
    """Returns a scale m without gradient; -inf becomes 0, so that -inf - m stays -inf."""
    highest = jax.lax.stop_gradient(highest)
    return jnp.where(highest == -jnp.inf, 0, highest)


def _summed(key: Array, values: Array) -> tuple[Array, Array]:
    """Returns the pair (m, sums) over all S positions.

    Args:
      key: log φ(k), [..., S, N, F].
      values: v, [..., S, N, V].
    """
    highest = jax.lax.stop_gradient(jnp.max(key, axis=-3, initial=-jnp.inf))
    factors = jnp.exp(key - _fixed(highest)[..., None, :, :])
    return highest, jnp.einsum("...SNF,...SNV->...NFV", factors, values)


def _join(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Combines the pairs (m, sums) over two sets of keys into the pair over their union."""
    highest = jnp.maximum(first[0], second[0])
    scale = _fixed(highest)
    left, right = (sums * jnp.exp(m - scale)[..., None] for m, sums in (first, second))
    return highest, left + right


def _read(query: Array, scale: Array, pair: tuple[Array, Array]) -> Array:
    """Computes Σ_f exp(log φ_f(q_t) + m_f - scale) sums_f for each query.

    Args:
      query: log φ(q), [..., T, N, F].
      scale: logarithm of the number by which the result is divided.
      pair: (m, sums) over the keys.

    Returns:
      [..., T, N, V].
    """
    highest, sums = pair
    factors = jnp.exp(query + highest[..., None, :, :] - scale)
    return jnp.einsum("...TNF,...NFV->...TNV", factors, sums)


def _before(
    state: LogLinearState | None, sizes: dict[str, int], dtype: jnp.dtype
) -> tuple[Array, Array]:
    if state is None:
        B, N, F, V = (sizes[letter] for letter in "BNFV")
        return jnp.full((B, N, F), -jnp.inf, dtype), jnp.zeros((B, N, F, V + 1), dtype)
    shapes.expect("state.sums", state.sums, "B N F V", sizes)
    shapes.expect("state.total", state.total, "B N F", sizes)
    shapes.expect("state.highest", state.highest, "B N F", sizes)
    sums = jnp.concatenate([state.sums, state.total[..., None]], axis=-1)
    return state.highest.astype(dtype), sums.astype(dtype)


def _causal(
    query: Array, key: Array, values: Array, before: tuple[Array, Array], chunk_size: int
) -> tuple[Array, tuple[Array, Array]]:
    """Computes the scaled numerators of the causal form.

    Returns:
      The numerators, which are summed over s <= t and multiplied by exp(-M_t), [B, T, N, V]; and
      the pair (m, sums) over all keys.
    """
    T = query.shape[1]
    C = min(chunk_size, 1 << max(T - 1, 0).bit_length())
    query, values = split_into_chunks(query, C), split_into_chunks(values, C)
    key = split_into_chunks(key, C, fill=-jnp.inf)
    pairs = jax.tree.map(
        lambda first, rest: jnp.concatenate([first[:, None], rest], axis=1),
        before,
        _summed(key, values),
    )
    pairs = jax.lax.associative_scan(_join, pairs, axis=1)
    earlier, after = ([x[:, part] for x in pairs] for part in (slice(-1), -1))
    seen = jnp.maximum(jax.lax.cummax(jax.lax.stop_gradient(key), axis=2), earlier[0][:, :, None])
    scale = _fixed(jnp.max(query + seen, axis=-1, keepdims=True))
    # Rematerialized, since each level would store factors as large as queries and keys.
    read = jax.checkpoint(_read)
    result = read(query, scale, earlier)
    itself = jnp.sum(jnp.exp(query + key - scale), axis=-1, keepdims=True)
    result = result + itself * values
    half = C // 2
    while half:
        later = jax.checkpoint(functools.partial(_later_half, half=half))
        result = result + later(query, key, values, scale)
        half //= 2
    return join_chunks(result, T), tuple(after)


def _later_half(query: Array, key: Array, values: Array, scale: Array, *, half: int) -> Array:
    """Computes the sums over the keys of each earlier half for the queries of the later half.

    The sums for other queries are 0.
    """

    def parts(x):
        B, count, C = x.shape[:3]
        return x.reshape(B, count * C // (2 * half), 2, half, *x.shape[3:])

    query, scale = parts(query)[:, :, 1], parts(scale)[:, :, 1]
    key, earlier_values = parts(key)[:, :, 0], parts(values)[:, :, 0]
    highest = jax.lax.stop_gradient(jnp.max(key, axis=2, keepdims=True))
    queries, keys = jnp.exp(query + highest - scale), jnp.exp(key - _fixed(highest))
    weights = jnp.einsum("bcTNF,bcSNF->bcNTS", queries, keys)
    read = jnp.einsum("bcNTS,bcSNV->bcTNV", weights, earlier_values)
    both = jnp.stack([jnp.zeros_like(read), read], axis=2)
    return both.reshape(values.shape)
