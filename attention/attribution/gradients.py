"""Attributions from the gradient of a function with respect to its input array.

B examples, T tokens. Feature maps have height Y, width X and C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes
from attention.numerics import accumulator

Array = jax.Array
Function = Callable[[Array], Array]


class IntegratedGradients(NamedTuple):
    """Result of `integrated_gradients`.

    Attributes:
      attributions: of the shape of x, in at least float32.
      gap: error of the integral, f(x) - f(baseline) - Σ attributions; [B], or a scalar if f returns
        a scalar.
    """

    attributions: Array
    gap: Array


def gradient_times_input(function: Function, x: Array, baseline: Array | None = None) -> Array:
    """Computes gradient x input (Shrikumar et al. 2017, "Learning Important Features").

        a = (x - x') ⊙ ∂f(x) / ∂x

    Args:
      function: f, from [B, ...] to scores [B], or to a scalar. Each score may depend only on its
        own example.
      x: [B, ...], floating point, such as embeddings or pixels.
      baseline: x', broadcastable to x; 0 if None.

    Returns:
      a, [B, ...] of the shape of x, in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    start = _start(x, 0.0 if baseline is None else baseline)
    x = jnp.asarray(x)
    wide = accumulator(x)
    return (x.astype(wide) - start.astype(wide)) * _gradient(function, x).astype(wide)


def integrated_gradients(
    function: Function,
    x: Array,
    baseline: Array | float = 0.0,
    *,
    steps: int = 32,
    method: str = "gauss_legendre",
) -> IntegratedGradients:
    """Computes integrated gradients (Sundararajan et al. 2017, equation 1).

        a = (x - x') ⊙ ∫_0^1 ∂f(x' + α (x - x')) / ∂x dα,   Σ a = f(x) - f(x')

    The integral is approximated by a sum over `steps` points. They are evaluated one at a time, so
    memory does not depend on `steps`. The gap is the error of the sum; more steps reduce it.

    Args:
      function: f, from [B, ...] to scores [B], or to a scalar. Each score may depend only on its
        own example.
      x: [B, ...], floating point, such as embeddings or pixels.
      baseline: x', an array or number that is broadcastable to x.
      steps: number of points.
      method: "gauss_legendre", exact for polynomials of degree below 2 · steps, or "midpoint".

    Returns:
      `IntegratedGradients`: attributions [B, ...] of the shape of x and gap [B], in at least
      float32.

    Raises:
      ValueError: shapes or dtypes do not fit, steps is below 1, or the method is unknown.
    """
    start = _start(x, baseline)
    shapes.expect_positive(steps=steps)
    x = jnp.asarray(x)
    wide = accumulator(x)
    difference = x.astype(wide) - start.astype(wide)
    points, weights = (jnp.asarray(array, wide) for array in _rule(method, steps))

    def add(total: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
        alpha, weight = point
        between = (start.astype(wide) + alpha * difference).astype(x.dtype)
        return total + weight * _gradient(function, between).astype(wide), None

    mean, _ = jax.lax.scan(add, jnp.zeros(x.shape, wide), (points, weights))
    attributions = difference * mean
    change = function(x).astype(wide) - function(start).astype(wide)
    axes = tuple(range(change.ndim, x.ndim))
    return IntegratedGradients(attributions, change - jnp.sum(attributions, axis=axes))


def grad_cam(features: Array, gradients: Array) -> Array:
    """Computes Grad-CAM (Selvaraju et al. 2017, equations 1 and 2).

        L_p = max(Σ_c α_c F_pc, 0),   α_c = mean_p ∂f / ∂F_pc

    Args:
      features: F, [B, ..., C], such as a feature map [B, Y, X, C] or tokens [B, T, C].
      gradients: ∂f / ∂F, gradients of the explained score, of the same shape.

    Returns:
      L, [B, ...] in at least float32: the shape of the features without channels.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    shapes.expect_floating("features", features)
    shapes.expect_floating("gradients", gradients)
    shape = jnp.shape(features)
    if len(shape) < 3:
        raise ValueError(f"features: got shape {shapes.show(shape)}, expected [B, ..., C]")
    if jnp.shape(gradients) != shape:
        got = shapes.show(jnp.shape(gradients))
        raise ValueError(f"gradients: got shape {got}, expected {shapes.show(shape)} like features")
    features, gradients = jnp.asarray(features), jnp.asarray(gradients)
    wide = jnp.promote_types(accumulator(features), accumulator(gradients))
    axes = tuple(range(1, len(shape) - 1))
    channels = jnp.mean(gradients.astype(wide), axis=axes, keepdims=True)
    return jnp.maximum(jnp.sum(channels * features.astype(wide), axis=-1), 0)


def _start(x: Array, baseline: Array | float) -> Array:
    """Returns the baseline with shape and dtype of x."""
    shapes.expect_floating("x", x)
    shape, given = jnp.shape(x), jnp.shape(baseline)
    try:
        fits = np.broadcast_shapes(shape, given) == shape
    except ValueError:
        fits = False
    if not fits:
        got, expected = shapes.show(given), f"a shape that broadcasts to {shapes.show(shape)}"
        raise ValueError(f"baseline: got shape {got}, expected {expected}")
    return jnp.broadcast_to(jnp.asarray(baseline, jnp.result_type(x)), shape)


def _gradient(function: Function, x: Array) -> Array:
    """Returns the gradient of each score with respect to its own example."""

    def total(x: Array) -> Array:
        scores = function(x)
        if jnp.shape(scores) not in ((), x.shape[:1]):
            got = shapes.show(jnp.shape(scores))
            raise ValueError(f"function: got scores of shape {got}, expected [B={x.shape[0]}]")
        shapes.expect_floating("function", scores)
        return jnp.sum(scores)

    return jax.grad(total)(x)


def _rule(method: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points of a quadrature rule in [0, 1] and their weights, which sum to 1."""
    if method == "gauss_legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return (points + 1) / 2, weights / 2
    if method == "midpoint":
        return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    raise ValueError(f"method: got {method!r}, expected 'gauss_legendre' or 'midpoint'")
