"""The gated delta rule: a recurrent state updated by the prediction error of its stored value.

Delta rule: Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers". Parallel
form: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence
Length". With decay: Yang et al. 2025, "Gated Delta Networks" (ICLR). The mixer that uses the rule
is in `gated_delta_net.py`. There are K query and key heads, N value heads, and C positions in a
chunk; the other dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from attention import shapes
from attention.numerics import accumulator
from attention.sequence.linear import expect_chunk_size, split_into_chunks

Array = jax.Array


def gated_delta_rule_recurrent(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array,
    beta: Array,
    state: Array | None = None,
) -> tuple[Array, Array]:
    """Computes the gated delta rule position by position (Yang et al. 2025, equation 10).

        S_t = exp(g_t) S_{t-1} + β_t k_t (v_t - (exp(g_t) S_{t-1})ᵀ k_t)ᵀ,   o_t = S_tᵀ q_t

    The computation is in at least float32. With β_t = 0 and g_t = 0 the state is unchanged.

    Args:
      query: [B, T, K, H].
      key: [B, T, K, H]; a stable recurrence needs vectors of norm 1.
      value: [B, T, N, V]; K divides N, value head n uses query and key head n // (N / K).
      log_decay: g, at most 0, [B, T, N].
      beta: β, the fraction of the error that is written, in [0, 1], [B, T, N].
      state: S before the first position, [B, N, H, V]; 0 if None.

    Returns:
      [B, T, N, V] in the value's dtype, and the state after the last position, [B, N, H, V] in at
      least float32.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    dtype = value.dtype
    arrays, state = _checked(query, key, value, log_decay, beta, state)

    def step(state, arrays):
        query, key, value, log_decay, beta = arrays
        state = state * jnp.exp(log_decay)[..., None, None]
        difference = value - jnp.einsum("BNHV,BNH->BNV", state, key)
        state = state + jnp.einsum("BNH,BNV->BNHV", key, beta[..., None] * difference)
        return state, jnp.einsum("BNHV,BNH->BNV", state, query)

    state, out = jax.lax.scan(step, state, [jnp.moveaxis(x, 1, 0) for x in arrays])
    return jnp.moveaxis(out, 0, 1).astype(dtype), state


def gated_delta_rule_chunked(
    query: Array,
    key: Array,
    value: Array,
    log_decay: Array,
    beta: Array,
    state: Array | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Array, Array]:
    """Computes the gated delta rule in chunks (Yang et al. 2024, section 3.2; 2025, section 3.3).

    For a chunk that begins with the state S, with G_i = Σ_{j <= i} g_j, the updates are

        k_i u_iᵀ,   u_i = β_i (v_i - exp(G_i) Sᵀ k_i - Σ_{j < i} exp(G_i - G_j) (k_i·k_j) u_j),

    a triangular system for all u (the UT transform of the WY representation), and then

        o_i = exp(G_i) Sᵀ q_i + Σ_{j <= i} exp(G_i - G_j) (q_i·k_j) u_j
        S'  = exp(G_C) S + Σ_j exp(G_C - G_j) k_j u_jᵀ

    The system is solved for the right-hand sides β v and β exp(G) k in all chunks at once. The
    solution and the scan over chunks consist of matrix products. Memory is needed for O(T·C)
    weights and O(T/C) states.

    Args:
      query, key, value, log_decay, beta, state: as for `gated_delta_rule_recurrent`.
      chunk_size: C, number of positions in a chunk.

    Returns:
      [B, T, N, V] in the value's dtype, and the state after the last position, [B, N, H, V] in at
      least float32.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    expect_chunk_size(chunk_size)
    dtype, T = value.dtype, value.shape[1]
    arrays, state = _checked(query, key, value, log_decay, beta, state)
    # Padding of the last chunk has β = 0 and g = 0, so it does not change the state.
    chunks = [_chunks_first(x, min(chunk_size, max(T, 1))) for x in arrays]

    def step(state, chunk):
        read, write, values, keys, inside, decay = chunk
        written = values - keys @ state
        out = read @ state + inside @ written
        return decay * state + jnp.swapaxes(write, -1, -2) @ written, out

    state, out = jax.lax.scan(step, state, _solved(*chunks))
    c, B, N, C, V = out.shape
    out = out.transpose(1, 0, 3, 2, 4).reshape(B, c * C, N, V)[:, :T]
    return out.astype(dtype), state


def _solved(query: Array, key: Array, value: Array, log_decay: Array, beta: Array):
    """Returns the inputs of the scan over c chunks, arrays [c, B, N, C, ...].

    In the notation of `gated_delta_rule_chunked`, they are exp(G) q; exp(G_C - G) k; the solutions
    of the system for β v and for β exp(G) k; exp(G_i - G_j) (q_i·k_j) for j <= i; and exp(G_C).
    """
    C = key.shape[-2]
    total = jnp.cumsum(log_decay, axis=-1)
    since = total[..., :, None] - total[..., None, :]
    # Masked before exp, which could overflow above the diagonal.
    decay = jnp.exp(jnp.where(jnp.tri(C, dtype=bool), since, -jnp.inf))
    transposed = jnp.swapaxes(key, -1, -2)
    inside = jnp.where(jnp.tri(C, k=-1, dtype=bool), key @ transposed * decay, 0)
    decayed_keys = key * jnp.exp(total)[..., None]
    right = beta[..., None] * jnp.concatenate([value, decayed_keys], axis=-1)
    solution = _unit_inverse(beta[..., None] * inside) @ right
    values, keys = jnp.split(solution, [value.shape[-1]], axis=-1)
    last = total[..., -1:]
    return (
        query * jnp.exp(total)[..., None],
        key * jnp.exp(last - total)[..., None],
        values,
        keys,
        (query @ transposed) * decay,
        jnp.exp(last)[..., None],
    )


@jax.custom_jvp
def _unit_inverse(below: Array) -> Array:
    """Computes (I + L)⁻¹ for a strictly lower triangular L [..., C, C], by matrix products.

    The inverse of a diagonal block of size 8 is (I - L)(I + L²)(I + L⁴), because L⁸ = 0. For larger
    blocks, powers of L can be huge although the inverse is not. So the inverse of a larger block is
    combined from the inverses of smaller blocks:

        [[A, 0], [B, D]]⁻¹ = [[A⁻¹, 0], [-D⁻¹BA⁻¹, D⁻¹]]

    The platform's triangular solver would be slow for many small systems, and its threads would
    compete with those of XLA.
    """
    C = below.shape[-1]
    size = min(8, 1 << (C - 1).bit_length())
    whole = size << (-(-C // size) - 1).bit_length()
    below = jnp.pad(below, [(0, 0)] * (below.ndim - 2) + [(0, whole - C)] * 2)
    power = _diagonal_blocks(below, size)
    identity = jnp.eye(size, dtype=below.dtype)
    inverse, order = identity - power, 2
    while order < size:
        power, order = power @ power, 2 * order
        inverse = inverse @ (identity + power)
    while size < whole:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = _diagonal_blocks(below, 2 * size)[..., size:, :size]
        top = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        bottom = jnp.concatenate([-second @ corner @ first, second], axis=-1)
        inverse, size = jnp.concatenate([top, bottom], axis=-2), 2 * size
    return inverse[..., 0, :C, :C]


@_unit_inverse.defjvp
def _unit_inverse_jvp(primals, tangents):
    inverse = _unit_inverse(*primals)
    return inverse, -inverse @ tangents[0] @ inverse


def _diagonal_blocks(x: Array, size: int) -> Array:
    """Returns the diagonal blocks of x, [..., C, C], as an array [..., C / size, size, size]."""
    count = x.shape[-1] // size
    blocks = x.reshape(*x.shape[:-2], count, size, count, size)
    return jnp.stack([blocks[..., i, :, i, :] for i in range(count)], axis=-3)


def gated_delta_rule_weights(
    query: Array, key: Array, log_decay: Array, beta: Array, *, chunk_size: int = 64
) -> Array:
    """Computes the matrix that maps values to outputs (Yang et al. 2025, equation 10 unrolled).

        w_ts = β_s q_tᵀ (Π_{j = t ... s+1} exp(g_j) (I - β_j k_j k_jᵀ)) k_s   for s <= t, else 0

    Args:
      query, key, log_decay, beta: as for `gated_delta_rule_recurrent`.
      chunk_size: C, number of positions in a chunk.

    Returns:
      [B, N, T, T], in at least float32, of either sign.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    (B, T), N = key.shape[:2], beta.shape[-1]
    one_hot = jnp.broadcast_to(jnp.eye(T, dtype=accumulator(key))[:, None], (B, T, N, T))
    arrays = (x.astype(one_hot.dtype) for x in (query, key, one_hot, log_decay, beta))
    weights, _ = gated_delta_rule_chunked(*arrays, chunk_size=chunk_size)
    return weights.transpose(0, 2, 1, 3)


def _chunks_first(x: Array, C: int) -> Array:
    """Splits [B, T, N, ...] into c chunks, [c, B, N, C, ...]."""
    return jnp.moveaxis(split_into_chunks(x, C), (1, 3), (0, 2))


def _checked(
    query: Array, key: Array, value: Array, log_decay: Array, beta: Array, state: Array | None
) -> tuple[list[Array], Array]:
    """Checks the arguments of the delta rule; returns them in at least float32.

    Returns:
      The arrays with N heads (queries and keys are repeated), and the state, 0 if it is None.
    """
    arrays = {"query": query, "key": key, "value": value, "log_decay": log_decay, "beta": beta}
    letters = ("B T K H", "B T K H", "B T N V", "B T N", "B T N")
    named = zip(arrays.items(), letters, strict=True)
    sizes = shapes.expect_arrays({name: (array, axes) for (name, array), axes in named})
    if sizes["K"] == 0 or sizes["N"] % sizes["K"]:
        raise ValueError(
            f"key: got K={sizes['K']} heads, expected a divisor of the value's N={sizes['N']}"
        )
    wide = jnp.result_type(jnp.float32, *arrays.values())
    if state is None:
        state = jnp.zeros([sizes[letter] for letter in "BNHV"], wide)
    shapes.expect("state", state, "B N H V", sizes)
    query, key, *rest = (array.astype(wide) for array in arrays.values())
    query, key = (jnp.repeat(x, sizes["N"] // sizes["K"], axis=2) for x in (query, key))
    return [query, key, *rest], state.astype(wide)
