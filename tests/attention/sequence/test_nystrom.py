"""Nystromformer: the inverse, segments of the real positions, the convolution, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import attend, attention_weights, masks, recording
from attention.sequence.nystrom import (
    Nystromformer,
    iterative_inverse,
    nystrom_attention,
    nystrom_weights,
)
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

attend, attention_weights, iterative_inverse, nystrom_attention, nystrom_weights = map(
    compiled, (attend, attention_weights, iterative_inverse, nystrom_attention, nystrom_weights)
)

B, T, N, H, D = 2, 8, 2, 4, 8


def arrays(length=T):
    return [normal(seed, B, length, N, H) for seed in range(3)]


def test_inverse_converges_to_pinv():
    square = np.eye(4) + 0.3 * normal(0, 3, 4, 4)
    singular = square.copy()
    singular[:, 2] = singular[:, 1]
    with jax.enable_x64(True):
        for matrix in (square, singular):
            expected = np.linalg.pinv(matrix)
            np.testing.assert_allclose(
                iterative_inverse(matrix, iterations=12), expected, atol=1e-8
            )


def test_one_step_of_the_inverse_by_hand():
    # A = 2 in one number: Z = 2 / 4 = 1/2 is the inverse already, and stays.
    np.testing.assert_allclose(iterative_inverse(np.full((1, 1), 2.0, np.float32)), [[0.5]])
    # A = diag(1, 1/2), both norms 1: Z = A, and the second entry goes from z = 1/2 with az = 1/4 to
    # 1/8 (13 - 1/4 (15 - 1/4 (7 - 1/4))) = 1.26...
    matrix = np.diag([1.0, 0.5]).astype(np.float32)
    expected = 0.125 * (13 - 0.25 * (15 - 0.25 * (7 - 0.25)))
    np.testing.assert_allclose(
        iterative_inverse(matrix, iterations=1), np.diag([1.0, expected]), rtol=1e-6
    )


def test_inverse_of_zeros_is_zero_with_finite_gradients():
    value, gradient = jax.value_and_grad(lambda a: iterative_inverse(a).sum())(jnp.zeros((3, 3)))
    assert value == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("num_landmarks", [T, T + 5])
def test_as_many_landmarks_as_positions_are_attention(num_landmarks):
    query, key, value = arrays()
    out = nystrom_attention(query, key, value, num_landmarks=num_landmarks)
    np.testing.assert_allclose(out, attend(query, key, value), atol=1e-6)
    weights = nystrom_weights(query, key, num_landmarks=num_landmarks)
    np.testing.assert_allclose(weights, attention_weights(query, key), atol=1e-6)


def test_few_real_positions_among_many_are_attention():
    query, key, value = arrays()
    mask = masks.valid(key=np.array([[0, 1, 0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]], bool))
    out = nystrom_attention(query, key, value, num_landmarks=3, mask=mask)
    np.testing.assert_allclose(out, attend(query, key, value, mask=mask), atol=1e-6)


def test_constant_segments_lose_nothing():
    # Where every position of a segment is the same, landmarks stand for all: A of rank M.
    query, key, value = (np.repeat(array, 4, axis=1) for array in arrays(2))
    with jax.enable_x64(True):
        wide = [jnp.asarray(array, jnp.float64) for array in (3 * query, 3 * key, value)]
        out = nystrom_attention(*wide, num_landmarks=2, inverse_iterations=30)
        np.testing.assert_allclose(out, attend(*wide), atol=1e-8)


def test_weights_take_the_values_to_the_result():
    query, key, value = arrays()
    options = {"num_landmarks": 3, "convolution": normal(3, 5, N)}
    options["mask"] = masks.lengths(query=jnp.array([8, 5]), key=jnp.array([5, 8]))
    heads = nystrom_attention(query, key, value, **options)
    weights = nystrom_weights(query, key, **options)
    np.testing.assert_allclose(np.einsum("bnts,bsnv->btnv", weights, value), heads, atol=1e-5)
    np.testing.assert_array_equal(heads[1, 5:], 0)
    np.testing.assert_array_equal(weights[1, :, 5:], 0)
    np.testing.assert_array_equal(weights[0, ..., 5:], 0)


def test_convolution_by_hand():
    # With equal keys every position gets the mean, to which the convolution is added.
    value = np.array([1.0, 2.0, 4.0, 8.0], np.float32).reshape(1, 4, 1, 1)
    zeros, taps = np.zeros_like(value), np.array([[10.0], [0.0], [1.0]], np.float32)
    out = nystrom_attention(zeros, zeros, value, num_landmarks=4, convolution=taps)
    np.testing.assert_allclose(out.ravel() - 15 / 4, [2, 14, 28, 40], rtol=1e-5)
    # The third position is hidden, so 2 and 8 are neighbors.
    mask = masks.valid(key=np.array([[1, 1, 0, 1]], bool))
    out = nystrom_attention(zeros, zeros, value, num_landmarks=4, convolution=taps, mask=mask)
    np.testing.assert_allclose(np.ravel(out)[[0, 1, 3]] - 11 / 3, [2, 18, 20], rtol=1e-5)


def test_padding_anywhere_changes_nothing():
    module = Nystromformer(D, 2, num_landmarks=3, kernel_size=3, rngs=nnx.Rngs(0))
    x = normal(0, B, 5, D)
    places = np.array([[0, 2, 3, 6, 8], [1, 2, 5, 7, 9]])
    padded, valid = normal(1, B, 10, D), np.zeros((B, 10), bool)
    np.put_along_axis(padded, places[..., None], x, axis=1)
    np.put_along_axis(valid, places, True, axis=1)
    run = jax.jit(lambda x, mask: module(x, mask=mask))
    short = run(x, None)
    for mask in (masks.valid(key=valid), masks.valid(query=valid, key=valid)):
        out = np.take_along_axis(np.asarray(run(padded, mask)), places[..., None], axis=1)
        np.testing.assert_allclose(out, short, atol=2e-6)


def test_what_is_recorded_is_what_is_returned():
    module = Nystromformer(D, 2, num_landmarks=3, rngs=nnx.Rngs(0))
    seen = []
    with recording.recorder(lambda compute: seen.append(compute())):
        _, weights = module(normal(0, B, T, D), return_weights=True)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], weights)


def test_mistakes_are_told():
    for wrong, message in (
        ({"num_heads": 0}, "num_heads: got 0, expected a positive divisor"),
        ({"num_landmarks": 0}, "num_landmarks: got 0, expected at least 1"),
        ({"inverse_iterations": 0}, "inverse_iterations: got 0, expected at least 1"),
        ({"kernel_size": 4}, "kernel_size: got 4, expected an odd size, or 0 for none"),
        ({"dropout_rate": -0.1}, "dropout_rate: got -0.1"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Nystromformer(D, **({"num_heads": 2} | wrong), rngs=nnx.Rngs(0))
    query, key, value = arrays()
    for change, message in (
        ({"convolution": np.ones((4, N), np.float32)}, r"convolution: got shape \[4, 2\]"),
        ({"convolution": np.ones((3, 5), np.float32)}, r"convolution: got shape \[3, 5\]"),
        ({"num_landmarks": 0}, "num_landmarks: got 0"),
        ({"inverse_iterations": 0}, "inverse_iterations: got 0"),
        ({"key": key[:, 1:], "value": value[:, 1:]}, r"key: got shape \[2, 7, 2, 4\]"),
    ):
        arguments = {"query": query, "key": key, "value": value, "num_landmarks": 2} | change
        with pytest.raises(ValueError, match=f"^{message}"):
            nystrom_attention(**arguments)
