"""Local alignment: the window, the Gaussian, the place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import LocalAlignment
from attention.recurrent.local import local_step
from attention.recurrent.memory import Memory
from tests.attention.subjects import normal


def equal_scores(lengths, S):
    """Returns a memory with equal scores, so that only the window and the Gaussian have an
    effect."""
    valid = jnp.arange(S) < jnp.array(lengths)[:, None]
    values = jnp.tile(jnp.arange(S, dtype=jnp.float32)[:, None], (len(lengths), 1, 1))
    return Memory(jnp.zeros((len(lengths), S, 2)), values, valid)


def step(memory, center, window):
    return local_step(jnp.ones((len(center), 2)), memory, jnp.array(center), window=window)


def test_by_hand():
    # D = 2, so σ = 1. About 3.5 are 2, 3, 4 and 5, a quarter each before the Gaussian.
    context, weights = step(equal_scores([7], 7), [3.5], 2)
    near, far = 0.25 * np.exp(-0.125), 0.25 * np.exp(-1.125)
    np.testing.assert_allclose(weights, [[0, 0, far, near, near, far, 0]], rtol=1e-6)
    np.testing.assert_allclose(context, [[7 * (near + far)]], rtol=1e-6)
    assert weights.sum() < 1
    # Both edges belong to the window.
    np.testing.assert_allclose(
        step(equal_scores([7], 7), [3.0], 2)[1][0] > 0, [0, 1, 1, 1, 1, 1, 0]
    )


def test_the_window_ends_where_an_example_does():
    weights = step(equal_scores([7, 3, 1], 7), [3.0, 3.0, 1.0], 2)[1]
    assert (weights[0] > 0).sum() == 5
    np.testing.assert_allclose(
        weights[1], [0, *(0.5 * np.exp([-2.0, -0.5])), 0, 0, 0, 0], rtol=1e-6
    )
    # Even a place beyond the last state has it in sight.
    np.testing.assert_allclose(weights[2], [np.exp(-0.5), 0, 0, 0, 0, 0, 0], rtol=1e-6)


def test_the_place_follows_each_length():
    alignment = LocalAlignment(4, 4, rngs=nnx.Rngs(0))
    queries = jnp.asarray(np.tile(normal(0, 1, 4), (3, 1)))
    valid = jnp.arange(8) < jnp.array([8, 4, 0])[:, None]
    memory = alignment.prepare(jnp.zeros((3, 8, 4)), valid=valid)
    center = alignment.predict(queries, memory)
    share = 1 / (1 + np.exp(-np.tanh(queries[0] @ alignment.position.kernel[...])
                            @ alignment.position_score[...]))  # fmt: skip
    np.testing.assert_allclose(center, np.array([8, 4, 0]) * share, rtol=1e-5)


def test_the_place_has_a_gradient():
    memory = equal_scores([9], 9)

    def mean_position(center):
        context, weights = step(memory, [center], 3)
        return context[0, 0] / jnp.sum(weights)

    for center in (3.3, 4.5, 7.8):
        slope = (mean_position(center + 0.01) - mean_position(center - 0.01)) / 0.02
        assert slope > 0.1
        np.testing.assert_allclose(jax.grad(mean_position)(center), slope, rtol=1e-2)


def test_a_window_wider_than_the_memory_leaves_softmax_times_gaussian():
    alignment = LocalAlignment(4, 6, window=100, rngs=nnx.Rngs(0))
    states, query = jnp.asarray(normal(0, 2, 5, 6)), jnp.asarray(normal(1, 2, 4))
    memory = alignment.prepare(states)
    weights = alignment.step(query, memory)[1]
    center = np.asarray(alignment.predict(query, memory))[:, None]
    shares = jax.nn.softmax(jnp.einsum("bq,bsq->bs", query, states @ alignment.key.kernel[...]))
    gaussian = np.exp(-((np.arange(5) - center) ** 2) / (2 * 50**2))
    np.testing.assert_allclose(weights, shares * gaussian, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: got 0, expected at least 1"),
        ({"score": "concat"}, "score: got 'concat', expected 'general' or 'dot'"),
        ({"score": "dot"}, "query_size: got 4, expected memory_size=6, or the score 'general'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LocalAlignment(4, 6, **options, rngs=nnx.Rngs(0))


def test_wrong_calls():
    memory = equal_scores([3], 3)
    with pytest.raises(ValueError, match=r"center: got shape \[2\], expected \[B\] with B=1"):
        local_step(jnp.ones((1, 2)), memory, jnp.ones(2), window=1)
    with pytest.raises(ValueError, match="window: got 0"):
        step(memory, [1.0], 0)
