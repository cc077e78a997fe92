"""Choice of the examples of a report: kinds, numbers, seed."""

import collections
import math

import numpy as np
import pytest

from launch.engine.evaluation import Evaluation
from launch.reporting.examples import choose
from tasks.figures import Shown


class Task:
    """A task with given scores and confidences."""

    primary_metric = "accuracy"
    drawn_examples = 8

    def __init__(self, scores, confidence=None, higher_is_better=True):
        self.scores, self.higher_is_better = np.asarray(scores, float), higher_is_better
        self.confidence = [None] * len(scores) if confidence is None else confidence

    def example_scores(self, outputs, split):
        return self.scores

    def scored_examples(self, split):
        return 100 + np.arange(len(self.scores))

    def predictions(self, outputs, split, ids=None, scores=None):
        return [{"id": f"{n:016x}", "confidence": c} for n, c in enumerate(self.confidence)]


def kinds(choice):
    return dict(collections.Counter(example.kind for example in choice.shown))


def made(*arguments, seed=0):
    task = Task(*arguments)
    return task, choose(task, Evaluation({}, {}, {}), "test", seed)


def test_correct_wrong_and_uncertain_examples():
    rng = np.random.default_rng(0)
    scores, confidence = rng.integers(0, 2, 500), rng.uniform(0.5, 1, 500)
    task, choice = made(scores, confidence.tolist())
    assert kinds(choice) == {"correct": 3, "wrong": 3, "uncertain": 2}
    rows = {example.index - 100: example.kind for example in choice.shown}
    assert len(rows) == 8
    for row, kind in rows.items():
        assert kind == "uncertain" or kind == ("correct" if scores[row] else "wrong")
    assert {row for row in rows if rows[row] == "uncertain"} == set(np.argsort(confidence)[:2])
    assert all(example.id == f"{example.index - 100:016x}" for example in choice.shown)
    assert choice.note == (
        "Of the 500 examples of the test split: 3 correct, 3 wrong and 2 with the lowest "
        "confidence; drawn at random with seed 0. The ids are those of predictions-test.csv."
    )
    again, other = (choose(task, Evaluation({}, {}, {}), "test", seed) for seed in (0, 1))
    assert again == choice
    assert {e.index for e in other.shown} != {e.index for e in choice.shown}


def test_missing_kinds_are_replaced():
    _, choice = made([1, 1, 1, 1, 1, 0], [0.9, 0.8, 0.7, 0.9, 0.95, None])
    assert kinds(choice) == {"correct": 3, "wrong": 1, "uncertain": 2}
    _, choice = made(np.ones(100))
    assert kinds(choice) == {"correct": 8}
    assert "8 correct; drawn" in choice.note
    _, choice = made(np.zeros(3))
    assert kinds(choice) == {"wrong": 3}


def test_error_rates_are_correct_or_wrong():
    errors = np.array([0.0] * 20 + [0.5, 1.0, 2.0] * 10)
    _, choice = made(errors, None, False)
    assert kinds(choice) == {"correct": 4, "wrong": 4}


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_graded_scores_have_quarters(higher_is_better):
    scores = np.random.default_rng(0).normal(size=400)
    _, choice = made(scores, [math.nan] * 400, higher_is_better)
    assert kinds(choice) == {"best quarter": 3, "worst quarter": 3, "middle half": 2}
    goodness = scores if higher_is_better else -scores
    ranks = np.argsort(np.argsort(-goodness))
    for example in choice.shown:
        quarter = ranks[example.index - 100] // 100
        name = ["best quarter", "middle half", "middle half", "worst quarter"][quarter]
        assert example.kind == name
    assert "The score is the contribution to accuracy." in choice.note


def test_captions_name_the_example():
    assert Shown(3).caption("test") == "test example 3"
    assert Shown(3, "wrong", "00ff").caption("test") == "wrong: test example 3 (id 00ff)"
    assert Shown(3, "wrong", "00ff").caption("test", "a.png") == "wrong: a.png (id 00ff)"
