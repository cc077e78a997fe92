"""Accumulation dtypes, and the softmax in which a row without keys gives 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def accumulator(array: Array) -> jnp.dtype:
    """The dtype to accumulate in: at least float32."""
    return jnp.promote_types(array.dtype, jnp.float32)


def softmax(logits: Array, sinks: Array | None = None) -> Array:
    """Softmax over the last axis in which a row of -inf gives 0, and so do its gradients.

        w_s = exp(l_s) / (Σ_s' exp(l_s') + exp(sink))

    The sink is the extra logit of Xiao et al. 2024.

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
    # By hand, because the derivative through max and sum is slower and would be NaN for empty rows.
    # dw = w (dl - Σ w dl), and w = 0 wherever l = -inf.
    (logits,), (logits_dot,) = primals, tangents
    probabilities = _softmax(logits)
    mean = jnp.sum(probabilities * logits_dot, axis=-1, keepdims=True)
    return probabilities, probabilities * (logits_dot - mean)
