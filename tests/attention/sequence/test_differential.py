"""Differential attention: special cases, λ, grouped heads, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention, attend, attention_weights, masks, recording
from attention.sequence.differential import (
    DifferentialAttention,
    differential_attention,
    differential_weights,
    lambda_init_of_layer,
)
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

attend, attention_weights, differential_attention, differential_weights = map(
    compiled, (attend, attention_weights, differential_attention, differential_weights)
)

B, T, S, N, H, V, D = 2, 4, 5, 2, 3, 6, 12


def arrays(heads=N):
    return normal(0, B, T, N, 2 * H), normal(1, B, S, heads, 2 * H), normal(2, B, S, heads, V)


def test_strength_zero_is_attention_and_equal_maps_cancel():
    query, key, value = arrays()
    out = differential_attention(query, key, value, 0.0)
    np.testing.assert_allclose(out, attend(query[..., :H], key[..., :H], value), atol=1e-6)
    twice = [np.concatenate([a[..., :H]] * 2, axis=-1) for a in (query, key)]
    np.testing.assert_allclose(differential_attention(*twice, value, 1.0), 0, atol=1e-6)
    shares = attention_weights(query[..., :H], key[..., :H])
    np.testing.assert_allclose(differential_weights(*twice, 0.25), 0.75 * shares, atol=1e-6)


def test_two_keys_by_hand():
    # Logits (ln 3, 0) and (0, ln 3): shares (3/4, 1/4) and (1/4, 3/4).
    query = np.ones((1, 1, 1, 2), np.float32)
    key = np.log(np.array([[3.0, 1.0], [1.0, 3.0]], np.float32))[None, :, None]
    value = np.array([1.0, 10.0], np.float32).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(
        differential_weights(query, key, 0.5).ravel(), [0.625, -0.125], atol=1e-6
    )
    out = differential_attention(query, key, value, 0.5)
    np.testing.assert_allclose(out.ravel(), [0.625 - 1.25], atol=1e-6)


def test_grouped_heads_are_repeated_ones():
    query, key, value = arrays(1)
    mask = masks.causal(1) & masks.lengths(key=jnp.array([4, 0]))
    out = differential_attention(query, key, value, 0.4, mask=mask)
    repeated = differential_attention(
        query, key.repeat(N, axis=2), value.repeat(N, axis=2), 0.4, mask=mask
    )
    np.testing.assert_allclose(out, repeated, atol=1e-6)
    np.testing.assert_array_equal(out[1], 0)


def test_lambda_by_depth():
    assert lambda_init_of_layer(1) == pytest.approx(0.2)
    assert lambda_init_of_layer(2) == pytest.approx(0.8 - 0.6 * 0.7408182)
    assert lambda_init_of_layer(99) == pytest.approx(0.8)
    with pytest.raises(ValueError, match=r"^layer: got 0, expected at least 1"):
        lambda_init_of_layer(0)


def test_lambda_is_learned():
    module = DifferentialAttention(D, N, lambda_init=0.3, rngs=nnx.Rngs(0))
    one, two = np.array([1.0, 2.0, -1.0]), np.array([0.5, 0.1, 0.2])
    module.lambda_q1[...], module.lambda_k1[...] = one, two
    module.lambda_q2[...], module.lambda_k2[...] = two, two
    expected = np.exp(0.5) - np.exp(0.3) + 0.3
    np.testing.assert_allclose(module.lambda_value(), expected, rtol=1e-6)
    rows = module(normal(0, B, T, D), return_weights=True)[1].sum(-1)
    np.testing.assert_allclose(rows, 1 - expected, atol=1e-6)


def test_as_many_weights_as_twice_the_heads():
    def count(build):
        state = nnx.state(nnx.eval_shape(build), nnx.Param)
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state))

    plain = count(lambda: MultiHeadAttention(D, 2 * N, rngs=nnx.Rngs(0)))
    # The four vectors of λ, and the scale of the norm.
    differential = count(lambda: DifferentialAttention(D, N, rngs=nnx.Rngs(0)))
    assert differential == plain + 4 * H + 2 * H


def test_what_is_recorded_is_what_is_returned():
    module = DifferentialAttention(D, N, rngs=nnx.Rngs(0))
    seen = []
    with recording.recorder(lambda compute: seen.append(compute())):
        _, weights = module(normal(0, B, T, D), return_weights=True)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], weights)
    assert weights.shape == (B, N, T, T)


def test_a_full_cache_is_told():
    module = DifferentialAttention(D, N, key_value_heads=1, rngs=nnx.Rngs(0))
    cache = module.init_cache(B, 3, dtype=jnp.bfloat16)
    assert cache.key.shape == (B, 1, 3, 2 * H)
    _, cache = module.decode(normal(0, B, 3, D), cache)
    with pytest.raises(ValueError, match="cache: got 4 positions, expected at most max_length=3"):
        module.decode(normal(0, B, 1, D), cache)


def test_mistakes_are_told():
    for wrong, message in (
        ({"num_heads": 4}, "num_heads: got 4, expected 2 x num_heads to divide model_size=12"),
        ({"num_heads": 0}, "num_heads: got 0, expected 2 x num_heads"),
        ({"key_value_heads": 3}, "key_value_heads: got 3, expected a positive divisor"),
        ({"head_size": 0}, "head_size: got 0, expected at least 1"),
        ({"lambda_init": 1.0}, r"lambda_init: got 1.0, expected a number in \[0, 1\)"),
        ({"epsilon": 0.0}, "epsilon: got 0.0, expected a number above 0"),
        ({"positions": "rope"}, "positions: 'rope': head_size: got 3, expected an even number"),
        ({"dropout_rate": 1.0}, "dropout_rate: got 1.0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            DifferentialAttention(D, **({"num_heads": N} | wrong), rngs=nnx.Rngs(0))
    query, key, value = arrays()
    with pytest.raises(ValueError, match=r"^query: got shape \[2, 4, 2, 5\], expected an even"):
        differential_attention(query[..., 1:], key[..., 1:], value, 0.5)
    with pytest.raises(ValueError, match=r"^x: got shape \[2, 4, 7\], expected \[B, T, D\]"):
        DifferentialAttention(D, N, rngs=nnx.Rngs(0))(normal(0, B, T, 7))
