"""Attention over lags: by hand, missing values, what moves with the series, and the trend that the
plain form cannot follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attention import registry
from attention.lag import (
    LagAttention,
    ResidualLagAttention,
    lag_attention,
    residual_lag_attention,
)
from tests.attention.compiled import compiled
from tests.attention.references import lag as references
from tests.attention.subjects import normal
from tests.attention.test_wrong_calls import told

lag_attention, residual_lag_attention = map(compiled, (lag_attention, residual_lag_attention))

B, T, C, L, F, N = 2, 9, 3, 5, 4, 2
X = normal(0, B, T, C)
LOGITS = normal(1, 1, F, L)
HEADS, VALUES = normal(2, 1, N, F, L), normal(3, 1, N, F)
FORMS = {
    "plain": lambda x, valid=None: lag_attention(x, LOGITS, valid),
    "last": lambda x, valid=None: residual_lag_attention(x, HEADS, VALUES, valid),
    "mean": lambda x, valid=None: residual_lag_attention(x, HEADS, VALUES, valid, level="mean"),
}
each_form = pytest.mark.parametrize("form", FORMS)


def run(form, x, valid=None):
    """Returns forecast and weights as NumPy arrays."""
    return [np.asarray(array) for array in FORMS[form](x, valid)]


# Weights 0.5, 0.3, 0.2 of lag 1, 2 and 3.
THREE = np.log(np.array([[[0.5, 0.3, 0.2]]], np.float32))
SERIES = np.array([[[100.0], [1.0], [2.0], [4.0]]], np.float32)


def test_three_lags_by_hand():
    y, weights = lag_attention(SERIES, THREE)
    # 0.5 · 4 + 0.3 · 2 + 0.2 · 1; the 100 is too long ago.
    np.testing.assert_allclose(y, [[[2.8]]], rtol=1e-6)
    np.testing.assert_allclose(weights, [[[[0, 0.2, 0.3, 0.5]]]], rtol=1e-6)


def test_a_missing_value_by_hand():
    valid = np.array([[True, True, False, True]])
    y, weights = lag_attention(SERIES, THREE, valid)
    # (0.5 · 4 + 0.2 · 1) / 0.7.
    np.testing.assert_allclose(y, [[[2.2 / 0.7]]], rtol=1e-6)
    np.testing.assert_allclose(weights, [[[[0, 2 / 7, 0, 5 / 7]]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("level", "at", "expected"),
    # 4 - 2 · (-0.3 · 2 - 0.2 · 3) and 7/3 - 2 · (0.5 · 5/3 - 0.3 · 1/3 - 0.2 · 4/3).
    [("last", [0, 0, 0, 1], 6.4), ("mean", [0, 1 / 3, 1 / 3, 1 / 3], 1.4)],
)
def test_residual_by_hand(level, at, expected):
    values = np.array([[[-2.0]]], np.float32)
    y, weights = residual_lag_attention(SERIES, THREE[:, None], values, level=level)
    np.testing.assert_allclose(y, [[[expected]]], rtol=1e-6)
    row = 3 * np.array(at) - 2 * np.array([0, 0.2, 0.3, 0.5])
    np.testing.assert_allclose(weights, [[[row]]], atol=1e-6)


def test_the_last_value_is_the_last_that_is_there():
    valid = np.array([[True, True, True, False]])
    values = np.zeros((1, 1, 1), np.float32)
    y, weights = residual_lag_attention(SERIES, THREE[:, None], values, valid)
    np.testing.assert_array_equal(y, [[[2]]])
    np.testing.assert_array_equal(weights, [[[[0, 0, 1, 0]]]])


@each_form
@pytest.mark.parametrize("missing", ["none", "times", "channels"])
@pytest.mark.parametrize("length", [1, 4, L, T])
def test_every_mask_equals_the_equations(form, missing, length):
    x, rng = X[:, -length:], np.random.default_rng(length)
    shape = {"none": None, "times": (B, length), "channels": (B, length, C)}[missing]
    valid = None if shape is None else rng.random(shape) < 0.6
    y, weights = run(form, x, valid)
    params = {"logits": LOGITS} if form == "plain" else {"logits": HEADS, "values": VALUES}
    inputs = {"x": np.float64(x), "params": jax.tree.map(np.float64, params)}
    reference = references.lag
    if form != "plain":
        reference = functools.partial(references.lag_residual, level=form)
    expected, rows = reference(inputs, np.ones((B, length), bool) if valid is None else valid)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    np.testing.assert_allclose(weights, rows, atol=2e-6)


@each_form
def test_weights_of_each_channel(form):
    """With separate groups of weights, each channel is forecast independently."""
    logits, heads, values = normal(4, C, F, L), normal(5, C, N, F, L), normal(6, C, N, F)
    valid = np.random.default_rng(0).random((B, T, C)) < 0.7

    def forecast(x, c, valid):
        if form == "plain":
            return lag_attention(x, logits[c], valid)[0]
        return residual_lag_attention(x, heads[c], values[c], valid, level=form)[0]

    for seen in (None, valid[..., 0], valid):
        together = forecast(X, slice(None), seen)
        for c in range(C):
            alone = seen if seen is None or seen.ndim == 2 else seen[..., c]
            one = forecast(X[..., c : c + 1], slice(c, c + 1), alone)
            np.testing.assert_allclose(together[..., c : c + 1], one, atol=1e-6)


@each_form
def test_weights_take_the_past_to_the_forecast(form):
    valid = np.random.default_rng(1).random((B, T, C)) < 0.7
    valid[0, :, 1] = False
    y, weights = run(form, X, valid)
    assert weights.shape == (B, C, F, T)
    np.testing.assert_allclose(np.einsum("bcft,btc->bfc", weights, X), y, atol=1e-6)
    sums = np.broadcast_to(valid[:, -L:].any(axis=1)[..., None], (B, C, F))
    np.testing.assert_allclose(weights.sum(axis=-1), sums, atol=1e-6)
    np.testing.assert_array_equal(y[0, :, 1], 0)
    # Shared by all channels where nothing is missing by channel.
    assert run(form, X, valid[..., 0])[1].shape == (B, 1, F, T)
    assert (weights >= 0).all() == (form == "plain")


@each_form
def test_missing_values_may_be_nan(form):
    valid = np.random.default_rng(1).random((B, T, C)) < 0.7
    held = np.where(valid, X, np.nan)
    np.testing.assert_array_equal(run(form, held, valid)[0], run(form, X, valid)[0])
    gradient = jax.grad(lambda x: jnp.sum(FORMS[form](x, valid)[0]))(held)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~valid], 0)


class TestWhatMovesWithTheSeries:
    @each_form
    @pytest.mark.parametrize("steps", [1, 3, 8])
    def test_time(self, form, steps):
        """Values before the last L have no effect: a series that begins `steps` later, or has other
        values there, has the same forecast, with weights shifted accordingly."""
        late = np.concatenate([100 * normal(steps, B, steps, C), X], axis=1)
        y, weights = run(form, X)
        moved, moved_weights = run(form, late)
        np.testing.assert_array_equal(moved, y)
        np.testing.assert_array_equal(moved_weights[..., steps:], weights)
        np.testing.assert_array_equal(moved_weights[..., :steps], 0)

    @each_form
    def test_every_origin(self, form):
        """A forecast from time t is that of the series moved so that t is its end."""
        series = normal(5, 1, 20, C)
        windows = np.stack([series[0, t - L : t] for t in range(L, 21)])
        together, _ = run(form, windows)
        for n, t in enumerate(range(L, 21)):
            np.testing.assert_allclose(together[n], run(form, series[:, :t])[0][0], atol=1e-6)

    def test_lags(self):
        """Moving the weights by a lag is moving the series by a time."""
        low = np.full((1, F, 1), -np.inf, np.float32)
        one_earlier = lag_attention(X[:, :-1], LOGITS)[0]
        moved = lag_attention(X, np.concatenate([low, LOGITS], axis=-1))[0]
        np.testing.assert_allclose(moved, one_earlier, atol=1e-7)

    @each_form
    @pytest.mark.parametrize(("scale", "shift"), [(1.0, 7.0), (-3.0, 0.0), (0.25, -40.0)])
    def test_level_and_scale(self, form, scale, shift):
        valid = np.random.default_rng(2).random((B, T)) < 0.8
        y, weights = run(form, X, valid)
        moved, same = run(form, np.float32(scale) * X + np.float32(shift), valid)
        np.testing.assert_allclose(moved, scale * y + shift, atol=2e-5)
        np.testing.assert_array_equal(same, weights)

    def test_a_high_level_costs_no_accuracy(self):
        """The differences are taken first: 2^16 + x, exact in float32 for multiples of 2^-6."""
        x = np.round(64 * X) / 64
        y, _ = run("last", x)
        moved, _ = run("last", x + np.float32(65536))
        # What is lost is the last rounding alone.
        np.testing.assert_allclose(moved - np.float64(65536), y, atol=2**-8 + 1e-5)

    def test_a_constant_is_repeated(self):
        for form in FORMS:
            y, _ = run(form, np.full((1, T, 1), 3.25, np.float32))
            np.testing.assert_allclose(y, 3.25, rtol=1e-6)


def test_plain_forecasts_stay_in_the_hull_of_their_past():
    rng = np.random.default_rng(0)
    for seed in range(20):
        x = np.cumsum(normal(seed, B, L, C), axis=1)
        logits = 10 * normal(seed + 100, 1, F, L)
        valid = rng.random((B, L, C)) < 0.7
        valid[:, 0] = True
        y, _ = lag_attention(x, logits, valid)
        low, high = (np.where(valid, x, end) for end in (np.inf, -np.inf))
        assert (y >= low.min(axis=1, keepdims=True) - 1e-5).all()
        assert (y <= high.max(axis=1, keepdims=True) + 1e-5).all()


class TestALinearTrend:
    """x_t = a + b t, of any a and b, L values given and F to be forecast."""

    @staticmethod
    def series(seed, count=64):
        a, b = normal(seed, 2, count, 1, 1)
        line = a + b * np.arange(L + F)[:, None]
        return line[:, :L].astype(np.float32), line[:, L:].astype(np.float32)

    def fitted(self, module, steps=600):
        """Returns the module after `steps` of Adam on the squared error."""
        graphdef, state = nnx.split(module)
        x, y = self.series(0)
        optimizer = optax.adam(0.05)

        @jax.jit
        def fit(state):
            def loss(state):
                return jnp.mean(jnp.square(nnx.merge(graphdef, state)(x) - y))

            def step(carry, _):
                state, moments = carry
                updates, moments = optimizer.update(jax.grad(loss)(state), moments)
                return (optax.apply_updates(state, updates), moments), None

            (state, _), _ = jax.lax.scan(step, (state, optimizer.init(state)), length=steps)
            return state

        return nnx.merge(graphdef, fit(state))

    def test_the_residual_form_follows_it(self):
        module = self.fitted(ResidualLagAttention(1, L, F, rngs=nnx.Rngs(0)))
        x, y = self.series(1)
        np.testing.assert_allclose(module(x), y, atol=0.02)

    def test_the_plain_form_cannot(self):
        """For any parameters, the forecast f steps ahead is wrong by at least |b| f."""
        module = self.fitted(LagAttention(1, L, F, rngs=nnx.Rngs(0)))
        x, y = self.series(1)
        slope = np.abs(x[:, 1] - x[:, 0])[:, None]
        least = slope * np.arange(1, F + 1)[None, :, None]
        errors = np.abs(np.asarray(module(x)) - y)
        assert (errors >= least - 1e-4).all()
        # It has come as near as it may: all weight on the last value.
        np.testing.assert_allclose(errors, least, atol=0.2)

    def test_by_hand(self):
        """One head, W < 0, with its weight on lag 1 + h: y = x_last - W h b, exact for W = -f/h."""
        steps = np.arange(1, F + 1)
        logits = np.full((1, 1, F, L), -np.inf, np.float32)
        logits[..., L - 1] = 0.0
        values = -steps[None, None].astype(np.float32) / (L - 1)
        x, y = self.series(2)
        forecast, _ = residual_lag_attention(x, logits, values)
        np.testing.assert_allclose(forecast, y, atol=1e-4)


def test_two_heads_are_any_linear_map_of_the_differences():
    """v = W_1 w_1 - W_2 w_2 with v's positive and negative parts, a little added to both."""
    wanted = normal(7, 1, F, L)
    parts = np.stack([np.maximum(wanted, 0) + 0.1, np.maximum(-wanted, 0) + 0.1], axis=1)
    sums = parts.sum(axis=-1)
    y, _ = residual_lag_attention(X, np.log(parts), sums * np.array([[[1.0], [-1.0]]], "f"))
    past = X[:, ::-1][:, :L]
    expected = X[:, -1:] + np.einsum("fl,blc->bfc", wanted[0], past - X[:, -1:])
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_how_they_begin():
    plain = LagAttention(C, L, F, rngs=nnx.Rngs(0))(X)
    mean = np.broadcast_to(X[:, -L:].mean(axis=1, keepdims=True), (B, F, C))
    np.testing.assert_allclose(plain, mean, atol=1e-6)
    repeated = np.broadcast_to(X[:, -1:], (B, F, C))
    for options, expected in (({}, repeated), ({"level": "mean"}, mean), ({"num_heads": 1}, mean)):
        module = ResidualLagAttention(C, L, F, **options, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(module(X), expected, atol=1e-6)
    # What cancels is not stuck: there is a gradient at once.
    graphdef, state = nnx.split(ResidualLagAttention(C, L, F, rngs=nnx.Rngs(0)))
    slopes = jax.grad(lambda state: jnp.sum(jnp.square(nnx.merge(graphdef, state)(X) - 5)))(state)
    for leaf in jax.tree.leaves(nnx.to_pure_dict(slopes)):
        assert np.abs(leaf).max() > 1e-3


@pytest.mark.parametrize("name", registry.names("lags"))
def test_built_by_a_spec(name):
    module = registry.build("lags", f"{name}(individual=True)", C, L, F, rngs=nnx.Rngs(0))
    assert module.logits.shape[0] == C
    y, weights = module(X, return_weights=True)
    assert (y.shape, weights.shape) == ((B, F, C), (B, C, F, T))
    with pytest.raises(ValueError, match="got option 'lags'"):
        registry.build("lags", f"{name}(lags=3)", C, L, F, rngs=nnx.Rngs(0))


def built(kind, *sizes, **options):
    return lambda: kind(*sizes, **options, rngs=nnx.Rngs(0))


MODULE = LagAttention(C, L, F, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"lags: got 0, expected at least 1", built(LagAttention, C, 0, F)),
        (r"horizon: got 0, expected at least 1", built(ResidualLagAttention, C, L, 0)),
        (r"channels: got -1, expected at least 1", built(LagAttention, -1, L, F)),
        (r"num_heads: got 0, expected", built(ResidualLagAttention, C, L, F, num_heads=0)),
        (
            r"level: got 'first', expected 'last' or 'mean'",
            built(ResidualLagAttention, C, L, F, level="first"),
        ),
        (r"x: got shape \[2, 9, 2\], expected \[B, T, C\] with C=3", lambda: MODULE(X[..., 1:])),
        (r"x: got shape \[9, 3\], expected \[B, T, C\]", lambda: MODULE(X[0])),
        (r"x: got dtype int32", lambda: MODULE(np.ones((B, T, C), np.int32))),
        (
            r"valid: got dtype float32, expected bool \(True = a value that is present\)",
            lambda: MODULE(X, valid=np.ones((B, T), "f")),
        ),
        (
            r"valid: got shape \[2, 8\], expected \[B, T\] with B=2, T=9; or \[B, T, C\]",
            lambda: MODULE(X, valid=np.ones((B, T - 1), bool)),
        ),
        (
            r"valid: got shape \[2, 9, 1\], expected \[B, T, C\]",
            lambda: MODULE(X, valid=np.ones((B, T, 1), bool)),
        ),
        (
            r"logits: got shape \[2, 4, 5\], expected \[G, F, L\] with G=1 or G=3",
            lambda: lag_attention(X, normal(0, 2, F, L)),
        ),
        (
            r"values: got shape \[1, 3, 4\], expected \[G, N, F\] with G=1, N=2, F=4",
            lambda: residual_lag_attention(X, HEADS, normal(0, 1, 3, F)),
        ),
    ],
)
def test_mistakes_are_told(message, call):
    told(message, call)
