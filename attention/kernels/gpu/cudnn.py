"""The kernel "cudnn": cuDNN's fused attention on NVIDIA GPUs, through `jax.nn`.

What `jax.nn.dot_product_attention` means by its arguments differs from `attention.attend` where a
query sees nothing: there it gives the mean of the values or NaN, and gradients of padding may be
anything. `arguments` says a mask in its words, or refuses; `compute` sets right what differs.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from attention.kernels import devices
from attention.masks import Mask, terms

Array = jax.Array

_TILE = 128


class Arguments(NamedTuple):
    """A mask as `jax.nn.dot_product_attention` takes it.

    Attributes:
      causal: no query sees a later key.
      left: how many keys before its own position a query sees, or None for all.
      query, key: int32 [B], how many are real; None for all.
    """

    causal: bool
    left: int | None
    query: Array | None
    key: Array | None


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
) -> Array:
    """Fused attention by cuDNN (Dao 2024, "FlashAttention-2"); see `attention.attend`.

        o = softmax(scale·qkᵀ + bias)·v

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, H], bfloat16 or float16; H a multiple
        of 8 up to 128, on Hopper up to 256.
      mask: joined from `causal()` and `window(left, 0)`, which line up the first positions of as
        many queries as keys, and `lengths(...)`; or None.
      bias: [B or 1, N or 1, T, S] in the query's dtype with T and S multiples of 128, or None; it
        is spread over the heads.
      scale: a number.
      logit_cap, sinks, dropout_rate, dropout_key: None, and a rate of 0.

    Returns:
      [B, T, N, H] in the query's dtype.

    Raises:
      NotImplementedError: no NVIDIA GPU or no cuDNN, or anything else than the above.
    """
    devices.require_platform("cuda", can_be_interpreted=False)
    for name, given in (
        ("logit_cap", logit_cap is not None),
        ("sinks", sinks is not None),
        ("dropout_rate", dropout_rate),
    ):
        if given:
            raise NotImplementedError(f"{name}: cuDNN has none that means the same")
    expect_sizes(query, value, bias)
    found = arguments(mask, query.shape[1], key.shape[1])
    try:
        return compute(query, key, value, found, bias=bias, scale=scale, implementation="cudnn")
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise NotImplementedError(str(error).rstrip(".")) from error


def expect_sizes(query: Array, value: Array, bias: Array | None) -> None:
    """Holds dtypes and sizes to what cuDNN takes, in both passes.

    Raises:
      NotImplementedError: names the argument.
    """
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"dtype: {query.dtype.name} is neither bfloat16 nor float16")
    H, V = query.shape[-1], value.shape[-1]
    if H != V:
        raise NotImplementedError(f"value: head size {V} differs from the query's {H}")
    # Other generations have no backward pass for wider heads, or have one since lately.
    capability = devices.compute_capability()
    most = 256 if capability is not None and capability[0] == 9 else 128
    if H % 8 != 0 or most < H:
        raise NotImplementedError(f"head size: {H} is no multiple of 8 up to {most}")
    if bias is None:
        return
    if bias.dtype != query.dtype:
        raise NotImplementedError(
            f"bias: {bias.dtype.name} would be rounded to the query's {query.dtype.name}"
        )
    if bias.shape[2] % _TILE or bias.shape[3] % _TILE:
        # Backward passes of some versions give NaN there, or are refused once they are asked for.
        raise NotImplementedError(
            f"bias: {bias.shape[2]} queries and {bias.shape[3]} keys are no multiples of {_TILE}"
        )


def arguments(mask: Mask | None, T: int, S: int) -> Arguments:
    """The mask in cuDNN's words (as NVIDIA 2024 documents them, through Bradbury et al. 2018).

        allowed_bts = (t - left <= s <= t) and (t < query_b) and (s < key_b)

    Args:
      mask: as for `attend`.
      T, S: queries, keys.

    Returns:
      The `Arguments`, lengths of shape [B].

    Raises:
      NotImplementedError: the mask cannot be said so.
    """
    left: int | None = None
    causal = False
    found: dict[str, Array | None] = {"query": None, "key": None}
    for term in () if mask is None else mask.terms:
        if isinstance(term, terms.Window):
            if term.right != 0:
                raise NotImplementedError("mask: cuDNN knows no window to the right")
            if T != S or not terms.is_static(term.query_offset) or term.query_offset:
                raise NotImplementedError(
                    "mask: cuDNN is causal for as many queries as keys with query_offset=0 alone"
                )
            causal = True
            if term.left is not None and term.left < S:
                left = term.left if left is None else min(left, term.left)
        elif isinstance(term, terms.Lengths):
            for side in found:
                lengths, before = getattr(term, side), found[side]
                if lengths is not None:
                    found[side] = lengths if before is None else jnp.minimum(lengths, before)
        else:
            raise NotImplementedError(f"mask: cuDNN has no {term.describe()}")
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
    implementation: str,
) -> Array:
    """`jax.nn.dot_product_attention` made to mean what `attend` does (Vaswani et al. 2017).

        o_t = Σ_s softmax_s(scale·q_t·k_s + bias_ts) v_s, and 0 where t sees nothing

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, H].
      found: the mask.
      bias: [B or 1, N or 1, T, S], or None.
      scale: a number.
      implementation: "cudnn", or "xla" for the same call anywhere.

    Returns:
      [B, T, N, H] in the query's dtype.

    Raises:
      NotImplementedError: cuDNN cannot.
    """
    B, T, N, _ = query.shape
    S = key.shape[1]
    query_lengths, key_lengths = found.query, found.key
    if key_lengths is not None and found.left is not None:
        # Later queries see none of the keys that are real.
        seeing = jnp.where(key_lengths > 0, key_lengths + found.left, 0)
        query_lengths = jnp.minimum(seeing, T if query_lengths is None else query_lengths)
    seen = None
    if query_lengths is not None:
        seen = _before(query_lengths, T)
    if key_lengths is not None:
        some = (key_lengths > 0)[:, None, None, None]
        seen = some if seen is None else seen & some
        # Chosen here, so that gradients of padding are 0 whatever the backward pass leaves there.
        real = _before(key_lengths, S)
        key, value = jnp.where(real, key, 0), jnp.where(real, value, 0)
    if seen is not None:
        query = jnp.where(seen, query, 0)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (bias.shape[0], N, T, S))
        if key_lengths is not None or query_lengths is not None:
            bias = jnp.where(_seen_pairs(B, T, S, seen, key_lengths), bias, 0)
    if S % _TILE and key_lengths is None:
        # Or the backward pass may take what fills its last tile for keys.
        key_lengths = jnp.full((B,), S, jnp.int32)
    # An example without a query or a key is computed as if it had one, and set to 0 after.
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
    if seen is not None:
        result = jnp.where(seen, result, 0)
    chex.assert_equal_shape([result, query])
    return result


def _before(lengths: Array, length: int) -> Array:
    """[B, length, 1, 1]: the positions that are real."""
    return (jnp.arange(length) < lengths[:, None])[:, :, None, None]


def _seen_pairs(B: int, T: int, S: int, seen: Array, key_lengths: Array | None) -> Array:
    """[B, 1, T, S]: real queries with real keys."""
    rows = jnp.broadcast_to(seen, (B, T, 1, 1)).transpose(0, 2, 1, 3)
    if key_lengths is None:
        return jnp.broadcast_to(rows, (B, 1, T, S))
    return rows & _before(key_lengths, S).transpose(0, 2, 3, 1)
