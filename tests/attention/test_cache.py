"""The key/value cache: what lies where, prompts and steps of any length, rings, and too many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention, masks, registry
from attention.cache import KeyValueCache, append_keys_values
from attention.inspect import capture
from tests.attention.subjects import normal

K, H, V = 2, 3, 4


def numbered(first, count, batch=2):
    """Keys and values that say their position."""
    ramp = np.arange(first, first + count, dtype=np.float32)[None, :, None, None]
    return np.broadcast_to(ramp, (batch, count, K, H)), np.broadcast_to(ramp, (batch, count, K, V))


def empty(max_length=6, window=None, batch=2):
    return KeyValueCache.empty(batch, max_length, K, H, value_head_size=V, window=window)


def test_places_and_lengths():
    cache = empty().append(*numbered(0, 3), np.array([3, 1]))
    assert cache.key.shape == (2, K, 6, H)
    assert cache.value.shape == (2, K, 6, V)
    np.testing.assert_array_equal(cache.length, [3, 1])
    np.testing.assert_array_equal(cache.positions(), [[0, 1, 2, -1, -1, -1], [0] + [-1] * 5])
    cache = cache.append(*numbered(7, 2))
    np.testing.assert_array_equal(cache.key[:, 0, :, 0], [[0, 1, 2, 7, 8, 0], [0, 7, 8, 0, 0, 0]])
    np.testing.assert_array_equal(cache.value[:, 1, :, 3], cache.key[:, 0, :, 0])
    same = cache.append(*numbered(9, 2), np.array([0, 0]))
    for before, after in zip(jax.tree.leaves(cache), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(before, after)


def test_ring_keeps_the_last_positions():
    cache = empty(20, window=2)
    assert cache.capacity == 3
    for first, count, real in ((0, 2, [2, 1]), (2, 1, [1, 0]), (3, 7, [7, 5])):
        cache = cache.append(*numbered(first, count), np.array(real))
    np.testing.assert_array_equal(cache.length, [10, 6])
    # Example 0 has seen 0 ... 9 in order; example 1 has 0, then 3 ... 7 as positions 1 ... 5.
    np.testing.assert_array_equal(cache.positions(), [[9, 7, 8], [3, 4, 5]])
    np.testing.assert_array_equal(cache.key[:, 0, :, 0], [[9, 7, 8], [5, 6, 7]])


def test_a_window_as_wide_as_all_is_no_ring():
    assert empty(4, window=3).window is None
    assert empty(4, window=2).window == 2


@pytest.mark.parametrize(
    "chunks",
    [
        [1] * 9,
        [9],
        pytest.param([2, 7], marks=pytest.mark.slow),
        [4, 1, 1, 3],
        pytest.param([1, 6, 2], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_ring_shows_each_query_its_window(chunks):
    """Through attend: keys are one-hot positions, so that the mask can be read off."""
    window, length = 2, 9
    cache, first = empty(length, window, batch=1), 0
    for count in chunks:
        key, value = numbered(first, count, batch=1)
        cache, keys, _, positions, mask = append_keys_values(cache, key, value)
        seen = np.asarray(mask.materialize(1, 1, count, keys.shape[1]))[0, 0]
        for t in range(count):
            now = first + t
            shown = np.asarray(positions)[0][seen[t]]
            assert sorted(shown) == list(range(max(0, now - window), now + 1))
            np.testing.assert_array_equal(np.asarray(keys)[0, seen[t], 0, 0], shown)
        first += count


def test_too_many_positions():
    full = empty(3).append(*numbered(0, 3))
    with pytest.raises(ValueError, match=r"cache: got 4 positions, expected at most max_length=3"):
        full.append(*numbered(3, 1))
    module = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    cache, x = module.init_cache(2, 3), normal(0, 2, 2, 8)
    _, cache = module.decode(x, cache)
    # Inside jit nothing can be raised: what cannot be right is not a number.
    out, late = jax.jit(module.decode)(x, cache, lengths=np.array([2, 1]))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
    np.testing.assert_array_equal(late.overflow(), [True, False])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.append(*numbered(0, 1, batch=3)), r"key: got shape \[3, 1, 2, 3\], .* B=2"),
        (lambda c: c.append(numbered(0, 1)[0], numbered(0, 2)[1]), r"value: got shape"),
        (lambda c: c.append(*numbered(0, 1), np.ones(3, int)), r"lengths: got shape \[3\]"),
        (lambda c: c.append(*numbered(0, 1), np.ones(2)), "lengths: got dtype float"),
        (lambda c: c.append(*(x.astype("float16") for x in numbered(0, 1))), "key: got dtype"),
        (lambda _: empty(0), "max_length: got 0, expected at least 1"),
        (lambda _: empty(batch=0), "batch_size: got 0, expected at least 1"),
        (lambda _: empty(window=-1), "window: got -1, expected at least 0"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call(empty())


def test_decoding_in_a_scan_with_bfloat16_cache():
    module = MultiHeadAttention(8, 4, key_value_heads=2, positions="rope", rngs=nnx.Rngs(0))
    x = normal(0, 2, 6, 8)
    full = module(x, mask=masks.causal())

    @jax.jit
    def run(x, cache):
        def step(cache, x):
            out, cache = module.decode(x[:, None], cache)
            return cache, out[:, 0]

        return jnp.swapaxes(jax.lax.scan(step, cache, jnp.swapaxes(x, 0, 1))[1], 0, 1)

    np.testing.assert_allclose(run(x, module.init_cache(2, 6)), full, atol=2e-6)
    low = run(x, module.init_cache(2, 6, dtype=jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, full, atol=0.02)
    assert np.abs(low - full).max() > 1e-5


def test_wrong_batch_is_told():
    module = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x: got shape \[3, 1, 8\], expected .* B=2"):
        module.decode(normal(0, 3, 1, 8), module.init_cache(2, 3))


# name -> options under which it shows its pattern at seven positions, and keeps no ring
RECORDING = {
    entry.name: options
    for entry in registry.mechanisms("mixer")
    if {"mask", "cache", "weights"} <= entry.capabilities
    for options in [
        {
            "sliding_window": "(left=6)",
            "strided": "(stride=2)",
            "fixed": "(block=3, summary=1)",
            "longformer": "(window=2, global_tokens=4)",
            "bigbird": "(block=2)",
        }.get(entry.name, "")
    ]
}


@pytest.mark.parametrize("name", RECORDING)
def test_what_decoding_records_are_rows_of_the_whole(name):
    mixer = registry.build("mixer", name + RECORDING[name], 8, num_heads=2, rngs=nnx.Rngs(0))
    x = normal(0, 2, 7, 8)
    _, whole = mixer(x, mask=masks.causal(), return_weights=True)
    _, cache = mixer.decode(x[:, :3], mixer.init_cache(2, 7))
    (weights,) = capture(mixer, x[:, 3:], cache, method="decode").values()
    np.testing.assert_allclose(weights, whole[:, :, 3:], atol=1e-6)
