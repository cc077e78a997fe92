"""Checks of the explainers of tasks, as part of the task contract."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from launch.runs.explaining import Explaining
from tasks.explainer import Subject as Example
from tasks.explanation import Explanation


def check_explanations(subject: Any) -> None:
    """Checks explanations of an example of a split and of raw inputs."""
    explaining = Explaining(subject.task, subject.config, subject.steps, subject.variables)
    (example,) = explaining.of_split("test", [1])
    raw = ["i1; i2; i3"] if subject.name == "recommendation" else subject.raw[:1]
    for each in (example, *explaining.of_inputs(raw)):
        _check_score(explaining, each)
        found = explaining.explain(each)
        _check_shapes(found)
        _check_curves(explaining, found)
    assert found.target is None or subject.name == "language_modeling"
    # The same example gives the same explanation.
    again = explaining.explain(example)
    for one, other in zip(
        explaining.explain(example).attributions, again.attributions, strict=True
    ):
        np.testing.assert_array_equal(one.values, other.values)


def _check_score(explaining: Explaining, example: Example) -> None:
    """Gates of 1 change nothing, and gates of padding have no influence."""
    explainer, inputs = explaining.explainer, example.inputs
    real = explainer.positions(inputs)
    assert real.dtype == bool
    assert real.any()
    rng = np.random.default_rng(0)
    gates = np.ones((4, len(real)), np.float32)
    gates[1] = np.where(real, 1, 0)
    gates[2] = rng.integers(0, 2, len(real))
    gates[3] = np.where(real, gates[2], 1 - gates[2])
    target = explainer.target(example.outputs)
    scores = explaining.scorer.scores(inputs, target, gates)
    assert scores.shape == (4,)
    assert np.isfinite(scores).all(), scores
    np.testing.assert_allclose(scores[1], scores[0], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(scores[3], scores[2], rtol=2e-4, atol=2e-5)
    described = explainer.describe(example)
    if explainer.quantity == "probability of the prediction" and described.confidence is not None:
        shown = explainer.measure(scores[:1], float(scores[0]))
        np.testing.assert_allclose(shown[0], described.confidence, rtol=2e-3, atol=1e-4)


def _check_shapes(found: Explanation) -> None:
    """Maps and attributions fit their axes, and everything can be written as JSON."""
    assert found.attributions
    for each in found.maps:
        assert each.weights.ndim == 4, each.title
        assert np.isfinite(each.weights).all(), each.title
        sizes = [1 if name is None else len(found.axes[name].labels)
                 for name in (each.queries, each.keys)]  # fmt: skip
        assert list(each.weights.shape[2:]) == sizes, (each.title, each.weights.shape)
    for axis in found.axes.values():
        assert all(isinstance(label, str) for label in axis.labels)
        if axis.areas is not None:
            assert axis.areas.shape == (len(axis.labels), 4)
            assert (axis.areas >= 0).all()
            assert (axis.areas <= 1 + 1e-6).all()
    for each in found.attributions:
        assert each.values.shape == (len(found.axes[each.axis].labels),), each.method
        assert np.isfinite(each.values).all(), each.method
        json.dumps(dict(each.numbers), allow_nan=False)
    json.dumps([found.input, found.prediction, found.target, found.confidence], allow_nan=False)


def _check_curves(explaining: Explaining, found: Explanation) -> None:
    """Deleting everything is the same as inserting nothing, for every method."""
    by_name = {(curve.method, curve.kind): curve for curve in found.curves}
    for (method, kind), curve in by_name.items():
        assert curve.fractions[0] == 0
        assert curve.fractions[-1] == 1
        other = by_name[method, "insertion" if kind == "deletion" else "deletion"]
        np.testing.assert_allclose(curve.scores[-1], other.scores[0], rtol=2e-3, atol=2e-4)
        first = by_name["random", kind].scores
        np.testing.assert_allclose(curve.scores[[0, -1]], first[[0, -1]], rtol=2e-3, atol=2e-4)
