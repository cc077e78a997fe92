"""The kernel "reference", which defines `attend`: dense, with all options, on all platforms.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

from typing import Unpack, cast

import chex
import jax
import jax.numpy as jnp

from attention.dropout import keep_mask, keep_probability
from attention.kernels import costs
from attention.kernels.options import KernelOptions
from attention.numerics import accumulator, softmax

Array = jax.Array


def attend(query: Array, key: Array, value: Array, **options: Unpack[KernelOptions]) -> Array:
    """Computes dense attention (Vaswani et al. 2017); see `attention.attend`.

        o_t = Σ_s w_ts v_s,   w as for `weights`

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V].
      options: all are supported.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    B, T, N, _ = query.shape
    S, K, V = value.shape[1:]
    probabilities, rate = weights(query, key, **options), options["dropout_rate"]
    if rate:
        kept = keep_mask(cast(Array, options["dropout_key"]), rate, probabilities.shape)
        probabilities = jnp.where(kept, probabilities / keep_probability(rate), 0.0)
    grouped = probabilities.astype(value.dtype).reshape(B, K, N // K, T, S)
    # The result is transposed afterwards: for cached values, which are stored heads first, XLA on
    # CPU has no bfloat16 product with float32 accumulation that gives "BTKGV" directly.
    result = jnp.einsum(
        "BKGTS,BSKV->BKGTV", grouped, value, preferred_element_type=accumulator(value)
    )
    result = result.transpose(0, 3, 1, 2, 4).reshape(B, T, N, V).astype(query.dtype)
    chex.assert_shape(result, (B, T, N, V))
    return result


def weights(query: Array, key: Array, **options: Unpack[KernelOptions]) -> Array:
    """Computes the attention weights (Vaswani et al. 2017); see `attention.attention_weights`.

        w = softmax_s(cap(scale · q·k + bias)), with the sink's logit in the denominator

    Args:
      query, key: [B, T, N, H], [B, S, K, H].
      options: those of `attend`; dropout has no effect.

    Returns:
      w, [B, N, T, S] in at least float32.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    mask, bias, sinks = options["mask"], options["bias"], options["sinks"]
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    grouped = query.reshape(B, T, K, N // K, H)
    logits = jnp.einsum(
        "BTKGH,BSKH->BKGTS", grouped, key, preferred_element_type=accumulator(query)
    )
    logits = logits.reshape(B, N, T, S) * options["scale"]
    if bias is not None:
        logits = logits + bias
    logit_cap = options["logit_cap"]
    if logit_cap is not None:
        logits = logit_cap * jnp.tanh(logits / logit_cap)
    if mask is not None:
        logits = jnp.where(mask.materialize(B, N, T, S), logits, -jnp.inf)
    sink_logits = None if sinks is None else sinks.astype(logits.dtype)[:, None, None]
    probabilities = softmax(logits, sink_logits)
    chex.assert_shape(probabilities, (B, N, T, S))
    return probabilities


def cost(call: costs.Call) -> costs.Cost:
    """Returns the estimated cost of attention that stores matrices [B, N, T, S] in memory.

    The forward pass writes and reads logits and weights. The backward pass reads the weights twice,
    writes and reads their gradient, and writes the gradient of the logits and reads it twice.
    """
    width = costs.LANES if call.platform == "tpu" else 1
    passes = 3 if call.backward else 1
    matrix = call.pairs() * 4
    traffic = matrix * (4 + 7 * call.backward) + call.pairs() * call.array * passes
    return costs.Cost(
        operations=call.operations(2 * passes, width=width),
        traffic=traffic + call.vectors() * (3 if call.backward else 1),
        efficiency=0.5,
        launches=15 if call.backward else 5,
        memory=matrix * (3 if call.backward else 2),
    )
