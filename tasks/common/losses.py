"""Cross-entropy of integer labels, with a gradient computed in one pass over the logits.

V classes. The residuals of the gradient are the logits and two numbers per row, instead of
probabilities. The gradient compares class indices with labels, which avoids a scatter.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Computes the negative log-likelihood of integer labels under softmax(logits).

        l = log Σ_v exp(x_v) - x_y

    Args:
      logits: x, floating point [..., V].
      labels: y, int [...], in [0, V); the loss of any other label is NaN.

    Returns:
      l, [...] in at least float32.
    """
    return _smoothed(logits, labels, 0.0)[0]


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array]:
    """Computes cross-entropy with label smoothing (Szegedy et al. 2016).

        log Σ_v exp(x_v) - (1 - ε) x_y - ε · mean over v of x_v

    Args:
      logits, labels: as for `cross_entropy`.
      smoothing: ε, in [0, 1).

    Returns:
      The loss, and the cross-entropy without smoothing, which has no gradient; [...] each.

    Raises:
      ValueError: smoothing is outside [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: got {smoothing}, expected a rate in [0, 1)")
    smoothed, plain = _smoothed(logits, labels, smoothing)
    return smoothed, jax.lax.stop_gradient(plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _smoothed(logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array]:
    return _forward(logits, labels, smoothing)[0]


def _forward(logits: Array, labels: Array, smoothing: float) -> tuple[tuple[Array, Array], tuple]:
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # An 8-bit label dtype may be too small for the number of classes.
    labels = labels.astype(jnp.int32)
    largest = jnp.max(x, axis=-1)
    log_sum = jnp.log(jnp.sum(jnp.exp(x - largest[..., None]), axis=-1))
    # Logits relative to the maximum, so that small losses keep their precision.
    plain = log_sum - (jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0] - largest)
    smoothed = plain
    if smoothing:
        spread = log_sum - (jnp.mean(x, axis=-1) - largest)
        smoothed = (1 - smoothing) * plain + smoothing * spread
    return (smoothed, plain), (logits, labels, largest, log_sum)


def _backward(
    smoothing: float, residuals: tuple, gradients: tuple[Array, Array]
) -> tuple[Array, None]:
    logits, labels, largest, log_sum = residuals
    upstream, shifted = gradients[0][..., None], logits.astype(log_sum.dtype) - largest[..., None]
    base = jnp.exp(shifted - log_sum[..., None]) - smoothing / logits.shape[-1]
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    gradient = jnp.where(classes == labels[..., None], base - (1 - smoothing), base)
    return (upstream * gradient).astype(logits.dtype), None


_smoothed.defvjp(_forward, _backward)
