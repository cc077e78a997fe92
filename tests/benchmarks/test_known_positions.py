"""Attributions on synthetic data find the position that decides."""

import json

import numpy as np
import pytest

from benchmarks import known_positions
from launch.reporting import faithfulness_table
from tasks.explanation import Axis

# Lowest fraction of examples whose largest attribution is at the deciding position.
FOUND = 0.9


def test_marks():
    axis = Axis(
        "patch", ["a", "b", "b", "c"], np.array([[i / 4, 0, (i + 1) / 4, 1] for i in range(4)])
    )
    assert known_positions.labeled("b")(axis).tolist() == [False, True, True, False]
    mark = known_positions.overlapping((0.25, 0), (0.5, 1))
    assert mark(axis).tolist() == [False, True, False, False]
    mark = known_positions.overlapping((0.3, 0), (0.55, 1))
    assert mark(axis).tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", known_positions.CASES)
def test_deciding_positions_are_unique(name, tmp_path):
    """The label of training data follows from one position, and new inputs differ from them."""
    case = known_positions.CASES[name]
    assert case.write(tmp_path).exists()
    inputs = case.examples(tmp_path)
    assert len({text for text, _, _ in inputs}) == len(inputs) >= 50


def test_recorded_methods_find_them():
    record = json.loads(known_positions.TARGET.read_text(encoding="utf-8"))
    assert record["kind"] == faithfulness_table.KNOWN
    cases = record["cases"]
    assert list(cases) == list(known_positions.CASES)
    for name, case in cases.items():
        assert case["examples"] >= 50, name
        methods = case["methods"]
        assert max(methods[method] for method in methods if method != "random") >= FOUND, name
        # By chance alone, the deciding position is rarely the first.
        assert methods["random"] < 0.5, name


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("lag", "attention"), ("token", "occlusion")])
def test_methods_find_them(name, method, tmp_path):
    found = known_positions.measure(name, tmp_path)
    assert found["methods"][method] >= FOUND, found
    assert found["methods"]["random"] < 0.2, found
