"""Activation functions that store only their input for the backward pass.

The derivatives are written in terms of -x. If the value and the derivative shared a term such as
erf(x), XLA would compute the term only once, in the forward pass, and would store it with its
intermediate values until the backward pass. erf(-x) is a different term, so it is computed from x
in the backward pass.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from attention import shapes
from attention.numerics import accumulator

Array = jax.Array

_SQRT_HALF = math.sqrt(1 / 2)
_DENSITY = 1 / math.sqrt(2 * math.pi)
_SQRT_2_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


@jax.custom_jvp
def gelu(x: Array) -> Array:
    """Computes the Gaussian error linear unit (Hendrycks & Gimpel 2016, equation 1).

        y = x · Φ(x) = x · (1 + erf(x / √2)) / 2

    Args:
      x: [...], any shape.

    Returns:
      y, [...] in x's dtype, computed in at least float32.

    Raises:
      ValueError: the dtype of x is not floating.
    """
    shapes.expect_floating("x", x)
    wide = x.astype(accumulator(x))
    return (0.5 * wide * (1 + jax.lax.erf(wide * _SQRT_HALF))).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    wide = x.astype(accumulator(x))
    # y' = Φ(x) + x φ(x), with Φ(x) = (1 - erf(-x / √2)) / 2 and the normal density φ.
    slope = 0.5 * (1 - jax.lax.erf(wide * -_SQRT_HALF))
    slope += wide * _DENSITY * jnp.exp(-0.5 * wide * wide)
    return gelu(x), (slope * tangent).astype(x.dtype)


@jax.custom_jvp
def gelu_tanh(x: Array) -> Array:
    """Approximates `gelu` with tanh (Hendrycks & Gimpel 2016, section 2).

        y = x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2

    Args:
      x: [...], any shape.

    Returns:
      y, [...] in x's dtype, computed in at least float32.

    Raises:
      ValueError: the dtype of x is not floating.
    """
    shapes.expect_floating("x", x)
    wide = x.astype(accumulator(x))
    inner = _SQRT_2_PI * (wide + _CUBIC * wide**3)
    return (0.5 * wide * (1 + jnp.tanh(inner))).astype(x.dtype)


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    wide = x.astype(accumulator(x))
    # y' = (1 - t) / 2 + x (1 - t²) u' / 2, with y = x · (1 + tanh(u)) / 2 and t = tanh(-u).
    t = jnp.tanh(-_SQRT_2_PI * (wide + _CUBIC * wide**3))
    inner = _SQRT_2_PI * (1 + 3 * _CUBIC * wide * wide)
    slope = 0.5 * (1 - t) + 0.5 * wide * (1 - t * t) * inner
    return gelu_tanh(x), (slope * tangent).astype(x.dtype)


@jax.custom_jvp
def silu(x: Array) -> Array:
    """Computes the sigmoid linear unit, also called swish (Ramachandran et al. 2017).

        y = x · σ(x),   σ(x) = 1 / (1 + exp(-x))

    Args:
      x: [...], any shape.

    Returns:
      y, [...] in x's dtype, computed in at least float32.

    Raises:
      ValueError: the dtype of x is not floating.
    """
    shapes.expect_floating("x", x)
    wide = x.astype(accumulator(x))
    return (wide * jax.nn.sigmoid(wide)).astype(x.dtype)


@silu.defjvp
def _silu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    wide = x.astype(accumulator(x))
    # y' = σ(x) · (1 + x · σ(-x)), with σ(x) = 1 - σ(-x).
    other = jax.nn.sigmoid(-wide)
    return silu(x), ((1 - other) * (1 + wide * other) * tangent).astype(x.dtype)
