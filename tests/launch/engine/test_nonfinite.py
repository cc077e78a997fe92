"""Non-finite losses and gradients: detection of the step, saved batch, skipped steps; signals."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.sequence_copy import get_config
from launch.engine import config as configs
from launch.engine import loop, nonfinite
from launch.engine import steps as engine
from launch.engine.errors import Interrupted
from launch.engine.writers import read_lines
from launch.runs.run import run
from tasks.common.data.paths import Paths
from tasks.common.data.pipeline import numbered_batches
from tasks.common.errors import UserError
from tasks.sequence_copy.task import SequenceCopy

# 40 examples in batches of 8 are 5 steps per epoch, so every example occurs once in steps 1 to 5.
EXAMPLE = 7


@pytest.fixture
def train(tmp_path):
    """Trains a tiny model for 10 steps in a directory, with changed keys of the training."""

    def trained(folder, **training):
        config = get_config("dot")
        config.data.max_length = 5
        config.data.update(train_size=40, validation_size=24, test_size=24)
        config.model.state_size = 8
        config.training.update(
            **{"steps": 10, "batch_size": 8, "evaluation_batch_size": 8, "evaluate_every": 4,
               "log_every": 2, **training}
        )  # fmt: skip
        experiment = configs.resolve(config.to_dict())
        paths = Paths(tmp_path / "data", tmp_path / "cache", None)
        return run(experiment, tmp_path / folder, paths, "command", with_baselines=False)

    return trained


def poison(monkeypatch, change):
    """Adds to the loss of batches with `EXAMPLE` the result of a function of the model."""
    loss = SequenceCopy.loss

    def poisoned(self, model, batch, dropout_key):
        value, metrics = loss(self, model, batch, dropout_key)
        here = jnp.any(batch["id"] == EXAMPLE).astype(jnp.float32)
        return value + change(model, here), metrics

    monkeypatch.setattr(SequenceCopy, "loss", poisoned)


def nan_loss(model, here):
    return jnp.log(1 - 2 * here)


def nan_gradient(model, here):
    """Returns 0, whose derivative by the kernel is 0 times infinity."""
    kernel = model.decoder.classify.kernel[...]
    return jax.lax.cond(here > 0, lambda x: jnp.sqrt(0 * x.sum()), lambda x: 0.0, kernel)


def train_losses(folder):
    lines = read_lines(folder / "metrics.jsonl")
    return {line["step"]: line.get("loss") for line in lines if line["split"] == "train"}


@pytest.mark.parametrize(
    ("change", "found", "parameter"),
    [
        (nan_gradient, "gradient of decoder/classify/kernel: not finite at step {};",
         "decoder/classify/kernel"),
        pytest.param(nan_loss, "loss: got nan at step {}, expected a finite number;", None,
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_first_bad_step_is_named_and_saved(
    change, found, parameter, train, tmp_path, monkeypatch
):
    poison(monkeypatch, change)
    with pytest.raises(UserError) as stopped:
        train("run")
    (step,) = nonfinite.saved_steps(tmp_path / "run")
    message = str(stopped.value)
    assert message.startswith(f"{found.format(step)} python -m launch.replay --workdir=")
    assert "\n" not in message
    assert step <= 5
    place = tmp_path / "run" / nonfinite.FOLDER / f"step-{step}"
    record, batch = json.loads((place / nonfinite.RECORD).read_text()), np.load(place / "batch.npz")
    # Of the 8 examples of the batch one is the poisoned one.
    assert EXAMPLE in batch["id"]
    assert record["examples"] == batch["id"].tolist()
    assert parameter is None or record["first_nonfinite_gradient"] == parameter
    assert (record["loss"] == "nan") == (change is nan_loss)
    # The newest checkpoint before the step is kept: one of step 4, or none.
    assert record["checkpoint"] == (4 if step == 5 else 0)
    assert (place / "checkpoints" / "4").exists() == (step == 5)


@pytest.mark.slow
def test_skipped_steps_are_counted_and_change_nothing(train, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    poison(monkeypatch, nan_loss)
    record = train("run", on_nan="skip", log_every=1)
    # Two epochs of 5 steps have the example once each.
    assert record["training"]["skipped_steps"] == 2
    assert "Skipped 2 of 10 steps" in (folder / "report.html").read_text()
    first, second = nonfinite.saved_steps(folder)
    assert first <= 5 < second
    losses = train_losses(folder)
    assert [step for step, loss in losses.items() if loss is None] == [first, second]
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    # Without the poison, the steps before the first skipped one are the same, bit for bit.
    monkeypatch.undo()
    train("clean", steps=5, log_every=1)
    clean = train_losses(tmp_path / "clean")
    assert {step: losses[step] for step in range(1, first)} == {
        step: clean[step] for step in range(1, first)
    }


def test_a_skipped_step_leaves_the_state_and_the_next_one_does_not(tmp_path):
    config = configs.load_file("configs/sequence_copy.py")
    changes = {"data.train_size": 8, "data.validation_size": 1, "data.test_size": 1,
               "data.max_length": 4, "model.state_size": 4, "training.on_nan": "skip",
               "training.batch_size": 8}  # fmt: skip
    config = configs.override(config, changes)
    paths = Paths(tmp_path / "data", tmp_path / "cache", None)
    task = SequenceCopy.prepare(config.data, config.model, paths)
    steps = engine.make_steps(task, config)
    good = numbered_batches(task.examples("train"), batch_size=8, seed=0, buckets=task.buckets)(0)
    bad = {**good, "weight": np.full(8, np.nan, np.float32)}
    state, rows, states = steps.init(), [], []
    for batch in (good, bad, good):
        state, metrics = steps.train(state, steps.place(batch))
        rows.append(jax.device_get(metrics))
        states.append(jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, states[0], states[1])
    assert int(states[2]["step"]) == 2
    guard = nonfinite.Guard(tmp_path, config, steps.abstract_state, lambda step: bad)
    finite = guard.finite(3, rows)
    assert [float(row["loss"]) for row in finite] == [
        float(rows[0]["loss"]),
        float(rows[2]["loss"]),
    ]
    assert loop._means(finite, 3)["skipped_steps"] == 1
    assert nonfinite.saved_steps(tmp_path) == [2]


@pytest.mark.slow
def test_too_many_consecutive_skips_stop_the_run(train, tmp_path, monkeypatch):
    poison(monkeypatch, lambda model, here: jnp.log(-1.0))
    with pytest.raises(UserError, match=r"loss: got nan at step 3, .* the last of 3 consecutive"):
        train("run", on_nan="skip", max_consecutive_skips=3)
    assert nonfinite.saved_steps(tmp_path / "run") == [1, 2, 3]


def test_a_parameter_that_an_update_made_infinite_is_not_saved(tmp_path):
    config = configs.load_file("configs/sequence_copy.py")
    guard = nonfinite.Guard(tmp_path, config, {}, lambda step: {})
    state = {"params": {"a": jnp.ones(2), "b": {"kernel": jnp.array([1.0, jnp.inf])}},
             "statistics": {}}  # fmt: skip
    with pytest.raises(UserError, match=r"^params/b/kernel: not finite after step 7"):
        guard.check(7, state)
    guard.check(7, {"params": {"a": jnp.ones(2)}, "statistics": {}})


def test_what_to_do_is_no_part_of_the_identity():
    config = configs.load_file("configs/sequence_copy.py")
    changes = {"training.on_nan": "skip", "training.max_consecutive_skips": 3}
    assert configs.identity(configs.override(config, changes)) == configs.identity(config)
    with pytest.raises(UserError, match=r"on_nan: got 'ignore', expected one of 'stop', 'skip'"):
        configs.override(config, {"training.on_nan": "ignore"})


@pytest.mark.slow
def test_a_stopped_run_is_resumed_with_skip(train, tmp_path, monkeypatch):
    poison(monkeypatch, nan_loss)
    with pytest.raises(UserError):
        train("run")
    train("run", on_nan="skip")
    train("whole", on_nan="skip")
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_a_signal_stops_after_the_step_and_the_resumed_log_is_the_same(
    train, tmp_path, monkeypatch
):
    """The signal comes during step 3, between two log lines."""
    train("whole", log_every=4)
    place = loop.Steps.place
    calls = []

    def placed(self, batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(self, batch)

    monkeypatch.setattr(loop.Steps, "place", placed)
    with pytest.raises(Interrupted, match="stopped after step 3"):
        train("run", log_every=4)
    monkeypatch.undo()
    assert (tmp_path / "run/checkpoints/3").is_dir()
    train("run", log_every=4)
    logs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole")]
    assert logs[0] == logs[1]
