"""Repetition of a saved step: state, gradients and the operation that gives the first NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.engine import nonfinite
from launch.engine import state as states
from launch.runs import replaying
from launch.runs.replaying import Replay, replay
from tasks.common.data.paths import Paths
from tasks.common.errors import UserError
from tests.launch.engine.test_nonfinite import nan_gradient, poison, train

__all__ = ["train"]


@pytest.mark.slow
def test_a_saved_step_is_repeated_and_wrong_numbers_are_named(tmp_path, train, monkeypatch):
    paths = Paths(tmp_path / "data", tmp_path / "cache", None)
    poison(monkeypatch, lambda model, here: jnp.log(1 - 2 * here))
    with pytest.raises(UserError):
        train("run", evaluate_every=2)
    folder = tmp_path / "run"
    (step,) = nonfinite.saved_steps(folder)
    with pytest.raises(UserError, match=f"--step=99: is not saved, expected one of {step}"):
        replay(folder, 99, paths)
    lines = []
    found = replay(folder, None, paths, lines.append)
    assert found.step == step
    first = (step - 1) // 2 * 2
    source = f"the checkpoint of step {first}" if first else "the initial parameters"
    assert lines == [f"step {step}: {step - 1 - first} steps are repeated from {source}"]
    assert found.before == []
    assert str(found.loss) == "nan"
    # The loss is NaN by an added constant, so that no gradient is.
    assert found.gradients == []
    assert found.origin is not None
    assert (found.origin.kind, found.origin.primitive) == ("nan", "log")
    assert "test_replay.py" in found.origin.line
    (place,) = (folder / nonfinite.FOLDER).iterdir()
    (place / "batch.npz").write_bytes((place / "batch.npz").read_bytes()[:100])
    with pytest.raises(UserError, match=r"batch\.npz: cannot be read"):
        replay(folder, None, paths)


@pytest.mark.slow
def test_the_parameter_of_a_gradient_is_named(tmp_path, train, monkeypatch):
    paths = Paths(tmp_path / "data", tmp_path / "cache", None)
    poison(monkeypatch, nan_gradient)
    train("run", on_nan="skip")
    for step in nonfinite.saved_steps(tmp_path / "run"):
        found = replay(tmp_path / "run", step, paths)
        assert found.gradients == ["decoder/classify/kernel"]
        assert found.origin is not None
        assert found.origin.backward
        assert "test_nonfinite.py" in found.origin.line
        assert found.lines()[-1].startswith(f"verdict: step {step}: ")
    # Without the poison, the same step is finite.
    monkeypatch.undo()
    jax.clear_caches()
    found = replay(tmp_path / "run", None, paths)
    assert found.finite
    assert "is finite when repeated" in found.verdict


class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.second = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))


class Tiny:
    """Task whose loss has a NaN gradient by the second kernel, if an input is negative."""

    def build_model(self, rngs):
        return Model(rngs)

    def loss(self, model, batch, dropout_key):
        kernel = model.second.kernel[...]
        bad = jax.lax.cond(
            batch["x"].min() < 0, lambda k: jnp.sqrt(0 * k.sum()), lambda k: 0.0, kernel
        )
        return model(batch["x"]).mean() + bad, {}


def examine(x, change=None):
    """Examines step 7 of `Tiny` with a batch, and with changed parameters."""
    _, params, statistics = states.split_model(Model(nnx.Rngs(0)))
    if change:
        params["first"]["kernel"] = change(params["first"]["kernel"])
    state = {"params": params, "statistics": statistics, "step": jnp.asarray(6)}
    return replaying._examine(Tiny(), 0, state, {"x": np.array(x, np.float32)}, 7)


def test_the_parameter_is_named():
    found = examine([[1.0, -1.0]])
    assert found.gradients == ["second/kernel"]
    assert np.isfinite(found.loss)
    assert found.origin is not None
    assert found.origin.backward
    assert found.lines()[1:3] == [
        f"loss: {found.loss}",
        "gradients: not finite for 1 of 4 parameters: second/kernel",
    ]


def test_the_module_is_named():
    found = examine([[1.0, 3e38]], lambda kernel: kernel * 0 + 3e38)
    # The second layer subtracts infinite values of the first.
    assert found.origin is not None
    assert (found.origin.kind, found.origin.module) == ("nan", "second")
    assert found.origin.cause is not None
    assert (found.origin.cause.kind, found.origin.cause.module) == ("inf", "first")
    assert found.verdict.startswith("step 7: nan from operation dot_general in module second (")


def test_a_finite_step_and_a_state_that_was_not():
    assert examine([[1.0, 2.0]]).finite
    found = examine([[1.0, 2.0]], lambda kernel: kernel.at[0, 0].set(jnp.nan))
    assert found.verdict == "params/first/kernel is not finite before step 7"
    assert found.origin is None


def test_verdicts():
    assert Replay(3, ["params/a"], 1.0, [], 2, None).verdict == (
        "params/a is not finite before step 3"
    )
    assert Replay(3, [], 1.0, [], 2, None).finite
    assert not Replay(3, [], float("inf"), [], 2, None).finite
