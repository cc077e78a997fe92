"""Alignments: what the contract does not ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import (
    AdditiveAlignment,
    ConcatAlignment,
    DotAlignment,
    GeneralAlignment,
    MultiHeadAlignment,
    NoAlignment,
    inspect,
    registry,
)
from tests.attention.references import REFERENCES
from tests.attention.subjects import VALID, B, D, S, normal

NAMES = registry.names("alignment")
X = jnp.asarray(normal(0, 2, 5, 8))
FIRST_TWO = jnp.array([[True, True, False]])


def build(name, query_size=D, **options):
    return registry.load("alignment", name)(query_size, D, rngs=nnx.Rngs(0), **options)


def run(alignment, states, queries, valid=None):
    """Contexts and weights of a scan over queries [T, B, Q]."""
    memory = alignment.prepare(states, valid=valid)

    def step(state, query):
        context, weights, state = alignment.step(query, memory, state)
        return state, (context, weights)

    return jax.lax.scan(step, alignment.initial_state(memory), queries)[1]


scanned = nnx.jit(run)


def test_dot_by_hand():
    # Scores 0 and ln 3: weights 1/4 and 3/4, context 1/4 · (0, 4) + 3/4 · (ln 3, 8).
    states = jnp.array([[[0.0, 4.0], [np.log(3.0), 8.0], [50.0, 50.0]]])
    alignment = DotAlignment(2, 2, rngs=nnx.Rngs(0))
    memory = alignment.prepare(states, valid=FIRST_TWO)
    context, weights, state = alignment.step(jnp.array([[1.0, 0.0]]), memory, ())
    np.testing.assert_allclose(weights, [[0.25, 0.75, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(context, [[0.75 * np.log(3), 7.0]], rtol=1e-6)
    assert state == ()


def test_general_is_dot_with_the_identity():
    general, dot = GeneralAlignment(8, 8, rngs=nnx.Rngs(0)), DotAlignment(8, 8, rngs=nnx.Rngs(0))
    general.key.kernel[...] = jnp.eye(8)
    query = X[:, 0]
    steps = [a.step(query, a.prepare(X), ())[:2] for a in (general, dot)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *steps)


def test_additive_by_hand():
    # One hidden unit: e_s = 2 tanh(q + h_s), which is 0 and 2 tanh(1).
    alignment = AdditiveAlignment(1, 1, rngs=nnx.Rngs(0))
    alignment.query.kernel[...] = jnp.ones((1, 1))
    alignment.key.kernel[...] = jnp.ones((1, 1))
    alignment.score[...] = jnp.array([2.0])
    memory = alignment.prepare(jnp.array([[[-0.5], [0.5], [9.0]]]), valid=FIRST_TWO)
    context, weights, _ = alignment.step(jnp.array([[0.5]]), memory, ())
    share = 1 / (1 + np.exp(2 * np.tanh(1.0)))
    np.testing.assert_allclose(weights, [[share, 1 - share, 0]], rtol=1e-6)
    np.testing.assert_allclose(context, [[0.5 - share]], rtol=1e-5)


def test_concat_is_additive_without_its_bias():
    concat, additive = (
        kind(3, D, rngs=nnx.Rngs(0)) for kind in (ConcatAlignment, AdditiveAlignment)
    )
    assert concat.hidden.kernel[...].shape == (3 + D, D)
    additive.query.kernel[...] = concat.hidden.kernel[...][:3]
    additive.key.kernel[...] = concat.hidden.kernel[...][3:]
    additive.score[...] = concat.score[...]
    queries = jnp.asarray(normal(1, 4, 2, 3))
    both = [scanned(alignment, X, queries) for alignment in (concat, additive)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both)
    assert np.abs(both[0][1][0] - both[0][1][1]).max() > 1e-3


def test_none_is_the_last_valid_state_whatever_the_query():
    alignment = NoAlignment(3, 8, rngs=nnx.Rngs(0))
    valid = jnp.array([[True, True, True, False, False], [True] * 5])
    memory = alignment.prepare(X, valid=valid)
    for seed in range(2):
        context, weights, _ = alignment.step(jnp.asarray(normal(seed, 2, 3)), memory, ())
        np.testing.assert_array_equal(context, jnp.stack([X[0, 2], X[1, 4]]))
        np.testing.assert_array_equal(weights, jnp.eye(5)[jnp.array([2, 4])])


def test_heads_look_at_different_places():
    alignment = build("multi_head", num_heads=2)
    _, weights = scanned(alignment, X, jnp.asarray(normal(3, 4, 2, D)))
    assert weights.shape == (4, 2, 2, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert np.abs(weights[:, :, 0] - weights[:, :, 1]).max() > 0.05
    # W_o alone, without a bias, comes after the sum of values.
    value = alignment.value(X)
    heads = jnp.einsum("tbns,bsnh->tbnh", weights, value)
    expected = jnp.einsum("tbnh,nhd->tbd", heads, alignment.out.kernel[...])
    context, _ = scanned(alignment, X, jnp.asarray(normal(3, 4, 2, D)))
    np.testing.assert_allclose(context, expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_scan_equals_a_loop_of_steps(name):
    alignment, queries = build(name), jnp.asarray(normal(3, 4, 2, D))
    contexts, weights = scanned(alignment, X, queries)
    memory = alignment.prepare(X)
    state = alignment.initial_state(memory)
    for t, query in enumerate(queries):
        context, weight, state = alignment.step(query, memory, state)
        np.testing.assert_allclose(contexts[t], context, atol=1e-6)
        np.testing.assert_allclose(weights[t], weight, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dot"])
def test_query_and_memory_may_differ_in_size(name):
    alignment = build(name, query_size=6)
    queries, states = normal(5, B, 3, 6), normal(6, B, S, D)
    context, weights = scanned(
        alignment, jnp.asarray(states), jnp.swapaxes(queries, 0, 1), jnp.asarray(VALID)
    )
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(alignment, nnx.Param))
    )
    inputs = {"params": params, "query": np.float64(queries), "states": np.float64(states)}
    expected, expected_weights = REFERENCES["alignment", name](inputs, VALID)
    np.testing.assert_allclose(jnp.swapaxes(context, 0, 1), expected, atol=2e-6)
    np.testing.assert_allclose(jnp.swapaxes(weights, 0, 1), expected_weights, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_padding_may_be_anywhere(name):
    """Three real states, close together or with others between them that are not real."""
    alignment, queries = build(name), jnp.asarray(normal(3, 4, 1, D))
    real, places = normal(1, 3, D), np.array([2, 3, 6])
    spread = normal(2, 1, 9, D) * 100
    spread[0, places] = real
    valid = np.zeros((1, 9), bool)
    valid[0, places] = True
    context, weights = scanned(alignment, jnp.asarray(real[None]), queries)
    same, wide = scanned(alignment, jnp.asarray(spread), queries, jnp.asarray(valid))
    np.testing.assert_allclose(same, context, atol=1e-6)
    np.testing.assert_allclose(np.asarray(wide)[..., places], weights, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(wide)[..., ~valid[0]], 0)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_recorded_is_what_comes_out(name):
    alignment, queries = build(name), jnp.asarray(normal(3, 4, 2, D))
    valid = jnp.asarray(VALID[:, :5])
    _, weights = scanned(alignment, X, queries, valid)
    captured = inspect.capture(lambda x, q, v: run(alignment, x, q, v), X, queries, valid)
    assert list(captured) == ["attention"]
    np.testing.assert_allclose(captured["attention"], weights, atol=1e-6)


def test_wrong_calls():
    with pytest.raises(ValueError, match="query_size: got 3, expected memory_size=8, or the score"):
        DotAlignment(3, 8, rngs=nnx.Rngs(0))
    for kind in (AdditiveAlignment, ConcatAlignment):
        with pytest.raises(ValueError, match="hidden_size: got 0, expected at least 1"):
            kind(3, 8, hidden_size=0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_heads: got 3, expected a positive divisor of"):
        MultiHeadAlignment(8, 8, num_heads=3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_fit(name):
    alignment = build(name)
    with pytest.raises(ValueError, match=r"states: got shape \[2, 5, 6\], expected .* D=8"):
        alignment.prepare(X[..., :6])
    with pytest.raises(ValueError, match=r"valid: got dtype float32, expected bool \(True = a r"):
        alignment.prepare(X, valid=jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"valid: got shape \[5, 2\], expected .* with B=2, S=5"):
        alignment.prepare(X, valid=jnp.ones((5, 2), bool))
    memory = alignment.prepare(X)
    state = alignment.initial_state(memory)
    with pytest.raises(ValueError, match=r"query: got shape \[2, 3\], expected .* with B=2, Q=8"):
        alignment.step(X[:, 0, :3], memory, state)
    with pytest.raises(ValueError, match="query: got dtype int32, expected a floating-point"):
        alignment.step(jnp.ones((2, 8), jnp.int32), memory, state)


def test_options_by_spec():
    spec = "location_aware(width=5, cumulative=True)"
    alignment = registry.build("alignment", spec, 6, D, rngs=nnx.Rngs(0))
    assert alignment.filters[...].shape == (5, 2, 8)
    for spec, message in (
        (
            "location_aware(widht=5)",
            "got option 'widht' .* expected one of .*; did you mean 'width'",
        ),
        ("local_p(window=2.5)", "got window=2.5 in .*, expected int"),
        ("local_p(memory_size=4)", r"got option 'memory_size' in .*, expected one of \['window'"),
        ("additiv", "got 'additiv', expected one of .*; did you mean 'additive'"),
    ):
        with pytest.raises(ValueError, match=f"^alignment: {message}"):
            registry.build("alignment", spec, 6, D, rngs=nnx.Rngs(0))
