"""Positions by hand-computed values and by what they promise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention
from attention.positions import (
    alibi_bias,
    alibi_slopes,
    build_positions,
    rotary,
    sinusoidal,
    t5_buckets,
)
from tests.attention.subjects import normal


def test_rotary_fraction_leaves_the_rest_and_scales():
    x, p = normal(0, 1, 5, 2, 8), jnp.arange(5)
    part = rotary(x, p, fraction=0.5)
    np.testing.assert_array_equal(part[..., 4:], x[..., 4:])
    np.testing.assert_allclose(part[..., :4], rotary(x[..., :4], p), atol=1e-6)
    # Twice the position at half the speed.
    slow = rotary(x, 2 * p, scaling="linear", factor=2.0)
    np.testing.assert_allclose(slow, rotary(x, p), atol=1e-6)


def test_ntk_scaling_keeps_the_shortest_and_stretches_the_longest_wavelength():
    one, p = np.zeros((1, 2, 1, 8), np.float32), np.array([0, 1])
    for feature, slower in ((0, 1.0), (3, 4.0)):
        x = one.copy()
        x[..., feature] = 1.0
        angle = math.atan2(rotary(x, p, scaling="ntk", factor=4.0)[0, 1, 0, feature + 4], 1.0)
        plain = math.atan2(rotary(x, p)[0, 1, 0, feature + 4], 1.0)
        assert math.isclose(angle * slower, plain, rel_tol=1e-4)


def test_alibi_slopes_are_the_papers():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2.0 ** (-n / 2) for n in range(1, 17)])
    # 12 heads: the 8 of above, then every other of 16.
    expected = [2.0**-n for n in range(1, 9)] + [2.0 ** (-n / 2) for n in (1, 3, 5, 7)]
    np.testing.assert_allclose(alibi_slopes(12), expected)
    bias = alibi_bias(jnp.array([3]), jnp.array([[0, 3, 4]]), 2)
    np.testing.assert_allclose(bias[0, 0, 0], [-3 / 16, 0, -1 / 16])


def test_t5_buckets_by_hand():
    # 32 buckets both ways: 16 a side, 8 exact; 8 ... 127 in 8 logarithmic ones.
    distances = np.array([0, 1, 7, 8, 11, 12, 15, 16, 64, 127, 128, 1000])
    buckets = [0, 1, 7, 8, 8, 9, 9, 10, 14, 15, 15, 15]
    np.testing.assert_array_equal(t5_buckets(-distances), buckets)
    np.testing.assert_array_equal(t5_buckets(distances[1:]), 16 + np.array(buckets[1:]))
    one_way = t5_buckets(distances, bidirectional=False)
    np.testing.assert_array_equal(one_way, 0)


@pytest.mark.parametrize("spec", ["rope", "alibi", "t5", "shaw(max_distance=3)"])
def test_only_distances_matter(spec):
    module = MultiHeadAttention(8, 2, positions=spec, rngs=nnx.Rngs(0))
    if spec == "t5":
        module.positions.table[...] = jnp.asarray(normal(1, 32, 2))
    x = normal(0, 2, 5, 8)
    out, weights = module(x, return_weights=True)
    moved = jnp.stack([jnp.arange(5) + 3, jnp.arange(5) + 40])
    other, other_weights = module(
        x, query_positions=moved, key_positions=moved, return_weights=True
    )
    np.testing.assert_allclose(other, out, atol=5e-6)
    np.testing.assert_allclose(other_weights, weights, atol=2e-6)
    plain = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    assert np.abs(plain(x) - out).max() > 1e-4


def test_alibi_looks_nearby():
    module = MultiHeadAttention(8, 1, positions="alibi", rngs=nnx.Rngs(0))
    same = np.broadcast_to(normal(0, 1, 1, 8), (1, 6, 8))
    weights = module(same, return_weights=True)[1][0, 0]
    assert (np.diff(weights[0]) < 0).all()
    # Slope of the one head of one: 2^-8.
    np.testing.assert_allclose(weights[0, 1:] / weights[0, :-1], math.exp(-(2**-8)), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinusoidal(jnp.arange(3), 5), "size: got 5, expected an even number"),
        (lambda: rotary(normal(0, 1, 2, 1, 5), jnp.arange(2)), "head_size: got 5, expected an eve"),
        (lambda: rotary(normal(0, 1, 2, 1, 4), jnp.arange(3)), "positions: got shape"),
        (lambda: rotary(normal(0, 1, 2, 1, 4), jnp.zeros(2)), "positions: got dtype float32"),
        (lambda: build_positions("rope(fraction=0)", 2, 4, rngs=None), "fraction: got 0"),
        (lambda: build_positions("rope(fraction=0.4)", 2, 8, rngs=None), "fraction=0.4 = 3, exp"),
        (lambda: build_positions("rope(base=1)", 2, 4, rngs=None), "base: got 1, expected a numb"),
        (lambda: build_positions("rope(scaling=yarn)", 2, 4, rngs=None), "scaling: got 'yarn'"),
        (lambda: build_positions("rope(factor=2)", 2, 4, rngs=None), "factor: got 2, expected 1 "),
        (lambda: build_positions("rop", 2, 4, rngs=None), "got 'rop', .*did you mean 'rope'"),
        (lambda: build_positions("rope(bse=2)", 2, 4, rngs=None), "option 'bse' .*mean 'base'"),
        (lambda: build_positions("rope(2)", 2, 4, rngs=None), r"expected name or name\(option=val"),
        (lambda: build_positions("rope(", 2, 4, rngs=None), r"got 'rope\(', expected name"),
        (lambda: build_positions("none(base=2)", 2, 4, rngs=None), "no options for 'none'"),
        (lambda: build_positions("t5(buckets=3)", 2, 4, rngs=nnx.Rngs(0)), "buckets: got 3"),
        (lambda: build_positions("shaw(max_distance=0)", 2, 4, rngs=nnx.Rngs(0)), "distance: got"),
        (lambda: alibi_slopes(0), "num_heads: got 0, expected at least 1"),
        (lambda: alibi_bias(jnp.zeros(2), jnp.arange(2), 2), "query_positions: got dtype"),
        (lambda: alibi_bias(jnp.arange(2), jnp.arange(8).reshape(2, 2, 2), 2), "key_positions: "),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_gradient_reaches_what_is_learned():
    module = MultiHeadAttention(8, 2, positions="shaw(max_distance=1)", rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(module)
    x = normal(0, 1, 4, 8)
    gradient = jax.grad(lambda s: jnp.sum(nnx.merge(graphdef, s)(x) ** 2))(state)
    assert np.abs(gradient["positions"]["table"][...]).min() > 0
