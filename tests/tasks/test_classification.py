"""A classifier's answers, and decisions by thresholds."""

import types

import numpy as np
import pytest

from tasks.answers import AnswerOptions
from tasks.classification import ClassificationTask, classes_by_probability
from tasks.common.errors import UserError
from tasks.common.metrics.classification import classification_metrics, wilson_interval


def test_most_probable_first_and_the_first_of_equals():
    probabilities = np.array([[0.25, 0.5, 0.25], [0.4, 0.2, 0.4]])
    answers = classes_by_probability(["x", "y"], probabilities, ["a", "b", "c"], shown=2)
    assert [answer["label"] for answer in answers] == ["b", "a"]
    assert list(answers[0]["probabilities"].items()) == [("b", 0.5), ("a", 0.25), ("c", 0.25)]
    assert answers[0]["text"] == "b  b 0.5000  a 0.2500"
    assert answers[1]["input"] == "y"
    assert classes_by_probability([], np.zeros((0, 3)), ["a", "b", "c"]) == []


LABELS = ["eggs", "ham", "spam"]
PROBABILITIES = np.array(
    [
        [0.5, 0.3, 0.2],
        [0.05, 0.9, 0.05],
        [0.35, 0.34, 0.31],
        [0.1, 0.2, 0.7],
        [0.30004, 0.4, 0.29996],
    ]
)
TRUE = np.array([0, 1, 2, 2, 1])


class _Probabilities(ClassificationTask):
    """A classifier whose outputs are given."""

    data_config, model_configs = object, {}
    load = build_model = logits = None


_Probabilities.__abstractmethods__ = frozenset()


@pytest.fixture
def classifier():
    split = types.SimpleNamespace(labels=TRUE)
    processor = types.SimpleNamespace(
        labels=LABELS,
        decode=lambda raw, outputs: classes_by_probability(raw, outputs["probabilities"], LABELS),
    )
    dataset = types.SimpleNamespace(splits={"test": split})
    return _Probabilities(None, None, processor, dataset)


def test_labels_below_the_threshold_are_left_open(classifier):
    task = classifier.with_options(AnswerOptions(threshold=0.5, top_k=2))
    outputs = {"probabilities": PROBABILITIES}
    answers = task.answers("abcde", outputs)
    assert [answer["label"] for answer in answers] == ["eggs", "ham", None, "spam", None]
    assert answers[2]["probabilities"] == {"eggs": 0.35, "ham": 0.34}
    assert answers[2]["text"] == "(uncertain)  eggs 0.3500  ham 0.3400"
    assert answers[1]["text"] == "ham  ham 0.9000  eggs 0.0500"
    assert [task.rows(answer)[0]["confidence"] for answer in answers] == [0.5, 0.9, 0.35, 0.7, 0.4]
    # Of five, three have a label, and all three are right; in two guesses only the third is wrong.
    assert task.decided(outputs, "test") == {
        "top_2_accuracy": 0.8,
        "coverage": 0.6,
        "covered_accuracy": 1.0,
    }
    intervals = task.intervals(outputs, "test")
    assert intervals["coverage"] == wilson_interval(3, 5)
    assert intervals["covered_accuracy"] == wilson_interval(3, 3)


def test_a_positive_class_is_decided_from_the_threshold_on(classifier):
    options = AnswerOptions(threshold=0.3, positive="spam")
    task, outputs = classifier.with_options(options), {"probabilities": PROBABILITIES}
    answers = task.answers("abcde", outputs)
    # 0.29996 is printed as 0.3, and decided as printed.
    assert [answer["label"] for answer in answers] == ["eggs", "ham", "spam", "spam", "spam"]
    assert [task.rows(answer)[0]["confidence"] for answer in answers] == [0.5, 0.9, 0.31, 0.7, 0.3]
    found = task.decided(outputs, "test")
    predicted = [LABELS.index(answer["label"]) for answer in answers]
    expected = classification_metrics(TRUE, np.array(predicted), LABELS)
    for name in ("precision", "recall", "f1"):
        assert found[f"decided_{name}"] == pytest.approx(expected[f"{name}_spam"])
    assert found["decided_accuracy"] == pytest.approx(expected["accuracy"])
    assert all(task.describe_metric(name) for name in (*found, "coverage", "top_3_accuracy"))
    # Without a threshold it is one half, and another class is predicted below.
    task = classifier.with_options(AnswerOptions(positive="ham"))
    answers = task.answers("abcde", outputs)
    assert [answer["label"] for answer in answers] == ["eggs", "ham", "eggs", "spam", "eggs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positive": "SPAM"}, "--positive: got 'SPAM', expected one of the classes eggs, ham"),
        ({"threshold": 1.5}, "--threshold: got 1.5, expected a number from 0 to 1"),
        ({"threshold": float("nan")}, "--threshold: got nan"),
        ({"top_k": 0}, "--top_k: got 0, expected a number of 1 or more"),
    ],
)
def test_impossible_options_are_refused(classifier, options, message):
    with pytest.raises(UserError) as error:
        classifier.with_options(AnswerOptions(**options))
    assert message in str(error.value)
    assert classifier.options == AnswerOptions()
