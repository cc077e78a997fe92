"""Losses compared with NumPy, and errors for invalid configs."""

import jax
import numpy as np
import pytest

from tasks.segmentation.losses import (
    LossConfig,
    cross_entropy,
    dice_loss,
    focal_loss,
    median_frequency,
    total_loss,
)

RNG = np.random.default_rng(0)
B, Y, X, K = 2, 3, 4, 3
LOGITS = RNG.normal(size=(B, Y, X, K)).astype(np.float32)
LABELS = RNG.integers(0, 2, (B, Y, X)).astype(np.uint8)
COUNTED = RNG.random((B, Y, X)) < 0.7
LABELS[~COUNTED] = 255
WEIGHTS = np.array([0.5, 2.0, 7.0], np.float32)
SUM = LossConfig(cross_entropy=0.5, dice=2.0, focal=3.0)


@jax.jit
def all_losses(logits, labels, counted):
    return {
        "cross_entropy": cross_entropy(logits, labels, counted, WEIGHTS),
        "focal": focal_loss(logits, labels, counted, WEIGHTS, 2.0),
        "dice": dice_loss(logits, labels, counted),
        "sum": total_loss(SUM, logits, labels, counted, WEIGHTS),
    }


gradient = jax.jit(jax.grad(lambda *arguments: all_losses(*arguments)["sum"]))


def test_losses_by_hand():
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    p, y = p[COUNTED], LABELS[COUNTED]
    true, w = p[np.arange(len(y)), y], WEIGHTS[y]
    expected = {
        "cross_entropy": np.sum(-w * np.log(true)) / w.sum(),
        "focal": np.sum(-w * (1 - true) ** 2 * np.log(true)) / w.sum(),
        # Class 2 does not occur.
        "dice": 1
        - np.mean([2 * p[y == k, k].sum() / (p[:, k].sum() + np.sum(y == k)) for k in (0, 1)]),
    }
    expected["sum"] = 0.5 * expected["cross_entropy"] + 2 * expected["dice"] + 3 * expected["focal"]
    found = all_losses(LOGITS, LABELS, COUNTED)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_what_does_not_count_has_no_say_and_sure_pixels_no_infinite_slope():
    other = np.where(COUNTED[..., None], LOGITS, 100)
    found = all_losses(other, LABELS, COUNTED)["sum"]
    np.testing.assert_allclose(found, all_losses(LOGITS, LABELS, COUNTED)["sum"], rtol=1e-6)
    assert np.all(np.asarray(gradient(LOGITS, LABELS, COUNTED))[~COUNTED] == 0)
    sure = 200 * (LABELS[..., None] == np.arange(K)).astype(np.float32)
    for logits in (sure, -sure):
        assert np.all(np.isfinite(gradient(logits, LABELS, COUNTED)))
    nothing = all_losses(LOGITS, LABELS, np.zeros_like(COUNTED))
    assert all(float(value) == 0 for value in nothing.values())
    assert np.all(np.asarray(gradient(LOGITS, LABELS, np.zeros_like(COUNTED))) == 0)


def test_median_frequency_by_hand():
    # Class 0: 6 of 8 pixels; class 1: 2 of the 4 of the first image; class 2: nowhere.
    labels = np.array([[[0, 0], [1, 1]], [[0, 0], [0, 0]], [[255, 255], [255, 255]]])
    found = median_frequency(labels, 3)
    np.testing.assert_allclose(found, [0.625 / 0.75, 0.625 / 0.5, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(median_frequency(np.full((1, 2, 2), 255), 2), [1, 1])


def test_weights_by_config():
    labels = np.zeros((1, 2, 2), np.uint8)
    np.testing.assert_array_equal(LossConfig().weights(labels, 2), [1, 1])
    found = LossConfig(class_weights="1, 2.5").weights(labels, 2)
    np.testing.assert_array_equal(found, [1, 2.5])
    chosen = LossConfig(class_weights="median_frequency").weights(labels, 2)
    np.testing.assert_array_equal(chosen, median_frequency(labels, 2))
    with pytest.raises(ValueError, match="class_weights: got 2 numbers, expected 3"):
        LossConfig(class_weights="1,2").weights(labels, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dice": -1.0}, "dice: got -1.0, expected at least 0"),
        ({"focal_gamma": -1.0}, "focal_gamma: got -1.0"),
        ({"cross_entropy": 0.0}, "cross_entropy: got 0.0, expected one of"),
        ({"class_weights": "median"}, "class_weights: got 'median', expected 'none'"),
        ({"class_weights": "1,0"}, "class_weights: got '1,0'"),
        ({"class_weights": "1,nan"}, "class_weights: got '1,nan'"),
    ],
)
def test_wrong_losses_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields)
