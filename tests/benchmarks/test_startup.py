"""Seconds to the first steps of a command."""

import json

import pytest

from benchmarks import report, startup
from benchmarks.steps import MODELS
from tasks.common.errors import UserError
from tests.benchmarks.commands import rows_of


def test_every_peer_is_a_model():
    assert {each.peer for each in startup.MODELS.values()} <= MODELS.keys()


def test_table_says_which_targets_are_met():
    here = {"cold 1": 9.0, "cold 10": 12.0, "warm 1": 5.0, "warm 10": 6.0}
    row = {
        "model": "classifier",
        "what": "configs/a.py",
        "targets": {"cold": 10, "warm": 4},
        "ways": {"here": here, "torch": {"cold 1": 7.0, "warm 1": 7.5}},
    }
    machine = {"device": "cpu", "devices": 1, "processor": "x", "cores": 2, "load_before": 0.1,
               "python": "3", "versions": {}, "commit": "c"}  # fmt: skip
    section = {"machine": machine, "command": "python -m x", "rows": [row], "rounds": 3}
    text = report.markdown({"cpu": {"startup": section}}, drawn=False)
    assert "9.0 (at most 10: met)" in text
    assert "5.0 (at most 4: not met)" in text
    assert "Number of rounds, whose medians are shown: 3." in text
    # There is no time of compiled PyTorch.
    assert text.count("| 7.5 | - |") == 1


@pytest.mark.slow
def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(UserError, match=r"launch\.train .* ended after .*no_such_config"):
        startup.first_steps("configs/no_such_config.py", tmp_path / "run", {})


@pytest.mark.slow
def test_a_row_for_the_page(tmp_path):
    file = tmp_path / "cpu.json"
    (row,) = rows_of("startup", file, "--models=language_model", "--rounds=1")
    here = row["ways"]["here"]
    assert 0 < here["warm 1"] <= here["warm 10"]
    assert here["cold 1"] <= here["cold 10"]
    assert json.loads(file.read_text())["startup"]["machine"]["device"] == "cpu"
