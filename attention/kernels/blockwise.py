"""Attention in O(T) memory: blocks of queries and keys, computed again for the gradient.

Dao et al. 2022, "FlashAttention", in plain JAX, for every platform. Blocks that nobody sees are
skipped, and the elements of a mask are asked for only where a block is seen in part, so that the
time is in proportion to the blocks that are seen. `blocks.py` has the computation.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from attention.dropout import checked_threefry
from attention.kernels import blocks
from attention.masks import Mask

Array = jax.Array

QUERY_BLOCK, KEY_BLOCK = 256, 512


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
    # Heads of a group share a block of keys: fewer queries make as many rows.
    query_block = max(query_block * K // N, 1)
    rules = blocks.Rules(
        (B, N, T, S),
        *checked_numbers(scale, logit_cap, dropout_rate),
        min(query_block, T),
        min(key_block, S),
    )
    words = checked_threefry(dropout_key) if dropout_rate else None
    out = _attend(rules, query, key, value, bias, sinks, mask, words)
    chex.assert_shape(out, (B, T, N, V))
    return out


def unsuited(query: Array, key: Array) -> str | None:
    """Why "auto" leaves short sequences to the reference, or None where they are long.

    Args:
      query, key: [B, T, N, H], [B, S, K, H].
    """
    (B, T, N, _), S = query.shape, key.shape[1]
    if jax.default_backend() == "cpu":
        least, size, what = 2**18, T * S, "T x S"
    else:
        # An accelerator is faster with one large product, as long as the weights fit.
        least, size, what = 2**28, B * N * T * S, "B x N x T x S"
    return None if size >= least else f"dense is faster for {what} = {size} below {least}"


def checked_numbers(*numbers: Any) -> list[float | None]:
    """The numbers as they are; NotImplementedError where one is traced."""
    for number in numbers:
        if isinstance(number, jax.Array):
            raise NotImplementedError("scale, logit_cap: expected numbers, got arrays")
    return [None if number is None else float(number) for number in numbers]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(rules, query, key, value, bias, sinks, mask, words):
    return _forward(rules, query, key, value, bias, sinks, mask, words)[0]


def _forward(rules, query, key, value, bias, sinks, mask, words):
    options = {"mask": mask, "bias": bias, "words": words, "rules": rules}
    out, logs = blocks.with_sinks(*blocks.forward(query, key, value, **options), sinks)
    out = out.astype(query.dtype)
    return out, (query, key, value, bias, sinks, mask, words, out, logs)


def _backward(rules, kept, cotangent):
    query, key, value, bias, sinks, mask, words, out, logs = kept
    delta = jnp.sum(cotangent.astype(logs.dtype) * out.astype(logs.dtype), axis=-1)
    options = {"mask": mask, "bias": bias, "words": words, "rules": rules}
    slopes = blocks.backward(query, key, value, cotangent, logs, delta, **options)
    slopes = *slopes, None if sinks is None else blocks.sink_slopes(sinks, logs, delta)
    inputs = query, key, value, bias, sinks
    pairs = zip(slopes, inputs, strict=True)
    return *(None if x is None else slope.astype(x.dtype) for slope, x in pairs), None, None


_differentiable.defvjp(_forward, _backward)
# Compiled, so that calls outside of jit are traced once.
_attend = jax.jit(_differentiable, static_argnums=0)
