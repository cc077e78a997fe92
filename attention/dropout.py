"""Dropout with an explicit key (Srivastava et al. 2014)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from attention import shapes
from attention.masks.terms import Span

_LEVELS = 2**16
# Largest number of words with 32-bit indices.
_LARGEST = 2**32 - 1
# Rotations of the rounds of threefry-2x32, and the constant of its third key word.
_TURNS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets entries to 0 at random and scales up the others (Srivastava et al. 2014).

        y = x · m / p,   m ~ Bernoulli(p),   p = 1 - rate

    Each entry uses 16 threefry bits, half as many as `jax.random.bernoulli`. p is rounded to a
    multiple of 2⁻¹⁶, and entries are divided by the rounded p, so the mean is exact. The result
    depends only on key and shape, not on vmap or mesh.

    Args:
      x: [...], any shape.
      rate: probability of setting an entry to 0, in [0, 1).
      key: required if rate > 0.

    Returns:
      y, [...] in x's dtype.

    Raises:
      ValueError: rate out of range, or above 0 without a key.
    """
    shapes.expect_rate("dropout_rate", rate, key)
    if rate == 0.0 or key is None:
        return x
    return keep(x, keep_mask(key, rate, x.shape), rate)


def keep(x: jax.Array, mask: jax.Array, rate: float) -> jax.Array:
    """Applies a dropout mask that `keep_mask` has drawn (Srivastava et al. 2014).

        y = x · m / p,   p = keep_probability(rate)

    Args:
      x: [...], any shape.
      mask: m, bool, of the shape of x.
      rate: rate with which the mask was drawn, in [0, 1).

    Returns:
      y, [...] in x's dtype.

    Raises:
      TypeError: shapes do not broadcast.
    """
    return jnp.where(mask, x / keep_probability(rate), jnp.zeros((), x.dtype)).astype(x.dtype)


def dropout_options(rate: float, key: jax.Array | None) -> dict[str, Any]:
    """Returns the dropout arguments of `attend`; the rate is 0 without a key."""
    return {"dropout_rate": 0.0 if key is None else rate, "dropout_key": key}


def keep_probability(rate: float) -> float:
    """Returns the probability with which dropout keeps an entry (Srivastava et al. 2014).

        p = round((1 - rate) · 2¹⁶) / 2¹⁶, at least 2⁻¹⁶

    Args:
      rate: in [0, 1).

    Returns:
      p.

    Raises:
      OverflowError, ValueError: rate is not finite.
    """
    return keep_levels(rate)[1]


def keep_levels(rate: float) -> tuple[int, float]:
    """Returns the threshold below which 16 random bits keep an entry (Srivastava et al. 2014).

        k = round((1 - rate) · 2¹⁶), at least 1;   p = k / 2¹⁶

    Args:
      rate: in [0, 1).

    Returns:
      The threshold k, and the probability p that an entry is kept.

    Raises:
      OverflowError, ValueError: rate is not finite.
    """
    levels = max(1, round((1.0 - rate) * _LEVELS))
    return levels, levels / _LEVELS


def keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Draws the mask of entries that dropout keeps (Srivastava et al. 2014).

        m ~ Bernoulli(p),   p = keep_probability(rate)

    Args:
      key: a key of `jax.random`, [].
      rate: in [0, 1).
      shape: shape of the result.

    Returns:
      m, a bool array of that shape.

    Raises:
      TypeError: key is not a key of `jax.random`.
    """
    threshold, _ = keep_levels(rate)
    if threshold == _LEVELS:
        return jnp.ones(shape, bool)
    return _bits16(key, shape) < jnp.uint16(threshold)


def keep_block(
    key: jax.Array, rate: float, shape: tuple[int, ...], spans: tuple[Span, ...]
) -> jax.Array:
    """Draws one block of `keep_mask` without drawing the rest (Srivastava et al. 2014).

        m = keep_mask(key, rate, shape)[start_1 : start_1 + size_1, start_2 : ...]

    A threefry word depends only on the key and the word's index (Salmon et al. 2011). The entry
    with flat index i, a 64-bit number, uses half of word i // 2. The starts of spans may be
    traced. Spans may extend beyond the shape; entries there are undefined.

    Args:
      key: a threefry key of `jax.random`, [].
      rate: in [0, 1).
      shape: shape of the complete mask, each size below 2³².
      spans: start and size of the block along each dimension.

    Returns:
      m, a bool array [size_1, size_2, ...].

    Raises:
      NotImplementedError: words of this key cannot be drawn individually; see `validate_threefry`.
    """
    words = validate_threefry(key)
    threshold, _ = keep_levels(rate)
    *outer, columns = spans
    if threshold == _LEVELS:
        return jnp.ones([span.size for span in spans], bool)
    index = jnp.zeros((), jnp.uint32), jnp.zeros((), jnp.uint32)
    for axis, (size, span) in enumerate(zip(shape, outer, strict=False)):
        start = jnp.asarray(span.start).astype(jnp.uint32)
        positions = start + jnp.arange(span.size, dtype="uint32")
        positions = positions.reshape(-1, *[1] * (len(outer) - 1 - axis))
        index = _multiply_add(*index, size, positions)
    high, low = _multiply_add(*index, shape[-1], jnp.asarray(columns.start).astype(jnp.uint32))
    second = (low & 1).astype(bool)[..., None]
    # Index of the first of the consecutive words that contain the entries of a row.
    first = ((low >> 1) | (high << 31))[..., None]
    lows = first + jnp.arange(columns.size // 2 + 1, dtype="uint32")
    highs = (high >> 1)[..., None] + (lows < first).astype("uint32")
    drawn = _threefry(words, highs, lows)
    halves = jax.lax.bitcast_convert_type(drawn, jnp.uint16).reshape(*drawn.shape[:-1], -1)
    halves = jnp.where(second, halves[..., 1 : columns.size + 1], halves[..., : columns.size])
    return halves < jnp.uint16(threshold)


def validate_threefry(key: jax.Array) -> jax.Array:
    """Returns the two words of a threefry key, from which `keep_block` draws.

    Args:
      key: a key of `jax.random`, [].

    Returns:
      The words, uint32 [2], which `keep_block` also accepts as its key.

    Raises:
      NotImplementedError: the key is not a threefry key; or the flag jax_threefry_partitionable is
        off, so that each word depends on the number of words drawn.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        kind, words = str(jax.random.key_impl(key)), jax.random.key_data(key)
    else:
        # Raw words of `jax.random.PRNGKey`; only threefry has two.
        kind, words = "threefry2x32" if key.shape == (2,) else f"{key.shape} words", key
    if kind != "threefry2x32":
        raise NotImplementedError(
            f"dropout_key: got {kind}, expected a threefry key, because the dropout mask is drawn "
            "block by block"
        )
    if not jax.config.jax_threefry_partitionable:  # pyright: ignore[reportAttributeAccessIssue] flag
        raise NotImplementedError(
            "dropout_key: got the flag jax_threefry_partitionable=False, expected True, because "
            "the dropout mask is drawn block by block"
        )
    return words


def _multiply_add(
    high: jax.Array, low: jax.Array, factor: int, summand: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes (high·2³² + low)·factor + summand modulo 2⁶⁴ with 32-bit words.

    All arguments are below 2³². The result is the pair of its high and low words.
    """
    # Half words are used, so that the product of two fits into one word.
    factor_high, factor_low = jnp.uint32(factor >> 16), jnp.uint32(factor & 0xFFFF)
    low_high, low_low = low >> 16, low & 0xFFFF
    least = low_low * factor_low
    middle = low_high * factor_low + (least >> 16)
    more = low_low * factor_high + (middle & 0xFFFF)
    carried = low_high * factor_high + (middle >> 16) + (more >> 16)
    product = (more << 16) | (least & 0xFFFF)
    total = product + summand
    high = high * jnp.uint32(factor) + carried + (total < product).astype("uint32")
    return high, total


def _bits16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws 16 random bits per entry; each 32-bit word serves two entries."""
    size = math.prod(shape)
    count = -(-size // 2)
    try:
        key_words = validate_threefry(key)
    except NotImplementedError:
        key_words = None
    if key_words is None or key_words.ndim != 1 or count > _LARGEST:
        words = jax.random.bits(key, (count,), jnp.uint32)
    else:
        index = jax.lax.iota(jnp.uint32, count)
        words = _threefry(key_words, jnp.uint32(0), index)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)
    return halves[:size].reshape(shape)


def _threefry(key: jax.Array, high: jax.Array, low: jax.Array) -> jax.Array:
    """Returns the words of `jax.random.bits` with these 64-bit indices (Salmon et al. 2011).

    The 20 rounds of threefry-2x32 are written out, so that XLA fuses them with the comparison that
    follows. `jax.random.bits` has a loop over the rounds on CPU, which compiles and runs in about
    twice the time.

    Args:
      key: the words of a threefry key, uint32 [2].
      high, low: halves of the indices, uint32; shapes broadcast.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    first, second = high + keys[0], low + keys[1]
    for group in range(5):
        for turn in _TURNS[group % 2]:
            first = first + second
            second = first ^ ((second << turn) | (second >> (32 - turn)))
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return first ^ second
