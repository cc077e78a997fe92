"""Occlusion, deletion and insertion against loops over gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attribution
from attention.attribution import Curve

X = jnp.array([[3.0, 1.0, 2.0, 0.0], [1.0, 4.0, 2.0, 8.0]])
ORDER = jnp.array([[0, 2, 1, 3], [3, 1, 2, 0]])
VALID = jnp.array([[True, True, True, False], [True] * 4])


def total(gate):
    return jnp.sum(gate * X, axis=-1)


def product(gate):
    return jnp.prod(gate * X + (1 - gate) * 0.5, axis=-1)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_deletion_and_insertion_by_hand(chunk):
    curve = attribution.deletion_curve(total, ORDER, chunk=chunk)
    np.testing.assert_allclose(curve.fractions, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.scores, [[6, 3, 1, 0, 0], [15, 7, 3, 1, 0]])
    area = attribution.area_under_curve(curve)
    np.testing.assert_allclose(area, [(3 + 3 + 1) / 4, (7.5 + 7 + 3 + 1) / 4])
    curve = attribution.insertion_curve(total, ORDER, chunk=chunk)
    np.testing.assert_allclose(curve.scores, [[0, 3, 5, 6, 6], [0, 8, 12, 14, 15]])


def test_fewer_steps_and_invalid_positions():
    curve = attribution.deletion_curve(total, ORDER, valid=VALID, steps=2)
    np.testing.assert_allclose(curve.fractions, [0, 0.5, 1])
    # Half of three positions are two.
    np.testing.assert_allclose(curve.scores, [[6, 1, 0], [15, 3, 0]])
    seen = jnp.where(VALID, X, 100.0)
    score = lambda gate: jnp.sum(gate * seen, axis=-1)  # noqa: E731
    # The invalid position stays, and its place in the order does not matter.
    order = jnp.array([[3, 0, 2, 1], [3, 1, 2, 0]])
    for some in (ORDER, order):
        curve = attribution.deletion_curve(score, some, valid=VALID, steps=3)
        np.testing.assert_allclose(curve.scores[0], [106, 103, 101, 100])
        curve = attribution.insertion_curve(score, some, valid=VALID, steps=3)
        np.testing.assert_allclose(curve.scores[0], [100, 103, 105, 106])


def test_deletion_against_a_loop():
    order = attribution.random_order(jax.random.key(3), 2, 4)
    curve = jax.jit(lambda order: attribution.deletion_curve(product, order, steps=3))(order)
    for b in range(2):
        for k in range(4):
            x = np.array(X[b])
            x[np.asarray(order[b])[: int(np.floor(k / 3 * 4 + 0.5))]] = 0.5
            np.testing.assert_allclose(curve.scores[b, k], x.prod(), rtol=1e-6)


def test_occlusion_by_hand():
    groups = np.array(
        [[[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [0, 0, 0, 1], [0] * 4]], bool
    )
    for chunk in (1, 2):
        found = attribution.occlusion(total, groups, chunk=chunk)
        np.testing.assert_allclose(found, [[3, 3, 0], [15, 8, 0]])
    assert found.dtype == jnp.float32


def test_one_position_and_bfloat16():
    score = lambda gate: (2 * gate[:, 0]).astype(jnp.bfloat16)  # noqa: E731
    curve = attribution.deletion_curve(score, jnp.zeros((2, 1), int))
    assert curve.scores.dtype == jnp.float32
    np.testing.assert_array_equal(curve.scores, [[2, 0]] * 2)
    np.testing.assert_array_equal(attribution.area_under_curve(curve), [1, 1])


def test_only_a_chunk_of_gates_is_in_memory():
    U, size = 64, 1000

    def score(gate):
        # Sorting keeps the compiler from fusing the wide array away.
        wide = jnp.sort(gate[..., None] * jnp.arange(size, dtype=jnp.float32), axis=1)
        return jnp.sum(wide * wide[:, ::-1], axis=(1, 2))

    order = jax.ShapeDtypeStruct((1, U), jnp.int32)

    def memory(chunk):
        run = jax.jit(lambda order: attribution.deletion_curve(score, order, chunk=chunk))
        return run.lower(order).compile().memory_analysis().temp_size_in_bytes

    one = U * size * 4
    assert memory(1) < 8 * one < U * one < memory(U + 1)


def test_orders():
    attributions = jnp.array([[0.1, 3.0, -2.0, 3.0], [-jnp.inf, 0.0, 1.0, jnp.nan]])
    order = attribution.importance_order(attributions)
    np.testing.assert_array_equal(order, [[1, 3, 0, 2], [2, 1, 0, 3]])
    np.testing.assert_array_equal(attribution.uniform_order(2, 6), [[0, 4, 2, 1, 5, 3]] * 2)
    np.testing.assert_array_equal(attribution.uniform_order(1, 1), [[0]])
    # Every beginning is spread evenly: gaps of the first 8 of 64 positions are equal.
    np.testing.assert_array_equal(np.sort(attribution.uniform_order(1, 64)[0, :8]), range(0, 64, 8))
    order = attribution.random_order(jax.random.key(0), 64, 5)
    np.testing.assert_array_equal(jnp.sort(order), [range(5)] * 64)
    assert len({tuple(row) for row in np.asarray(order)}) > 20
    np.testing.assert_array_equal(order, attribution.random_order(jax.random.key(0), 64, 5))
    assert (order != attribution.random_order(jax.random.key(1), 64, 5)).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attribution.deletion_curve(total, ORDER, chunk=0), "chunk: got 0, expected"),
        (lambda: attribution.deletion_curve(total, ORDER, steps=0), "steps: got 0, expected"),
        (lambda: attribution.deletion_curve(total, X), "order: got dtype float32"),
        (lambda: attribution.insertion_curve(total, ORDER[0]), r"order: got shape \[4\]"),
        (
            lambda: attribution.insertion_curve(total, ORDER, valid=VALID[:1]),
            r"valid: got shape \[1, 4\], expected \[B, U\] with B=2, U=4",
        ),
        (lambda: attribution.deletion_curve(total, ORDER, valid=X), "valid: got dtype float32"),
        (
            lambda: attribution.deletion_curve(lambda gate: gate, ORDER),
            r"score: got shape \[2, 4\], expected \[B=2\]",
        ),
        (lambda: attribution.occlusion(total, VALID), r"groups: got shape .* \[B, G, U\]"),
        (lambda: attribution.occlusion(total, X[None]), "groups: got dtype float32"),
        (
            lambda: attribution.area_under_curve(Curve(X[0], X[:, :3])),
            r"scores: got shape \[2, 3\], expected \[B, P\] with P=4",
        ),
        (lambda: attribution.uniform_order(2, 0), "length: got 0, expected at least 1"),
        (lambda: attribution.importance_order(ORDER), "attributions: got dtype int32"),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
