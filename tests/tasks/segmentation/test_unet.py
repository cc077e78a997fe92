"""The U-Net: its modules, sizes and cost, and errors for invalid configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import tracing
from attention.projection import Projection
from tasks.segmentation.unet import (
    UNet,
    UNetConfig,
    from_patches,
    match_parameter_count,
    parameter_count,
    to_patches,
)

DEFAULT = UNetConfig()
SMALL = UNetConfig(channels=(4, 6), attention="gates", dropout_rate=0.0)
RNG = np.random.default_rng(0)


def images(*shape):
    return RNG.normal(size=(*shape, 3)).astype(np.float32)


def test_patches_and_back():
    x = images(2, 5, 7)

    @jax.jit
    def both(x):
        cut = to_patches(x, 2)
        return cut, from_patches(cut.reshape(*cut.shape[:3], 2, 2, 3), 5, 7)

    cut, back = both(x)
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(cut[1, 1, 0].reshape(2, 2, 3), x[1, 2:4, :2])
    np.testing.assert_array_equal(cut[0, 2, 3, 3:], 0)  # beyond the image


def test_gradient_of_joined_patches_is_the_patches_of_the_gradient():
    x, g = RNG.normal(size=(2, 2, 3, 3, 3, 4)), RNG.normal(size=(2, 5, 8, 4))
    x, g = x.astype(np.float32), g.astype(np.float32)
    expected = np.zeros_like(x)
    for i, j in np.ndindex(5, 8):
        expected[:, i // 3, j // 3, i % 3, j % 3] = g[:, i, j]
    found = jax.jit(jax.grad(lambda x: jnp.sum(from_patches(x, 5, 8) * g)))(x)
    np.testing.assert_array_equal(found, expected)


def test_doubling_is_the_transposed_convolution():
    up, x = Projection((3,), (2, 2, 5), rngs=nnx.Rngs(0)), images(1, 3, 4)

    @nnx.jit
    def both(up, x):
        # [height, width, inputs, outputs]; jax correlates with what it is given.
        kernel = up.kernel[...].transpose(1, 2, 0, 3)[::-1, ::-1]
        layout = ("NHWC", "HWIO", "NHWC")
        expected = jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=layout)
        return from_patches(up(x), 6, 8), expected

    found, expected = both(up, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@nnx.jit
def run(model, x, valid):
    return model(x, valid=valid, training=True, return_weights=True)


def test_gates_weigh_what_the_encoder_hands_over():
    model = UNet(SMALL, 3, 5, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    x = images(2, 9, 7)
    logits, found = run(nnx.merge(graphdef, state), x, np.array([True, False]))
    assert logits.shape == (2, 9, 7, 5)
    assert logits.dtype == jnp.float32
    # The pixels of a patch are equal initially.
    np.testing.assert_allclose(logits[:, :8:2, :6:2], logits[:, 1:8:2, 1:6:2], rtol=1e-5)
    assert list(found) == ["gate_1"]
    assert found["gate_1"].shape == (2, *SMALL.sides(9, 7)[0], 1) == (2, 5, 4, 1)
    assert np.all((found["gate_1"] > 0) & (found["gate_1"] < 1))
    # A image that does not count does not touch the statistics by which others are normalized.
    x[1] = 50
    again, _ = run(nnx.merge(graphdef, state), x, np.array([True, False]))
    np.testing.assert_allclose(again[0], logits[0], rtol=1e-4, atol=1e-5)
    # Closed gates: the decoder sees the coarse map alone, and the image's details are lost.
    closed = nnx.merge(graphdef, state)
    closed.gates[0].score.bias[...] = -100 * jnp.ones(1)
    assert np.all(run(closed, x, np.array([True, False]))[1]["gate_1"] < 1e-6)


@pytest.mark.parametrize("name", ["none", "gates", "scse", "axial"])
def test_attention_stands_where_it_should(name):
    config = UNetConfig(channels=(8, 16), patch_size=1, attention=name)
    model = nnx.eval_shape(lambda: UNet(config, 3, 2, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    with tracing.shapes_only():
        logits, found = jax.eval_shape(
            lambda state, x: nnx.merge(graphdef, state)(x, return_weights=True),
            state,
            jax.ShapeDtypeStruct((1, 5, 8, 3), jnp.float32),
        )
    assert logits.shape == (1, 5, 8, 2)
    stages = {"encoder_1", "encoder_2", "decoder_1"}
    assert set(found) <= ({"gate_1"} if name == "gates" else stages)
    assert bool(found) == (name != "none")


def test_weights_are_counted_and_matched_within_two_percent():
    # Two stages by hand: kernels, and of each batch norm a scale and a bias.
    c, d = 4, 6
    encoder = 9 * (12 * c + c * c) + 4 * c + 9 * (c * d + d * d) + 4 * d
    decoder = (d + 1) * 4 * c - 4 * c + 4 * c + 9 * (2 * c * c + c * c) + 4 * c
    classify = (c + 1) * 4 * 5
    plain = dataclasses.replace(SMALL, attention="none")
    assert parameter_count(plain, 5) == encoder + decoder + classify
    config = match_parameter_count(UNetConfig(channels=(16, 32, 64), attention="gates"), 11)
    assert config.attention == "gates"
    wanted = parameter_count(
        dataclasses.replace(config, channels=(16, 32, 64), attention="none"), 11
    )
    assert abs(parameter_count(config, 11) / wanted - 1) < 0.02


def test_the_default_is_below_one_billion_multiplications():
    model = nnx.eval_shape(lambda: UNet(DEFAULT, 3, 11, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    picture = jax.ShapeDtypeStruct((1, 180, 240, 3), jnp.float32)
    traced = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x)).trace(state, picture)
    # On a CPU convolutions are custom calls, whose operations the compiler does not count.
    lowered = traced.lower(lowering_platforms=("cuda",))
    assert 0.8e9 < lowered.cost_analysis()["flops"] / 2 < 1e9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": ()}, r"channels: got \[\], expected at least one number"),
        ({"patch_size": 0}, "patch_size: got 0, expected at least 1"),
        ({"dropout_rate": 1.0}, "dropout_rate: got 1.0"),
        ({"momentum": 0.0}, "momentum: got 0.0"),
        ({"dtype": "float16"}, "dtype: got 'float16'"),
        ({"attention": "gate"}, "attention: got 'gate'.*did you mean 'gates'"),
        ({"attention": "gates(width=3)"}, "attention: .*'width'"),
        ({"attention": "gates(hidden_size=0)"}, "hidden_size: got 0"),
        ({"attention": "cbam(redaction=2)"}, "attention: .*did you mean 'reduction'"),
        ({"attention": "none(a=1)"}, "attention: got 'none.a=1.', expected 'none' without"),
    ],
)
def test_wrong_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**fields)
