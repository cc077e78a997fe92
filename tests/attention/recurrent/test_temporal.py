"""Temporal attention: equality of a complete sequence and a scan of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention, TemporalAttention, inspect, masks
from tests.attention.references import REFERENCES
from tests.attention.references import base as references
from tests.attention.subjects import VALID, B, D, normal

T = 4
X = normal(3, B, T, D)
REAL = VALID[:, 1 : 1 + T]
SEEN = pytest.mark.parametrize("current", [True, False])


def build(current=True, **options):
    module = TemporalAttention(D, 2, current=current, rngs=nnx.Rngs(0), **options)
    for projection in (module.query, module.key, module.value, module.out):
        projection.bias[...] = jnp.asarray(normal(9, *projection.bias[...].shape))
    return module


def in_steps(module, states, valid):
    """Contexts [B, T, D] and weights [B, N, T, T] of a scan."""

    def step(cache, inputs):
        state, real = inputs
        context, weights, cache = module.step(state, cache, valid=real)
        return cache, (context, weights)

    cache = module.init_cache(len(states), states.shape[1])
    inputs = (jnp.swapaxes(states, 0, 1), jnp.swapaxes(valid, 0, 1))
    _, (contexts, weights) = jax.lax.scan(step, cache, inputs)
    return jnp.swapaxes(contexts, 0, 1), jnp.moveaxis(weights, 0, 2)


def at_once(module, states, valid):
    return module(states, mask=masks.valid(key=valid), return_weights=True)


def of_states(function, module, valid):
    """Weights and states -> contexts, for gradients."""
    graphdef, params = nnx.split(module)
    return lambda params, x: function(nnx.merge(graphdef, params), x, valid)[0], params


@SEEN
def test_a_scan_of_four_steps_equals_the_equations(current):
    """Forward and every gradient, with padding in the middle."""
    assert REAL[0].tolist() == [True, True, False, True]
    module, cotangent = build(current), normal(4, B, T, D)
    function, params = of_states(in_steps, module, REAL)
    out, backward = jax.vjp(jax.jit(function), params, jnp.asarray(X))
    gradient, gradient_x = backward(jnp.asarray(cotangent))
    allowed = np.broadcast_to(REAL[:, None, None], (B, 1, T, T))

    def reference(inputs):
        return REFERENCES["mixer", "temporal"](inputs, allowed, current=current)[0]

    inputs = {"params": nnx.to_pure_dict(params), "x": X}
    inputs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), inputs)
    np.testing.assert_allclose(out, reference(inputs), atol=2e-6)
    expected = references.gradient(reference, inputs, cotangent)
    np.testing.assert_allclose(gradient_x, expected["x"], atol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        nnx.to_pure_dict(gradient),
        expected["params"],
    )


@SEEN
def test_both_forms_agree(current):
    module, cotangent = build(current), jnp.asarray(normal(4, B, T, D))
    results = []
    for form in (in_steps, at_once):
        function, params = of_states(form, module, REAL)
        out, backward = jax.vjp(jax.jit(function), params, jnp.asarray(X))
        results.append((out, backward(cotangent)))
    left, right = (jax.tree.leaves(result) for result in results)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


@SEEN
def test_weights_are_those_of_the_real_past(current):
    module = build(current)
    _, whole = at_once(module, X, REAL)
    contexts, weights = nnx.jit(in_steps)(module, X, REAL)
    assert weights.shape == (B, 2, T, T)
    for b in range(B):
        places = np.flatnonzero(REAL[b])
        # The cache holds the real ones, one after the other.
        np.testing.assert_allclose(
            weights[b, :, :, : len(places)], whole[b][..., places], atol=1e-6
        )
        np.testing.assert_array_equal(weights[b, :, :, len(places) :], 0)
    first = np.asarray(weights[:, :, 0].sum(-1))
    np.testing.assert_allclose(first, (REAL[:, :1] & current) * np.ones((1, 2)), atol=1e-6)
    if not current:
        np.testing.assert_array_equal(contexts[:, 0], np.broadcast_to(module.out.bias[...], (B, D)))


def test_with_the_current_state_it_is_causal_self_attention():
    module, plain = build(), MultiHeadAttention(D, 2, rngs=nnx.Rngs(0))
    nnx.update(plain, nnx.state(module))
    np.testing.assert_allclose(module(X), plain(X, mask=masks.causal()), atol=1e-6)


@SEEN
def test_decoding_in_chunks(current):
    module = build(current)
    whole, cache = module(X), module.init_cache(B, T)
    first, cache = module.decode(X[:, :3], cache)
    last, cache = module.decode(X[:, 3:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, last], axis=1), whole, atol=2e-6)


def test_what_steps_record_is_what_they_give():
    module = build()
    _, weights = nnx.jit(in_steps)(module, X, REAL)
    captured = inspect.capture(lambda x, valid: in_steps(module, x, valid), X, REAL)
    assert list(captured) == ["attention"]
    np.testing.assert_allclose(np.moveaxis(captured["attention"], 0, 2), weights, atol=1e-6)


def test_wrong_calls():
    module = build()
    cache = module.init_cache(B, 1)
    with pytest.raises(ValueError, match=r"state: got shape \[2, 4, 8\], expected \[B, D\]"):
        module.step(X, cache)
    with pytest.raises(ValueError, match="valid: got dtype float32, expected bool"):
        module.step(X[:, 0], cache, valid=jnp.ones(2))
    _, _, cache = module.step(X[:, 0], cache)
    with pytest.raises(ValueError, match="cache: got 2 positions, expected at most max_length=1"):
        module.step(X[:, 0], cache)
    # What is not real needs no place.
    module.step(X[:, 0], cache, valid=jnp.zeros(2, bool))
    out, _, _ = jax.jit(module.step)(X[:, 0], cache, valid=jnp.array([True, False]))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
