"""Dropout: the rate, the mean, the key."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.dropout import dropout, keep_block, keep_levels, keep_mask, keep_probability
from attention.masks.terms import Span


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_mean(rate):
    out = np.asarray(jax.jit(lambda x: dropout(x, rate, jax.random.key(0)))(jnp.ones((500, 401))))
    kept = out != 0
    # 200,500 draws: 5 deviations of the share are below 0.006.
    deviation = np.sqrt(rate * (1 - rate) / out.size)
    assert abs(kept.mean() - (1 - rate)) < 5 * deviation
    assert abs(keep_probability(rate) - (1 - rate)) <= 2**-17
    np.testing.assert_allclose(out[kept], 1 / keep_probability(rate), rtol=1e-6)


def test_neighbours_are_independent():
    # Two entries share a draw of 32 bits: their halves must not be related.
    kept = np.asarray(keep_mask(jax.random.key(1), 0.5, (100_000, 2)))
    both = (kept[:, 0] & kept[:, 1]).mean()
    assert abs(both - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 100_000)
    later = (kept[:-1] & kept[1:]).mean()
    assert abs(later - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 200_000)


def test_follows_the_key_and_not_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    masks = jax.vmap(lambda key: keep_mask(key, 0.5, (7, 3)))(keys)
    alone = jnp.stack([keep_mask(key, 0.5, (7, 3)) for key in keys])
    np.testing.assert_array_equal(masks, alone)
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 4, 8)])
def test_bits_are_those_of_jax(shape):
    for key in (jax.random.key(5), jax.random.PRNGKey(2**31 + 7), jax.random.key(5, impl="rbg")):
        size = math.prod(shape)
        words = np.asarray(jax.random.bits(key, (-(-size // 2),), jnp.uint32))
        halves = words.view(np.uint16)[:size].reshape(shape)
        for rate in (0.1, 0.5, 0.99):
            expected = halves < keep_levels(rate)[0]
            np.testing.assert_array_equal(keep_mask(key, rate, shape), expected)


def test_gradient_is_the_mask():
    key, x = jax.random.key(0), jnp.arange(1.0, 12.0)
    gradient = jax.grad(lambda x: jnp.sum(dropout(x, 0.25, key)))(x)
    np.testing.assert_allclose(gradient, dropout(x, 0.25, key) / x, rtol=1e-6)
    np.testing.assert_allclose(np.unique(gradient), [0.0, 4 / 3], rtol=1e-6)


def test_dtype_rate_zero_and_mistakes():
    x = jnp.ones(8, jnp.bfloat16)
    assert dropout(x, 0.5, jax.random.key(0)).dtype == jnp.bfloat16
    assert dropout(x, 0.0, None) is x
    assert np.isfinite(np.asarray(dropout(x, 0.9999999, jax.random.key(0)), np.float32)).all()
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="expected a rate in"):
            dropout(x, rate, jax.random.key(0))
    with pytest.raises(ValueError, match="without a key"):
        dropout(x, 0.5, None)


def numpy_threefry(key, high, low):
    """Computes Threefry-2x32 with 20 rounds as in Salmon et al. 2011, in NumPy."""
    keys = [np.uint32(key[0]), np.uint32(key[1])]
    keys.append(keys[0] ^ keys[1] ^ np.uint32(0x1BD11BDA))
    x = [np.asarray(high, np.uint32) + keys[0], np.asarray(low, np.uint32) + keys[1]]
    for group in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x[0] = x[0] + x[1]
            x[1] = (x[1] << np.uint32(bits)) | (x[1] >> np.uint32(32 - bits))
            x[1] = x[1] ^ x[0]
        x[0] = x[0] + keys[(group + 1) % 3]
        x[1] = x[1] + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x[0] ^ x[1]


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3, 4, 8), (1, 1, 1, 1)])
def test_a_block_is_that_of_the_whole(shape):
    key, rng = jax.random.key(3), np.random.default_rng(0)
    whole = np.asarray(keep_mask(key, 0.3, shape))
    for _ in range(3):
        starts = [int(rng.integers(size)) for size in shape]
        sizes = [
            int(rng.integers(1, size - start + 1))
            for size, start in zip(shape, starts, strict=True)
        ]

        def block(starts, sizes=tuple(sizes)):
            return keep_block(key, 0.3, shape, tuple(map(Span, starts, sizes)))

        place = tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
        np.testing.assert_array_equal(jax.jit(block)(starts), whole[place])
        np.testing.assert_array_equal(block(starts), whole[place])


def test_a_block_beyond_what_32_bits_count():
    # 2³ · 2⁵ · 100,003 · 300,001 entries are about 2⁴³.
    key, shape = jax.random.key(7), (8, 32, 100_003, 300_001)
    starts, sizes = (6, 29, 99_990, 299_900), (2, 3, 5, 101)
    block = keep_block(key, 0.25, shape, tuple(map(Span, starts, sizes)))
    places = np.ix_(*(np.arange(a, a + n) for a, n in zip(starts, sizes, strict=True)))
    flat = np.ravel_multi_index(places, shape).astype(np.uint64)
    assert flat.min() > 2**32
    word = flat >> np.uint64(1)
    drawn = numpy_threefry(jax.random.key_data(key), word >> np.uint64(32), word & 0xFFFFFFFF)
    half = (drawn >> (np.uint32(16) * (flat & np.uint64(1)).astype(np.uint32))) & 0xFFFF
    np.testing.assert_array_equal(block, half < 0.75 * 2**16)
