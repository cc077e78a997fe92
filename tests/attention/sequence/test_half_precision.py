"""Prompts of several positions decoded in bfloat16: products that XLA may lack on a platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import masks, registry
from tests.attention.subjects import normal


@pytest.mark.parametrize("mixer", ["dot_product", "talking_heads", "latent", "differential"])
def test_prompt_in_half_precision(mixer):
    module = registry.load("mixer", mixer)(16, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = normal(0, 3, 5, 16)
    out, _ = jax.jit(module.decode)(x, module.init_cache(3, 16))
    expected = jax.jit(lambda x: module(x, mask=masks.causal()))(x)
    assert out.dtype == jnp.bfloat16
    out, expected = (np.asarray(y, np.float32) for y in (out, expected))
    np.testing.assert_allclose(out, expected, atol=0.03 * np.abs(expected).max())
