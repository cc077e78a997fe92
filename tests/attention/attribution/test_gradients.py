"""Gradient attributions against values by hand and exact integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attribution

X = jnp.array([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]])
WEIGHTS = jnp.array([2.0, -1.0, 0.5])


def cubic(x):
    return jnp.sum(WEIGHTS * x**3, axis=-1)


def test_gradient_times_input_by_hand():
    # The gradient of w·x³ is 3 w x².
    found = attribution.gradient_times_input(cubic, X)
    np.testing.assert_allclose(found, 3 * WEIGHTS * X**3, rtol=1e-6)
    found = attribution.gradient_times_input(cubic, X, jnp.array([1.0, 1.0, 1.0]))
    np.testing.assert_allclose(found, 3 * WEIGHTS * X**2 * (X - 1), rtol=1e-6)


@pytest.mark.parametrize("baseline", [0.0, np.array([1.0, -1.0, 2.0], "f")])
def test_integrated_gradients_of_a_polynomial(baseline):
    # Two points are exact up to degree 3 of the integrand, here 2.
    run = lambda x: attribution.integrated_gradients(cubic, x, baseline, steps=2)  # noqa: E731
    attributions, gap = jax.jit(run)(X)
    np.testing.assert_allclose(attributions, WEIGHTS * (X**3 - baseline**3), atol=1e-5)
    np.testing.assert_allclose(gap, [0, 0], atol=1e-4)


def test_the_gap_is_the_error_of_the_integral():
    # The midpoint rule with one point: x · 3 w (x / 2)², instead of w x³.
    attributions, gap = attribution.integrated_gradients(cubic, X, steps=1, method="midpoint")
    np.testing.assert_allclose(attributions, 0.75 * WEIGHTS * X**3, rtol=1e-6)
    np.testing.assert_allclose(gap, 0.25 * jnp.sum(WEIGHTS * X**3, -1), rtol=1e-5)
    gaps = [
        abs(attribution.integrated_gradients(cubic, X, steps=n, method="midpoint").gap).max()
        for n in (4, 8, 16)
    ]
    np.testing.assert_allclose(gaps[1] / gaps[0], 0.25, atol=0.01)
    np.testing.assert_allclose(gaps[2] / gaps[1], 0.25, atol=0.02)


def test_a_scalar_score_and_bfloat16():
    x = X.astype(jnp.bfloat16)
    total = attribution.integrated_gradients(lambda x: jnp.sum(cubic(x)), x, steps=2)
    assert total.gap.shape == ()
    assert total.attributions.dtype == jnp.float32
    np.testing.assert_allclose(total.attributions, WEIGHTS * X**3, rtol=0.03)
    found = attribution.gradient_times_input(cubic, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 3 * WEIGHTS * X**3, rtol=0.03)


def test_memory_does_not_grow_with_the_steps():
    def memory(steps):
        score = lambda x: jnp.sum(jnp.sort(x, axis=1) * x[:, ::-1], axis=(1, 2))  # noqa: E731
        run = jax.jit(
            lambda x: attribution.integrated_gradients(score, x, steps=steps).attributions
        )
        x = jax.ShapeDtypeStruct((4, 4096, 3), jnp.float32)
        return run.lower(x).compile().memory_analysis().temp_size_in_bytes

    assert memory(64) <= memory(2) + 4096


def test_grad_cam_by_hand():
    features = jnp.array([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [-5.0, 2.0]]]])
    gradients = jnp.array([[[[1.0, -1.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, -1.0]]]])
    # Means of the gradients: 1 and -0.5.
    expected = [[[0.0, 1.0], [0.0, 0.0]]]
    np.testing.assert_allclose(attribution.grad_cam(features, gradients), expected, atol=1e-7)
    tokens = attribution.grad_cam(features.reshape(1, 4, 2), gradients.reshape(1, 4, 2))
    np.testing.assert_allclose(tokens, [[0, 1, 0, 0]], atol=1e-7)
    rounded = attribution.grad_cam(features.astype(jnp.bfloat16), gradients.astype(jnp.bfloat16))
    assert rounded.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attribution.integrated_gradients(cubic, X, jnp.zeros((3, 3))),
            r"baseline: got shape \[3, 3\], expected a shape that broadcasts to \[2, 3\]",
        ),
        (
            lambda: attribution.gradient_times_input(cubic, X, jnp.zeros((1, 2, 3))),
            r"baseline: got shape \[1, 2, 3\], expected",
        ),
        (lambda: attribution.integrated_gradients(cubic, X, steps=0), "steps: got 0, expected"),
        (lambda: attribution.integrated_gradients(cubic, X, method="left"), "method: got 'left'"),
        (lambda: attribution.gradient_times_input(cubic, jnp.arange(3)), "x: got dtype int32"),
        (
            lambda: attribution.gradient_times_input(lambda x: x, X),
            r"function: got scores of shape \[2, 3\], expected \[B=2\]",
        ),
        (lambda: attribution.grad_cam(X, X), r"features: got shape \[2, 3\], expected \[B, ..., C"),
        (
            lambda: attribution.grad_cam(X[None], X[None, :1]),
            r"gradients: got shape \[1, 1, 3\], expected \[1, 2, 3\] like features",
        ),
    ],
)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
