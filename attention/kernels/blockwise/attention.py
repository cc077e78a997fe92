"""Attention in O(T) memory: blocks of queries and keys, computed again for the gradient.

Dao et al. 2022, "FlashAttention", in plain JAX, for every platform. Blocks that nobody sees are
skipped, and the elements of a mask are asked for only where a block is seen in part, so that the
time is in proportion to the blocks that are seen. `blocks.py` has the computation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax

from attention import shapes
from attention.dropout import validate_threefry
from attention.kernels.blockwise import gradient, mesh, online_softmax
from attention.masks import Mask

Array = jax.Array

QUERY_BLOCK, KEY_BLOCK = 256, 512

# From how many pairs of a query and a key on it is faster on a CPU. An accelerator is faster with
# one large product, as long as memory has room for that many weights.
_PAIRS, _WEIGHTS = 2**18, 2**28


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | None,
    bias: Array | None,
    scale: float,
    logit_cap: float | None,
    sinks: Array | None,
    dropout_rate: float,
    dropout_key: Array | None,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
) -> Array:
    """Attention with a running softmax (Dao et al. 2022); see `attention.attend`, which checks.

        o_t = Σ_s exp(l_ts - z_t) v_s,   z_t = log Σ_s exp(l_ts)

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V].
      mask, bias, scale, logit_cap, sinks, dropout_rate, dropout_key: as for `attend`; what is
        dropped is what the reference drops.
      query_block, key_block: rows and columns of scores at a time. Heads that share keys are rows.

    Returns:
      [B, T, N, V] in the query's dtype. It can be differentiated once, in reverse.

    Raises:
      NotImplementedError: the dropout key is none of threefry, or scale or logit_cap is traced.
      ValueError: the mask was made for other sizes.
    """
    B, T, N, _ = query.shape
    S, K, V = value.shape[1:]
    for name, array in (("query", query), ("key", key), ("value", value)):
        if not all(isinstance(size, int) for size in array.shape[1:]):
            got = shapes.show(array.shape)
            raise NotImplementedError(f"{name}: got shape {got}, expected a symbol for B alone")
    numbers = scale, logit_cap, dropout_rate
    spec = make_spec((B, N, T, S), N // K, numbers, query_block, key_block)
    key_data = validate_threefry(dropout_key) if dropout_rate else None
    options = {"mask": mask, "bias": bias, "sinks": sinks, "key_data": key_data}
    # Left to itself, the compiler would gather what a mesh has split before it loops over it.
    split = mesh.mesh_split(B, N, K)
    method = gradient.LocalMethod()
    if split is not None:
        method = mesh.ShardedMethod(dataclasses.replace(split, sequence=None), method)
    out = gradient.attention(method, spec, query, key, value, **options)
    chex.assert_shape(out, (B, T, N, V))
    return out


def make_spec(
    whole: tuple[int, int, int, int],
    group: int,
    numbers: tuple[float, float | None, float],
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
) -> online_softmax.BlockwiseSpec:
    """The rules of a piece that has all positions.

    Args:
      whole: B, N, T, S.
      group: heads that share keys: with them, fewer queries make as many rows.
      numbers: scale, logit_cap, dropout_rate.
      query_block, key_block: as for `attend`.

    Raises:
      NotImplementedError: a number is traced.
    """
    sizes = min(max(query_block // group, 1), whole[2]), min(key_block, whole[3])
    return online_softmax.BlockwiseSpec(whole, *validate_numbers(*numbers), *sizes)


def slower_reason(query: Array, key: Array) -> str | None:
    """Why "auto" leaves short sequences to the reference, or None where they are long.

    Args:
      query, key: [B, T, N, H], [B, S, K, H].
    """
    (B, T, N, _), S = query.shape, key.shape[1]
    if not isinstance(T * S, int):
        return None
    if T * S < _PAIRS:
        return f"dense is faster for T x S = {T * S} below {_PAIRS}"
    # Asked last: it starts the devices, and configs are checked, by short sequences, before that.
    known = isinstance(B, int)
    if known and jax.default_backend() != "cpu" and B * N * T * S < _WEIGHTS:
        return f"dense is faster for B x N x T x S = {B * N * T * S} below {_WEIGHTS}"
    return None


def validate_numbers(*numbers: Any) -> list[float | None]:
    """The numbers as they are; NotImplementedError where one is traced."""
    for number in numbers:
        if isinstance(number, jax.Array):
            raise NotImplementedError("scale, logit_cap: expected numbers, got arrays")
    return [None if number is None else float(number) for number in numbers]
