"""Classification figures against hand computations."""

import numpy as np
import pytest

from tasks.common.metrics.classification import classification_metrics

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
