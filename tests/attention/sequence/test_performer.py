"""Random features and the Performer: what the contract does not ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import attend, masks
from attention.sequence.log_linear import log_linear_attention
from attention.sequence.performer import (
    Performer,
    RandomFeatures,
    draw_directions,
    relu_features,
    softmax_log_features,
)
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

attend, log_linear_attention, relu_features, softmax_log_features = map(
    compiled, (attend, log_linear_attention, relu_features, softmax_log_features)
)

B, T, N, F, V, D = 2, 23, 2, 5, 3, 8


def directions(draws, features, size, orthogonal):
    draw = functools.partial(
        draw_directions, features=features, head_size=size, orthogonal=orthogonal
    )
    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), draws))


def test_directions_are_orthogonal_by_blocks():
    drawn = np.asarray(draw_directions(jax.random.key(0), 10, 4))
    for block in (drawn[:4], drawn[4:8], drawn[8:]):
        products = block @ block.T
        lengths = np.diag(np.diag(products))
        np.testing.assert_allclose(products, lengths, atol=1e-5)
    # Lengths are drawn, not all the same.
    assert np.linalg.norm(drawn, axis=-1).std() > 0.1
    assert np.abs(drawn[:4] @ drawn[4:8].T).max() > 0.1


@pytest.mark.parametrize("orthogonal", [True, False])
def test_each_direction_is_normal(orthogonal):
    drawn = np.asarray(directions(4096, 3, 4, orthogonal), np.float64)
    # Means of 4096 draws of x, x² and x⁴ of N(0, 1), whose deviations are 1, √2 and √96.
    for power, mean, deviation in ((1, 0, 1), (2, 1, 2**0.5), (4, 3, 96**0.5)):
        error = np.abs((drawn**power).mean(axis=0) - mean)
        assert error.max() < 5 * deviation / 64, power


def estimates(query, key, orthogonal):
    """Returns φ(q)·φ(k) with 8 directions, for 4096 draws."""

    def estimate(drawn):
        logs = softmax_log_features(jnp.stack([query, key]), drawn)
        return jnp.sum(jnp.exp(logs[0] + logs[1]))

    drawn = directions(4096, 8, len(query), orthogonal)
    return np.asarray(jax.vmap(estimate)(drawn), np.float64)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_kernel_is_unbiased(orthogonal):
    # Short vectors: of long ones the estimate has tails that 4096 draws do not see.
    query, key = normal(1, 4) / 2, normal(2, 4) / 2
    found = estimates(query, key, orthogonal)
    assert np.abs(found.mean() - np.exp(query @ key / 2)) < 5 * found.std() / 64
    assert found.std() / 64 < 0.02


def test_more_features_come_closer_to_softmax():
    query, key = (normal(i, B, 12, N, 8) / 2 for i in (0, 1))
    value = normal(2, B, 12, N, 8)
    exact = attend(query, key, value)

    @jax.jit
    @jax.vmap
    def error(drawn):
        logs = [softmax_log_features(x, drawn) for x in (query, key)]
        return jnp.abs(log_linear_attention(*logs, value) - exact).mean()

    few, many = (error(directions(64, count, 8, True)).mean() for count in (16, 256))
    # The error of a mean of F falls with 1 / sqrt(F): by 4 for 16 times as many.
    assert many < few / 3
    assert many < 0.02


def test_relu_features_by_hand():
    drawn = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [2.0, 2.0]])
    x = jnp.array([3.0, -1.0]) * 2**0.25
    np.testing.assert_allclose(
        relu_features(x, drawn, epsilon=0.5), np.array([3.5, 0.5, 0.5, 4.5]) / 2, rtol=1e-6
    )


def exact_attention(log_query, log_key, value, allowed):
    """Computes the definition in float64, by log-sum-exp to avoid overflow."""
    sums = np.logaddexp.reduce(
        np.asarray(log_query, np.float64)[:, :, None] + np.asarray(log_key, np.float64)[:, None],
        axis=-1,
    ).transpose(0, 3, 1, 2)
    sums = np.where(allowed, sums, -np.inf)
    highest = sums.max(-1, keepdims=True)
    shares = np.exp(sums - np.where(np.isfinite(highest), highest, 0))
    total = shares.sum(-1, keepdims=True)
    return np.einsum("bnts,bsnv->btnv", shares / np.where(total == 0, 1, total), value)


@pytest.mark.parametrize("scale", [1, 30, 300])
@pytest.mark.parametrize("causal", [False, True])
def test_logarithms_equal_the_dense_form(causal, scale):
    query, key = (scale * normal(i, B, T, N, F) for i in (0, 1))
    value, valid = normal(2, B, T, N, V), np.random.default_rng(0).random((B, T)) < 0.7
    allowed = np.broadcast_to(valid[:, None, None], (B, 1, T, T))
    allowed = allowed & np.tri(T, dtype=bool) if causal else allowed
    expected = exact_attention(query, key, value, allowed)

    @jax.jit
    def run(query, key, value):
        options = {"causal": causal, "key_valid": valid, "chunk_size": 8}
        return log_linear_attention(query, key, value, **options)

    # Exponents of up to 1000 are rounded to 6e-5 and so are, relatively, the weights.
    out = run(query, key, value)
    np.testing.assert_allclose(out, expected, atol=2e-6 * max(1, scale / 10))
    gradient = jax.grad(lambda *a: jnp.sum(run(*a) ** 2), (0, 1, 2))(query, key, value)
    for leaf in gradient:
        assert np.isfinite(leaf).all()


def test_logarithms_do_not_depend_on_the_chunks():
    query, key = (3 * normal(i, B, T, N, F) for i in (0, 1))
    value, cotangent = normal(2, B, T, N, V), normal(3, B, T, N, V)

    def run(chunk_size):
        def total(*arrays):
            out = log_linear_attention(*arrays, causal=True, chunk_size=chunk_size)
            return jnp.sum(out * cotangent), out

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(query, key, value)

    first, rest = run(1), [run(2), run(64)]
    for other in rest:
        for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5, rtol=1e-5)


def test_a_late_key_does_not_drown_the_early_ones():
    # With one scale for all positions exp(key - 500) would be 0 for those before it.
    query, key, value = normal(0, 1, T, 1, F), normal(1, 1, T, 1, F), normal(2, 1, T, 1, V)
    late = key.copy()
    late[:, 13] += 500
    run = jax.jit(functools.partial(log_linear_attention, causal=True, chunk_size=8))
    plain, out = run(query, key, value), run(query, late, value)
    np.testing.assert_allclose(out[:, :13], plain[:, :13], atol=1e-6)
    # And from then on it is all that is seen.
    np.testing.assert_allclose(out[:, 13:], np.broadcast_to(value[:, 13:14], out[:, 13:].shape))


@pytest.mark.parametrize("scale", [1, 100])
def test_pieces_with_a_state_equal_the_whole(scale):
    query, key = (scale * normal(i, B, T, N, F) for i in (0, 1))
    value, valid = normal(2, B, T, N, V), np.random.default_rng(1).random((B, T)) < 0.7
    valid[0, :4] = False
    options = {"causal": True, "chunk_size": 4, "return_state": True}
    run = jax.jit(functools.partial(log_linear_attention, **options))
    whole, last = run(query, key, value, key_valid=valid)
    state, pieces = None, []
    for part in (slice(0, 3), slice(3, 4), slice(4, T)):
        arrays = [x[:, part] for x in (query, key, value)]
        out, state = run(*arrays, key_valid=valid[:, part], state=state)
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=5e-6)
    np.testing.assert_array_equal(state.highest, last.highest)
    np.testing.assert_allclose(state.sums, last.sums, rtol=1e-5, atol=1e-5)


def test_state_without_causal_is_more_keys():
    query, key, value = (normal(i, B, T, N, F) for i in range(3))
    _, state = log_linear_attention(query, key[:, :9], value[:, :9], return_state=True)
    out = log_linear_attention(query, key[:, 9:], value[:, 9:], state=state)
    np.testing.assert_allclose(out, log_linear_attention(query, key, value), atol=2e-6)


@pytest.mark.parametrize("kernel", ["softmax", "relu"])
def test_large_inputs_stay_finite_and_weights_are_shares(kernel):
    module = Performer(D, N, kernel=kernel, features=16, chunk_size=4, rngs=nnx.Rngs(0))

    @jax.jit
    def run(x):
        out, weights = module(x, mask=masks.causal(), return_weights=True)
        return jnp.sum(out**2), weights

    (total, weights), gradient = jax.value_and_grad(run, has_aux=True)(30 * normal(0, B, 9, D))
    assert np.isfinite(total)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert (np.triu(weights, 1) == 0).all()


def test_steps_at_large_inputs_equal_the_whole():
    module = Performer(D, N, features=16, rngs=nnx.Rngs(0))
    x = 10 * normal(0, B, 9, D)
    whole = jax.jit(lambda x: module(x, mask=masks.causal()))(x)
    decode, cache, steps = jax.jit(module.decode), module.init_cache(B, 9), []
    for t in range(9):
        out, cache = decode(x[:, t : t + 1], cache)
        steps.append(out)
    size = np.abs(whole).max()
    np.testing.assert_allclose(np.concatenate(steps, 1) / size, whole / size, atol=2e-5)


def test_directions_are_kept_and_not_trained():
    module = Performer(D, N, features=6, rngs=nnx.Rngs(0))
    _, params, others = nnx.split(module, nnx.Param, RandomFeatures)
    assert nnx.to_pure_dict(others)["directions"].shape == (6, D // N)
    assert set(nnx.to_pure_dict(params)) == {"query", "key", "value", "out"}
    again = Performer(D, N, features=6, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(again.directions[...], module.directions[...])
    again.redraw(jax.random.key(5))
    assert np.abs(again.directions[...] - module.directions[...]).max() > 0.1
    np.testing.assert_array_equal(again.directions[...], draw_directions(jax.random.key(5), 6, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "cosine"}, r"kernel: got 'cosine', expected one of \['softmax', 'relu'\]"),
        ({"features": 0}, r"features: got 0, expected at least 1"),
        ({"chunk_size": 12}, r"chunk_size: got 12, expected a power of two"),
        ({"chunk_size": -1}, r"chunk_size: got -1, expected an int of at least 1"),
        ({"head_size": 0}, r"head_size: got 0, expected at least 1"),
    ],
)
def test_mistakes_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Performer(D, N, **options, rngs=nnx.Rngs(0))
    assert "\n" not in str(caught.value)


def test_functions_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"directions: got shape \[6, 3\], expected .*H=4"):
        softmax_log_features(np.ones((2, 4), np.float32), np.ones((6, 3), np.float32))
    x = np.ones((1, 4, 1, 2), np.float32)
    with pytest.raises(ValueError, match="chunk_size: got 6, expected a power of two"):
        log_linear_attention(x, x, x, causal=True, chunk_size=6)
