"""Heads: losses and scores compared with SciPy and scikit-learn, quantiles, and missing values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error

from tasks.forecasting.models.heads import HEADS, LEVELS
from tasks.forecasting.models.lag import LagConfig

RNG = np.random.default_rng(0)
B, F, C = 2, 3, 2
FUTURE = RNG.normal(size=(B, F, C)).astype(np.float32)
VALID = np.ones((B, F, C), bool)
LEVEL, SCALE = RNG.normal(size=(B, 1, C)), RNG.uniform(0.5, 2, size=(B, 1, C))


def placed(name):
    head = HEADS[name]
    raw = RNG.normal(size=(B, F, C, head.size)).astype(np.float32)
    return head, np.asarray(head.place(jnp.asarray(raw), LEVEL, SCALE))


@pytest.mark.parametrize(
    ("name", "metric"), [("point", mean_squared_error), ("median", mean_absolute_error)]
)
def test_numbers_beside_scikit_learn(name, metric):
    head, parameters = placed(name)
    assert parameters.shape == (B, F, C, 1)
    point = np.asarray(head.point(parameters))
    expected = metric(FUTURE.ravel(), point.ravel())
    np.testing.assert_allclose(head.loss(parameters, FUTURE, VALID), expected, rtol=1e-5)
    np.testing.assert_allclose(
        np.mean(head.crps(parameters, FUTURE)),
        mean_absolute_error(FUTURE.ravel(), point.ravel()),
        rtol=1e-5,
    )
    with pytest.raises(
        ValueError, match=rf"levels: got \[0.5\], expected no levels, because head='{name}'"
    ):
        head.quantiles(parameters, [0.5])


def test_normal_scores_give_the_quantiles_of_their_levels():
    levels = np.array([0.1, 0.25, 0.5, 0.83, 0.9])
    for name in ("quantile", "student_t"):
        head, parameters = placed(name)
        scores = np.broadcast_to(stats.norm.ppf(levels)[:, None, None, None], (5, B, F, C))
        repeated = jnp.broadcast_to(parameters, (5, *parameters.shape))
        found = jax.jit(head.at_scores)(repeated, jnp.asarray(scores, jnp.float32))
        expected = np.moveaxis(head.quantiles(parameters, levels), -1, 0)
        exact = np.array([0, 2, 4] if name == "quantile" else range(5))
        np.testing.assert_allclose(found[exact], expected[exact], rtol=1e-3, atol=1e-4)
        assert np.all(np.diff(found, axis=0) > 0)


def test_normal_scores_reach_the_tails():
    # A normal distribution's nine levels tell its tails: mean 3, deviation 2.
    nine = 3 + 2 * stats.norm.ppf(np.array(LEVELS))
    scores = np.array([-4.0, -1.0, 0.3, 4.0], np.float32)
    parameters = jnp.broadcast_to(jnp.asarray(nine, jnp.float32), (4, 9))
    np.testing.assert_allclose(
        HEADS["quantile"].at_scores(parameters, scores), 3 + 2 * scores, 1e-5
    )
    np.testing.assert_allclose(HEADS["quantile"].width(parameters), 2, rtol=1e-5)
    at_scores = jax.jit(HEADS["student_t"].at_scores)
    for freedom in (2.1, 4.0, 50.0, 1e7):
        parameters = jnp.broadcast_to(jnp.array([3.0, 2.0, freedom]), (4, 3))
        expected = stats.t.ppf(stats.norm.cdf(scores.astype(float)), freedom, 3, 2)
        found = at_scores(parameters, scores)
        np.testing.assert_allclose(found, expected, rtol=2e-3)
        np.testing.assert_allclose(HEADS["student_t"].width(parameters), 2, rtol=1e-6)


def test_quantiles_beside_scikit_learn():
    head, parameters = placed("quantile")
    assert (np.diff(parameters, axis=-1) > 0).all()
    expected = [
        mean_pinball_loss(FUTURE.ravel(), parameters[..., i].ravel(), alpha=level)
        for i, level in enumerate(LEVELS)
    ]
    loss = head.loss(parameters, FUTURE, VALID)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    np.testing.assert_allclose(np.mean(head.crps(parameters, FUTURE)), 2 * loss, rtol=1e-5)
    np.testing.assert_array_equal(head.point(parameters), parameters[..., 4])
    found = head.quantiles(parameters, [0.1, 0.25, 0.9])
    between = (parameters[..., 1] + parameters[..., 2]) / 2
    expected = np.stack([parameters[..., 0], between, parameters[..., 8]], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"expected levels from 0\.1 to 0\.9 for head='quantile'"):
        head.quantiles(parameters, [0.05])


def test_student_t_beside_scipy():
    head, parameters = placed("student_t")
    location, scale, freedom = np.moveaxis(parameters.astype(np.float64), -1, 0)
    assert (scale > 0).all()
    assert (freedom > 2).all()
    distribution = stats.t(freedom, location, scale)
    loss = head.loss(parameters, FUTURE, VALID)
    np.testing.assert_allclose(loss, -np.mean(distribution.logpdf(FUTURE)), rtol=1e-5)
    found = head.quantiles(parameters, [0.05, 0.9])
    expected = np.stack([distribution.ppf(0.05), distribution.ppf(0.9)], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ValueError, match=r"levels: got \[1.0\], expected numbers between 0 and 1"):
        head.quantiles(parameters, [1])
    scores = np.asarray(head.crps(parameters, FUTURE))
    for place in [(0, 0, 0), (1, 2, 1)]:
        y, one = FUTURE[place], stats.t(freedom[place], location[place], scale[place])
        below, _ = integrate.quad(lambda x, one=one: one.cdf(x) ** 2, -np.inf, y)
        above, _ = integrate.quad(lambda x, one=one: one.sf(x) ** 2, y, np.inf)
        np.testing.assert_allclose(scores[place], below + above, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_the_windows_own_units_and_what_is_missing(name):
    head = HEADS[name]
    raw = np.zeros((B, F, C, head.size), np.float32)
    parameters = np.asarray(head.place(jnp.asarray(raw), LEVEL, SCALE))
    np.testing.assert_allclose(head.point(parameters), np.broadcast_to(LEVEL, (B, F, C)), rtol=1e-6)
    around = head.around(jnp.asarray(FUTURE), jnp.zeros((F, 1, head.size)), SCALE)
    np.testing.assert_array_equal(head.point(around), FUTURE)
    valid = VALID.copy()
    valid[1, 1:] = False
    spoilt = np.where(valid, FUTURE, np.nan)
    losses = np.asarray(head.losses(parameters, FUTURE))
    loss = head.loss(parameters, spoilt, valid)
    np.testing.assert_allclose(loss, losses[valid].mean(), rtol=1e-5)
    assert head.loss(parameters, spoilt, np.zeros_like(valid)) == 0


def test_an_unknown_head_is_named():
    assert LagConfig(head="quantile").head == "quantile"
    with pytest.raises(ValueError, match="head: got 'gauss', expected one of 'point', 'median'"):
        LagConfig(head="gauss")
