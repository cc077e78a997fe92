"""Train steps on tiny sizes, without torch."""

import json
import subprocess
import sys

import pytest

from benchmarks import recurrent_step
from tests.attention.test_registry import ROOT


def test_batches_end_where_they_say():
    for batch in recurrent_step.batches(4, 6, 2):
        for side in ("source", "target"):
            rows = batch[side]
            last = (rows != 0).sum(1) - 1
            assert (rows[range(4), last] == recurrent_step.VOCABULARY + 1).all()
            assert ((rows != 0).sum(1) >= 3).all()


@pytest.mark.slow
def test_a_row_for_the_page(tmp_path):
    file = tmp_path / "cpu.json"
    options = ["--models=recurrent", "--batch_size=2", "--rounds=1", "--seconds=0"]
    options += ["--nocompiled", "--readme", f"--json={file}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_step", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["train_step"]["rows"]
    assert row["model"] == "recurrent"
    assert row["ways"]["here"]["milliseconds"] > 0
    assert "## Train steps: cpu" in (tmp_path / "README.md").read_text()
