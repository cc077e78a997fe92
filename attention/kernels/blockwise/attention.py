"""The kernel "blockwise": attention in O(T) memory, in portable JAX.

Dao et al. 2022, "FlashAttention": blocks of queries and keys, recomputed in the backward pass.
Hidden blocks are skipped, and a mask is evaluated in partial blocks only. The computation is in
`online_softmax.py`.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
from typing import Unpack

import chex
import jax

from attention import shapes
from attention.kernels import devices, partition
from attention.kernels.blockwise import gradient, mesh, online_softmax
from attention.kernels.options import KernelOptions, validate_arrays, validate_numbers

Array = jax.Array

QUERY_BLOCK, KEY_BLOCK = 256, 512

# Below _PAIRS pairs of query and key, dense attention is faster. On an accelerator, it is also
# faster below _WEIGHTS weights in total: one large product is fast as long as the weights fit into
# memory.
_PAIRS, _WEIGHTS = 2**18, 2**28


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
    **options: Unpack[KernelOptions],
) -> Array:
    """Computes attention with an online softmax (Dao et al. 2022); see `attention.attend`.

        o_t = Σ_s exp(l_ts - z_t) v_s,   z_t = log Σ_s exp(l_ts)

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V].
      query_block, key_block: number of queries and keys in a block of logits. All query heads that
        share keys are in the same block.
      options: all are supported; the dropout mask is the same as that of the reference.

    Returns:
      [B, T, N, V] in the query's dtype. It has first derivatives in reverse mode only.

    Raises:
      NotImplementedError: the dropout key is not a threefry key, or scale or logit_cap is traced.
      ValueError: the mask was made for other sizes.
    """
    B, T, N, _ = query.shape
    S, K, V = value.shape[1:]
    for name, array in (("query", query), ("key", key), ("value", value)):
        if not all(isinstance(size, int) for size in array.shape[1:]):
            got = shapes.show(array.shape)
            raise NotImplementedError(f"{name}: got shape {got}, expected only B to be symbolic")
    spec = make_spec((B, N, T, S), N // K, options, query_block, key_block)
    # Without shard_map, the compiler would gather sharded arrays before looping over them.
    split = partition.mesh_split(B, N, K)
    method = gradient.LocalMethod()
    if split is not None:
        method = mesh.ShardedMethod(dataclasses.replace(split, sequence=None), method)
    out = gradient.attention(method, spec, query, key, value, **validate_arrays(options))
    chex.assert_shape(out, (B, T, N, V))
    return out


def make_spec(
    whole: tuple[int, int, int, int],
    group: int,
    options: KernelOptions,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
) -> online_softmax.BlockwiseSpec:
    """Returns the `BlockwiseSpec` of a shard that contains all positions.

    Args:
      whole: global sizes B, N, T, S.
      group: number of query heads per key/value head; their queries are rows of the same block.
      options: keyword arguments of the kernel, as for `attend`.
      query_block, key_block: as for `attend`.

    Raises:
      NotImplementedError: a number is traced.
    """
    sizes = min(max(query_block // group, 1), whole[2]), min(key_block, whole[3])
    return online_softmax.BlockwiseSpec(whole, *validate_numbers(options), *sizes)


def slower_reason(query: Array, key: Array) -> str | None:
    """Returns why dense attention is faster for short sequences; None for long sequences.

    Args:
      query, key: [B, T, N, H], [B, S, K, H].
    """
    (B, T, N, _), S = query.shape, key.shape[1]
    if not isinstance(T * S, int):
        return None
    if T * S < _PAIRS:
        return f"dense attention is faster for T x S = {T * S}, below {_PAIRS}"
    if not isinstance(B, int) or B * N * T * S >= _WEIGHTS or devices.is_portable():
        return None
    # Checked last, because `expected_platform` may initialize the devices of JAX, which checks of a
    # config must not do.
    if devices.expected_platform() != "cpu":
        return f"dense attention is faster for B x N x T x S = {B * N * T * S}, below {_WEIGHTS}"
    return None
