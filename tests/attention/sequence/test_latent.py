"""Latent attention: its two forms, the cache that is never expanded, options."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import attend, masks
from attention.sequence.latent import LatentAttention, expanded_keys, latent_attention
from tests.attention.compiled import compiled
from tests.attention.subjects import normal

attend, expanded_keys, latent_attention = map(compiled, (attend, expanded_keys, latent_attention))

B, T, S, N, H, R, V, C, D = 2, 3, 5, 2, 4, 2, 3, 6, 8


def arrays():
    return {
        "query": normal(0, B, T, N, H + R),
        "latent": normal(1, B, S, C),
        "rotary_key": normal(2, B, S, R),
        "key_up": normal(3, C, N, H),
        "value_up": normal(4, C, N, V),
    }


def test_identity_ups_are_attention_to_the_latents():
    a = arrays()
    eye = np.eye(C, dtype=np.float32)[:, None]
    query = normal(5, B, T, 1, C + R)
    key = np.concatenate([a["latent"], a["rotary_key"]], axis=-1)[:, :, None]
    expected = attend(query, key, a["latent"][:, :, None])
    np.testing.assert_array_equal(expanded_keys(a["latent"], a["rotary_key"], eye), key)
    for absorbed in (False, True):
        out = latent_attention(query, a["latent"], a["rotary_key"], eye, eye, absorbed=absorbed)
        np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("mask", [None, masks.causal(2), masks.lengths(key=jnp.array([3, 0]))])
def test_absorbed_equals_expanded_with_its_gradients(mask):
    def run(arrays, absorbed):
        out = latent_attention(**arrays, absorbed=absorbed, mask=mask)
        return jnp.sum(jnp.sin(out)), out

    results = [
        jax.jit(jax.grad(run, has_aux=True), static_argnums=1)(arrays(), absorbed)
        for absorbed in (False, True)
    ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_absorbed_in_half_precision():
    low = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), arrays())
    expected = latent_attention(**arrays())
    for absorbed in (False, True):
        out = jax.jit(lambda a, way=absorbed: latent_attention(**a, absorbed=way))(low)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(np.float32), expected, atol=0.1)


def shapes_in(jaxpr):
    """Shapes of all values of a traced program, inner ones included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


def test_the_cache_holds_the_latents_alone_and_is_never_expanded():
    capacity, heads, head_size = 97, 8, 16
    module = LatentAttention(
        D, heads, head_size=head_size, key_value_rank=5, rotary_size=4, rngs=nnx.Rngs(0)
    )
    cache = module.init_cache(B, capacity)
    assert cache.key.shape == (B, 1, capacity, 5 + 4)
    assert cache.value.size == 0
    traced = jax.make_jaxpr(module.decode)(jnp.zeros((B, 1, D)), cache)
    sizes = [np.prod(s) for s in shapes_in(traced.jaxpr) if capacity in s]
    assert len(sizes) > 5
    # Logits [B, N, 1, S] are the most that is ever made of it; keys would be 16 times as much.
    assert max(sizes) <= B * capacity * max(heads, 5 + 4)


def test_cache_in_half_precision_is_close():
    module = LatentAttention(D, N, rngs=nnx.Rngs(0))
    x = normal(0, B, 4, D)
    cache = module.init_cache(B, 4, dtype=jnp.bfloat16)
    out, cache = jax.jit(module.decode)(x, cache)
    assert cache.key.dtype == jnp.bfloat16
    assert out.dtype == jnp.float32
    expected = jax.jit(lambda x: module(x, mask=masks.causal()))(x)
    np.testing.assert_allclose(out, expected, atol=0.05)
    with pytest.raises(ValueError, match="cache: got 5 positions, expected at most max_length=4"):
        module.decode(x[:, :1], cache)


def test_sizes_of_the_paper():
    # DeepSeek-V2: 128 features a head, a latent of 4 times that, half of it turned.
    module = nnx.eval_shape(
        lambda: LatentAttention(1024, 8, query_rank=96, use_bias=False, rngs=nnx.Rngs(0))
    )
    assert module.query.kernel.shape == (96, 8, 128 + 64)
    assert module.key.kernel.shape == (512, 8, 128)
    assert module.rotary_key.kernel.shape == (1024, 64)
    assert module.out.bias is None
    assert module.latent.bias is None


def test_mistakes_are_told():
    for wrong, message in (
        ({"num_heads": 3}, "num_heads: got 3, expected a positive divisor of model_size=8"),
        ({"key_value_rank": 0}, "key_value_rank: got 0, expected at least 1"),
        ({"query_rank": 0}, "query_rank: got 0, expected at least 1"),
        ({"value_head_size": 0}, "value_head_size: got 0, expected at least 1"),
        ({"rotary_size": 3}, "rotary_size: got 3, expected an even number"),
        ({"positions": "alibi"}, "positions: got 'alibi', expected 'rope'"),
        ({"positions": "none"}, "positions: got 'none', expected 'rope'"),
        ({"positions": "rope(fraction=0.1)"}, "positions: 'rope.*': head_size: got 2"),
        ({"dropout_rate": 1.0}, "dropout_rate: got 1.0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            LatentAttention(D, **({"num_heads": 2} | wrong), rngs=nnx.Rngs(0))
    for name, change, message in (
        ("query", lambda a: a[..., 1:], r"query: got shape \[2, 3, 2, 5\], expected"),
        ("latent", lambda a: a[..., 1:], r"key_up: got shape \[6, 2, 4\], expected"),
        ("rotary_key", lambda a: a[:, 1:], r"rotary_key: got shape \[2, 4, 2\], expected"),
        ("value_up", lambda a: a[:, 1:], r"value_up: got shape \[6, 1, 3\], expected"),
        ("key_up", lambda a: a.astype(np.float16), "key_up: got dtype float16, expected"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            latent_attention(**(arrays() | {name: change(arrays()[name])}))
