"""Benchmarks of input pipelines, of growth with sizes, and of exported programs."""

import itertools

import numpy as np
import pytest

from benchmarks import by_task, latency, pipelines, report, scaling
from benchmarks.steps import MODELS
from tests.attention.test_registry import ROOT
from tests.benchmarks.commands import rows_of

MACHINE = {"device": "cpu", "devices": 1, "processor": "x", "cores": 2, "load_before": 0.1,
           "python": "3", "versions": {}, "commit": "c"}  # fmt: skip


def page(name, row):
    section = {"machine": MACHINE, "command": "python -m x", "rows": [row]}
    return report.markdown({"cpu": {name: section}}, drawn=False)


def test_every_task_is_measured():
    assert set(by_task.TASKS) == {file.stem for file in (ROOT / "configs").glob("*.py")}
    assert {case.model for case in scaling.CASES.values()} <= MODELS.keys()


def test_padding_rows_are_not_counted():
    assert pipelines.count({"weight": np.array([1, 1, 0, 1], np.float32)}) == 3


def test_a_rate_is_of_all_examples_in_the_time(monkeypatch):
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(pipelines.time, "perf_counter", lambda: next(clock))
    # The time is read at 0, then every half second before a batch of 4.
    assert pipelines._rate(itertools.repeat(4), 2.0) == pytest.approx(3 * 4 / 2.0)


def test_exponents_are_those_of_the_larger_half():
    sizes = [10, 100, 1_000, 10_000]
    points = [{"size": n, "milliseconds": 50 + n**1.5, "grown": 7 * n} for n in sizes]
    found = scaling.exponents(points)
    assert found["time"] == pytest.approx(1.5, abs=0.01)
    assert found["memory"] == 1.0
    assert scaling.exponents(points[:1]) == {}


@pytest.mark.parametrize(("peak", "word"), [(7_000_000_000, "met"), (9_000_000_000, "not met")])
def test_the_table_of_growth_says_whether_the_target_is_met(peak, word):
    points = [{"size": 1_000, "milliseconds": 2.0, "grown": 3_000_000, "peak": peak}]
    row = {"case": "items", "what": "model", "size": "items", "target": 8e9, "points": points}
    text = page("scaling", row | {"exponents": {"time": 1.0, "memory": 0.5}})
    assert "| model | items | 1,000 | 2 | 3 | 1.00 | 0.50 |" in text
    assert f"(at most 8,000 MB: {word})" in text


@pytest.mark.parametrize(("rate", "word"), [(310.0, "met"), (290.0, "not met")])
def test_the_table_of_pipelines_says_whether_the_target_is_met(rate, word):
    row = {"task": "t", "config": "configs/t.py", "batch_size": 8, "target": 3.0}
    text = page("pipelines", row | {"pipeline": rate, "step": 100.0})
    assert f"{rate / 100:.1f} (at least 3: {word})" in text


def test_the_table_of_exports_has_a_row_for_each_program():
    programs = [
        {"sizes": {"length": 16}, "p50": 1.5, "p90": 2.0},
        {"sizes": {}, "p50": 3, "p90": 4},
    ]
    row = {"task": "t", "config": "configs/t.py", "model": "m", "programs": programs}
    text = page("latency", row)
    assert "| t | `configs/t.py` | m | length 16 | 1.5 | 2 |" in text
    assert "| t | `configs/t.py` | m |  | 3 | 4 |" in text
    assert "length=16" in latency.show(row)


@pytest.mark.slow
def test_a_row_of_each_benchmark(tmp_path):
    file = tmp_path / "cpu.json"
    (row,) = rows_of("pipelines", file, "--tasks=sequence_copy", "--seconds=0.1")
    assert row["pipeline"] > 0
    assert row["step"] > 0
    (row,) = rows_of("latency", file, "--tasks=sequence_copy", "--rounds=2")
    assert all(one["p90"] >= one["p50"] > 0 for one in row["programs"])
    (row,) = rows_of("scaling", file, "--cases=batch", "--largest=64", "--seconds=0", "--readme")
    assert [one["size"] for one in row["points"]] == [16, 64]
    assert all(one["peak"] > one["grown"] > 10e6 for one in row["points"])
    written = (tmp_path / "README.md").read_text()
    for title in ("Input pipelines", "Growth of train steps", "Latency of exports"):
        assert f"## {title}: cpu" in written
