"""The pools: what the contract does not ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import (
    AttentionPool,
    MaxPool,
    MultiHeadPool,
    StructuredPool,
    attend,
    attention_pool,
    max_pool,
    mean_pool,
    registry,
    structured_penalty,
    structured_pool,
)
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

attend, attention_pool, max_pool, mean_pool, structured_penalty, structured_pool = map(
    compiled, (attend, attention_pool, max_pool, mean_pool, structured_penalty, structured_pool)
)

X = jnp.asarray(normal(0, 2, 5, 8))


STATES = jnp.array([[[1.0, 8.0], [3.0, 2.0], [100.0, 100.0]]])
FIRST_TWO = jnp.array([[True, True, False]])


def test_pools_by_hand():
    pooled, weights = mean_pool(STATES, FIRST_TWO)
    np.testing.assert_allclose(pooled, [[2.0, 5.0]])
    np.testing.assert_allclose(weights, [[[0.5, 0.5, 0.0]]])
    pooled, weights = max_pool(STATES, FIRST_TWO)
    np.testing.assert_allclose(pooled, [[3.0, 8.0]])
    np.testing.assert_allclose(weights, [[[0.5, 0.5, 0.0]]])
    # Scores 0 and ln 3: 1/4 and 3/4.
    pooled, weights = attention_pool(STATES, jnp.log(jnp.array([[1.0, 3.0, 9.0]])), FIRST_TWO)
    np.testing.assert_allclose(pooled, [[2.5, 3.5]], rtol=1e-6)
    np.testing.assert_allclose(weights, [[[0.25, 0.75, 0.0]]], rtol=1e-6)


def test_max_pool_of_negative_states_and_of_equal_ones():
    pooled, _ = max_pool(-STATES, FIRST_TWO)
    np.testing.assert_array_equal(pooled, [[-1.0, -2.0]])
    # Of equal maxima the first has all the gradient, as the weights say.
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)[0]))(jnp.ones((1, 3, 2)))
    np.testing.assert_array_equal(gradient, [[[1, 1], [0, 0], [0, 0]]])


def test_pools_without_valid_take_all():
    for name in registry.names("pool"):
        pool = registry.load("pool", name)(8, rngs=nnx.Rngs(0))
        expected = pool(X, valid=jnp.ones((2, 5), bool))
        jax.tree.map(np.testing.assert_array_equal, pool(X), expected)


@pytest.mark.parametrize("name", registry.names("pool"))
def test_pools_refuse_what_does_not_fit(name):
    pool = registry.load("pool", name)(8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"states: got shape \[2, 5, 6\], expected .* D=8"):
        pool(X[..., :6])
    with pytest.raises(ValueError, match=r"valid: got dtype float32, expected bool \(True = a r"):
        pool(X, valid=jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"valid: got shape \[5, 2\], expected .* with B=2, T=5"):
        pool(X, valid=jnp.ones((5, 2), bool))


def sizes(module):
    return {
        "/".join(map(str, path)): leaf[...].shape
        for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }


def test_sizes():
    pool = AttentionPool(8, hidden_size=3, rngs=nnx.Rngs(0))
    assert sizes(pool) == {"hidden/kernel": (8, 3), "hidden/bias": (3,), "context": (3,)}
    assert sizes(MaxPool(8, rngs=nnx.Rngs(0))) == {}
    heads = {"key/kernel": (8, 2, 4), "key/bias": (2, 4), "value/kernel": (8, 2, 4)}
    heads["value/bias"] = (2, 4)
    for queries in (1, 3):
        pool = MultiHeadPool(8, num_heads=2, queries=queries, rngs=nnx.Rngs(0))
        assert sizes(pool) == heads | {
            "seed": (queries, 2, 4),
            "out/kernel": (2, 4 * queries, 8),
        }
        pooled, weights = jax.eval_shape(pool, X)
        assert (pooled.shape, weights.shape) == ((2, 8), (2, 2 * queries, 5))
    pool = StructuredPool(8, hops=3, hidden_size=6, rngs=nnx.Rngs(0))
    assert sizes(pool) == {
        "hidden/kernel": (8, 6),
        "hops/kernel": (6, 3),
        "out/kernel": (3, 8, 8),
    }
    pooled, weights = jax.eval_shape(pool, X)
    assert (pooled.shape, weights.shape) == ((2, 8), (2, 3, 5))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda **o: MultiHeadPool(8, num_heads=3, **o), "num_heads: got 3, expected a positive"),
        (lambda **o: MultiHeadPool(8, queries=0, **o), "queries: got 0, expected at least 1"),
        (lambda **o: StructuredPool(8, hops=0, **o), "hops: got 0, expected at least 1"),
        (lambda **o: StructuredPool(8, hidden_size=0, **o), "hidden_size: got 0, expected at"),
        (lambda **o: StructuredPool(8, dropout_rate=1.0, **o), "dropout_rate: got 1.0, expected"),
    ],
)
def test_options_refused(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(rngs=nnx.Rngs(0))


def test_queries_look_each_on_their_own():
    pool = MultiHeadPool(8, num_heads=2, queries=3, rngs=nnx.Rngs(0))
    pooled, weights = pool(X)
    out, total = pool.out.kernel[...].reshape(2, 3, 4, 8), 0
    for i in range(3):
        query = jnp.broadcast_to(pool.seed[...][i], (2, 1, 2, 4))
        heads = attend(query, pool.key(X), pool.value(X))[:, 0]
        total = total + jnp.einsum("bnh,nhd->bd", heads, out[:, i])
        alone = MultiHeadPool(8, num_heads=2, rngs=nnx.Rngs(0))
        alone.seed[...] = pool.seed[...][i : i + 1]
        np.testing.assert_allclose(weights[:, 2 * i : 2 * i + 2], alone(X)[1], atol=1e-6)
    np.testing.assert_allclose(pooled, total, atol=1e-5)


def test_structured_pool_by_hand():
    # Hops with scores (0, ln 3) and (0, 0) over the first two.
    scores = jnp.log(jnp.array([[[1.0, 3.0, 9.0], [1.0, 1.0, 1.0]]]))
    pooled, weights = structured_pool(STATES, scores, FIRST_TWO)
    np.testing.assert_allclose(weights, [[[0.25, 0.75, 0], [0.5, 0.5, 0]]], rtol=1e-6)
    np.testing.assert_allclose(pooled, [[[2.5, 3.5], [2.0, 5.0]]], rtol=1e-6)
    with pytest.raises(ValueError, match=r"scores: got shape \[1, 3\], expected \[B, R, T\]"):
        structured_pool(STATES, scores[:, 0])


@pytest.mark.parametrize(
    ("rows", "penalty"),
    [
        # Each hop is on a different position, so A Aᵀ is the identity.
        ([[1, 0, 0], [0, 0, 1]], 0.0),
        # Both on the same: the two entries off the diagonal are 1.
        ([[0, 1, 0], [0, 1, 0]], 2.0),
        # Spread evenly over four: A Aᵀ is all 1/4, so 2 · (3/4)² + 2 · (1/4)².
        ([[0.25] * 4] * 2, 1.25),
        # Nothing seen: the identity is left.
        ([[0, 0], [0, 0], [0, 0]], 3.0),
    ],
)
def test_penalty_by_hand(rows, penalty):
    weights = jnp.asarray([rows, rows], jnp.float32)
    np.testing.assert_allclose(structured_penalty(weights), [penalty] * 2, atol=1e-6)


def test_penalty_drives_hops_apart():
    def penalty(scores):
        return structured_penalty(structured_pool(jnp.zeros((1, 4, 1)), scores)[1])[0]

    scores = jnp.asarray(normal(0, 1, 2, 4)) / 10
    first, step = penalty(scores), jax.jit(jax.grad(penalty))
    for _ in range(300):
        scores = scores - 2.0 * step(scores)
    assert penalty(scores) < 0.02 < 1 < first
    best = jnp.argmax(scores[0], axis=-1)
    assert best[0] != best[1]


def test_penalty_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match=r"weights: got shape \[2, 5\], expected \[B, R, T\]"):
        structured_penalty(jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="weights: got dtype int32"):
        structured_penalty(jnp.ones((2, 3, 5), jnp.int32))
