"""Classification figures against hand computations."""

import numpy as np
import pytest
from scipy import stats

from tasks.common.metrics.classification import (
    classification_intervals,
    classification_metrics,
    wilson_interval,
)

# true \ predicted   a  b  c
#                a   3  1  0
#                b   0  2  1
#                c   1  0  0
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 0, 1, 1, 1, 2, 0])
NAMES = ("a", "b", "c")


def test_three_classes_by_hand():
    found = classification_metrics(LABELS, PREDICTIONS, NAMES)
    expected = {
        "accuracy": 5 / 8,
        "precision_a": 3 / 4,
        "recall_a": 3 / 4,
        "f1_a": 6 / 8,
        "precision_b": 2 / 3,
        "recall_b": 2 / 3,
        "f1_b": 4 / 6,
        "precision_c": 0,
        "recall_c": 0,
        "f1_c": 0,
        "macro_precision": (3 / 4 + 2 / 3) / 3,
        "macro_recall": (3 / 4 + 2 / 3) / 3,
        "macro_f1": (3 / 4 + 2 / 3) / 3,
        # Gorodkin 2004: (correct·n - Σ true_k·predicted_k) over the two norms, with true and
        # predicted counts both (4, 3, 1): (5·8 - 26) / (64 - 26).
        "mcc": 14 / 38,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
        assert type(found[name]) is float


def test_one_class_predicted_gives_zeros_and_no_warning():
    found = classification_metrics(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]), ("no", "yes"))
    assert found["accuracy"] == 0.75
    assert found["mcc"] == 0.0
    assert found["precision_yes"] == found["recall_yes"] == found["f1_yes"] == 0.0
    assert found["macro_f1"] == pytest.approx((6 / 7 + 0) / 2)


def test_a_class_that_nowhere_occurs_does_not_weigh_on_the_mean():
    found = classification_metrics(np.array([0, 2]), np.array([0, 2]), NAMES)
    assert found["macro_f1"] == found["macro_precision"] == found["macro_recall"] == 1.0
    assert found["f1_b"] == 0.0


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1], [0], r"predictions: got shape \(1,\)"),
        ([], [], "labels: got no examples"),
        ([0, 3], [0, 1], "labels: got classes 0 to 3, expected 0 to 2"),
        ([0, 1], [-1, 1], "predictions: got classes -1 to 1"),
    ],
)
def test_mistakes_are_named(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.array(labels, int), np.array(predictions, int), NAMES)


def test_probabilities_in_place_of_classes_are_refused():
    with pytest.raises(ValueError, match="predictions: got dtype float64"):
        classification_metrics(np.array([0, 1]), np.array([0.2, 0.8]), NAMES)


def test_intervals_are_those_of_resampled_examples():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 60)
    predictions = np.where(rng.random(60) < 0.7, labels, rng.integers(0, 3, 60))
    found = classification_intervals(labels, predictions, NAMES)
    resampled = [
        classification_metrics(labels[rows], predictions[rows], NAMES)
        for rows in rng.integers(0, 60, (400, 60))
    ]
    metrics = classification_metrics(labels, predictions, NAMES)
    assert found.keys() == metrics.keys()
    for name in metrics:
        low, high = found[name]
        assert low < metrics[name] < high
        if name == "accuracy":
            continue
        bounds = np.percentile([each[name] for each in resampled], (2.5, 97.5))
        np.testing.assert_allclose((low, high), bounds, atol=0.05, err_msg=name)


def test_a_perfect_classifier_has_an_interval_of_the_accuracy_alone():
    labels = np.repeat([0, 1], 20)
    found = classification_intervals(labels, labels, NAMES[:2])
    # Of n right answers: n / (n + 1.96²).
    assert found == {"accuracy": (pytest.approx(40 / (40 + 1.96**2)), 1.0)}


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (7, 20), (81, 263), (5, 5), (1, 1)])
def test_wilson_interval(hits, total):
    expected = stats.binomtest(hits, total).proportion_ci(0.95, "wilson")
    assert wilson_interval(hits, total) == pytest.approx(tuple(expected), abs=2e-5)
