"""Rollout, flow and relevance against values by hand, NumPy loops and another maximum flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from attention import attribution, inspect

RANDOM = np.random.default_rng(0)
LAYERS = RANDOM.dirichlet(np.ones(4), size=(3, 2, 2, 4)).astype(np.float32)
GRADIENTS = RANDOM.normal(size=LAYERS.shape).astype(np.float32)


def test_rollout_is_the_same_function_in_inspect():
    assert inspect.rollout is attribution.rollout


def test_flow_by_hand():
    # Position 1 attends to position 0 alone in both layers.
    weights = np.array([[[[[1.0, 0.0], [1.0, 0.0]]]]] * 2, np.float32)
    flow = attribution.attention_flow(weights, residual=0.0)
    np.testing.assert_allclose(flow[0], [[1, 0], [1, 0]], atol=1e-6)
    # With r = 0.5 there are paths 1 -> 1 -> 1, 1 -> 1 -> 0 and 1 -> 0 -> 0. Output 1 sends 0.5 to
    # each position; position 1 passes at most 0.5 to either input, position 0 all to input 0.
    flow = attribution.attention_flow(weights)
    np.testing.assert_allclose(flow[0], [[1, 0], [1, 0.5]], atol=1e-6)
    assert flow.dtype == np.float32


def test_flow_of_one_layer_is_the_matrix():
    mixed = 0.7 * LAYERS[0].mean(1) + 0.3 * np.eye(4)
    flow = attribution.attention_flow(LAYERS[:1], residual=0.3)
    np.testing.assert_allclose(flow, mixed, atol=1e-6)
    one = attribution.attention_flow(np.ones((2, 1, 1, 1, 1), np.float32))
    np.testing.assert_allclose(one, [[[1]]], atol=1e-6)


def by_linear_program(layers, t, s):
    """Returns the maximum flow by a linear program over the edges (l, t, s)."""
    L, T, _ = layers.shape
    index = np.arange(L * T * T).reshape(L, T, T)
    conserved = []
    for level in range(L):
        for node in range(T):
            row = np.zeros(L * T * T)
            row[index[level, :, node]] += 1
            if level:
                row[index[level - 1, node]] -= 1
            elif node == s:
                continue
            conserved.append(row)
    bounds = np.stack([np.zeros(L * T * T), layers.ravel()], 1)
    # Only output t is a source.
    bounds[np.delete(index[L - 1], t, axis=0).ravel(), 1] = 0
    into = np.zeros(L * T * T)
    into[index[0, :, s]] = -1
    done = scipy.optimize.linprog(
        into, A_eq=conserved, b_eq=np.zeros(len(conserved)), bounds=bounds
    )
    return -done.fun


def test_flow_against_a_linear_program():
    layers = 0.5 * LAYERS.mean(2) + 0.5 * np.eye(4)
    flow = attribution.attention_flow(LAYERS, rows=[3, -4])
    assert flow.shape == (2, 2, 4)
    for row, t in enumerate((3, 0)):
        for s in range(4):
            expected = by_linear_program(layers[:, 1], t, s)
            np.testing.assert_allclose(flow[1, row, s], expected, atol=1e-6)


def test_flow_of_zero_rows_and_bfloat16():
    weights = LAYERS.copy()
    weights[:, :, :, 2] = 0
    flow = attribution.attention_flow(weights, rows=[2])
    np.testing.assert_allclose(flow[:, 0], [[0, 0, 1, 0]] * 2, atol=1e-6)
    rounded = jnp.asarray(LAYERS[:1], jnp.bfloat16)
    mixed = 0.5 * np.asarray(rounded, np.float32).mean(2)[0] + 0.5 * np.eye(4)
    expected = mixed / mixed.sum(-1, keepdims=True)
    np.testing.assert_allclose(attribution.attention_flow(rounded), expected, atol=1e-6)


def test_relevance_by_hand():
    weights = jnp.array([[[[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.5, 0.5]]]]])
    gradients = jnp.array([[[[[2.0, -2.0], [4.0, 0.0]], [[1.0, 9.0], [-1.0, 2.0]]]]])
    # Head 1: [[1, 0], [1, 0]]; head 2: [[1, 0], [0, 1]]; their mean is added to the identity.
    expected = [[2.0, 0.0], [0.5, 1.5]]
    np.testing.assert_allclose(attribution.relevance(weights, gradients)[0], expected, atol=1e-7)
    one = jnp.ones((1, 1, 1, 1, 1))
    np.testing.assert_allclose(attribution.relevance(one, 3 * one), [[[4.0]]])


def positive(weights, gradients):
    return np.maximum(weights.astype(np.float64) * gradients, 0).mean(2)


def test_relevance_is_the_loop_of_the_paper():
    expected = np.stack([np.eye(4)] * 2)
    for layer in positive(LAYERS, GRADIENTS):
        expected = expected + layer @ expected
    found = jax.jit(attribution.relevance)(LAYERS, GRADIENTS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    rounded = attribution.relevance(*(jnp.asarray(x, jnp.bfloat16) for x in (LAYERS, GRADIENTS)))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, expected, atol=0.05)
    nothing = attribution.relevance(np.zeros_like(LAYERS), GRADIENTS)
    np.testing.assert_array_equal(nothing, [np.eye(4)] * 2)


def normalized(relevance):
    rest = relevance - np.eye(len(relevance))
    total = rest.sum(-1, keepdims=True)
    return rest / np.where(total == 0, 1, total) + np.eye(len(relevance))


def test_cross_relevance_is_the_loop_of_the_paper():
    S, T = 4, 3
    shapes = {"encoder": (3, 2, 2, S, S), "decoder": (2, 2, 2, T, T), "cross": (2, 2, 4, T, S)}
    pairs = {
        name: (RANDOM.random(shape).astype("f"), RANDOM.normal(size=shape).astype("f"))
        for name, shape in shapes.items()
    }
    found = jax.jit(attribution.cross_relevance)(**pairs)
    layers = {name: positive(*pair) for name, pair in pairs.items()}
    for b in range(2):
        source, target, cross = np.eye(S), np.eye(T), np.zeros((T, S))
        for layer in layers["encoder"][:, b]:
            source = source + layer @ source
        for own, other in zip(layers["decoder"][:, b], layers["cross"][:, b], strict=True):
            target, cross = target + own @ target, cross + own @ cross
            cross = cross + normalized(target).T @ other @ normalized(source)
        np.testing.assert_allclose(found.source[b], source, rtol=1e-5)
        np.testing.assert_allclose(found.target[b], target, rtol=1e-5)
        np.testing.assert_allclose(found.cross[b], cross, rtol=1e-5)


def test_cross_relevance_without_self_attention_is_the_cross_attention():
    def zeros(*shape):
        return jnp.zeros(shape), jnp.zeros(shape)

    weights = jnp.array([[[[[0.2, 0.8]]]]])
    found = attribution.cross_relevance(
        zeros(1, 1, 1, 2, 2), zeros(1, 1, 1, 1, 1), (weights, jnp.full_like(weights, 2.0))
    )
    np.testing.assert_allclose(found.cross[0], [[0.4, 1.6]], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attribution.attention_flow(LAYERS, rows=[4]),
            r"rows: got \[4\], expected indices from -4 to 3",
        ),
        (lambda: attribution.attention_flow(LAYERS, rows=[0.5]), "rows: got .*integer"),
        (lambda: attribution.attention_flow(LAYERS[:0]), "weights: got no layer"),
        (lambda: attribution.attention_flow(LAYERS, residual=-1), "residual: got -1, expected"),
        (lambda: attribution.relevance(LAYERS[0], GRADIENTS), r"weights: got shape .* \[L, B, N"),
        (lambda: attribution.relevance(LAYERS[:0], GRADIENTS[:0]), "weights: got no layer"),
        (
            lambda: attribution.relevance(LAYERS, GRADIENTS[:2]),
            r"gradients: got shape \[2, .*, expected \[L, B, N, T, T\] with L=3",
        ),
        (lambda: attribution.relevance(LAYERS, LAYERS > 0), "gradients: got dtype bool"),
        (
            lambda: attribution.cross_relevance(
                (LAYERS, GRADIENTS), (LAYERS, GRADIENTS), (LAYERS[:2], GRADIENTS[:2])
            ),
            r"weights of cross: got shape .*, expected \[M, B, P, T, S\] with M=3",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
