"""The Conformer: its convolution, and what padding and causality mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import masks
from tasks.common.backbones.conformer import Conformer, depthwise
from tasks.common.backbones.transformer import EncoderConfig

B, T, D = 2, 9, 8


def made(causal=False):
    config = EncoderConfig(
        model_size=D, num_layers=2, num_heads=2, feedforward_size=16, positions="none"
    )
    return Conformer(config, 5, causal, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), jnp.float32)


@pytest.mark.parametrize("causal", [False, True])
def test_depthwise_is_a_grouped_convolution(x, causal):
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(5, D)), jnp.float32)
    before = 4 if causal else 2
    expected = jax.lax.conv_general_dilated(
        x, kernel[:, None], (1,), [(before, 4 - before)],
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=D,
    )  # fmt: skip
    np.testing.assert_allclose(depthwise(x, kernel, causal=causal), expected, atol=1e-5)


def test_padding_changes_nothing_and_weights_are_of_the_same_output(x):
    model = made()
    valid = jnp.asarray(np.arange(T) < np.array([[T], [5]]))
    compute = jax.jit(lambda x: model(x, valid=valid, return_weights=True))
    out, weights = compute(x)
    assert weights.shape == (2, B, 2, T, T)
    other, _ = compute(jnp.where(valid[..., None], x, 9.0))
    np.testing.assert_allclose(out[0], other[0], atol=1e-5)
    np.testing.assert_allclose(out[1, :5], other[1, :5], atol=1e-5)
    assert not weights[:, 1, :, :, 5:].any()
    by_length = model._layer_options(None, jnp.array([T, 5]), T)["valid"]
    np.testing.assert_array_equal(by_length, valid)


def test_a_causal_one_does_not_see_what_comes(x):
    model = made(causal=True)
    compute = jax.jit(lambda x: model(x, mask=masks.causal()))
    first, changed = compute(x), compute(x.at[:, 5:].multiply(-1))
    np.testing.assert_allclose(first[:, :5], changed[:, :5], atol=1e-6)
    assert not np.allclose(first[:, 5:], changed[:, 5:])


def test_what_does_not_fit_is_named(x):
    with pytest.raises(ValueError, match="width: got 4, expected an odd number"):
        Conformer(EncoderConfig(model_size=D), 4, False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="norm: got 'post', expected 'pre'"):
        Conformer(EncoderConfig(model_size=D, norm="post"), 5, False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="kernel: got a width of 4"):
        depthwise(x, jnp.zeros((4, D)))
    with pytest.raises(ValueError, match="valid"):
        made()(x, valid=jnp.ones((B, T + 1), bool))
