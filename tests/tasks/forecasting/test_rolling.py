"""Weights that are fitted on the training split alone."""

import dataclasses

import numpy as np
import pytest
from scipy.optimize import minimize

from tasks.forecasting import baselines, rolling
from tasks.forecasting.models.ridge import RidgeSeasonalConfig
from tests.tasks.forecasting.test_baselines import composed


@pytest.fixture
def data():
    return composed(time=700, missing=0.05)


def longer(data, end=600):
    bounds = {"train": (0, end), "validation": (end, end + 40), "test": (end + 40, 700)}
    return dataclasses.replace(data, bounds=bounds)


def test_origins_roll_within_train(data):
    parts = [part.bounds for part in rolling.rolling_origins(longer(data))]
    assert parts[0] == {"train": (0, 240), "validation": (240, 300), "test": (300, 360)}
    assert parts[-1] == {"train": (0, 480), "validation": (480, 540), "test": (540, 600)}
    assert len(parts) == 5
    assert not list(rolling.rolling_origins(longer(data, end=60)))


def test_weights_of_seasons_are_the_best_that_sum_to_at_most_one(data):
    data = dataclasses.replace(longer(data), lookback=20)
    weights = rolling.fit_seasons(data, season=6, level="mean")
    assert weights.shape == (1, 3)
    assert weights.min() >= 0
    assert weights.sum() <= 1 + 1e-6

    rows = []
    for _, past, valid, future, future_valid in baselines.window_batches(data, "train", 3):
        base = baselines.level_of(past, valid, "mean")[:, None]
        over = np.where(valid, past - base, 0)[:, 2:].reshape(-1, 3, 6, 2)[:, ::-1, :4]
        rows.append((np.moveaxis(over, 1, -1)[future_valid], (future - base)[future_valid]))
    x, y = (np.concatenate(part).astype(np.float64) for part in zip(*rows, strict=True))

    def error(w):
        return np.mean(np.square(y - x @ w))

    found = minimize(
        error,
        np.full(3, 0.2),
        method="SLSQP",
        bounds=[(0, 1)] * 3,
        constraints={"type": "ineq", "fun": lambda w: 1 - w.sum()},
        options={"ftol": 1e-12},
    )
    np.testing.assert_allclose(weights[0], found.x, atol=1e-3)
    assert error(weights[0]) == pytest.approx(found.fun, rel=1e-5)


def test_share_is_the_best_of_those_tried_within_train(data, capsys):
    data, config = longer(data), RidgeSeasonalConfig()
    share = rolling.fit_share(data, config)
    printed = f"config.model.share: {share:.2f}, fitted within the train split"
    assert printed in capsys.readouterr().err

    def error(share):
        total = 0.0
        for part in rolling.rolling_origins(data):
            ridge = baselines.fit_linear(part)
            weights = rolling.fit_seasons(part, 6, "mean")
            for _, past, valid, future, there in baselines.window_batches(part, "test", 3):
                base = baselines.level_of(past, valid, "mean")[:, None]
                seasons = np.where(valid, past - base, 0).reshape(-1, 2, 6, 2)[:, ::-1, :4]
                seasonal = base + np.einsum("m,nmpc->npc", weights[0], seasons)
                forecast = (1 - share) * ridge(past, valid) + share * seasonal
                total += np.sum(np.square(forecast - future) * there)
        return total

    tried = np.clip(share + np.array([0, -0.05, 0.05]), 0, 1)
    assert np.argmin([error(value) for value in tried]) == 0
    # Values after the training split have no effect.
    later = dataclasses.replace(data, series=data.series + (np.arange(700) >= 600)[:, None])
    assert rolling.fit_share(later, config) == share


def test_a_short_train_split_says_that_it_cannot_tell(data, capsys):
    assert rolling.fit_share(longer(data, end=40), RidgeSeasonalConfig()) == 0.5
    assert "default, as the train split is too short to fit the weight" in capsys.readouterr().err
