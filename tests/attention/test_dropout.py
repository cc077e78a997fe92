"""Dropout: the rate, the mean, the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.dropout import dropout, keep_mask, keep_probability


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
