"""DETR's matching and set loss on hand-made cases; `test_task.py` tests the complete network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tasks.detection.models.detr import LOSS_WEIGHTS, DETRConfig, sine_embedding
from tasks.detection.models.set_loss import (
    hungarian_match,
    set_losses,
    to_normalized_cyxhw,
    to_xyxy,
)
from tests.attention.subjects import normal


def test_shares_and_corners():
    corners = jnp.array([[10.0, 20, 30, 60]])
    shares = to_normalized_cyxhw(corners, 80, 40)
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(to_xyxy(shares, 80, 40), corners, rtol=1e-6)


def test_point_encoding():
    found = np.asarray(sine_embedding(jnp.array([[0.25, 0.75]]), 8))
    angles = 2 * np.pi * np.array([[0.25], [0.75]]) / 10_000 ** (np.array([0, 4]) / 8)
    expected = [np.r_[np.sin(row), np.cos(row)] for row in angles]
    np.testing.assert_allclose(found[0], np.concatenate(expected), atol=1e-6)


def test_assignment_is_the_cheapest_by_scipy():
    costs = normal(0, 9, 6)
    there = np.array([True, True, False, True, True, False])
    costs[0, 0] = np.nan
    found = jax.jit(hungarian_match)
    objects, taken = (np.asarray(x) for x in found(costs, there))
    rows, columns = linear_sum_assignment(np.nan_to_num(costs, nan=1e6)[:, there])
    assert sorted(np.flatnonzero(taken)) == sorted(rows)
    expected = dict(zip(rows, np.flatnonzero(there)[columns], strict=True))
    assert {row: objects[row] for row in rows} == expected
    assert not np.asarray(found(costs, np.zeros(6, bool))[1]).any()


def test_set_loss():
    config = DETRConfig(queries=3, class_weight=2.0)
    boxes = np.array([[0.5, 0.5, 0.2, 0.2], [0.3, 0.4, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]], np.float32)
    true = np.array([[0.3, 0.4, 0.2, 0.1], [0, 0, 0, 0]], np.float32)
    labels = np.array([1, -1])
    logits = normal(1, 3, 3)
    losses = jax.jit(jax.value_and_grad(_total, argnums=1, has_aux=True), static_argnums=4)
    (_, parts), slope = losses(logits, boxes, true, labels, config)
    # The second query is nearest; it is twice as high as the object.
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    weights, wanted = np.array([0.1, 1, 0.1]), [0, 2, 0]
    expected = -(weights * log_p[np.arange(3), wanted]).sum()
    assert parts["class"].total == pytest.approx(2 * expected, rel=1e-5)
    assert parts["class"].count == pytest.approx(1.2)
    assert parts["box"].total == pytest.approx(5 * 0.1, rel=1e-5)
    assert parts["overlap"].total == pytest.approx(2 * 0.5, rel=1e-4)
    assert parts["box"].count == parts["overlap"].count == 1
    assert np.abs(slope[1]).max() > 0
    assert not np.asarray(slope)[[0, 2]].any()
    # A image without objects: every query is to say so, and nothing else counts.
    (_, parts), slope = losses(logits, boxes, true, np.array([-1, -1]), config)
    assert parts["class"].total == pytest.approx(-0.2 * log_p[:, 0].sum(), rel=1e-5)
    assert parts["box"].total == parts["box"].count == parts["overlap"].total == 0
    assert not slope.any()


def _total(logits, boxes, true, labels, config):
    weights = {name: getattr(config, name) for name in LOSS_WEIGHTS}
    parts = set_losses(logits, boxes, true, labels, **weights)
    return sum(part.total for part in parts.values()), parts


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_size": 30}, "model_size: got 30, expected a multiple of 4 and of num_heads=8"),
        ({"queries": 0}, "queries: got 0, expected at least 1"),
        ({"dropout_rate": 1.0}, "dropout_rate: got 1.0"),
        ({"box_weight": -1.0}, "box_weight: got -1.0, expected at least 0"),
        ({"no_object_weight": 2.0}, "no_object_weight: got 2.0"),
    ],
)
def test_impossible_configs_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DETRConfig(**fields)
