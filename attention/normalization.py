"""Norms over the last axis, in at least float32.

D is the size of the last axis.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


def layer_norm(
    x: Array, scale: Array, bias: Array | None = None, *, epsilon: float = 1e-5
) -> Array:
    """Normalizes each vector to mean 0 and variance 1 (Ba et al. 2016, "Layer Normalization").

        y = (x - mean(x)) / sqrt(var(x) + ε) · scale + bias

    Args:
      x: [..., D].
      scale, bias: [D]; no bias if None.
      epsilon: ε, above 0.

    Returns:
      [..., D] in x's dtype.

    Raises:
      TypeError: scale or bias does not broadcast against x.
    """
    normal = _standardize(_wide(x), epsilon, True) * scale
    return (normal if bias is None else normal + bias).astype(x.dtype)


def rms_norm(x: Array, scale: Array | None = None, *, epsilon: float = 1e-6) -> Array:
    """Divides each vector by its root mean square (Zhang & Sennrich 2019).

        y = x / sqrt(mean(x²) + ε) · scale

    A vector of zeros gives 0, with finite gradients.

    Args:
      x: [..., D].
      scale: [D]; 1 if None.
      epsilon: ε, above 0.

    Returns:
      [..., D] in x's dtype.

    Raises:
      TypeError: scale does not broadcast against x.
    """
    normal = _standardize(_wide(x), epsilon, False)
    return (normal if scale is None else normal * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`layer_norm` as a module with the parameters scale [size] and, if used, bias [size]."""

    def __init__(self, size: int, *, epsilon: float = 1e-5, use_bias: bool = True):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((size,)))
        self.bias = nnx.Param(jnp.zeros((size,))) if use_bias else None

    def linear(self, whole: Array, part: Array) -> Array:
        """Subtracts the mean of `part`, divides by the deviation of `whole`, and applies the scale.

        This is the linear part of the norm: if several parts add up to `whole`, their results add
        up to the norm of `whole` without bias. Both arguments are [..., D].
        """
        scale = _inverse_deviation(_wide(whole), self.epsilon, True)
        return _centered(_wide(part), True) * scale * self.scale[...]

    def __call__(self, x: Array) -> Array:
        bias = None if self.bias is None else self.bias[...]
        return layer_norm(x, self.scale[...], bias, epsilon=self.epsilon)


class RMSNorm(nnx.Module):
    """`rms_norm` as a module with the parameter scale [size]."""

    def __init__(self, size: int, *, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((size,)))

    def linear(self, whole: Array, part: Array) -> Array:
        """Applies the norm to `part` with the root mean square of `whole`; both are [..., D]."""
        scale = _inverse_deviation(_wide(whole), self.epsilon, False)
        return _wide(part) * scale * self.scale[...]

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.scale[...], epsilon=self.epsilon)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _standardize(x: Array, epsilon: float, center: bool) -> Array:
    """Returns c / sqrt(mean(c²) + ε), where c is x - mean(x), or x without `center`.

    The derivative needs only x and one number per vector, so XLA does not store c and other terms.
    """
    return _centered(x, center) * _inverse_deviation(x, epsilon, center)


@_standardize.defjvp
def _standardize_jvp(
    epsilon: float, center: bool, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    inverse = _inverse_deviation(x, epsilon, center)
    y, part = _centered(x, center) * inverse, _centered(tangent, center)
    return y, inverse * (part - y * jnp.mean(y * part, axis=-1, keepdims=True))


def _centered(x: Array, center: bool) -> Array:
    return x - jnp.mean(x, axis=-1, keepdims=True) if center else x


def _inverse_deviation(x: Array, epsilon: float, center: bool) -> Array:
    square = jnp.mean(jnp.square(_centered(x, center)), axis=-1, keepdims=True)
    return jax.lax.rsqrt(square + epsilon)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
