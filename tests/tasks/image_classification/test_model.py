"""The Vision Transformer: patches, heads and weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import registry
from tasks.image_classification.model import VisionTransformer, ViTConfig, patches

SMALL = ViTConfig(patch_size=4, model_size=8, num_layers=1, num_heads=2, feedforward_size=12)
IMAGES = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
call = nnx.jit(VisionTransformer.__call__, static_argnames="return_weights")


def make(**fields):
    config = dataclasses.replace(SMALL, **fields)
    return VisionTransformer(config, (8, 8, 1), 10, rngs=nnx.Rngs(3))


def test_patches_by_hand():
    images = jnp.arange(2 * 4 * 6 * 2).reshape(2, 4, 6, 2)
    cut = patches(images, 2)
    assert cut.shape == (2, 6, 8)
    for number, (y, x) in enumerate([(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4)]):
        np.testing.assert_array_equal(cut[:, number], images[:, y : y + 2, x : x + 2].reshape(2, 8))


def test_a_patch_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="patch_size: got 3, expected a divisor of 8 and 8 pixels"):
        make(patch_size=3)


@pytest.mark.parametrize("head", ["cls", "mean", "multi_head"])
def test_each_head_classifies_and_shows_what_it_takes(head):
    logits, weights = call(make(head=head), IMAGES, return_weights=True)
    assert logits.shape == (3, 10)
    np.testing.assert_allclose(logits, call(make(head=head), IMAGES), atol=1e-6)
    tokens = 4 + (head == "cls")
    assert weights["encoder"].shape == (3, 1, 2, tokens, tokens)
    np.testing.assert_allclose(weights["encoder"].sum(axis=-1), 1, atol=1e-5)
    taken = weights["head"].sum(axis=-1)
    if head == "cls":
        # The rest is what the token takes of itself.
        np.testing.assert_allclose(taken, 1 - weights["encoder"][:, -1, :, 0, 0], atol=1e-5)
    else:
        np.testing.assert_allclose(taken, 1, atol=1e-5)
    if head == "mean":
        # The mean weights all patches equally, so the weights of the last layer are shown.
        looked = weights["encoder"][:, -1].mean(axis=2)
        np.testing.assert_allclose(weights["head"], looked, rtol=1e-5)
        assert np.ptp(weights["head"], axis=-1).min() > 1e-4


def test_weights_of_the_default_config():
    def params():
        model = VisionTransformer(ViTConfig(), (8, 8, 1), 10, rngs=nnx.Rngs(0))
        return nnx.state(model, nnx.Param)

    layer = 4 * (64 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64) + 2 * 2 * 64
    # Patches, positions, layers, last norm, head (seed, key, value, out without bias), classes.
    expected = (4 * 64 + 64) + 16 * 64 + 2 * layer + 128 + (64 + 2 * (64 * 64 + 64) + 64 * 64) + 650
    assert sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(params))) == expected


def test_positions_matter_with_learned_ones_only():
    # The upper half put below: the same patches in another order.
    swapped = jnp.roll(IMAGES, 4, axis=1)
    with_positions, without = make(head="mean"), make(head="mean", positions="none")
    assert np.abs(call(with_positions, IMAGES) - call(with_positions, swapped)).max() > 1e-4
    np.testing.assert_allclose(call(without, IMAGES), call(without, swapped), atol=1e-5)


def test_dropout_follows_its_key():
    model = make(head="cls", dropout_rate=0.5)
    first, again, other = (call(model, IMAGES, dropout_key=jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_every_pool_of_the_registry_is_a_head():
    assert [ViTConfig(head=name).head for name in registry.names("pool")]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("patch_size", 0, "patch_size: got 0, expected at least 1"),
        ("head", "clss", "head: got .clss., expected one of 'cls', 'mean'"),
        ("head_dropout_rate", 1.0, "head_dropout_rate: got 1.0, expected a rate"),
        ("num_heads", 7, "num_heads"),
        ("num_layers", -1, "num_layers"),
        ("mixer", "dot", "mixer"),
        ("dtype", "float64", "dtype"),
    ],
)
def test_impossible_configs_begin_with_the_field(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ViTConfig(**{field: value})
