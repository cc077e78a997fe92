"""Train steps on tiny sizes, without torch."""

import subprocess
import sys

import pytest

from benchmarks import train_choices
from benchmarks.steps import recurrent
from tests.attention.test_registry import ROOT
from tests.benchmarks.commands import rows_of


def test_batches_end_where_they_say():
    for batch in recurrent.batches(4, 6, 2):
        for side in ("source", "target"):
            rows = batch[side]
            last = (rows != 0).sum(1) - 1
            assert (rows[range(4), last] == recurrent.VOCABULARY + 1).all()
            assert ((rows != 0).sum(1) >= 3).all()


@pytest.mark.slow
def test_a_row_for_the_page(tmp_path):
    file = tmp_path / "cpu.json"
    options = ["--models=recurrent", "--batch_size=2", "--rounds=1", "--seconds=0"]
    options += ["--nocompiled", "--readme"]
    (row,) = rows_of("train_step", file, *options, timeout=300)
    assert row["model"] == "recurrent"
    assert row["ways"]["here"]["milliseconds"] > 0
    assert "## Train steps: cpu" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_choices_take_turns_in_processes_of_their_own(tmp_path):
    file = tmp_path / "cpu.json"
    options = ["--models=transformer", "--batch_size=4", "--rounds=1", "--seconds=0"]
    (row,) = rows_of("train_choices", file, *options, timeout=500)
    assert list(row["choices"]) == list(train_choices.CHOICES)
    for choice, one in row["choices"].items():
        assert one["milliseconds"] > 0, (choice, one)
        assert one["peak"] > 100e6


@pytest.mark.slow
def test_a_choice_that_a_model_lacks_is_told():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.train_choices", "--only=recurrent"),
            *("--batch_size=2", "--choice=rematerialization"),
        ],
        cwd=ROOT,
        input="",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "config.model.rematerialize: no such key" in done.stdout
