"""Scores of tokens compared with the log-softmax of all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.common.decoding.scores import TokenScores, top_k

RNG = np.random.default_rng(0)


def reference(logits, forbidden):
    """Returns log-probabilities in float64, -inf for forbidden tokens."""
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    scores = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.where(forbidden, -np.inf, scores)


@pytest.mark.parametrize("V", [5, 3001])
def test_best_and_top(V):
    logits = (4 * RNG.normal(size=(6, V)) + 100).astype(np.float32)
    logits[1, 3:] = -np.inf
    forbidden = np.arange(V) % 3 == 0
    scores = TokenScores.of(jnp.asarray(logits), jnp.asarray(forbidden), False)
    wanted = reference(logits, forbidden)
    token, gained = scores.best()
    np.testing.assert_array_equal(token, wanted.argmax(-1))
    np.testing.assert_allclose(gained, wanted.max(-1), rtol=1e-5, atol=2e-5)
    tokens, found = scores.top(4)
    assert tokens.shape == (6, min(4, V))
    order = np.argsort(-wanted, axis=-1, kind="stable")[:, :4]
    finite = np.isfinite(np.take_along_axis(wanted, order, 1))
    np.testing.assert_array_equal(np.asarray(tokens)[finite], order[finite])
    np.testing.assert_allclose(found, np.take_along_axis(wanted, order, 1), rtol=1e-5, atol=2e-5)


def test_a_row_without_tokens_has_no_score():
    logits = jnp.full((1, 4), -jnp.inf)
    scores = TokenScores.of(logits, jnp.zeros(4, bool), False)
    assert scores.best()[1].tolist() == [-np.inf]
    assert (scores.top(2)[1] == -np.inf).all()


@pytest.mark.parametrize("V", [2048, 2100, 4095])
@pytest.mark.parametrize("k", [1, 8])
def test_top_k_of_blocks_orders_equal_values_by_position(V, k):
    # Few different values, so that most are equal to others.
    values = RNG.integers(0, 6, (7, V)).astype(np.float32)
    values[0], values[1, :] = -np.inf, np.arange(V)
    values[2, -1] = 9
    found, wanted = top_k(jnp.asarray(values), k), jax.lax.top_k(jnp.asarray(values), k)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
