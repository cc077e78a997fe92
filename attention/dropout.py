"""Dropout with an explicit key (Srivastava et al. 2014)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from attention import shapes

_LEVELS = 2**16


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets entries to 0 at random, the mean stays (Srivastava et al. 2014).

        y = x · m / p,   m ~ Bernoulli(p),   p = 1 - rate

    Each entry is decided by 16 threefry bits, half of what `jax.random.bernoulli` draws: p is
    rounded to a multiple of 2⁻¹⁶ and the scale is of the rounded p, so that the mean is exact. The
    draw depends on key and shape alone, not on vmap or mesh.

    Args:
      x: [...], any shape.
      rate: the probability of a 0, in [0, 1).
      key: needed where rate > 0.

    Returns:
      y, [...] in x's dtype.

    Raises:
      ValueError: rate out of range, or above 0 without a key.
    """
    shapes.expect_rate("dropout_rate", rate, key)
    if rate == 0.0:
        return x
    kept = keep_mask(key, rate, x.shape)
    return jnp.where(kept, x / keep_probability(rate), jnp.zeros((), x.dtype)).astype(x.dtype)


def keep_probability(rate: float) -> float:
    """The probability that `keep_mask` really has (Srivastava et al. 2014).

        p = round((1 - rate) · 2¹⁶) / 2¹⁶, at least 2⁻¹⁶

    Args:
      rate: in [0, 1).

    Returns:
      p.

    Raises:
      OverflowError, ValueError: rate is no finite number.
    """
    return keep_levels(rate)[1]


def keep_levels(rate: float) -> tuple[int, float]:
    """`keep_probability` as it is drawn (Srivastava et al. 2014): kept is what is below k of 2¹⁶.

        k = round((1 - rate) · 2¹⁶), at least 1;   p = k / 2¹⁶

    Args:
      rate: in [0, 1).

    Returns:
      k and p.

    Raises:
      OverflowError, ValueError: rate is no finite number.
    """
    levels = max(1, round((1.0 - rate) * _LEVELS))
    return levels, levels / _LEVELS


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """What dropout keeps (Srivastava et al. 2014).

        m ~ Bernoulli(p),   p = keep_probability(rate)

    Args:
      key: a key of `jax.random`, [].
      rate: in [0, 1).
      shape: of the result.

    Returns:
      m, a bool array of that shape.

    Raises:
      TypeError: key is no key.
    """
    threshold, _ = keep_levels(rate)
    if threshold == _LEVELS:
        return jnp.ones(shape, bool)
    return _bits16(key, shape) < jnp.uint16(threshold)


def _bits16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """16 random bits an entry, two entries from each 32-bit draw."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)
    return halves[:size].reshape(shape)
