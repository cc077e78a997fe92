"""Intervals beyond the horizon: those of processes whose distributions are known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tasks.forecasting import paths
from tasks.forecasting.models.base import Forecaster, WindowSizes
from tasks.forecasting.models.heads import HEADS
from tasks.forecasting.paths import draw_paths, forecast_autoregressively, quantiles_beyond

L, F, S = 16, 14, 84
LEVELS = (0.1, 0.3, 0.7, 0.9)
NORMAL = 1.2815515655446004
REVERSION = 0.9


class Exact(Forecaster):
    """The true distribution of the F steps after the past of a process with unit innovations."""

    def __init__(self, process, head):
        super().__init__(WindowSizes(channels=1, lookback=L, horizon=F), HEADS[head])
        self.process = process

    def forecast(self, past, past_valid, calendar, mode):
        h = jnp.arange(1.0, F + 1)[:, None]
        last = past[:, -1:]
        point, width = {
            "walk": (last, jnp.sqrt(h)),
            "reverting": (last * REVERSION**h, _reverting(h)),
            "seasons": (past[:, L - 7 :][:, np.arange(F) % 7], jnp.sqrt(1 + (h - 1) // 7)),
            "noise": (0 * last, 0 * h + 1),
        }[self.process]
        point = jnp.broadcast_to(point, (len(past), F, 1))[..., None]
        if self.head.name == "quantile":
            scores = jnp.array(stats.norm.ppf(np.arange(1, 10) / 10), jnp.float32)
            return point + width[..., None] * scores, {}
        freedom = jnp.full(point.shape, 1e6)
        width = jnp.broadcast_to(width[..., None], point.shape)
        return jnp.concatenate([point, width, freedom], axis=-1), {}


def _reverting(h):
    return ((1 - REVERSION ** (2 * h)) / (1 - REVERSION**2)) ** 0.5


def batch(rows=1, steps=S):
    past = np.random.default_rng(0).normal(size=(rows, L, 1)).astype(np.float32)
    return {
        "past": jnp.asarray(past),
        "past_valid": jnp.ones((rows, L, 1), bool),
        "calendar": jnp.zeros((rows, L + steps, 0)),
    }


def bounds(process, head):
    """Quantiles of all S steps, [S, Q], as the task joins them, and the points [S]."""
    model = Exact(process, head)
    parameters = jax.jit(lambda b: forecast_autoregressively(model, b))(batch())
    within = model.head.quantiles(np.asarray(parameters[:, :F]), LEVELS)
    beyond = jax.jit(lambda b: quantiles_beyond(model, b, LEVELS))(batch())
    point = model.head.point(parameters)[0, :, 0]
    return np.concatenate([within, beyond], axis=1)[0, :, 0], np.asarray(point)


@pytest.mark.parametrize(
    ("process", "head"),
    [
        ("walk", "quantile"),
        ("reverting", "quantile"),
        ("seasons", "student_t"),
        pytest.param("noise", "quantile", marks=pytest.mark.slow),
        pytest.param("walk", "student_t", marks=pytest.mark.slow),
        pytest.param("reverting", "student_t", marks=pytest.mark.slow),
        pytest.param("seasons", "quantile", marks=pytest.mark.slow),
        pytest.param("noise", "student_t", marks=pytest.mark.slow),
    ],
)
def test_widths_are_those_of_the_process(process, head):
    found, point = bounds(process, head)
    h = np.arange(1, S + 1)
    deviation = {
        "walk": np.sqrt(h),
        "reverting": _reverting(h),
        "seasons": np.sqrt(1 + (h - 1) // 7),
        "noise": np.ones(S),
    }[process]
    wide, narrow = (found[:, 3] - found[:, 0]) / 2, (found[:, 2] - found[:, 1]) / 2
    np.testing.assert_allclose(wide, NORMAL * deviation, rtol=0.1)
    np.testing.assert_allclose(narrow, stats.norm.ppf(0.7) * deviation, rtol=0.15)
    np.testing.assert_allclose((found[:, 3] + found[:, 0]) / 2, point, atol=0.1 * wide[-1])
    if process == "walk":
        # 4.8 at step 14, 4.96 at step 15, 11.7 at step 84: it grows from block to block.
        assert wide[14] > wide[13]
        assert wide[83] == pytest.approx(11.75, rel=0.1)
        assert np.all(wide[14:] > wide[:-14])


def test_steps_hang_together_as_their_variances_grow():
    h = jnp.arange(1.0, F + 1)
    growing, constant = jnp.sqrt(h), jnp.ones(F)
    quantiles = stats.norm.ppf(np.arange(1, 10) / 10)
    draw = jax.jit(functools.partial(draw_paths, HEADS["quantile"]))
    for width, expected in ((growing, np.sqrt(2 / 8)), (constant, 0.0)):
        parameters = jnp.broadcast_to(width[:, None, None] * quantiles, (4096, F, 1, 9))
        drawn = draw(parameters, jax.random.key(1))
        assert drawn.shape == (4096, F, 1)
        # Of steps 2 and 8.
        assert np.corrcoef(drawn[:, 1, 0], drawn[:, 7, 0])[0, 1] == pytest.approx(
            expected, abs=0.04
        )
        np.testing.assert_allclose(drawn.std(axis=0)[:, 0], width, rtol=0.02)


def test_a_falling_variance_adds_nothing():
    quantiles = stats.norm.ppf(np.arange(1, 10) / 10)
    parameters = jnp.broadcast_to(
        jnp.array([3.0, 2.0, 1.0])[:, None, None] * quantiles, (4096, 3, 1, 9)
    )
    drawn = jax.jit(functools.partial(draw_paths, HEADS["quantile"]))(parameters, jax.random.key(1))
    np.testing.assert_allclose(drawn.std(axis=0)[:, 0], [3, 2, 1], rtol=0.02)
    assert abs(np.corrcoef(drawn[:, 0, 0], drawn[:, 2, 0])[0, 1]) < 0.04


def test_a_window_s_quantiles_do_not_depend_on_the_others(monkeypatch):
    model = Exact("walk", "quantile")
    many = batch(3, 3 * F) | {"weight": jnp.array([1.0, 0.0, 1.0])}
    together = jax.jit(lambda b: quantiles_beyond(model, b, LEVELS, count=64))(many)
    assert together.shape == (3, 2 * F, 1, 4)
    assert not np.any(together[1])
    last = {name: value[2:] for name, value in many.items()}
    monkeypatch.setattr(paths, "_VALUES", 16 * L)
    alone = jax.jit(lambda b: quantiles_beyond(model, b, LEVELS, count=64))(last)
    np.testing.assert_allclose(together[2], alone[0], rtol=1e-5)
    assert np.all(np.diff(alone, axis=-1) > 0)
