"""Errors compared with scikit-learn, simple forecasts by hand, and published results."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error

from tasks.common.data.paths import Paths
from tasks.forecasting import baselines
from tasks.forecasting.data import DataConfig, ForecastingData, load
from tasks.forecasting.metrics import error_sums, forecast_metrics
from tests.tasks.public import needed

RNG = np.random.default_rng(0)


def composed(time=300, C=2, L=12, F=4, missing=0.0, noise=()):
    """Waves that wander, in three splits."""
    t = np.arange(time)[:, None]
    values = np.sin(2 * np.pi * t / 6 + np.arange(C)) + RNG.normal(0, 0.3, (time, C)).cumsum(0) / 3
    valid = RNG.random((time, C)) >= missing
    return ForecastingData(
        series=np.where(valid, values, 0).astype(np.float32),
        valid=valid,
        calendar=np.zeros((time, 0), np.float32),
        names=tuple("abcdefgh"[:C]),
        mean=np.zeros(C),
        std=np.ones(C),
        start=None,
        step=None,
        period=6,
        bounds={"train": (0, 200), "validation": (200, 240), "test": (240, 300)},
        lookback=L,
        horizon=F,
        noise=noise,
    )


def windows(data, split):
    parts = zip(*baselines.window_batches(data, split), strict=True)
    return [np.concatenate(part) for part in parts]


def test_metrics_are_those_of_scikit_learn():
    y, forecast = RNG.normal(size=(2, 7, 5, 3))
    valid = RNG.random((7, 5, 3)) < 0.7
    parts = [error_sums(forecast[rows], y[rows], valid[rows]) for rows in (slice(3), slice(3, 7))]
    sums = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    scale = np.array([0.5, 0.0, 2.0])
    found = forecast_metrics(sums | {"crps": sums["absolute"] / 2}, scale)
    np.testing.assert_allclose(found["mse"], mean_squared_error(y[valid], forecast[valid]))
    np.testing.assert_allclose(found["mae"], mean_absolute_error(y[valid], forecast[valid]))
    np.testing.assert_allclose(found["crps"], found["mae"] / 2)
    # Of the second channel the seasonal forecast makes no error.
    by_channel = [
        mean_absolute_error(y[..., c][valid[..., c]], forecast[..., c][valid[..., c]]) / scale[c]
        for c in (0, 2)
    ]
    np.testing.assert_allclose(found["mase"], np.mean(by_channel))
    assert "mase" not in forecast_metrics(sums, np.array([0.0, np.nan, 0.0]))


def test_repeat_and_seasonal_look_past_what_is_missing():
    past = np.arange(8.0)[None, :, None]
    valid = np.ones((1, 8, 1), bool)
    assert baselines.naive(3)(past, valid).ravel().tolist() == [7, 7, 7]
    assert baselines.seasonal_naive(5, 3)(past, valid).ravel().tolist() == [5, 6, 7, 5, 6]
    valid[0, [5, 7]] = False
    assert baselines.naive(2)(past, valid).ravel().tolist() == [6, 6]
    assert baselines.seasonal_naive(4, 3)(past, valid).ravel().tolist() == [2, 6, 4, 2]
    # A season longer than the look-back: what has no value a season ago repeats the last.
    assert baselines.seasonal_naive(3, 9)(past, valid).ravel().tolist() == [6, 0, 1]
    valid[:] = False
    assert baselines.naive(2)(past, valid).ravel().tolist() == [0, 0]
    assert baselines.seasonal_naive(2, 3)(past, valid).ravel().tolist() == [0, 0]


@pytest.mark.parametrize("level", ["mean", "last"])
@pytest.mark.parametrize("individual", [False, True])
def test_linear_maps_are_scikit_learns_ridge(level, individual):
    data = composed()
    fitted = baselines.fit_linear(data, level=level, individual=individual)
    _, past, _, future, _ = windows(data, "train")
    c = (past.mean(axis=1) if level == "mean" else past[:, -1])[:, None]
    x, y = (np.moveaxis(array - c, 2, 0).astype(np.float64) for array in (past, future))
    if not individual:
        x, y = (array.reshape(1, -1, array.shape[2]) for array in (x, y))
    assert fitted.weights.shape == (2 if individual else 1, 12, 4)
    for group, weights in enumerate(fitted.weights):
        unit = np.mean(np.linalg.eigvalsh(x[group].T @ x[group]))
        expected = Ridge(alpha=fitted.strengths[group] * unit, fit_intercept=False)
        expected.fit(x[group], y[group])
        # By what they forecast: the mean's own direction, which no look-back has, is anyone's.
        np.testing.assert_allclose(x[group] @ weights, expected.predict(x[group]), atol=1e-3)
    _, past, valid, future, _ = windows(data, "test")
    c = (past.mean(axis=1) if level == "mean" else past[:, -1])[:, None]
    expected = np.einsum("nlc,clf->nfc", past - c, np.broadcast_to(fitted.weights, (2, 12, 4))) + c
    np.testing.assert_allclose(fitted(past, valid), expected, rtol=1e-4, atol=1e-5)
    found = baselines.evaluate_on_test(data, fitted)
    error = mean_squared_error(future.ravel(), expected.ravel())
    np.testing.assert_allclose(found["mse"], error, rtol=1e-5)
    np.testing.assert_allclose(found["example_scores"].mean(), found["mse"], rtol=1e-6)


def test_dlinear_is_fitted_on_trend_and_rest():
    data = composed(L=30)
    features = baselines._decomposition(30)
    x = RNG.normal(size=30)
    padded = np.pad(x, 12, mode="edge")
    trend = np.array([padded[t : t + 25].mean() for t in range(30)])
    np.testing.assert_allclose(features @ [*x, 1], [*trend, *(x - trend), 1], atol=1e-12)
    fitted = baselines.fit_linear(data, level="none", decomposed=True)
    _, past, _, future, _ = windows(data, "train")
    x = np.concatenate([past, np.ones_like(past[:, :1])], axis=1).astype(np.float64)
    x = x.swapaxes(1, 2).reshape(-1, 31) @ features.T
    y = future.swapaxes(1, 2).reshape(-1, 4).astype(np.float64)
    unit = np.trace(x.T @ x) / len(features)
    solved = np.linalg.solve(x.T @ x + fitted.strengths[0] * unit * np.eye(len(features)), x.T @ y)
    found = np.concatenate([fitted.weights[0], fitted.bias])
    np.testing.assert_allclose(found, features.T @ solved, atol=1e-4)


def test_missing_values_and_noise_cost_little_of_what_is_there():
    whole = {name: fit() for name, fit in baselines.baselines(composed()).items()}
    data = composed(missing=0.1, noise=(0.1, 1.0))
    holes = {name: fit() for name, fit in baselines.baselines(data).items()}
    assert (
        list(holes)
        == ["repeat", "seasonal_naive", "ridge", "ridge_per_channel", *holes][: len(holes)]
        or len(holes) == 6
    )
    for name, metrics in holes.items():
        assert metrics["mse"] < 2 * whole[name]["mse"] + 0.1, name
        assert metrics["mse"] < metrics["mse_noise_0.1"] + 0.02 < metrics["mse_noise_1"], name
    assert whole["ridge"]["mse"] < whole["seasonal_naive"]["mse"]


def test_etth1_has_the_published_figures():
    with needed():
        data = load(DataConfig(), Paths.default())
    for name, expected in (("repeat", (1.294, 0.713)), ("seasonal_naive", (0.512, 0.433))):
        metrics = baselines.baselines(data)[name]()
        np.testing.assert_allclose((metrics["mse"], metrics["mae"]), expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lookback", "horizon", "baseline", "expected"),
    [
        ("etth1", 336, 96, "ridge", (0.3702, 0.3914)),
        ("etth1", 336, 96, "nlinear", (0.3696, 0.3912)),
        ("etth1", 336, 720, "ridge", (0.421, 0.443)),
        ("exchange_rate", 336, 96, "repeat", (0.081, 0.196)),
        ("exchange_rate", 336, 96, "seasonal_naive", (0.086, 0.205)),
        ("exchange_rate", 336, 96, "ridge", (0.083, 0.200)),
        ("appliance_energy", 720, 96, "seasonal_naive", (0.745, 0.599)),
        ("appliance_energy", 720, 96, "ridge_per_channel", (0.357, 0.392)),
    ],
)
def test_measured_elsewhere(name, lookback, horizon, baseline, expected):
    with needed():
        data = load(DataConfig(name=name, lookback=lookback, horizon=horizon), Paths.default())
    metrics = baselines.baselines(data)[baseline]()
    np.testing.assert_allclose((metrics["mse"], metrics["mae"]), expected, atol=2e-3)
