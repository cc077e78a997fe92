"""Generation benchmark on small sizes, and its part of the page."""

import json

import numpy as np
import pytest

from benchmarks import generation, generators, report
from tests.benchmarks.test_report import MACHINE


@pytest.fixture
def small(monkeypatch):
    """Shortens inputs and outputs."""
    monkeypatch.setattr(generators, "LENGTHS", {"translation": (4, 3), "language_model": (5, 4)})
    monkeypatch.setattr(generators, "VOCABULARIES", {"translation": 40, "language_model": 30})


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", list(generators.CONFIGS))
def test_generates_the_given_number_of_allowed_tokens(name):
    given = generators.problem(name, 2)
    for beams in (1, 2):
        tokens = generators.here(given, beams)()
        assert tokens.shape == (2, given.new)
        assert not np.isin(tokens, given.forbidden).any()


@pytest.mark.oracle
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", list(generators.CONFIGS))
@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_generates_the_same(name, beams):
    given = generators.problem(name, 3)
    wanted = generators.here(given, beams)()
    np.testing.assert_array_equal(generators.with_transformers(given, beams)(), wanted)


def way(rate, **more):
    times = {"milliseconds": 1e3 / rate, "milliseconds_range": [1e3 / rate] * 2}
    return {"tokens_per_second": rate, "equal": 1.0, **times, **more}


def test_page():
    row = {
        "model": "language_model",
        "batch": 32,
        "beams": 4,
        "lengths": [16, 48],
        "target": 0.67,
        "ways": {
            "here": way(20_000, over=1.0, over_range=[1.0, 1.0]),
            "transformers": way(10_000, over=0.5, over_range=[0.4, 0.6]),
            "CTranslate2": {"skipped": "is not installed"},
        },
    }
    section = {"machine": MACHINE, "command": "python -m benchmarks.generation", "rows": [row]}
    page = report.markdown({"cpu": {"generation": json.loads(json.dumps(section))}})
    assert "## Generation: cpu" in page
    assert (
        "| language model (16 + 48 tokens), batch 32, 4 beams | 20,000 | 0.50 (0.40 to 0.60) | "
        "100% | is not installed |  | 0.67: met |" in page
    )
    assert "language_model, batch 32, 4 beams\n" in generation.show(row)
