"""The kernel "triton": blockwise attention on NVIDIA GPUs, through Pallas.

This kernel supports cases that cuDNN does not: float32, any mask, logit caps, sinks, and the
gradient of a bias. The programs are in `triton_kernels.py`, block-wise masks in
`attention/masks/pallas.py`.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import functools
from typing import Any, Unpack, cast

import chex
import jax
import jax.numpy as jnp

from attention.kernels import costs, devices
from attention.kernels.options import KernelOptions, expect_absent
from attention.masks import Mask, pallas
from attention.masks.block_mask import BlockMask, make_block_mask

Array = jax.Array

DTYPES = ("bfloat16", "float16", "float32")
WIDEST = 256


def attend(query: Array, key: Array, value: Array, **options: Unpack[KernelOptions]) -> Array:
    """Computes blockwise attention (Dao 2024, "FlashAttention-2"); see `attention.attend`.

        o_t = Σ_s exp(l_ts - L_t) v_s,   L_t = log(Σ_s exp(l_ts) + exp(sink)),   s block by block

    Memory is O(T + S) in addition to mask and bias. The gradient of a bias, if needed, takes
    O(B·N·T·S) memory. Hidden blocks are skipped in both passes. There are no higher derivatives. On
    a mesh, `attention.attend` runs this kernel on each device for the device's examples and heads.

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V]; bfloat16, float16 or float32, H
        and V at most 256.
      options: all except dropout are supported.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      NotImplementedError: there is no NVIDIA GPU (nor `kernels.interpreted()`), dropout is used, or
        the dtype or head size is not supported.
      ValueError: the mask was made for other sizes.
    """
    interpret = devices.require_platform("cuda")
    expect_absent(options, "dropout_rate", by="triton")
    if query.dtype.name not in DTYPES:
        raise NotImplementedError(f"dtype: got {query.dtype.name}, expected {', '.join(DTYPES)}")
    width = max(query.shape[-1], value.shape[-1])
    if width > WIDEST:
        raise NotImplementedError(f"head size: got {width}, expected at most {WIDEST}")
    from attention.kernels.gpu import triton_kernels

    T, S = query.shape[1], key.shape[1]
    query_block, key_block = block_sizes(T, S, _vector_bytes(width, query.dtype.itemsize))
    numbers = options["scale"], options["logit_cap"]
    settings = triton_kernels.Settings(*numbers, T, S, query_block, key_block, interpret)
    mask = options["mask"]
    if mask is not None:
        jax.eval_shape(lambda mask: pallas.prepare_for_kernel(mask, settings.sizes), mask)
    others = options["bias"], options["sinks"], mask
    result = cast(Array, _attend(settings, query, key, value, *others))
    chex.assert_shape(result, (*query.shape[:3], value.shape[-1]))
    return result


def _vector_bytes(size: int, itemsize: int) -> int:
    """Returns the bytes that a head's padded vector takes in fast memory.

    Args:
      size: number of features of the vector.
      itemsize: bytes of a feature.
    """
    from attention.kernels.gpu.triton_kernels import padded_width

    # In the tensor cores, a float32 number is split into two TF32 numbers.
    return padded_width(size, itemsize) * itemsize * (2 if itemsize == 4 else 1)


def block_sizes(T: int, S: int, width: int) -> tuple[int, int]:
    """Returns the number of queries and keys in a block (Dao et al. 2022, theorem 2).

        size ~ M / width,   M bytes of fast memory

    Four blocks of this size and their sums have to fit into the fast memory of a multiprocessor,
    also in the backward pass. With these sizes, most programs compiled for A100 and H100 spill no
    registers, and none spills more than 64 bytes.

    Args:
      T, S: number of queries and keys.
      width: bytes of a head's vector, doubled for float32.

    Returns:
      The numbers of queries and of keys in a block, powers of 2 and at least 16.
    """
    most = 64 if width <= 256 else 32 if width <= 512 else 16
    # A vector in two parts, such as 64 and 16 numbers, needs more registers than one part of 128.
    rows = 32 if 128 < width < 256 else most
    return min(rows, _power(T)), min(most, _power(S))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings: Any, query, key, value, bias, sinks, mask) -> Array:
    return _forward(settings, query, key, value, bias, sinks, mask)[0]


def _forward(settings: Any, query, key, value, bias, sinks, mask) -> tuple[Array, Array]:
    from attention.kernels.gpu import triton_kernels

    out, log_sum = triton_kernels.forward(
        settings,
        *_padded(settings, query, key, value, bias),
        None if sinks is None else sinks.astype(jnp.float32),
        None if mask is None else pallas.prepare_for_kernel(mask, settings.sizes),
        _block_mask(settings, query.shape[0], mask),
    )
    return out[:, : settings.queries, :, : value.shape[-1]], log_sum


def _attend_forward(settings, query, key, value, bias, sinks, mask):
    given = (query, key, value, bias, sinks, mask)
    arrays = jax.tree.map(lambda leaf: leaf.value, given, is_leaf=_is_primal)
    out, log_sum = _forward(settings, *arrays)
    # The gradient of a bias is large, so it is computed only if the bias is differentiated.
    wanted = () if bias is not None and bias.perturbed else None
    return out, (arrays, out, log_sum, wanted)


def _attend_backward(settings, residuals, cotangent):
    from attention.kernels.gpu import triton_kernels

    (query, key, value, bias, sinks, mask), out, log_sum, wanted = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        cotangent = jnp.zeros(out.shape, out.dtype)
    B, T, _, H = query.shape
    V, with_bias = value.shape[-1], wanted is not None
    sizes = settings.sizes
    delta = jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1)
    delta = _grown(delta.transpose(0, 2, 1), {2: sizes.rows})
    width = triton_kernels.padded_width(V, value.dtype.itemsize)
    given = (_grown(cotangent, {1: sizes.rows, 3: width}), log_sum, delta)
    arrays = _padded(settings, query, key, value, bias)
    ready = None if mask is None else pallas.prepare_for_kernel(mask, sizes)
    dq, logits_grad = triton_kernels.query_gradient(
        settings, *arrays, ready, _block_mask(settings, B, mask, hidden=with_bias), given, with_bias
    )
    dk, dv = triton_kernels.key_gradient(
        settings, *arrays, ready, _block_mask(settings, B, mask, by_key=True), given
    )
    dbias = dsinks = None
    if logits_grad is not None:
        shared = [axis for axis in (0, 1) if bias.shape[axis] == 1]
        dbias = logits_grad[:, :, :T, : settings.keys].sum(shared, keepdims=True).astype(bias.dtype)
    if sinks is not None:
        # In each row, the gradient of a sink's logit is p_sink (0 - δ), where p_sink is its weight.
        taken = jnp.exp(sinks.astype(jnp.float32)[:, None] - log_sum) * delta
        dsinks = -taken.sum((0, 2)).astype(sinks.dtype)
    S = settings.keys
    return dq[:, :T, :, :H], dk[:, :S, :, :H], dv[:, :S, :, :V], dbias, dsinks, None


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


def _is_primal(node: Any) -> bool:
    return isinstance(node, jax.custom_derivatives.CustomVJPPrimal)


def _block_mask(
    settings: Any, B: int, mask: Mask | None, *, by_key: bool = False, hidden: bool = False
) -> BlockMask:
    sizes = B, settings.queries, settings.keys, settings.query_block, settings.key_block
    return jax.tree.map(jnp.asarray, make_block_mask(mask, *sizes, by_key=by_key, hidden=hidden))


def _padded(settings, query, key, value, bias) -> tuple[Array, Array, Array, Array | None]:
    """Pads the lengths to complete blocks, and the head sizes to `padded_width`."""
    from attention.kernels.gpu.triton_kernels import padded_width

    sizes = settings.sizes
    H, V = (padded_width(array.shape[-1], array.dtype.itemsize) for array in (query, value))
    return (
        _grown(query, {1: sizes.rows, 3: H}),
        _grown(key, {1: sizes.columns, 3: H}),
        _grown(value, {1: sizes.columns, 3: V}),
        None if bias is None else _grown(bias, {2: sizes.rows, 3: sizes.columns}),
    )


def _grown(array: Array, lengths: dict[int, int]) -> Array:
    """Pads axes with zeros at the end.

    Args:
      array: the array.
      lengths: new length of each axis to pad, by the index of the axis.
    """
    missing = {axis: length - array.shape[axis] for axis, length in lengths.items()}
    if not any(missing.values()):
        return array
    return jnp.pad(array, [(0, missing.get(axis, 0)) for axis in range(array.ndim)])


def _power(number: int) -> int:
    """Returns the smallest power of 2 that is not below a number, but at least 16.

    16 is the minimum size for tensor cores.
    """
    return max(16, 1 << (number - 1).bit_length())


def cost(call: costs.Call) -> costs.Cost:
    """Returns the estimated cost of a call; both gradient programs recompute the logits."""
    # Numbers have 2 or 4 bytes, because `attend` rejects other dtypes.
    width = _vector_bytes(max(call.size, call.value_size), 2 if call.itemsize <= 2 else 4)
    block, key_block = block_sizes(call.queries, call.keys, width)
    # In float32 each product is three products of TF32 numbers.
    products = (9 if call.backward else 2) * (3 if call.itemsize == 4 else 1)
    programs = call.batch * call.heads * -(-call.queries // block)
    return costs.Cost(
        operations=call.operations(products, max(block, key_block), 16) * call.visible,
        traffic=(call.vectors(16) + call.pairs() * call.array) * (4 if call.backward else 1),
        efficiency=0.4 * call.occupancy(programs),
        launches=5 if call.backward else 1,
    )
