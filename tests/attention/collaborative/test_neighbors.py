"""Similar users: hand-computed values, scikit-learn, list and dense form, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine
from sklearn.neighbors import KNeighborsRegressor

from attention.collaborative import neighbors
from attention.collaborative.neighbors import (
    UserNeighbors,
    cosine_similarity,
    dense_neighbor_scores,
    neighbor_scores,
    neighbor_weights,
    top_neighbors,
)
from tests.attention.compiled import compiled
from tests.attention.references import collaborative as references
from tests.attention.subjects import normal
from tests.attention.test_wrong_calls import told

cosine_similarity, neighbor_scores = compiled(cosine_similarity), compiled(neighbor_scores)
neighbor_weights, dense_neighbor_scores = (
    compiled(neighbor_weights),
    compiled(dense_neighbor_scores),
)

B, U, S, D, ITEMS = 3, 11, 5, 4, 6
SIMILARITY = normal(0, B, S)
RATINGS = normal(1, B, S, ITEMS)
WEIGHT = np.abs(normal(2, B, S))


def double(array):
    return np.asarray(array, np.float64)


def test_two_neighbors_by_hand():
    # (2 · 0.5 · 4 + 1 · -0.25 · 2) / (2 · 0.5 + 1 · 0.25) = 3.5 / 1.25.
    similarity, ratings = np.array([[0.5, -0.25]], "f"), np.array([[[4.0], [2.0]]], "f")
    weight = np.array([[2.0, 1.0]], "f")
    np.testing.assert_allclose(neighbor_scores(similarity, ratings, weight), [[2.8]], rtol=1e-6)
    np.testing.assert_allclose(neighbor_scores(similarity, ratings), [[2.0]], rtol=1e-6)
    np.testing.assert_allclose(
        neighbor_weights(similarity, weight, None), [[[0.8, -0.2]]], rtol=1e-6
    )


def test_brute_force_with_marks_for_each_item():
    valid = np.random.default_rng(3).random((B, ITEMS, S)) < 0.5
    valid[1, 2] = False
    expected, shares = references.neighbours(double(SIMILARITY), double(RATINGS), WEIGHT, valid)
    scores = neighbor_scores(SIMILARITY, RATINGS, WEIGHT, valid)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert scores[1, 2] == 0
    found = neighbor_weights(SIMILARITY, WEIGHT, valid)
    np.testing.assert_allclose(found, shares[:, 0], atol=1e-6)
    some = valid.any(-1)
    np.testing.assert_allclose(np.abs(found).sum(-1)[some], 1, atol=1e-6)


def test_cosine_equals_scikit_learn():
    users, others = normal(0, B, D), normal(1, U, D)
    expected = sklearn_cosine(double(users), double(others))
    np.testing.assert_allclose(cosine_similarity(users, others), expected, atol=1e-6)
    listed = np.broadcast_to(others, (B, U, D))
    np.testing.assert_allclose(cosine_similarity(users, listed), expected, atol=1e-6)


def test_a_vector_of_zeros_is_like_nobody():
    users = np.zeros((1, D), np.float32)
    others = jnp.asarray(normal(1, U, D)).at[0].set(0)

    @jax.jit
    def total(users, others):
        similarity = cosine_similarity(users, others)
        return jnp.sum(dense_neighbor_scores(similarity, normal(2, U, ITEMS)))

    assert total(users, others) == 0
    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(users, others):
        assert np.isfinite(gradient).all()


def test_nearest_neighbors_equal_scikit_learn():
    # Vectors of one orthant, so that similarities are above 0, as scikit-learn's weights must be.
    users, others = np.abs(normal(0, B, D)), np.abs(normal(1, U, D))
    ratings = normal(2, U, ITEMS)
    theirs = KNeighborsRegressor(S, metric="cosine", weights=lambda distance: 1 - distance)
    expected = theirs.fit(double(others), double(ratings)).predict(double(users))
    similarity = cosine_similarity(users, others)
    indices, valid = top_neighbors(similarity, S)
    nearest = jnp.take_along_axis(similarity, indices, axis=1)
    scores = neighbor_scores(nearest, ratings[indices], valid=valid)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    # The module gives the same result initially, when all weights are equal.
    module = compiled(UserNeighbors(D, rngs=nnx.Rngs(0)))
    scores = module(users, others[indices], ratings[indices], valid=valid)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("all_rated", [True, False])
def test_dense_equals_a_list_of_everybody(all_rated):
    rng = np.random.default_rng(0)
    similarity, ratings, weight = normal(0, B, U), normal(1, U, ITEMS), np.abs(normal(2, U))
    valid, rated = rng.random((B, U)) < 0.7, None if all_rated else rng.random((U, ITEMS)) < 0.4
    seen = valid
    if not all_rated:
        rated[:, 3] = False
        seen = valid[:, None] & rated.T
    expected = neighbor_scores(
        similarity,
        np.broadcast_to(ratings, (B, U, ITEMS)),
        np.broadcast_to(weight, (B, U)),
        seen,
    )
    # What was not rated may hold anything.
    held = ratings if all_rated else np.where(rated, ratings, np.nan)
    scores = jax.jit(dense_neighbor_scores)(similarity, held, weight, valid, rated)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    if not all_rated:
        np.testing.assert_array_equal(scores[:, 3], 0)


def test_the_most_alike():
    similarity = np.array([[0.1, 0.9, -0.5, 0.4], [0.1, 0.9, -0.5, 0.4]], "f")
    indices, valid = top_neighbors(similarity, 3)
    np.testing.assert_array_equal(indices, [[1, 3, 0]] * 2)
    assert np.asarray(valid).all()
    may = np.array([[True, False, True, True], [False, False, True, False]])
    indices, valid = top_neighbors(similarity, 3, may)
    np.testing.assert_array_equal(indices[0], [3, 0, 2])
    np.testing.assert_array_equal(valid, [[True] * 3, [True, False, False]])
    assert indices[1, 0] == 2


def test_only_ratios_of_weights_matter_and_order_does_not():
    scores = neighbor_scores(SIMILARITY, RATINGS, WEIGHT)
    np.testing.assert_allclose(neighbor_scores(SIMILARITY, RATINGS, 7 * WEIGHT), scores, atol=1e-6)
    np.testing.assert_allclose(neighbor_scores(3 * SIMILARITY, RATINGS, WEIGHT), scores, atol=1e-6)
    module = UserNeighbors(D, num_users=U, rngs=nnx.Rngs(0))
    module.weight[...] = jnp.asarray(normal(4, U))
    ids = np.random.default_rng(0).integers(U, size=(B, S))
    user, others = normal(5, B, D), normal(6, B, S, D)
    order = np.array([3, 0, 4, 2, 1])
    run = compiled(module)
    plain, weights = run(user, others, RATINGS, ids=ids, return_weights=True)
    moved, moved_weights = run(
        user, others[:, order], RATINGS[:, order], ids=ids[:, order], return_weights=True
    )
    np.testing.assert_allclose(moved, plain, atol=1e-6)
    np.testing.assert_allclose(moved_weights, weights[..., order], atol=1e-6)


def test_scores_go_along_with_the_ratings():
    # With positive similarities a score is a mean: the same for all gives that, and b is added.
    similarity = np.abs(SIMILARITY)
    scores = neighbor_scores(similarity, RATINGS, WEIGHT)
    np.testing.assert_allclose(neighbor_scores(similarity, np.full_like(RATINGS, 3)), 3, rtol=1e-6)
    lifted = neighbor_scores(similarity, 2 * RATINGS + 5, WEIGHT)
    np.testing.assert_allclose(lifted, 2 * scores + 5, atol=1e-5)
    assert (scores <= RATINGS.max(axis=1) + 1e-6).all()
    assert (scores >= RATINGS.min(axis=1) - 1e-6).all()


def test_a_similarity_may_be_given():
    module = UserNeighbors(D, rngs=nnx.Rngs(0))
    user, others = normal(5, B, D), normal(6, B, S, D)
    by_cosine = module(user, others, RATINGS)
    similarity = neighbors.cosine_similarity(user, others)
    given = module(user, others, RATINGS, similarity=similarity)
    np.testing.assert_allclose(given, by_cosine, atol=1e-7)
    other = module(user, others, RATINGS, similarity=SIMILARITY)
    np.testing.assert_allclose(other, neighbor_scores(SIMILARITY, RATINGS), atol=1e-6)


def test_weights_learn_whom_to_believe():
    """One user of five knows the truth, the others guess: its weight comes to be the largest."""
    truth = normal(0, 20)
    ratings = np.broadcast_to(normal(1, S, 20), (S, 20)).copy()
    ratings[2] = truth
    similarity = np.ones((1, S), np.float32)

    @jax.jit
    def step(logits):
        def loss(logits):
            scores = neighbor_scores(similarity, ratings[None], jax.nn.softplus(logits)[None])
            return jnp.mean(jnp.square(scores[0] - truth))

        return logits - 2 * jax.grad(loss)(logits), loss(logits)

    logits, first = jnp.full(S, neighbors._ONE), None
    np.testing.assert_allclose(jax.nn.softplus(logits), 1, rtol=1e-6)
    for _ in range(200):
        logits, loss = step(logits)
        first = loss if first is None else first
    assert jnp.argmax(logits) == 2
    assert loss < first / 10


MODULE = UserNeighbors(D, rngs=nnx.Rngs(0))
NUMBERED = UserNeighbors(D, num_users=U, rngs=nnx.Rngs(0))
USER, OTHERS = normal(5, B, D), normal(6, B, S, D)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"user: got shape \[3, 3\], expected", lambda: MODULE(USER[:, :3], OTHERS, RATINGS)),
        (r"neighbors: got shape \[3, 4\], ex", lambda: MODULE(USER, USER, RATINGS)),
        (r"ratings: got shape \[3, 5\], exp", lambda: MODULE(USER, OTHERS, RATINGS[..., 0])),
        (r"ratings: got dtype int32", lambda: MODULE(USER, OTHERS, np.ones((B, S, 1), np.int32))),
        (
            r"valid: got dtype float32, expected bool \(True = a real neighbor\)",
            lambda: MODULE(USER, OTHERS, RATINGS, valid=np.ones((B, S), "f")),
        ),
        (
            r"valid: got shape \[3, 5, 6\], expected \[B, I, S\]",
            lambda: MODULE(USER, OTHERS, RATINGS, valid=np.ones((B, S, ITEMS), bool)),
        ),
        (
            r"valid: got shape \[3, 1, 5\], expected \[B, I, S\]",
            lambda: neighbor_scores(SIMILARITY, RATINGS, None, np.ones((B, 1, S), bool)),
        ),
        (
            r"ids: got an array, expected None because the module was built without num_users",
            lambda: MODULE(USER, OTHERS, RATINGS, ids=np.ones((B, S), int)),
        ),
        (
            r"ids: got None, expected int \[B, S\] because the module was built with num",
            lambda: NUMBERED(USER, OTHERS, RATINGS),
        ),
        (
            r"ids: got dtype float32, expected an integer",
            lambda: NUMBERED(USER, OTHERS, RATINGS, ids=np.ones((B, S), "f")),
        ),
        (
            r"similarity: got shape \[3, 4\]",
            lambda: MODULE(USER, OTHERS, RATINGS, similarity=SIMILARITY[:, 1:]),
        ),
        (
            r"weight: got shape \[5\], expected \[B, S\]",
            lambda: neighbor_scores(SIMILARITY, RATINGS, WEIGHT[0]),
        ),
        (r"k: got 6, expected a number from 1 to U=5", lambda: top_neighbors(SIMILARITY, 6)),
        (r"k: got 0, expected a number from 1 to U=5", lambda: top_neighbors(SIMILARITY, 0)),
        (r"num_users: got 0, ex", lambda: UserNeighbors(D, num_users=0, rngs=nnx.Rngs(0))),
        (
            r"ratings: got shape \[3, 5, 6\], expected \[U, I\]",
            lambda: dense_neighbor_scores(SIMILARITY, RATINGS),
        ),
        (
            r"rated: got dtype float32, expected bool",
            lambda: dense_neighbor_scores(
                SIMILARITY, RATINGS[0], rated=np.ones((S, ITEMS), np.float32)
            ),
        ),
    ],
)
def test_mistakes_are_told(message, call):
    told(message, call)
