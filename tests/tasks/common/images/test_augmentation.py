"""Random augmentation of images: each change by hand, and its dependence on the key alone."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tasks.common.images.augmentation import (
    AugmentationConfig,
    augment,
    cutout,
    mixup,
    random_crop,
    random_flip,
    random_translation,
    scale_and_crop,
    translate,
)
from tasks.common.keys import example_keys

B, Y, X, VOID = 32, 9, 12, 11
RNG = np.random.default_rng(0)
COLOURS = RNG.uniform(0.3, 0.7, (B, Y, X, 3)).astype(np.float32)
# Each pixel contains its row and column, so that moved pixels show their origin.
_ROWS, _COLUMNS = np.mgrid[0:Y, 0:X].astype(np.float32)
PLACES = np.broadcast_to(np.stack([_ROWS, _COLUMNS], axis=-1) + 1, (B, Y, X, 2))
NUMBERS = np.broadcast_to((_ROWS * X + _COLUMNS).astype(np.int32) + 100, (B, Y, X))
KEYS = example_keys(jax.random.key(0), jnp.arange(B))


def test_what_is_drawn_is_the_example_s_own():
    config = AugmentationConfig(
        scale_min=0.5,
        scale_max=2.0,
        crop_padding=2,
        flip=True,
        flip_vertical=True,
        brightness=0.2,
        contrast=0.2,
        saturation=0.2,
        hue=0.1,
        cutout=3,
    )
    ids = jnp.arange(6)

    @jax.jit
    def run(images, labels, ids):
        keys = example_keys(jax.random.key(3), ids)
        return augment(images, keys, config, labels, VOID)

    images, labels = run(COLOURS[:6], NUMBERS[:6], ids)
    order = np.array([4, 0, 5, 2, 1, 3])
    others, their_labels = run(COLOURS[:6][order], NUMBERS[:6][order], ids[order])
    np.testing.assert_allclose(others, images[order], atol=1e-6)
    np.testing.assert_array_equal(their_labels, labels[order])
    assert images.shape == (6, Y, X, 3)
    assert (images.min() >= 0) & (images.max() <= 1)
    assert labels.dtype == jnp.int32


def test_one_kind_more_does_not_change_what_the_others_draw():
    run = jax.jit(augment, static_argnums=2)
    flipped = run(PLACES, KEYS, AugmentationConfig(flip=True))
    both = run(PLACES, KEYS, AugmentationConfig(flip=True, cutout=1))
    assert ((flipped != both).any(axis=-1).sum(axis=(1, 2)) <= 1).all()
    assert (flipped != both).any()


def test_nothing_is_asked_for():
    np.testing.assert_array_equal(augment(COLOURS, KEYS, AugmentationConfig()), COLOURS)


@pytest.mark.parametrize("axis", [1, 2])
def test_every_second_picture_is_mirrored(axis):
    images, labels = random_flip(jnp.asarray(PLACES), KEYS, jnp.asarray(NUMBERS), axis)
    mirrored = np.flip(PLACES, axis)
    chosen = (np.asarray(images) == mirrored).all(axis=(1, 2, 3))
    expected = np.where(chosen[:, None, None, None], mirrored, PLACES)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(
        labels, np.where(chosen[:, None, None], np.flip(NUMBERS, axis), NUMBERS)
    )
    assert 6 < chosen.sum() < 26


def test_crops_are_moved_by_whole_pixels():
    images, labels = jax.jit(random_crop, static_argnums=2)(PLACES, KEYS, 2, NUMBERS, VOID)
    seen = set()
    for image, label in zip(np.asarray(images), np.asarray(labels), strict=True):
        row, column = image[Y // 2, X // 2] - 1 - (Y // 2, X // 2)
        seen.add((row, column))
        expected = ndimage.shift(PLACES[0], (-row, -column, 0), order=0, cval=0)
        np.testing.assert_array_equal(image, expected)
        expected = ndimage.shift(NUMBERS[0], (-row, -column), order=0, cval=VOID)
        np.testing.assert_array_equal(label, expected)
    assert len(seen) > 12
    assert np.abs(list(seen)).max() == 2


@pytest.mark.parametrize("limits", [(0.5, 0.9), (1.2, 3.0)])
def test_scaled_pictures_and_their_labels(limits):
    images, labels = jax.jit(scale_and_crop, static_argnums=2)(PLACES, KEYS, limits, NUMBERS, VOID)
    scales = []
    for image, label in zip(np.asarray(images), np.asarray(labels), strict=True):
        inside = label != VOID
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        # All of it fits in where it shrinks; it fills the frame where it grows.
        if limits[0] >= 1:
            assert inside.all()
        else:
            assert abs(inside.sum() - len(rows) * len(columns)) == 0
            assert (image[~inside] == 0).all()
        # Away from the border a place is where the labels' row and column say, to half a pixel.
        y, x = (label - 100) // X, (label - 100) % X
        middle = inside & (y > 1) & (y < Y - 2) & (x > 1) & (x < X - 2)
        np.testing.assert_allclose(image[middle, 0] - 1, y[middle], atol=0.51)
        np.testing.assert_allclose(image[middle, 1] - 1, x[middle], atol=0.51)
        row = image[middle.any(axis=1)][:, X // 2, 0]
        if len(row) > 1 and (np.diff(row) > 0).all():
            slopes = np.diff(row)
            np.testing.assert_allclose(slopes, slopes[0], atol=0.2)
            scales.append(1 / slopes.mean())
    assert len(scales) > 3
    assert min(scales) > limits[0] * 0.8
    assert max(scales) < limits[1] * 1.2


@pytest.mark.parametrize("size", [(4, 6), (9, 5), (12, 15)])
def test_crops_at_the_original_scale_are_parts_of_the_image(size):
    config = AugmentationConfig()
    images, labels = jax.jit(augment, static_argnums=(2, 4, 5))(
        PLACES, KEYS, config, NUMBERS, VOID, size
    )
    assert images.shape == (B, *size, 2)
    assert labels.shape == (B, *size)
    starts = set()
    for image, label in zip(np.asarray(images), np.asarray(labels), strict=True):
        inside = label != VOID
        np.testing.assert_array_equal(image[inside, 0] - 1, (label[inside] - 100) // X)
        np.testing.assert_array_equal(image[inside, 1] - 1, (label[inside] - 100) % X)
        assert (image[~inside] == 0).all()
        assert inside.sum() == min(size[0], Y) * min(size[1], X)
        starts.add((label[inside][0], *np.argwhere(inside)[0]))
    assert len(starts) > 4


def test_a_small_scale_shows_the_whole_image_in_a_crop():
    images, labels = scale_and_crop(PLACES, KEYS, (0.5, 0.5), NUMBERS, VOID, (5, 6))
    assert images.shape == (B, 5, 6, 2)
    for label in np.asarray(labels):
        shown = label[label != VOID] - 100
        assert (shown // X).min() <= 1
        assert (shown // X).max() >= Y - 2
        assert (shown % X).min() <= 1
        assert (shown % X).max() >= X - 2


# ---------------------------------------------------------------- values


def jittered(**fields):
    return np.asarray(augment(COLOURS, KEYS, AugmentationConfig(**fields)))


def test_brightness_is_added():
    added = (jittered(brightness=0.25) - COLOURS).reshape(B, -1)
    np.testing.assert_allclose(added, added[:, :1].repeat(added.shape[1], 1), atol=1e-5)
    assert added.min() < -0.1
    assert added.max() > 0.1
    assert np.abs(added).max() <= 0.25
    assert jittered(brightness=1.0).max() == 1


def test_contrast_multiplies_the_distance_from_the_mean():
    mean = COLOURS.mean(axis=(1, 2), keepdims=True)
    factors = ((jittered(contrast=0.4) - mean) / (COLOURS - mean)).reshape(B, -1)
    middle = np.median(factors, axis=1)
    np.testing.assert_allclose(np.median(np.abs(factors - middle[:, None])), 0, atol=1e-4)
    assert 0.6 <= middle.min() < 0.8
    assert 1.2 < middle.max() <= 1.4


def test_saturation_and_hue_by_the_standard_library():
    def hsv(images):
        return np.array([colorsys.rgb_to_hsv(*pixel) for pixel in images[:, 0, :2].reshape(-1, 3)])

    before, saturated = hsv(COLOURS), hsv(jittered(saturation=0.5))
    np.testing.assert_allclose(saturated[:, 2], before[:, 2], atol=1e-5)
    factors = (saturated[:, 1] / before[:, 1]).reshape(B, 2)
    np.testing.assert_allclose(factors[:, 0], factors[:, 1], rtol=1e-3)
    assert 0.5 <= factors.min() < 0.8 < 1.2 < factors.max() <= 1.5
    turned = hsv(jittered(hue=0.25))
    np.testing.assert_allclose(turned[:, 1:], before[:, 1:], atol=1e-4)
    moved = ((turned[:, 0] - before[:, 0] + 0.5) % 1 - 0.5).reshape(B, 2)
    np.testing.assert_allclose(moved[:, 0], moved[:, 1], atol=1e-3)
    assert 0.1 < np.abs(moved).max() <= 0.2501


def test_colours_need_three_channels():
    with pytest.raises(ValueError, match="images: got 2 channels, expected 3 for saturation"):
        augment(PLACES, KEYS, AugmentationConfig(hue=0.1))
    with pytest.raises(ValueError, match="images: got dtype uint8"):
        augment(PLACES.astype(np.uint8), KEYS, AugmentationConfig())


def test_a_square_is_cut_out():
    images, labels = cutout(jnp.asarray(COLOURS), KEYS, 4, jnp.asarray(NUMBERS), VOID)
    hidden = np.asarray(labels) == VOID
    for image, label, before, there in zip(images, labels, COLOURS, hidden, strict=True):
        rows, columns = (np.flatnonzero(there.any(axis=axis)) for axis in (1, 0))
        assert there[np.ix_(rows, columns)].all()
        assert 2 <= len(rows) <= 4
        mean = np.broadcast_to(before.mean(axis=(0, 1)), before.shape)
        np.testing.assert_allclose(image, np.where(there[..., None], mean, before), atol=1e-6)
        np.testing.assert_array_equal(label, np.where(there, VOID, NUMBERS[0]))
    assert max(there.sum() for there in hidden) == 16


def test_mixup():
    keys = example_keys(jax.random.key(1), jnp.arange(2000))
    images = jnp.asarray(RNG.uniform(size=(2000, 1, 1, 2)), jnp.float32)
    valid = jnp.arange(2000) < 1900
    images = images.at[1900:].set(jnp.nan)
    mixed, partner, share = jax.jit(mixup, static_argnums=2)(images, keys, 0.4, valid)
    np.testing.assert_array_equal(partner, np.arange(2000)[::-1])
    np.testing.assert_array_equal(mixed[:100], images[:100])  # their partners do not count
    weight = share[100:1900, None, None, None]
    expected = weight * images[100:1900] + (1 - weight) * images[partner[100:1900]]
    np.testing.assert_allclose(mixed[100:1900], expected, atol=1e-6)
    assert share[100:1900].mean() == pytest.approx(0.5, abs=0.03)
    # Of Beta(α, α): 1 / (4 (2α + 1)).
    assert share[100:1900].var() == pytest.approx(1 / 7.2, abs=0.01)


# ---------------------------------------------------------------- translate


IMAGES = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))


def test_shift_equals_scipys_bilinear_one():
    offsets = np.array([[0.0, 0.0], [1.0, -2.0], [0.25, -0.7]], np.float32)
    moved = translate(IMAGES, jnp.asarray(offsets))
    for image, offset, found in zip(IMAGES, offsets, moved, strict=True):
        # SciPy's "grid-constant" interpolates with the 0 outside, as here.
        expected = ndimage.shift(np.asarray(image[..., 0]), offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(found[..., 0], expected, atol=1e-6)


def test_random_shifts_stay_within_the_largest():
    point = jnp.zeros((64, 8, 8, 1)).at[:, 4, 4].set(1.0)
    moved = np.asarray(random_translation(point, 1.0, jax.random.key(0)))[..., 0]
    np.testing.assert_allclose(moved.sum(axis=(1, 2)), 1, atol=1e-5)
    assert moved[:, 3:6, 3:6].sum() == pytest.approx(64, abs=1e-3)
    centres = (moved.sum(axis=2) * np.arange(8)).sum(axis=1) - 4
    assert centres.min() < -0.8
    assert centres.max() > 0.8
    assert random_translation(point, 0.0, jax.random.key(0)) is point


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_min": 0.0}, "scale_min: got 0.0, expected a number above 0"),
        ({"scale_min": 1.5}, "scale_min: got 1.5, expected at most scale_max=1.0"),
        ({"crop_padding": -1}, "crop_padding: got -1, expected at least 0"),
        ({"cutout": -1}, "cutout: got -1"),
        ({"brightness": 2.0}, r"brightness: got 2.0, expected a fraction in \[0, 1\]"),
        ({"contrast": -0.1}, "contrast: got -0.1"),
        ({"saturation": 1.1}, "saturation: got 1.1"),
        ({"hue": 0.6}, r"hue: got 0.6, expected a number in \[0, 0.5\]"),
    ],
)
def test_impossible_configs_begin_with_the_field(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        AugmentationConfig(**fields)
