"""Continuation of finished runs with more steps, and early stopping."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from configs.sequence_copy import get_config
from launch.engine import config as configs
from launch.engine import loop
from launch.engine.errors import Interrupted
from launch.runs.directory import load_variables, restored_task, saved_config
from launch.runs.run import run
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError


@pytest.fixture
def train(tmp_path, undrawn):
    """Trains a tiny model in a directory, with changed keys of training and optimizer."""

    def trained(folder, optimizer=(), **training):
        config = get_config("dot")
        config.data.max_length = 5
        config.data.update(train_size=40, validation_size=24, test_size=24)
        config.model.state_size = 8
        config.optimizer.update({"schedule": "constant", "average_decay": 0.9, **dict(optimizer)})
        config.training.update(
            batch_size=8, evaluation_batch_size=8, evaluate_every=2, log_every=1, **training
        )
        experiment = configs.resolve(config.to_dict())
        paths = Paths(tmp_path / "data", tmp_path / "cache", None)
        return run(experiment, tmp_path / folder, paths, "command", with_baselines=False)

    return trained


def variables(folder):
    config = saved_config(folder)
    steps, found, best = load_variables(restored_task(config, folder), config, folder)
    del steps
    return jax.device_get(found), best


def assert_same_run(one, other):
    """Compares logs and parameters bit for bit."""
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    (left, best), (right, other_best) = variables(one), variables(other)
    assert best == other_best
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"schedule": "cosine", "decay_steps": 4, "final_fraction": 0.1},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"schedule": "inverse_sqrt", "warmup_steps": 3}, marks=pytest.mark.slow),
    ],
    ids=["decay_steps", "constant", "inverse_sqrt"],
)
def test_a_continued_run_equals_an_uninterrupted_one(train, tmp_path, optimizer):
    short = train("continued", optimizer, steps=4)
    record, whole = train("continued", optimizer, steps=8), train("whole", optimizer, steps=8)
    assert_same_run(tmp_path / "continued", tmp_path / "whole")
    assert record["metrics"] == whole["metrics"]
    assert record["steps"] == whole["steps"]
    assert record["training"] == {"planned_steps": 8, "last_step": 8, "continued_from": [4]}
    assert whole["training"] == {"planned_steps": 8, "last_step": 8}
    # Both results are kept, and the same command does nothing.
    folder = tmp_path / "continued"
    assert json.loads((folder / "result-4.json").read_text()) == short
    assert "Continued from a finished run of 4 steps." in (folder / "report.html").read_text()
    assert train("continued", optimizer, steps=8) == record


@pytest.mark.slow
def test_a_continuation_that_is_interrupted_is_resumed(train, tmp_path, monkeypatch):
    train("continued", steps=4)
    validate = loop._validate

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    monkeypatch.setattr(loop, "_validate", interrupted)
    with pytest.raises(Interrupted):
        train("continued", steps=8)
    monkeypatch.undo()
    folder = tmp_path / "continued"
    assert not (folder / "result.json").exists()
    assert saved_config(folder).training.steps == 8
    record = train("continued", steps=8)
    train("whole", steps=8)
    assert_same_run(folder, tmp_path / "whole")
    assert record["training"]["continued_from"] == [4]
    assert train("continued", steps=10)["training"]["continued_from"] == [4, 8]


@pytest.mark.slow
def test_a_validation_that_the_longer_run_lacks_is_taken_back(train, tmp_path):
    train("continued", steps=5)
    assert {path.name for path in (tmp_path / "continued/checkpoints").iterdir()} >= {"4", "5"}
    train("continued", steps=8)
    train("whole", steps=8)
    assert_same_run(tmp_path / "continued", tmp_path / "whole")


@pytest.mark.parametrize(
    ("optimizer", "training", "later", "reason"),
    [
        (
            {"schedule": "cosine"}, {"steps": 4}, {"steps": 6},
            r"config\.optimizer\.schedule=cosine decays over all its steps; name another --workdir;"
            r" a run with the schedule constant or inverse_sqrt, or with "
            r"config\.optimizer\.decay_steps, can be continued$",
        ),
        (
            {"learning_rate": 1e-12}, {"steps": 8, "patience": 1}, {"steps": 10, "patience": 1},
            r"stopped early at step 4 of 10: .*; raise config\.training\.patience too, or name",
        ),
    ],
    ids=["schedule", "patience"],
)  # fmt: skip
def test_a_run_that_cannot_be_continued_is_named(
    train, tmp_path, optimizer, training, later, reason
):
    train("run", optimizer, **training)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    with pytest.raises(UserError, match=rf"run: contains a run of . steps, which .*: {reason}"):
        train("run", optimizer, **later)
    assert all(path.read_bytes() == content for path, content in before.items())
    with pytest.raises(UserError, match=r"differs in training\.steps; name another"):
        train("run", optimizer, **{**training, "steps": 2})


def test_early_stopping_is_reported(train, tmp_path, capsys):
    slow = {"learning_rate": 1e-12}
    record = train("run", slow, steps=20, patience=2)
    assert record["steps"] == 2
    assert record["training"] == {
        "planned_steps": 20, "last_step": 6, "patience": 2, "stopped_early": True,
    }  # fmt: skip
    line = (
        "stopped early at step 6 of 20: validation exact_match was best at step 2, and not better "
        "in the 2 evaluations after it (config.training.patience=2)"
    )
    assert line in capsys.readouterr().err.splitlines()
    sentence = (
        "Stopped early at step 6 of 20: no better validation exact_match in 2 evaluations after "
        "step 2."
    )
    assert sentence in (tmp_path / "run/report.html").read_text()


@pytest.mark.slow
def test_with_more_patience_a_run_goes_on_as_if_it_had_it_from_the_start(train, tmp_path):
    slow = {"learning_rate": 1e-12}
    train("run", slow, steps=20, patience=2)
    longer = train("run", slow, steps=20, patience=4)
    assert longer["training"]["last_step"] == 10
    train("whole", slow, steps=20, patience=4)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_without_a_terminal(train, tmp_path, capsys):
    record = train("run", steps=5, patience=9)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert "validation exact_match" in lines[1]
    assert "validation" not in lines[2]
    for line in lines:
        assert "  data wait " in line
        assert "  process memory " in line
        assert " left" in line
    assert record["training"] == {
        "planned_steps": 5, "last_step": 5, "patience": 9, "stopped_early": False,
    }  # fmt: skip
    assert "Not stopped early" in (tmp_path / "run/report.html").read_text()
    # The checkpoint of the last validation that a longer run has too.
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "4").rename(checkpoints / "lost")
    with pytest.raises(UserError, match=r"its last validation at step 5 is not at a multiple of "):
        train("run", steps=8, patience=9)


def test_a_decay_that_ends_before_the_last_step_is_named():
    config = get_config("dot")
    config.optimizer.update(schedule="cosine", warmup_steps=5, decay_steps=20)
    config.training.steps = 30
    with pytest.raises(UserError, match=r"training\.steps: got 30, expected at most 25, the steps"):
        configs.resolve(config.to_dict())
    config.optimizer.final_fraction = 0.1
    experiment = configs.resolve(config.to_dict())
    # Experiments of earlier versions, which lack the key, keep their identity.
    default = dataclasses.replace(
        experiment, optimizer=dataclasses.replace(experiment.optimizer, decay_steps=0)
    )
    values = configs.to_dict(default)
    del values["optimizer"]["decay_steps"]
    assert configs.identity(configs.resolve(values)) == configs.identity(default)
    assert configs.identity(default) != configs.identity(experiment)
