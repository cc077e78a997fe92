"""The kernel "cudnn": cuDNN's fused attention on NVIDIA GPUs, through `jax.nn`.

`jax.nn.dot_product_attention` differs from `attention.attend` in rows that may attend to nothing:
it returns the mean of the values or NaN there, and gradients of padding are undefined. `arguments`
converts a mask to arguments of that function; `compute` corrects the result.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp

from attention.kernels import costs, devices
from attention.kernels.options import KernelOptions, expect_absent
from attention.masks import Mask, terms

Array = jax.Array

_TILE = 128


class Arguments(NamedTuple):
    """A mask as arguments of `jax.nn.dot_product_attention`.

    Attributes:
      causal: whether the keys after a query's position are hidden.
      left: number of visible keys before a query's own position, or None for all.
      query, key: numbers of real queries and keys, int32 [B]; None if all are real.
    """

    causal: bool
    left: int | None
    query: Array | None
    key: Array | None


def attend(query: Array, key: Array, value: Array, **options: Unpack[KernelOptions]) -> Array:
    """Computes fused attention by cuDNN (Dao 2024, "FlashAttention-2"); see `attention.attend`.

        o = softmax(scale·qkᵀ + bias)·v

    On a mesh, `attention.attend` runs this kernel on each device for the device's examples and
    heads.

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, H], bfloat16 or float16; H a multiple
        of 8 up to 128, on Hopper up to 256.
      mask: conjunction of `causal()`, `window(left, 0)` and `lengths(...)`, or None. The first two
        are supported for T == S and without an offset.
      bias: [B or 1, N or 1, T, S] in the query's dtype with T and S multiples of 128, or None. In
        memory, it is repeated for each head.
      scale: factor of the logits, a number.
      logit_cap, sinks, dropout_key: must be None.
      dropout_rate: must be 0.

    Returns:
      [B, T, N, H] in the query's dtype.

    Raises:
      NotImplementedError: there is no NVIDIA GPU or no cuDNN, or an argument has a value that is
        not listed above.
    """
    devices.require_platform("cuda", can_be_interpreted=False)
    expect_absent(options, "logit_cap", "sinks", "dropout_rate", by="cuDNN")
    bias, scale = options["bias"], options["scale"]
    expect_sizes(query, value, bias)
    found = arguments(options["mask"], query.shape[1], key.shape[1])
    try:
        return compute(query, key, value, found, bias=bias, scale=scale, implementation="cudnn")
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise NotImplementedError(str(error).rstrip(".")) from error


def expect_sizes(query: Array, value: Array, bias: Array | None) -> None:
    """Checks that cuDNN supports the dtypes and sizes in the forward and backward pass.

    Raises:
      NotImplementedError: cuDNN does not support a dtype or size.
    """
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"dtype: got {query.dtype.name}, expected bfloat16 or float16")
    H, V = query.shape[-1], value.shape[-1]
    if H != V:
        raise NotImplementedError(f"value: got head size {V}, expected the query's {H}")
    # On other GPU generations, cuDNN has no backward pass for wider heads, or has one in recent
    # versions only.
    capability = devices.compute_capability()
    most = 256 if capability is not None and capability[0] == 9 else 128
    if H % 8 != 0 or most < H:
        raise NotImplementedError(f"head size: got {H}, expected a multiple of 8 up to {most}")
    if bias is None:
        return
    if bias.dtype != query.dtype:
        raise NotImplementedError(
            f"bias: got dtype {bias.dtype.name}, expected the query's {query.dtype.name}"
        )
    if bias.shape[2] % _TILE or bias.shape[3] % _TILE:
        # For other sizes, the backward pass of some cuDNN versions returns NaN or fails.
        raise NotImplementedError(
            f"bias: got {bias.shape[2]} queries and {bias.shape[3]} keys, expected multiples of "
            f"{_TILE}"
        )


def arguments(mask: Mask | None, T: int, S: int) -> Arguments:
    """Converts a mask to arguments of cuDNN (NVIDIA 2024) in JAX (Bradbury et al. 2018).

        allowed_bts = (t - left <= s <= t) and (t < query_b) and (s < key_b)

    Args:
      mask: as for `attend`.
      T, S: number of queries and keys.

    Returns:
      The `Arguments`, with lengths of shape [B].

    Raises:
      NotImplementedError: the mask has a term that cuDNN does not support.
    """
    left: int | None = None
    causal = False
    found: dict[str, Array | None] = {"query": None, "key": None}
    for term in () if mask is None else mask.terms:
        if isinstance(term, terms.Window):
            if term.right != 0:
                raise NotImplementedError(
                    "mask: got a window to the right, expected window(left, 0)"
                )
            if T != S or not terms.is_static(term.query_offset) or term.query_offset:
                got = f"T={T} and S={S}" if T != S else "a query_offset that is not the integer 0"
                raise NotImplementedError(f"mask: got {got}, expected T == S and query_offset=0")
            causal = True
            if term.left is not None and term.left < S:
                left = term.left if left is None else min(left, term.left)
        elif isinstance(term, terms.Lengths):
            for side in found:
                lengths, before = getattr(term, side), found[side]
                if lengths is not None:
                    found[side] = lengths if before is None else jnp.minimum(lengths, before)
        else:
            raise NotImplementedError(
                f"mask: got {term.describe()}, expected causal(), window() and lengths()"
            )
    limits = {"query": T, "key": S}
    lengths = {
        side: None if each is None else jnp.clip(each, 0, limits[side]).astype(jnp.int32)
        for side, each in found.items()
    }
    return Arguments(causal, left, **lengths)


def compute(
    query: Array,
    key: Array,
    value: Array,
    found: Arguments,
    *,
    bias: Array | None,
    scale: float,
    implementation: Literal["cudnn", "xla"],
) -> Array:
    """Computes `attend` by `jax.nn.dot_product_attention` (Vaswani et al. 2017).

        o_t = Σ_s softmax_s(scale·q_t·k_s + bias_ts) v_s, and 0 if t may attend to nothing

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, H].
      found: the mask, from `arguments`.
      bias: [B or 1, N or 1, T, S], or None.
      scale: factor of the logits, a number.
      implementation: "cudnn", or "xla" for the same call on any platform.

    Returns:
      [B, T, N, H] in the query's dtype.

    Raises:
      NotImplementedError: cuDNN does not support the arguments.
    """
    B, T, N, _ = query.shape
    S = key.shape[1]
    query_lengths, key_lengths = found.query, found.key
    if key_lengths is not None and found.left is not None:
        # Queries from this position on have no real key in their window.
        last = jnp.where(key_lengths > 0, key_lengths + found.left, 0)
        query_lengths = jnp.minimum(last, T if query_lengths is None else query_lengths)
    visible = None
    if query_lengths is not None:
        visible = _before(query_lengths, T)
    if key_lengths is not None:
        some = (key_lengths > 0)[:, None, None, None]
        visible = some if visible is None else visible & some
        # Padding is replaced by 0 here, so that its gradients are 0.
        real = _before(key_lengths, S)
        key, value = jnp.where(real, key, 0), jnp.where(real, value, 0)
    if visible is not None:
        query = jnp.where(visible, query, 0)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (bias.shape[0], N, T, S))
        if visible is not None:
            bias = jnp.where(_real_pairs(B, T, S, visible, key_lengths), bias, 0)
    if S % _TILE and key_lengths is None:
        # Without lengths, the backward pass may treat the padding of its last tile as keys.
        key_lengths = jnp.full((B,), S, jnp.int32)
    # Lengths are at least 1; examples without a query or a key are set to 0 below.
    lengths = [
        None if each is None else jnp.maximum(each, 1) for each in (query_lengths, key_lengths)
    ]
    result = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias,
        scale=scale,
        is_causal=found.causal,
        local_window_size=None if found.left is None else (found.left, 0),
        query_seq_lengths=lengths[0],
        key_value_seq_lengths=lengths[1],
        implementation=implementation,
    )
    if visible is not None:
        result = jnp.where(visible, result, 0)
    chex.assert_equal_shape([result, query])
    return result


def _before(lengths: Array, length: int) -> Array:
    """Returns the mask of real positions, bool [B, length, 1, 1]."""
    return (jnp.arange(length) < lengths[:, None])[:, :, None, None]


def _real_pairs(B: int, T: int, S: int, visible: Array, key_lengths: Array | None) -> Array:
    """Returns the mask of pairs of real queries and real keys, bool [B, 1, T, S]."""
    rows = jnp.broadcast_to(visible, (B, T, 1, 1)).transpose(0, 2, 1, 3)
    if key_lengths is None:
        return jnp.broadcast_to(rows, (B, 1, T, S))
    return rows & _before(key_lengths, S).transpose(0, 2, 3, 1)


def cost(call: costs.Call) -> costs.Cost:
    """Returns the estimated cost of a call."""
    programs = call.batch * call.heads * -(-call.queries // _TILE)
    return costs.Cost(
        operations=call.operations(7 if call.backward else 2, _TILE, 8) * call.visible,
        traffic=(call.vectors() + call.pairs() * call.array) * (4 if call.backward else 1),
        efficiency=0.6 * call.occupancy(programs),
        launches=4 if call.backward else 1,
    )
