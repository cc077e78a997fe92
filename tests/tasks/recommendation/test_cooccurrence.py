"""Co-occurrence counts compared with loops in NumPy, and exact removal of a user's own events."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from tasks.recommendation.models import cooccurrence
from tasks.recommendation.models.losses import LossConfig, gbce, next_item_loss
from tasks.recommendation.models.score_terms import (
    Ease,
    History,
    MarkovChain,
    RecencyAttention,
    UserKnn,
)

USERS, ITEMS, S = 6, 9, 5
RNG = np.random.default_rng(1)
HISTORIES = [RNG.permutation(ITEMS)[:length] for length in (1, 6, 6, 4, 3, 6)]
WINDOW, DECAY, STRENGTH = 3, 0.5, 2.0


def matrix_of(histories):
    matrix = sp.lil_matrix((len(histories), ITEMS), dtype=np.float32)
    for user, own in enumerate(histories):
        for place, item in enumerate(own):
            matrix[user, item] = place + 1
    return matrix.tocsr()


def counted(histories, both_ways=False):
    found = np.zeros((ITEMS, ITEMS))
    for own in histories:
        for j in range(len(own)):
            for i in range(j + 1, min(j + WINDOW, len(own) - 1) + 1):
                found[own[j], own[i]] += DECAY ** (i - j - 1)
    return found + found.T if both_ways else found


@pytest.mark.parametrize("both_ways", [False, True])
def test_transitions(both_ways):
    found = cooccurrence.transitions(matrix_of(HISTORIES), WINDOW, DECAY, both_ways)
    np.testing.assert_allclose(found.toarray(), counted(HISTORIES, both_ways))


def test_largest():
    matrix = sp.random(5, 8, 0.5, "csr", np.float32, random_state=0)
    columns, entries = cooccurrence.top_k_per_row(matrix, 3)
    for row, whole in enumerate(matrix.toarray()):
        expected = np.sort(whole)[::-1][:3]
        np.testing.assert_allclose(entries[row], expected)
        present = columns[row] >= 0
        np.testing.assert_allclose(whole[columns[row][present]], entries[row][present])


def history(user, train):
    """Returns a user whose last event is the target."""
    own = HISTORIES[user]
    items = np.full((1, S), -1, np.int32)
    items[0, : len(own) - 1] = own[:-1]
    ones = np.zeros((1, ITEMS), np.float32)
    ones[0, own] = 1
    fields = [items, np.zeros((1, S), np.float32), np.array([user]), np.array([[len(own) - 2]])]
    fields += [own[-1:], ones] if train else []
    return History(*map(jnp.asarray, fields))


def without(user):
    return [own for other, own in enumerate(HISTORIES) if other != user]


@pytest.mark.parametrize(("user", "known"), [(1, ITEMS), (3, ITEMS), (3, 4)])
def test_ridge_without_the_user_is_that_of_the_others(user, known):
    """Predictions equal the rank-one update and EASE's closed form in NumPy, with only the most
    popular items if there are many.
    """
    weights = (RNG.random((1, 1, S)) * (np.arange(S) < 3)).astype(np.float32)
    part = Ease(matrix_of(HISTORIES), STRENGTH, 4.0, known)
    part.mix = lambda x: x
    found = np.asarray(jax.jit(lambda: part(history(user, True), weights))())[0, 0]
    everyone = np.asarray(matrix_of(HISTORIES).todense() > 0, float).sum(axis=0)
    chosen = np.sort(np.argsort(-everyone, kind="stable")[:known])
    X = np.asarray(matrix_of(without(user)).todense() > 0, float)[:, chosen]
    P = np.linalg.inv(X.T @ X + STRENGTH * np.eye(known))
    B = np.zeros((ITEMS, ITEMS))
    B[np.ix_(chosen, chosen)] = -P / np.diag(P)
    np.fill_diagonal(B, 0)
    x = np.zeros(ITEMS)
    x[HISTORIES[user][:3]] = np.asarray(weights)[0, 0, :3]
    outside = np.setdiff1d(np.arange(ITEMS), HISTORIES[user][:3])
    np.testing.assert_allclose(found[outside], (x @ B)[outside], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("both_ways", [False, True])
def test_transitions_without_the_user_are_those_of_the_others(both_ways):
    user = 2
    weights = RNG.random((1, 1, S)).astype(np.float32)
    part = MarkovChain(matrix_of(HISTORIES), WINDOW, DECAY, 4.0, 10, both_ways)
    part.mix = lambda x: x
    found = np.asarray(jax.jit(lambda: part(history(user, True), weights))())[0, 0]
    C = counted(without(user), both_ways)[HISTORIES[user][:S]]
    shares = np.asarray(weights)[0, 0] / (C.sum(axis=1) + np.exp(3.0))
    np.testing.assert_allclose(found, shares @ C, rtol=1e-4, atol=1e-6)


def test_neighbours_are_the_others_most_alike():
    user, k = 1, 3
    part = UserKnn(matrix_of(HISTORIES), k, 4.0, 10)
    weights = np.ones((1, 1, S), np.float32) * (np.arange(S) < 2)
    shares, ids = jax.jit(lambda: part.neighbor_weights(history(user, False), weights))()
    X = np.asarray(matrix_of(HISTORIES).todense() > 0, float)
    x = np.zeros(ITEMS)
    x[HISTORIES[user][:2]] = 1
    cosine = X @ x / np.sqrt(X.sum(axis=1) * 2)
    cosine[user] = 0
    best = np.argsort(-cosine)[:k]
    np.testing.assert_allclose(np.sort(cosine[best]), np.sort(cosine[np.asarray(ids)[0, 0]]))
    # Initially all users have equal weights and the sharpness is 2.
    expected = cosine[np.asarray(ids)[0, 0]] ** 2
    np.testing.assert_allclose(shares[0, 0], expected / expected.sum(), rtol=1e-4)


def test_places_count_half_at_the_half_life():
    attention = RecencyAttention(ITEMS, 1.0)
    items = jnp.arange(2)[None]
    one = History(items, jnp.zeros((1, 2)), jnp.zeros(1, int), jnp.array([[0, 1]]))
    weights = np.asarray(jax.jit(lambda: attention(one))())[0]
    # softmax / (sum of exp)^-0.5: of 1 alone, and of 1/2 and 1.
    np.testing.assert_allclose(weights[0], [1, 0], atol=1e-6)
    np.testing.assert_allclose(weights[1], np.array([0.5, 1]) / np.sqrt(1.5), rtol=1e-5)


def test_gbce_by_hand():
    positive, negatives, items, t = 0.3, np.array([-1.0, 2.0]), 11, 0.75
    alpha = 2 / 10
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    sigma = 1 / (1 + np.exp(-np.array([positive, *negatives])))
    expected = -(beta * np.log(sigma[0]) + np.log(1 - sigma[1:]).sum()) / 3
    found = gbce(np.float32(positive), np.asarray(negatives, np.float32), items, t)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_cross_entropy_by_hand():
    hidden, bias = RNG.normal(size=(1, 2, 3)), RNG.normal(size=4)
    table = RNG.normal(size=(4, 3))
    logits = hidden[0, 0] @ table.T + bias
    logs = logits - np.log(np.exp(logits).sum())
    config, targets = LossConfig(label_smoothing=0.1), np.array([[2, -1]])
    found = next_item_loss(config, hidden, table, targets, np.ones(1), None, bias)
    np.testing.assert_allclose(found, -0.9 * logs[2] - 0.1 * logs.mean(), rtol=1e-5)
