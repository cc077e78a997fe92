"""Forecasters: shapes, missing values, level and scale, trends, and invalid configs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tasks.forecasting.baselines import Linear
from tasks.forecasting.models import MODEL_CONFIGS, build
from tasks.forecasting.models.base import InstanceNorm, WindowSizes, level_and_scale

B, L, F, C, K = 3, 14, 5, 2, 2
SIZES = WindowSizes(channels=C, lookback=L, horizon=F, calendar=K, period=4)
RNG = np.random.default_rng(0)
LAYERS = {"model_size": 4, "num_layers": 1, "num_heads": 2, "feedforward_size": 4}
PATCHES = {"patch_length": 4, "patch_stride": 3}
OPTIONS = {
    "lag": {"head": "quantile"},
    "residual_lag": {"head": "student_t", "individual": True},
    "transformer": {"label_length": 3, **LAYERS},
    "informer": {"label_length": 3, "instance_norm": True, **LAYERS, "num_layers": 2},
    "patchtst": {"head": "quantile", **PATCHES, **LAYERS},
    "itransformer": {"head": "student_t", **LAYERS},
    "seasonal_lag": {"level": "last"},
    "sparse_tsf": {"head": "student_t"},
    "ridge": {"ridge_level": "last"},
    "ridge_seasonal": {"head": "quantile", "share": 0.3},
    "ridge_residual": {"ridge_individual": True, "calendar_features": 1, **PATCHES, **LAYERS},
}
# Name, and shape behind the batch.
WEIGHTS = {
    "lag": {"lags": (C, F, L)},
    "residual_lag": {"lags": (C, F, L)},
    "transformer": {"encoder": (1, 2, L, L), "decoder": (1, 2, F, L)},
    "informer": {"decoder": (1, 2, F, L // 2)},
    "patchtst": {"patches": (C, 1, 2, 4, 4)},
    "itransformer": {"channels": (1, 2, C + K, C + K)},
    "seasonal_lag": {"lags": (C, F, L)},
    "sparse_tsf": {},
    "ridge": {},
    "ridge_seasonal": {"lags": (C, F, L)},
    "ridge_residual": {"patches": (C, 1, 2, 2, 6)},
}
# Their forecast goes along with the level and the scale of the window.
EQUIVARIANT = {*MODEL_CONFIGS} - {"transformer", "itransformer"}


def drawn(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ridge_of(groups):
    return 0.2 * drawn(groups, L, F)


@functools.cache
def forecaster(name):
    """Returns the parts of a model, its ridge, and a compiled function of them and of a window."""
    config = MODEL_CONFIGS[name](**OPTIONS[name])
    ridge = ridge_of(C if getattr(config, "ridge_individual", False) else 1)
    model = build(config, SIZES, ridge, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params, past, valid, calendar, future):
        def loss(params):
            model = nnx.merge(graphdef, params, jax.tree.map(lambda x: x, rest))
            found, weights = model(past, valid, calendar, return_weights=True)
            there = jnp.ones((B, F, C), bool)
            return model.head.loss(found, future, there), (found, weights)

        (_, found), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return *found, gradient

    return model, params, ridge, run


WINDOW = {"past": drawn(B, L, C), "calendar": drawn(B, L + F, K), "future": drawn(B, F, C)}
VALID = RNG.uniform(size=(B, L, C)) > 0.3
VALID[1, :6] = False  # whole patches
VALID[2] = False  # all of a window


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_forecasts_whatever_is_missing(name):
    model, params, _, run = forecaster(name)
    window = WINDOW | {"valid": VALID}
    spoilt = window | {"past": np.where(VALID, WINDOW["past"], np.nan)}
    parameters, weights, gradient = run(params, **spoilt)
    assert parameters.shape == (B, F, C, model.head.size)
    assert parameters.dtype == jnp.float32
    assert {key: array.shape[1:] for key, array in weights.items()} == WEIGHTS[name]
    for leaf in jax.tree.leaves((parameters, weights, gradient)):
        assert np.isfinite(leaf).all()
    again, _, _ = run(params, **window)
    np.testing.assert_array_equal(again, parameters)
    # Each window separately.
    shorn = VALID.copy()
    shorn[0] = False
    others, _, _ = run(params, **window | {"valid": shorn})
    np.testing.assert_allclose(others[1:], parameters[1:], rtol=1e-5, atol=1e-6)
    assert np.abs(others[0] - parameters[0]).max() > 1e-3


@pytest.mark.parametrize("name", sorted(EQUIVARIANT))
def test_level_and_scale_of_a_window_go_along(name):
    model, params, _, run = forecaster(name)
    window = WINDOW | {"valid": VALID}
    plain, _, _ = run(params, **window)
    moved, _, _ = run(params, **window | {"past": 30 * WINDOW["past"] + 40})
    expected = 30 * np.asarray(model.head.point(plain)[:2]) + 40
    # For the larger variance, ε is negligible.
    np.testing.assert_allclose(model.head.point(moved)[:2], expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["ridge", "ridge_residual"])
def test_begins_at_the_ridge(name):
    model, params, ridge, run = forecaster(name)
    parameters, _, gradient = run(params, **WINDOW, valid=VALID)
    level = "last" if name == "ridge" else "mean"
    linear = Linear(ridge, np.zeros((len(ridge), F), np.float32), level, 0.0)
    expected = linear(np.where(VALID, WINDOW["past"], 0), VALID)
    np.testing.assert_allclose(model.head.point(parameters), expected, rtol=1e-5, atol=1e-5)
    if name == "ridge_residual":
        # Zero weights let the rest be, for one step.
        assert np.abs(gradient["out"]["kernel"][...]).max() > 0
    else:
        assert not jax.tree.leaves(params)


def test_seasonal_lag_is_a_mean_of_the_same_time_of_the_seasons_and_the_level():
    model, params, _, run = forecaster("seasonal_lag")
    past = WINDOW["past"]
    parameters, weights, _ = run(params, **WINDOW, valid=np.ones_like(VALID))
    # Uniform at the start: three seasons of 4 and the level, the last value; the first two times
    # fill no season.
    seasons = past[:, 2:].reshape(B, 3, 4, C).sum(axis=1)
    expected = (seasons + past[:, -1:]) / 4
    expected = np.concatenate([expected, expected[:, :1]], axis=1)
    np.testing.assert_allclose(model.head.point(parameters), expected, rtol=1e-5, atol=1e-6)
    shares = np.zeros((F, L))
    for step in range(F):
        shares[step, [2 + step % 4, 6 + step % 4, 10 + step % 4]] = 0.25
    expected = np.broadcast_to(shares, (B, C, F, L))
    np.testing.assert_allclose(weights["lags"], expected, rtol=1e-5, atol=1e-7)


def test_sparse_tsf_is_a_linear_map_of_smoothed_seasons():
    model, params, _, run = forecaster("sparse_tsf")
    found, _, _ = run(params, **WINDOW | {"valid": np.ones((B, L, C), bool)})
    kernel = np.asarray(params["smooth"]["kernel"][...])[:, 0]
    weights = np.asarray(params["seasons"]["kernel"][...])
    assert kernel.shape == (5,)
    assert weights.shape == (3, 2)
    level = WINDOW["past"].mean(axis=1, keepdims=True)
    over = WINDOW["past"] - level
    padded = np.pad(over, ((0, 0), (2, 2), (0, 0)))
    smooth = over + sum(kernel[i] * padded[:, i : i + L] for i in range(5))
    # The first two times fill no season of 4.
    seasons = smooth[:, 2:].reshape(B, 3, 4, C)
    expected = level + np.einsum("BMPC,MJ->BJPC", seasons, weights).reshape(B, 8, C)[:, :F]
    np.testing.assert_allclose(model.head.point(found), expected, rtol=1e-4, atol=1e-5)


def test_ridge_seasonal_is_a_mean_of_both():
    model, params, ridge, run = forecaster("ridge_seasonal")
    parameters, weights, _ = run(params, **WINDOW, valid=VALID)
    past = np.where(VALID, WINDOW["past"], 0)
    linear = Linear(ridge, np.zeros((1, F), np.float32), "mean", 0.0)(past, VALID)
    level = past.sum(axis=1) / np.maximum(VALID.sum(axis=1), 1)
    over = np.where(VALID, past - level[:, None], 0)
    seasonal = level[:, None] + np.einsum("BCFL,BLC->BFC", weights["lags"], over)
    expected = 0.7 * linear + 0.3 * seasonal
    np.testing.assert_allclose(model.head.point(parameters), expected, rtol=1e-4, atol=1e-5)


def test_instance_norm_there_and_back():
    past, norm = WINDOW["past"], InstanceNorm(C, learned=True)
    norm.scale[...], norm.bias[...] = jnp.array([2.0, -0.5]), jnp.array([0.3, -1.0])
    normal, level, scale = norm(past, VALID)
    np.testing.assert_allclose((level + scale * normal)[VALID], past[VALID], rtol=1e-4, atol=1e-5)
    assert (np.asarray(normal)[~VALID] == 0).all()
    mean, deviation = level_and_scale(past, VALID)
    known = past[0, VALID[0, :, 0], 0]
    np.testing.assert_allclose(mean[0, 0, 0], known.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(deviation[0, 0, 0], known.std(), rtol=1e-4)


def test_only_residual_lag_attention_follows_a_trend():
    sizes = WindowSizes(channels=1, lookback=8, horizon=4)
    line = (0.3 * np.arange(40, dtype=np.float32))[:, None]
    starts = np.arange(20)
    past = np.stack([line[start : start + 8] for start in starts])
    future = np.stack([line[start + 8 : start + 12] for start in starts])
    calendar = np.zeros((len(starts), 12, 0), np.float32)
    there = np.ones(past.shape, bool)
    forecasts = {}
    for name in ("lag", "residual_lag"):
        model = build(MODEL_CONFIGS[name](), sizes, None, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(model)
        optimizer = optax.adam(0.3)

        def forecast(params, graphdef=graphdef):
            return nnx.merge(graphdef, params)(past, there, calendar)[..., 0]

        def step(carry, _, forecast=forecast, optimizer=optimizer):
            params, state = carry
            gradient = jax.grad(lambda p: jnp.mean((forecast(p) - future) ** 2))(params)
            changes, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, changes), state), None

        @jax.jit
        def trained(params, step=step, forecast=forecast, optimizer=optimizer):
            carry, _ = jax.lax.scan(step, (params, optimizer.init(params)), length=150)
            return forecast(carry[0])

        forecasts[name] = np.asarray(trained(params))
    assert (forecasts["lag"] <= past.max(axis=1, keepdims=True) + 1e-4).all()
    # At best it repeats the last value: 0.3 to 1.2 too low.
    assert np.abs(forecasts["lag"] - future).mean() > 0.7
    assert np.abs(forecasts["residual_lag"] - future).max() < 0.05


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("patchtst", {"patch_length": 15}, "patch_length: got 15, expected at most lookback=14"),
        ("transformer", {"label_length": 15}, "label_length: got 15, expected at most lookback=14"),
        ("patchtst", {"patch_stride": 0}, "patch_stride: got 0, expected at least 1"),
        ("informer", {"decoder_layers": 0}, "decoder_layers: got 0, expected at least 1"),
        ("itransformer", {"num_heads": 3}, "num_heads: got 3, expected a divisor of model_size"),
        ("itransformer", {"mixer": "informer"}, "mixer: .*'informer'"),
        ("seasonal_lag", {"season": 15}, "season: got 15, expected at most lookback=14"),
        ("sparse_tsf", {"season": 15}, "season: got 15, expected at most lookback=14"),
        ("seasonal_lag", {"season": -1}, "season: got -1, expected at least 0"),
        ("ridge_seasonal", {"share": 1.5}, r"share: got 1.5, expected a number in \[0, 1\]"),
        ("ridge_residual", {"calendar_features": -1}, "calendar_features: got -1, expected at"),
        ("lag", {"head": "gauss"}, "head: got 'gauss', expected one of"),
        ("residual_lag", {"level": "first"}, "level: got 'first', expected one of 'last', 'mean'"),
        ("residual_lag", {"num_heads": 0}, "num_heads: got 0, expected at least 1"),
        (
            "ridge",
            {"ridge_level": "none"},
            "ridge_level: got 'none', expected one of 'last', 'mean'",
        ),
        ("ridge", {"ridge_individual": True}, r"ridge: got shape \(1, 14, 5\), expected \(2, 14"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(MODEL_CONFIGS[name](**options), SIZES, ridge_of(1), rngs=nnx.Rngs(0))


def test_any_mixer_may_attend_between_patches():
    config = MODEL_CONFIGS["patchtst"](mixer="fourier", positions="none", **PATCHES, **LAYERS)
    model = build(config, SIZES, None, rngs=nnx.Rngs(0))
    there = jax.ShapeDtypeStruct((B, L, C), bool)
    arguments = (jax.ShapeDtypeStruct((B, L, C), jnp.float32), there)
    calendar = jax.ShapeDtypeStruct((B, L + F, K), jnp.float32)
    found = jax.eval_shape(lambda *a: model(*a, return_weights=True), *arguments, calendar)
    assert found[0].shape == (B, F, C, 1)
    assert found[1] == {}
