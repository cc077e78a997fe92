"""The kernel "splash": blockwise attention on TPUs, by the splash attention of JAX.

Splash attention takes static windows and segment ids instead of a mask. Lengths, validity and
padding are converted to ids.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack, cast

import chex
import jax
import jax.numpy as jnp

from attention.kernels import costs, devices
from attention.kernels.options import KernelOptions, expect_absent
from attention.masks import Mask, terms

Array = jax.Array

# A sink with this logit takes all weight of rows that may attend to nothing, and no weight of other
# rows. Without it, rows that may attend to nothing would return the mean of the values instead of
# 0. The kernel sets masked logits to a value far below this logit.
NOTHING = -1e30
# Ids of padding queries and keys. They differ, so that padding matches nothing.
NO_QUERY, NO_KEY = -(2**31), -(2**31) + 1
LANES = 128


class Structure(NamedTuple):
    """A mask as arguments of the kernel.

    Attributes:
      low, high: bounds of the visible keys: query t attends to t + low <= s <= t + high. None
        stands for no bound.
      query_ids, key_ids: int32 [B, T] and [B, S]. A query attends only to keys with an equal id;
        both are None if there is no such restriction.
    """

    low: int | None
    high: int | None
    query_ids: Array | None
    key_ids: Array | None


def attend(query: Array, key: Array, value: Array, **options: Unpack[KernelOptions]) -> Array:
    """Computes blockwise attention on a TPU (Dao 2024, "FlashAttention-2"); see `attention.attend`.

        o_t = Σ_s w_ts v_s,   w = softmax_s(cap(scale·q·k)), with the sink in the denominator

    Queries are multiplied by the scale in their own dtype, before the kernel. Products of float32
    have the TPU's default precision. Blocks hidden by windows are skipped. There are no higher
    derivatives. On a mesh, `attention.attend` runs this kernel on each device for the device's
    examples and heads.

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V], bfloat16 or float32.
      mask: conjunction of `causal` and `window` with a static query_offset, `lengths`, `valid` and
        at most one `segments`; or None.
      bias, dropout_key: must be None.
      scale, logit_cap: factor and bound of the logits, numbers; no cap if None.
      sinks: [N], or None.
      dropout_rate: must be 0.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      NotImplementedError: there is no TPU (nor `kernels.interpreted()`), jax_enable_x64 is set, or
        an argument has a value that is not listed above.
    """
    interpret = devices.require_platform("tpu")
    expect_absent(options, "bias", "dropout_rate", by="splash attention")
    if query.dtype not in (jnp.bfloat16, jnp.float32):
        raise NotImplementedError(f"dtype: got {query.dtype.name}, expected bfloat16 or float32")
    if jax.dtypes.canonicalize_dtype(jnp.int64) == jnp.int64:
        # With jax_enable_x64, the JAX kernel mixes integer dtypes and fails.
        raise NotImplementedError("jax_enable_x64: got True, expected False")
    B, T, N, _ = query.shape
    S = key.shape[1]
    found = structure(options["mask"], B, T, S)
    rows, columns = (-(-length // LANES) * LANES for length in (T, S))
    kernel = _kernel(found, N, rows, columns, options["logit_cap"], interpret)
    ids = _padded_ids(found, B, T, S, rows, columns)
    sinks = jnp.full((N,), NOTHING) if options["sinks"] is None else options["sinks"]
    sinks = _full_precision(jnp.maximum(sinks.astype(jnp.float32), NOTHING))
    result = jax.vmap(kernel, in_axes=(0, 0, 0, None if ids is None else 0, None))(
        _by_head(query * jnp.asarray(options["scale"], query.dtype), rows),
        _by_head(key, columns),
        _by_head(value, columns),
        ids,
        sinks,
    )
    result = result[:, :, :T].transpose(0, 2, 1, 3)
    chex.assert_shape(result, (B, T, N, value.shape[-1]))
    return result


def structure(mask: Mask | None, B: int, T: int, S: int) -> Structure:
    """Expresses a mask by bounds of positions and by ids of packed sequences (Krell et al. 2021).

        allowed_bts = (t + low <= s <= t + high) and (query_ids_bt = key_ids_bs)

    Args:
      mask: as for `attend`.
      B, T, S: number of examples, queries and keys.

    Returns:
      The `Structure`, with query ids [B, T] and key ids [B, S].

    Raises:
      NotImplementedError: the mask has a term that splash attention does not support.
    """
    low = high = None
    ids: dict[str, Array | None] = {"query": None, "key": None}
    real: dict[str, Array | None] = {"query": None, "key": None}
    for term in () if mask is None else mask.terms:
        if isinstance(term, terms.Window):
            if not terms.is_static(term.query_offset):
                raise NotImplementedError("mask: got a traced query_offset, expected a static one")
            lower, upper = cast("tuple[int | None, int | None]", term.bounds(T, S))
            if lower is not None and lower > -T:
                low = min(lower, S) if low is None else max(low, min(lower, S))
            if upper is not None and upper < S:
                high = max(upper, -T) if high is None else min(high, max(upper, -T))
        elif isinstance(term, terms.Lengths | terms.Valid):
            for side, length in (("query", T), ("key", S)):
                marks = term.real(side, length)
                if marks is not None:
                    real[side] = marks if (other := real[side]) is None else other & marks
        elif isinstance(term, terms.Segments):
            if ids["query"] is not None:
                raise NotImplementedError("mask: got segments() twice, expected it at most once")
            if term.is_wide:
                raise NotImplementedError("mask: got segments() with 64-bit ids, expected 32-bit")
            ids = {"query": term.query_ids, "key": term.key_ids}
        else:
            raise NotImplementedError(f"mask: got {term.describe()}, expected windows and ids")
    if low is not None and high is not None and low > high:
        raise NotImplementedError(
            "mask: got windows that together hide all keys, expected a key visible in all windows"
        )
    if all(each is None for each in (*ids.values(), *real.values())):
        return Structure(low, high, None, None)
    marked = []
    for side, length, no_match in (("query", T, NO_QUERY), ("key", S, NO_KEY)):
        own, marks = ids[side], real[side]
        each = jnp.zeros((B, length), jnp.int32) if own is None else own.astype(jnp.int32)
        marked.append(each if marks is None else jnp.where(marks, each, no_match))
    return Structure(low, high, *marked)


def _kernel(
    found: Structure, N: int, rows: int, columns: int, logit_cap: float | None, interpret: bool
) -> Any:
    # Imported here, because the import is slow and not needed for unsupported arguments.
    from jax.experimental.pallas.ops.tpu import splash_attention

    shape = (rows, columns)
    if found.low is not None:
        right = None if found.high is None else found.high - found.low
        mask = splash_attention.LocalMask(shape, window_size=(0, right), offset=found.low)
    elif found.high is not None:
        mask = splash_attention.CausalMask(shape, offset=found.high)
    else:
        mask = splash_attention.FullMask(shape)
    query_block, key_block = map(_block, shape)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * N),
        block_sizes=splash_attention.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
        ),
        attn_logits_soft_cap=logit_cap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )


def _block(length: int) -> int:
    return max(size for size in (LANES, 256, 512) if length % size == 0)


@jax.custom_vjp
def _full_precision(sinks: Array) -> Array:
    """Returns the sinks, float32 [N], with a float32 gradient.

    JAX 0.10 returns the gradient in the query's dtype, which would be a TypeError for bfloat16.
    """
    return sinks


_full_precision.defvjp(
    lambda sinks: (sinks, None), lambda _, cotangent: (cotangent.astype(jnp.float32),)
)


def _padded_ids(found: Structure, B: int, T: int, S: int, rows: int, columns: int) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention

    if found.query_ids is None and rows == T and columns == S:
        return None
    ids = []
    for each, length, padded, no_match in (
        (found.query_ids, T, rows, NO_QUERY),
        (found.key_ids, S, columns, NO_KEY),
    ):
        each = jnp.zeros((B, length), jnp.int32) if each is None else each
        ids.append(jnp.pad(each, ((0, 0), (0, padded - length)), constant_values=no_match))
    return splash_attention.SegmentIds(*ids)


def _by_head(array: Array, length: int) -> Array:
    """Converts [B, T, N, H] to [B, N, length, H], padded with zeros."""
    missing = length - array.shape[1]
    return jnp.pad(array.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, missing), (0, 0)))


def cost(call: costs.Call) -> costs.Cost:
    """Returns the estimated cost of a call; blocks and heads are padded to 128."""
    rows, columns = (costs.padded(length, LANES) for length in (call.queries, call.keys))
    blocks = (rows // _block(rows)) * (columns // _block(columns))
    steps = call.batch * call.heads * blocks * call.visible
    copies = call.vectors(LANES, LANES)
    return costs.Cost(
        operations=call.operations(9 if call.backward else 2, LANES, LANES) * call.visible,
        # Arrays are padded and transposed to [B, N, T, H] and back.
        traffic=copies * (9 if call.backward else 3),
        efficiency=0.5,
        launches=12 if call.backward else 4,
        grid_steps=int(steps * (3 if call.backward else 1)),
    )
