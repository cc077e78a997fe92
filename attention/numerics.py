"""Accumulation dtypes, and a softmax that returns 0 for rows of -inf.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def accumulator(array: Array) -> jnp.dtype:
    """Returns the dtype in which to sum over the array: its own, but at least float32."""
    return jnp.promote_types(array.dtype, jnp.float32)


def product(equation: str, a: Array, b: Array) -> Array:
    """Computes `jnp.einsum(equation, a, b)` in the dtype of b, with sums in at least float32."""
    sums = accumulator(b)
    return jnp.einsum(equation, a.astype(b.dtype), b, preferred_element_type=sums).astype(b.dtype)


def mix_heads(weights: Array, values: Array) -> Array:
    """Computes the weighted sums of values for each head.

    Args:
      weights: [B, N, T, S].
      values: [B, S, K, V]; K divides N.

    Returns:
      [B, T, N, V] in at least float32.
    """
    B, N, T, S = weights.shape
    K, V = values.shape[2:]
    wide = accumulator(values)
    grouped = weights.astype(wide).reshape(B, K, N // K, T, S)
    mixed = jnp.einsum("BKGTS,BSKV->BTKGV", grouped, values.astype(wide))
    return mixed.reshape(B, T, N, V)


def softmax(logits: Array, sinks: Array | None = None) -> Array:
    """Computes the softmax over the last axis; it is 0, with gradients of 0, for rows of -inf.

        w_s = exp(l_s) / (Σ_s' exp(l_s') + exp(sink))

    The sink (Xiao et al. 2024), if given, is an extra logit in the denominator that has no column
    in the result.

    Args:
      logits: l, [..., S], -inf where masked.
      sinks: broadcastable to [..., 1], or None.

    Returns:
      w, [..., S].

    Raises:
      ValueError: sinks do not broadcast.
    """
    if sinks is None:
        return _softmax(logits)
    column = jnp.broadcast_to(sinks, (*logits.shape[:-1], 1))
    return _softmax(jnp.concatenate([logits, column], axis=-1))[..., :-1]


@jax.custom_jvp
def _softmax(logits: Array) -> Array:
    highest = jnp.max(logits, axis=-1, keepdims=True, initial=-jnp.inf)
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    exponentials = jnp.exp(logits - highest)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials / jnp.where(total == 0.0, 1.0, total)


@_softmax.defjvp
def _softmax_jvp(primals, tangents):
    # The automatic derivative through max and sum is slower, and NaN for rows of -inf.
    # dw = w (dl - Σ w dl), and w = 0 wherever l = -inf.
    (logits,), (logits_dot,) = primals, tangents
    probabilities = _softmax(logits)
    mean = jnp.sum(probabilities * logits_dot, axis=-1, keepdims=True)
    return probabilities, probabilities * (logits_dot - mean)
