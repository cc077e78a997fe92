"""Figures against scikit-learn's confusion matrix, hand computations and distance transforms."""

import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics

from tasks.segmentation.metrics import (
    VOID,
    boundaries,
    boundary_f1,
    confusion_matrices,
    dilate,
    iou_contributions,
    segmentation_metrics,
)

RNG = np.random.default_rng(0)
CLASSES = 4
NAMES = ["sky", "Sign Symbol", "car", "tree"]


def maps(count=5, side=12):
    """Returns truth with void, and a prediction that is right for the most part."""
    truth = RNG.integers(0, CLASSES, (count, side // 3, side // 3))
    truth = truth.repeat(3, axis=1).repeat(3, axis=2).astype(np.uint8)
    predicted = np.where(RNG.random(truth.shape) < 0.2, RNG.integers(0, CLASSES), truth)
    truth[RNG.random(truth.shape) < 0.1] = VOID
    return truth, np.where(predicted == VOID, 0, predicted).astype(np.uint8)


def test_confusion_is_scikit_learns():
    truth, predicted = maps()
    found = confusion_matrices(truth, predicted, CLASSES)
    for index in range(len(truth)):
        real = truth[index] != VOID
        expected = sklearn.metrics.confusion_matrix(
            truth[index][real], predicted[index][real], labels=range(CLASSES)
        )
        np.testing.assert_array_equal(found[index], expected)


def test_iou_is_scikit_learns_jaccard_score():
    truth, predicted = maps()
    confusion = confusion_matrices(truth, predicted, CLASSES).sum(axis=0)
    metrics = segmentation_metrics(confusion, NAMES)
    real = truth != VOID
    expected = sklearn.metrics.jaccard_score(truth[real], predicted[real], average=None)
    keys = ["iou_sky", "iou_sign_symbol", "iou_car", "iou_tree"]
    np.testing.assert_allclose([metrics[key] for key in keys], expected, rtol=1e-12)
    np.testing.assert_allclose(metrics["mean_iou"], expected.mean(), rtol=1e-12)
    accuracy = sklearn.metrics.accuracy_score(truth[real], predicted[real])
    np.testing.assert_allclose(metrics["pixel_accuracy"], accuracy, rtol=1e-12)


def test_iou_by_hand_and_classes_that_are_nowhere():
    # Class 0: 3 right, 1 taken for 2. Class 2 is never true. Class 1 and 3 are nowhere.
    confusion = np.zeros((4, 4), int)
    confusion[0, 0], confusion[0, 2] = 3, 1
    metrics = segmentation_metrics(confusion, NAMES, "_clip")
    assert metrics == {
        "pixel_accuracy_clip": 0.75,
        "mean_iou_clip": 0.375,
        "iou_sky_clip": 0.75,
        "iou_car_clip": 0.0,
    }
    assert segmentation_metrics(np.zeros((4, 4)), NAMES) == {"pixel_accuracy": 0, "mean_iou": 0}


def test_contributions_are_derivatives_and_their_mean_is_the_mean_iou():
    truth, predicted = maps(count=6)
    confusions = confusion_matrices(truth, predicted, CLASSES)

    def figure(weights):
        return segmentation_metrics(np.tensordot(weights, confusions, 1), NAMES)["mean_iou"]

    found = iou_contributions(confusions)
    np.testing.assert_allclose(found.mean(), figure(np.ones(6)), rtol=1e-12)
    step = 1e-5
    for index in range(6):
        slope = (figure(1 + step * np.eye(6)[index]) - figure(1 - step * np.eye(6)[index])) / 2e-5
        np.testing.assert_allclose((found[index] - found.mean()) / 6, slope, atol=1e-8)
    np.testing.assert_array_equal(iou_contributions(np.zeros((2, 3, 3))), 0)


def test_dilation_is_a_distance():
    masks = RNG.random((3, 9, 11)) < 0.05
    for distance in (1, 2, 3):
        expected = [scipy.ndimage.distance_transform_edt(~mask) <= distance for mask in masks]
        np.testing.assert_array_equal(dilate(masks, distance), expected)


def test_boundaries_by_hand():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, VOID], [0, 0, 2, 2]])
    edges = boundaries(labels, [0, 1, 2])
    # The right column of 0, all of 1 except pixels that only touch void, and 2 next to 0 and 1.
    np.testing.assert_array_equal(edges[0], [[0, 1, 0, 0]] * 3)
    np.testing.assert_array_equal(edges[1], [[0, 0, 1, 0], [0, 0, 1, 0], [0] * 4])
    np.testing.assert_array_equal(edges[2], [[0] * 4, [0] * 4, [0, 0, 1, 0]])


def test_boundary_f1_by_distance_transforms():
    truth, predicted = maps(side=15)
    by_class = [[] for _ in range(CLASSES)]
    for true, found in zip(truth, predicted, strict=True):
        found = np.where(true == VOID, VOID, found)
        for k in np.setdiff1d(np.union1d(true, found), [VOID]):
            a, b = boundaries(true, [k])[0], boundaries(found, [k])[0]
            far = [scipy.ndimage.distance_transform_edt(~edge) for edge in (a, b)]
            recall = np.mean(far[1][a] <= 2) if b.any() and a.any() else 0.0
            precision = np.mean(far[0][b] <= 2) if a.any() and b.any() else 0.0
            both = precision + recall
            by_class[k].append(2 * precision * recall / both if both else float(a.sum() == 0))
    expected = np.mean([np.mean(values) for values in by_class])
    np.testing.assert_allclose(boundary_f1(truth, predicted, CLASSES), expected, rtol=1e-9)
    assert 0.2 < expected < 1


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        (np.eye(6, dtype=int), np.eye(6, dtype=int), 1.0),
        # One image of one class, and found so.
        (np.zeros((6, 6), int), np.zeros((6, 6), int), 1.0),
        (np.full((6, 6), VOID), np.zeros((6, 6), int), 0.0),
        # A class that is there and not found counts 0; the others have no boundary left.
        (np.tri(6, dtype=int), np.zeros((6, 6), int), 0.0),
    ],
)
def test_boundary_f1_of_what_is_equal_or_empty(truth, predicted, expected):
    assert boundary_f1([truth], [predicted], 2) == expected


def test_boundary_within_two_pixels_is_right():
    truth = np.repeat([[0] * 6 + [1] * 6], 8, axis=0)
    for moved, expected in ((2, 1.0), (3, 0.0)):
        predicted = np.repeat([[0] * (6 + moved) + [1] * (6 - moved)], 8, axis=0)
        assert boundary_f1([truth], [predicted], 2) == expected
