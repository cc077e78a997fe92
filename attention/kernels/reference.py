"""The kernel "reference", which defines `attend`: dense, with all options, on all platforms."""

from __future__ import annotations

from typing import cast

import chex
import jax
import jax.numpy as jnp

from attention.dropout import keep_mask, keep_probability
from attention.masks import Mask
from attention.numerics import accumulator, softmax

Array = jax.Array


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
    """Computes dense attention (Vaswani et al. 2017); see `attention.attend`.

        o_t = Σ_s w_ts v_s,   w as for `weights`

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V].
      mask, bias, scale, logit_cap, sinks: as for `weights`.
      dropout_rate, dropout_key: dropout of the weights; the key may be None if the rate is 0.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    B, T, N, _ = query.shape
    S, K, V = value.shape[1:]
    probabilities = weights(
        query, key, mask=mask, bias=bias, scale=scale, logit_cap=logit_cap, sinks=sinks
    )
    if dropout_rate:
        kept = keep_mask(cast(Array, dropout_key), dropout_rate, probabilities.shape)
        probabilities = jnp.where(kept, probabilities / keep_probability(dropout_rate), 0.0)
    grouped = probabilities.astype(value.dtype).reshape(B, K, N // K, T, S)
    # The result is transposed afterwards: for cached values, which are stored by heads, XLA on CPU
    # has # no bfloat16 product with float32 accumulation that gives "BTKGV" directly.
    result = jnp.einsum(
        "BKGTS,BSKV->BKGTV", grouped, value, preferred_element_type=accumulator(value)
    )
    result = result.transpose(0, 3, 1, 2, 4).reshape(B, T, N, V).astype(query.dtype)
    chex.assert_shape(result, (B, T, N, V))
    return result


def weights(
    query: Array,
    key: Array,
    *,
    mask: Mask | None,
    bias: Array | None,
    scale: float,
    logit_cap: float | None,
    sinks: Array | None,
) -> Array:
    """Computes the attention weights (Vaswani et al. 2017); see `attention.attention_weights`.

        w = softmax_s(cap(scale · q·k + bias)), with a sink's logit in the sum

    Args:
      query, key: [B, T, N, H], [B, S, K, H].
      mask: a `Mask`, or None if all is visible.
      bias: [B or 1, N or 1, T, S], or None.
      scale, logit_cap: numbers; no cap if None.
      sinks: [N], or None.

    Returns:
      w, [B, N, T, S] in at least float32.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    grouped = query.reshape(B, T, K, N // K, H)
    logits = jnp.einsum(
        "BTKGH,BSKH->BKGTS", grouped, key, preferred_element_type=accumulator(query)
    )
    logits = logits.reshape(B, N, T, S) * scale
    if bias is not None:
        logits = logits + bias
    if logit_cap is not None:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    if mask is not None:
        logits = jnp.where(mask.materialize(B, N, T, S), logits, -jnp.inf)
    sink_logits = None if sinks is None else sinks.astype(logits.dtype)[:, None, None]
    probabilities = softmax(logits, sink_logits)
    chex.assert_shape(probabilities, (B, N, T, S))
    return probabilities
