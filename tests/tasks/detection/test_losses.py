"""Losses of one image against NumPy and scikit-learn, and the mean over a padded batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from tasks.detection.models import losses
from tests.attention.subjects import normal


def test_smooth_l1_is_a_parabola_then_a_line():
    found = losses.smooth_l1(jnp.array([0.0, 0.05, -0.2, 3.0]), 0.0, beta=0.1)
    np.testing.assert_allclose(found, [0, 0.0125, 0.15, 2.95], rtol=1e-6)
    # The two meet: value and slope.
    slope = jax.vmap(jax.grad(lambda d: losses.smooth_l1(d, 0.0)))(jnp.array([0.111, 0.112, -5.0]))
    np.testing.assert_allclose(slope, [0.999, 1, -1], atol=1e-3)


def test_classes_and_objectness_are_the_log_loss():
    logits, labels = normal(0, 6, 3), np.array([0, 2, 1, 1, 0, 2])
    counted = np.array([True, True, True, True, False, False])
    part = losses.classes(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(counted))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = log_loss(labels[:4], probabilities[:4], labels=[0, 1, 2])
    assert float(part.total / part.count) == pytest.approx(expected, rel=1e-5)
    assert part.count == 4
    part = losses.objectness(jnp.asarray(logits[:, 0]), jnp.asarray(labels > 0), counted)
    probabilities = 1 / (1 + np.exp(-logits[:4, 0]))
    expected = log_loss(labels[:4] > 0, probabilities)
    assert float(part.total / part.count) == pytest.approx(expected, rel=1e-5)


def test_box_loss_is_of_positives_and_divided_by_all_that_counts():
    deltas, targets = normal(1, 4, 4), normal(2, 4, 4)
    # Targets of negatives are arbitrary.
    targets[3] = np.inf
    positive, counted = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 1], bool)

    def value(deltas):
        return losses.boxes(deltas, jnp.asarray(targets), positive, counted)

    distance = np.abs(deltas[0] - targets[0])
    expected = np.where(distance < 1 / 9, 4.5 * distance**2, distance - 1 / 18).sum()
    part = value(jnp.asarray(deltas))
    assert float(part.total) == pytest.approx(expected, rel=1e-5)
    assert part.count == 3
    slope = jax.grad(lambda deltas: value(deltas).total)(jnp.asarray(deltas))
    assert np.isfinite(slope).all()
    assert (np.abs(slope).sum(axis=1) > 0).tolist() == [True, False, False, False]


def test_mask_loss_is_the_mean_over_the_pixels_of_positives():
    logits, targets = normal(3, 3, 2, 2), np.array([[[0, 1], [0.5, 1]]] * 3, np.float32)
    part = losses.masks(jnp.asarray(logits), jnp.asarray(targets), np.array([1, 0, 1], bool))
    p = 1 / (1 + np.exp(-logits))
    entropies = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    assert float(part.total) == pytest.approx(entropies[[0, 2]].mean() * 2, rel=1e-5)
    assert part.count == 2


def test_mean_over_a_batch_is_by_counts_and_of_real_rows():
    part = losses.LossTerm(jnp.array([2.0, 4.0, jnp.nan]), jnp.array([1.0, 3.0, 5.0]))
    assert losses.mean(part, jnp.array([True, True, False])) == 1.5
    nothing = losses.LossTerm(jnp.zeros(2), jnp.zeros(2))
    assert losses.mean(nothing, jnp.array([True, True])) == 0
