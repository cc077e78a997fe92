"""`attend` on random shapes and masks (slow, because each shape is compiled)."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attention import attend, attention_weights, masks, registry
from tests.attention import subjects
from tests.attention.references import base as references

SIZE = st.integers(1, 6)
ALL = {"mask", "bias", "logit_cap", "sinks", "grouped_query", "value_size"}


@st.composite
def problems(draw):
    B, T, S, K, groups, H, V = (draw(SIZE) for _ in range(7))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    lengths = rng.integers(0, S + 1, B)
    mask, allowed = masks.lengths(key=jnp.asarray(lengths)), np.arange(S) < lengths[:, None]
    allowed = np.broadcast_to(allowed[:, None, None], (B, 1, T, S))
    if draw(st.booleans()):
        offset = draw(st.integers(-T, S))
        mask, allowed = mask & masks.causal(offset), allowed & np.tri(T, S, offset, dtype=bool)
    if draw(st.booleans()):
        more = rng.random((draw(st.sampled_from([1, B])), 1, T, S)) < 0.6
        mask, allowed = mask & masks.dense(more), allowed & more
    options = {"mask": mask}
    if draw(st.booleans()):
        options["bias"] = rng.normal(size=(1, K * groups, T, S)).astype(np.float32)
    if draw(st.booleans()):
        options["sinks"] = rng.normal(size=K * groups).astype(np.float32)
    if draw(st.booleans()):
        options["logit_cap"] = 2.0
    shapes = ((B, T, K * groups, H), (B, S, K, H), (B, S, K, V))
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    return arrays, options, allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [name for name in subjects.KERNELS if registry.find("kernel", name).capabilities >= ALL],
)
@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(problem=problems())
def test_attend_equals_the_equations(kernel, problem):
    arrays, options, allowed = problem
    doubles = [np.asarray(array, np.float64) for array in arrays]
    others = {name: value for name, value in options.items() if name != "mask"}
    expected, expected_weights = references.attend(*doubles, allowed, **others)
    with subjects.running(kernel):
        out = attend(*arrays, **options, implementation=kernel)
    np.testing.assert_allclose(out, expected, atol=3e-6, rtol=3e-6)
    weights = attention_weights(*arrays[:2], **options)
    np.testing.assert_allclose(weights, expected_weights, atol=2e-6)
