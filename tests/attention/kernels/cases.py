"""Inputs shared by the kernel tests, and a comparison of outputs and gradients with the
reference."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import masks
from attention.kernels import devices, reference
from attention.masks import patterns
from attention.masks.terms import MaskTerm
from tests.attention.subjects import normal

B, N = 2, 4
PLAIN = {
    "mask": None,
    "bias": None,
    "scale": 0.6,
    "logit_cap": None,
    "sinks": None,
    "dropout_rate": 0.0,
    "dropout_key": None,
}
ON = {
    platform: pytest.mark.skipif(
        devices.default_platform() != platform,
        reason=f"needs {name}: JAX_PLATFORMS={platform} pytest tests/attention/kernels",
    )
    for platform, name in devices.PLATFORMS.items()
}


@dataclasses.dataclass(frozen=True)
class Unknown(MaskTerm):
    """A condition that no kernel has heard of."""

    array: jax.Array

    def allowed(self, B, N, T, S, rows=None, columns=None):
        return self.array


UNKNOWN = masks.Mask((Unknown(jnp.ones((1, 1, 1, 1), bool)),))


def inputs(T, S, K=2, H=6, V=3, dtype=jnp.float32, **more):
    """Returns query, key, value and all other inputs that are differentiated."""
    arrays = {
        "query": normal(0, B, T, N, H),
        "key": normal(1, B, S, K, H),
        "value": normal(2, B, S, K, V),
    }
    return {name: jnp.asarray(array, dtype) for name, array in arrays.items()} | more


def run(attend, inputs, context=contextlib.nullcontext, **options):
    """Returns the output, and the gradients of a weighted sum of the output by each input."""
    shape = (*inputs["query"].shape[:3], inputs["value"].shape[-1])
    cotangent = jnp.asarray(normal(9, *shape), inputs["query"].dtype)

    @jax.jit
    def both(inputs):
        def output(inputs):
            arrays = [inputs[name] for name in ("query", "key", "value")]
            more = {n: a for n, a in inputs.items() if n not in ("query", "key", "value")}
            with context():
                return attend(*arrays, **PLAIN | options | more)

        out, backward = jax.vjp(output, inputs)
        return out, backward(cotangent)[0]

    return jax.tree.map(np.asarray, both(inputs))


def assert_equals_reference(
    attend, inputs, context=contextlib.nullcontext, atol=2e-6, slope_atol=2e-5, **options
):
    """Asserts that output and gradients equal those of the reference in float32, relative to
    largest, at least 1."""
    out, slopes = run(attend, inputs, context, **options)
    exact = jax.tree.map(lambda array: array.astype(jnp.float32), inputs)
    expected, expected_slopes = run(reference.attend, exact, **options)
    assert out.dtype == inputs["query"].dtype
    assert_close(out, expected, atol, "output")
    for name, slope in expected_slopes.items():
        assert slopes[name].dtype == inputs[name].dtype
        assert_close(slopes[name], slope, slope_atol, name)
    return out, slopes


def assert_close(actual, expected, tolerance, name):
    size = max(1.0, np.abs(expected).max())
    actual = np.asarray(actual, np.float32)
    np.testing.assert_allclose(actual / size, expected / size, atol=tolerance, err_msg=name)


def ids(seed, length, count=3):
    return jnp.asarray(np.random.default_rng(seed).integers(0, count, (B, length)))


def marks(seed, length, share=0.7):
    return jnp.asarray(np.random.default_rng(seed).random((B, length)) < share)


def every_mask(T, S):
    """Returns one or more masks of each kind, by name."""
    offset = S - T
    found = {
        "causal": masks.causal(offset),
        "causal_by_example": masks.causal(jnp.array([offset, -3])),
        "window": masks.window(7, 3, offset),
        "window_one_sided": masks.window(5, None, offset) & masks.causal(offset + 2),
        "lengths": masks.lengths(jnp.array([T - 4, 9]), jnp.array([S // 2, 0])),
        "valid": masks.valid(marks(1, T), marks(2, S)),
        "segments": masks.segments(ids(3, T), ids(4, S)) & masks.lengths(key=jnp.array([S, 20])),
        "prefix": masks.prefix(9, offset),
        "prefix_by_example": masks.prefix(jnp.array([9, 0]), jnp.array(offset)),
        "dense": masks.dense(jnp.asarray(np.random.default_rng(5).random((1, N, T, S)) < 0.4)),
        "dilated": patterns.dilated_window(3, None, 4, offset),
        "strided": patterns.strided(6, -20),
        "fixed": patterns.fixed(8, 2, offset) & masks.causal(offset),
        "global_tokens": patterns.global_tokens(3, offset) | masks.window(2, 2, offset),
        "global_marks": patterns.global_marks(marks(6, T, 0.1), marks(7, S, 0.1)),
        "big_bird": patterns.big_bird(8, query_offset=offset) & masks.causal(offset),
    }
    return found
