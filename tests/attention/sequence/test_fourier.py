"""FNet: by hand, by FFT and by matrix, padding, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import masks, recording
from attention.sequence.fourier import Fourier, fourier_mix
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

fourier_mix = compiled(fourier_mix)

B, T, D = 2, 6, 8


def test_two_by_two_by_hand():
    # F = [[1, 1], [1, -1]] on both sides.
    x = np.array([[[1.0, 2.0], [5.0, 9.0]]], np.float32)
    np.testing.assert_allclose(fourier_mix(x), [[[17, -5], [-11, 3]]], atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 7, 64])
def test_fft_and_matrix_are_the_same(length):
    x = normal(0, B, length, D)
    everything = masks.valid(key=np.ones((B, length), bool))
    expected = np.fft.fft2(x.astype(np.float64), axes=(1, 2)).real
    for mask in (None, everything):
        np.testing.assert_allclose(
            fourier_mix(x, mask=mask), expected, atol=1e-6 * np.abs(expected).max()
        )


def test_long_sequences_keep_their_accuracy():
    x = normal(0, 1, 2048, 2)
    valid = np.arange(2048)[None] < 2039  # A prime.
    expected = np.fft.fft2(x[:, :2039].astype(np.float64), axes=(1, 2)).real
    out = jax.jit(fourier_mix)(x, mask=masks.valid(key=valid))[:, :2039]
    np.testing.assert_allclose(out, expected, atol=1e-6 * np.abs(expected).max())


def test_padding_anywhere_changes_nothing():
    x = normal(0, B, 4, D)
    places = np.array([[0, 2, 3, 6], [1, 2, 5, 7]])
    padded, valid = 1e4 * normal(1, B, 9, D), np.zeros((B, 9), bool)
    np.put_along_axis(padded, places[..., None], x, axis=1)
    np.put_along_axis(valid, places, True, axis=1)
    out = np.asarray(fourier_mix(padded, mask=masks.valid(query=valid, key=valid)))
    np.testing.assert_allclose(
        np.take_along_axis(out, places[..., None], axis=1), fourier_mix(x), atol=1e-5
    )
    np.testing.assert_array_equal(out[~valid], 0)


def test_double_stays_double():
    with jax.enable_x64(True):
        x = jnp.asarray(normal(0, B, T, D), jnp.float64)
        expected = np.fft.fft2(x, axes=(1, 2)).real
        for mask in (None, masks.lengths(key=jnp.array([T, T]))):
            np.testing.assert_allclose(fourier_mix(x, mask=mask), expected, atol=1e-13)


def test_half_precision_transforms_in_float32():
    x = jnp.asarray(normal(0, B, 128, D), jnp.bfloat16)
    out = fourier_mix(x)
    assert out.dtype == jnp.bfloat16
    expected = fourier_mix(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out, expected)


def test_no_weights_to_learn_or_to_see():
    module = Fourier(D, num_heads=3, rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(module))
    seen = []
    with recording.recorder(lambda compute: seen.append(compute())):
        module(normal(0, B, T, D))
    assert not seen


def test_mistakes_are_told():
    for wrong, message in (
        ({"model_size": 0}, "model_size: got 0, expected at least 1"),
        ({"num_heads": 0}, "num_heads: got 0, expected at least 1"),
        ({"dropout_rate": 1}, "dropout_rate: got 1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Fourier(**({"model_size": D, "num_heads": 2} | wrong), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="use_bias"):
        Fourier(D, 2, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"^x: got shape \[2, 6, 7\], expected \[B, T, D\]"):
        Fourier(D, 2, rngs=nnx.Rngs(0))(normal(0, B, T, 7))
    with pytest.raises(ValueError, match=r"^x: got dtype int32"):
        fourier_mix(np.ones((1, 2, 3), np.int32))
