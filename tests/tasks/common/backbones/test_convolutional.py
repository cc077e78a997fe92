"""Convolutions and residual networks: what they compute, by NumPy and SciPy, and what they refuse.

The residual network beside transformers' stands in tests/oracles.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx

from tasks.common.backbones.convolutional import (
    Convolution,
    Stage,
    build_map_attention,
    check_map_attention,
    groups_of,
    map_attention_entry,
    max_pool,
    spatial_importance,
)
from tasks.common.backbones.resnet import ResNet, ResNetConfig, max_pool_3x3
from tests.attention.subjects import normal


def correlated(x, kernel, stride):
    """Computes the correlation of [B, Y, X, C] and [size, size, C, O] with SciPy, for odd sizes."""
    maps = [
        [
            sum(
                scipy.signal.correlate2d(image[..., c], kernel[:, :, c, o], mode="same")
                for c in range(kernel.shape[2])
            )
            for o in range(kernel.shape[3])
        ]
        for image in x
    ]
    return np.array(maps).transpose(0, 2, 3, 1)[:, ::stride, ::stride]


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2), (7, 2)])
def test_the_kernel_is_centered_on_every_stride_th_cell(size, stride):
    x = np.array(normal(0, 2, 6, 9, 3))
    layer = Convolution(3, 4, size=size, stride=stride, norm="none", relu=False, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    expected = correlated(x, np.array(layer.kernel[...]), stride) + np.arange(4)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)


def test_group_norm_is_of_each_image_alone():
    x = np.array(normal(1, 2, 5, 4, 3))
    layer = Convolution(3, 16, norm="group", rngs=nnx.Rngs(0))
    layer.norm.scale[...] = jnp.asarray(normal(2, 16))
    layer.norm.bias[...] = jnp.asarray(normal(3, 16))
    y = correlated(x, np.array(layer.kernel[...]), 1).reshape(2, 20, 2, 8)
    y = (y - y.mean(axis=(1, 3), keepdims=True)) / np.sqrt(y.var(axis=(1, 3), keepdims=True) + 1e-5)
    expected = y.reshape(2, 5, 4, 16) * normal(2, 16) + normal(3, 16)
    found = layer(jnp.asarray(x), valid=jnp.array([True, False]), training=True)
    np.testing.assert_allclose(found, np.maximum(expected, 0), atol=1e-4)


def test_groups_have_at_least_eight_channels_where_there_are():
    found = {channels: groups_of(channels) for channels in (1, 8, 15, 16, 24, 36, 256, 1024)}
    assert found == {1: 1, 8: 1, 15: 1, 16: 2, 24: 3, 36: 4, 256: 32, 1024: 32}


def test_layers_refuse_what_does_not_fit():
    with pytest.raises(
        ValueError, match="norm: got 'layer', expected one of 'batch', 'group', 'none'"
    ):
        Convolution(3, 4, norm="layer", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="stride: got 0"):
        Convolution(3, 4, stride=0, rngs=nnx.Rngs(0))
    layer = Convolution(3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x: got shape \[2, 5, 5, 1\], expected .* C=3"):
        layer(jnp.ones((2, 5, 5, 1)))


def test_a_stage_without_batch_norm_has_no_statistics():
    stage = Stage(3, 8, attention="se(reduction=2)", norm="group", rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(nnx.state(stage, nnx.BatchStat))
    x, weights = stage(jnp.ones((2, 3, 3, 3)), return_weights=True)
    assert (x.shape, weights.shape) == ((2, 3, 3, 8), (2, 1, 1, 8))


# ---------------------------------------------------------------- map attention


def test_map_attention_of_a_spec():
    assert map_attention_entry("none") is None
    assert build_map_attention("none", 8, "float32", nnx.Rngs(0)) is None
    assert map_attention_entry("se(reduction=4)").name == "se"
    check_map_attention("axial(num_heads=4)", (8, 16), "bfloat16")
    with pytest.raises(ValueError, match=r"^attention: .*num_heads"):
        check_map_attention("axial(num_heads=4)", (8, 6), "float32")
    with pytest.raises(ValueError, match=r"^attention: got 'cbm', .* did you mean 'cbam'"):
        check_map_attention("cbm", (8,), "float32")


def test_spatial_importance_by_hand():
    gate = np.array([[[0.0, 1.0], [0.5, 0.5]], [[1.0, 1.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(spatial_importance(gate, (2, 2), True), [[0.5, 0.5], [1, 0]])
    row = np.array([[[0.25]], [[0.75]]])
    np.testing.assert_array_equal(spatial_importance(row, (2, 3), True), [[0.25] * 3, [0.75] * 3])
    assert spatial_importance(np.ones((1, 1, 4)), (2, 2), True) is None
    # Two positions: one head gives all to the second, the other is even.
    between = np.array([[[0.0, 1.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]])
    np.testing.assert_array_equal(spatial_importance(between, (1, 2), False), [[0.25, 0.75]])


# ---------------------------------------------------------------- pooling


def test_max_pool_by_hand():
    image = -jnp.arange(1.0, 16.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(max_pool(image)[0, ..., 0], [[-1, -3, -5], [-11, -13, -15]])


@pytest.mark.parametrize("window", [(2, 2), (1, 2), (3, 2)])
@pytest.mark.parametrize("size", [(6, 4), (5, 3), (1, 1)])
def test_max_pool_and_its_gradient_equal_a_window_of_lax(window, size):
    image = normal(0, 2, *size, 3)

    def of_lax(image):
        full = (1, *window, 1)
        return jax.lax.reduce_window(image, -jnp.inf, jax.lax.max, full, full, "VALID")

    missing = [-n % w for n, w in zip(size, window, strict=True)]
    widths = [(0, 0), *((0, n) for n in missing), (0, 0)]
    padded = lambda x: of_lax(jnp.pad(x, widths, constant_values=-jnp.inf))  # noqa: E731
    expected, backward = jax.vjp(padded, image)
    out, own = jax.vjp(lambda x: max_pool(x, window), image)
    np.testing.assert_array_equal(out, expected)
    cotangent = normal(1, *out.shape)
    np.testing.assert_allclose(own(cotangent)[0], backward(cotangent)[0], atol=1e-6)


def test_max_pool_3x3_by_hand():
    image = jnp.arange(15.0).reshape(1, 3, 5, 1)
    np.testing.assert_array_equal(max_pool_3x3(image)[0, ..., 0], [[6, 8, 9], [11, 13, 14]])


# ---------------------------------------------------------------- residual network


@pytest.mark.parametrize(
    ("fields", "strides"),
    [
        ({}, [1, 2, 4]),
        ({"stem_stride": 2, "norm": "group", "attention": "cbam"}, [2, 4, 8]),
        ({"stem": "imagenet", "attention": "non_local"}, [4, 8, 16]),
    ],
)
def test_maps_have_the_sides_that_the_config_says(fields, strides):
    config = ResNetConfig(channels=(4, 8, 8), depths=(1, 2, 1), **fields)
    assert config.strides == strides
    for sides in ((1, 1), (33, 50)):

        def call(images):
            model = ResNet(config, 3, rngs=nnx.Rngs(0))
            return model(images, return_weights=True)

        images = jax.ShapeDtypeStruct((2, *sides, 3), jnp.float32)
        maps, weights = nnx.eval_shape(call, images)
        expected = [(2, *s, c) for s, c in zip(config.sides(*sides), config.channels, strict=True)]
        assert [found.shape for found in maps] == expected
        names = ["stage_1", "stage_2", "stage_3"] if "attention" in fields else []
        assert list(weights) == names


def test_parameters_of_the_default_residual_network():
    """As a ResNet-18 with a quarter of its channels and another stem, counted by hand."""

    def params():
        return nnx.state(ResNet(ResNetConfig(), 3, rngs=nnx.Rngs(0)), nnx.Param)

    expected = 9 * 3 * 16 + 2 * 16
    for inputs, outputs in ((16, 16), (16, 32), (32, 64), (64, 128)):
        expected += 9 * inputs * outputs + 3 * 9 * outputs**2 + 4 * 2 * outputs
        if inputs != outputs:
            expected += inputs * outputs + 2 * outputs
    assert sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(params))) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": ()}, r"channels: got \[\], expected at least one"),
        ({"depths": (2, 0, 1, 1)}, "depths: got .* each at least 1"),
        ({"depths": (2, 2)}, r"depths: got \[2, 2\], expected as many as channels, 4"),
        ({"norm": "layer"}, "norm: got 'layer'"),
        ({"norm": "none"}, "norm: got 'none', expected one of 'batch', 'group'"),
        ({"stem": "large"}, "stem: got 'large', expected one of 'small', 'imagenet'"),
        ({"stem_stride": 4}, "stem_stride: got 4, expected 1 or 2"),
        ({"stem": "imagenet", "stem_stride": 2}, "stem_stride: got 2, expected 1 with stem"),
        ({"momentum": 0.0}, "momentum: got 0.0"),
        ({"dtype": "float64"}, "dtype: got 'float64'"),
        ({"attention": "cbm"}, "attention: got 'cbm'"),
    ],
)
def test_impossible_configs_begin_with_the_field(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ResNetConfig(**fields)


def test_images_of_other_channels_are_rejected():
    model = ResNet(ResNetConfig(channels=(4,), depths=(1,)), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"images: got shape \[1, 8, 8, 1\], expected .* C=3"):
        model(jnp.ones((1, 8, 8, 1)))
