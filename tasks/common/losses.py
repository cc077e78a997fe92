"""Cross-entropy of integer labels, with a gradient that is made in one pass over the logits.

V classes. What is kept for the gradient is the logits and two numbers a row, no probabilities; the
label's part of it is a comparison, not a scatter into an array of zeros as large as the logits.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

Array = jax.Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """How surprising each label is.

        l = log Σ_v exp(x_v) - x_y

    Args:
      logits: x, floating point [..., V].
      labels: y, int [...], in [0, V); the loss of any other is NaN.

    Returns:
      l, [...] in at least float32.
    """
    return _smoothed(logits, labels, 0.0)[0]


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array]:
    """Cross-entropy with a share of the target spread over all classes (Szegedy et al. 2016).

        log Σ_v exp(x_v) - (1 - ε) x_y - ε · mean over v of x_v

    Args:
      logits, labels: as for `cross_entropy`.
      smoothing: ε, in [0, 1).

    Returns:
      It, and the cross-entropy without smoothing, which has no gradient; [...] each.

    Raises:
      ValueError: the share is out of range.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: got {smoothing}, expected a share in [0, 1)")
    smoothed, plain = _smoothed(logits, labels, smoothing)
    return smoothed, jax.lax.stop_gradient(plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _smoothed(logits: Array, labels: Array, smoothing: float) -> tuple[Array, Array]:
    return _forward(logits, labels, smoothing)[0]


def _forward(logits: Array, labels: Array, smoothing: float) -> tuple[tuple[Array, Array], tuple]:
    x = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Few bits of a label need not be able to count the classes.
    labels = labels.astype(jnp.int32)
    highest = jnp.max(x, axis=-1)
    rest = jnp.log(jnp.sum(jnp.exp(x - highest[..., None]), axis=-1))
    # Differences to the highest logit, so that small losses keep their digits.
    plain = rest - (jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0] - highest)
    smoothed = plain
    if smoothing:
        spread = rest - (jnp.mean(x, axis=-1) - highest)
        smoothed = (1 - smoothing) * plain + smoothing * spread
    return (smoothed, plain), (logits, labels, highest, rest)


def _backward(smoothing: float, kept: tuple, gradients: tuple[Array, Array]) -> tuple[Array, None]:
    logits, labels, highest, rest = kept
    upstream, shifted = gradients[0][..., None], logits.astype(rest.dtype) - highest[..., None]
    shares = jnp.exp(shifted - rest[..., None]) - smoothing / logits.shape[-1]
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    gradient = jnp.where(classes == labels[..., None], shares - (1 - smoothing), shares)
    return (upstream * gradient).astype(logits.dtype), None


_smoothed.defvjp(_forward, _backward)
