"""Norms of weighted values and ALTI against NumPy loops, on functions and on models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import MultiHeadAttention, attend, attribution, inspect
from tasks.common.backbones.transformer import Encoder
from tasks.common.backbones.transformer_layers import EncoderConfig
from tests.attention.subjects import normal

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.dirichlet(np.ones(4), size=(2, 3, 4)).astype(np.float32)
PARTS = RANDOM.normal(size=(2, 4, 3, 5)).astype(np.float32)
PLAIN = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
X = RANDOM.normal(size=(2, 4, 5)).astype(np.float32)


def test_norms_by_hand():
    weights = jnp.array([[[[0.5, 0.5]], [[0.0, 1.0]]]])
    parts = jnp.array([[[[6.0, 8.0], [1.0, 1.0]], [[0.0, 4.0], [3.0, 0.0]]]])
    found = attribution.weighted_norms(weights, parts)
    np.testing.assert_allclose(found.heads, [[[[5, 2]], [[0, 3]]]])
    np.testing.assert_allclose(found.total, [[[5, np.hypot(3, 2)]]], rtol=1e-6)


def test_norms_against_a_loop():
    found = jax.jit(attribution.weighted_norms)(WEIGHTS, PARTS)
    weighted = np.einsum("bnts,bsnd->bntsd", WEIGHTS, PARTS)
    np.testing.assert_allclose(found.heads, np.linalg.norm(weighted, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(found.total, np.linalg.norm(weighted.sum(1), axis=-1), rtol=1e-5)
    rounded = attribution.weighted_norms(*(jnp.asarray(a, jnp.bfloat16) for a in (WEIGHTS, PARTS)))
    assert rounded.total.dtype == jnp.float32
    np.testing.assert_allclose(rounded.total, found.total, rtol=0.05)
    assert not attribution.weighted_norms(0 * WEIGHTS, PARTS).total.any()


def heads_by_loop(module, x, weights):
    """Returns the norms of the weighted values of a module, from its parameters."""
    value, out = module.value, module.out
    values = np.einsum("bsd,dkv->bskv", x, value.kernel[...]) + value.bias[...]
    values = np.repeat(values, module.query.outputs[0] // values.shape[2], axis=2)
    parts = np.einsum("bsnv,nvd->bsnd", values, out.kernel[...])
    return np.einsum("bnts,bsnd->bntsd", weights, parts)


def test_norms_of_a_module():
    module = MultiHeadAttention(8, 4, key_value_heads=2, rngs=nnx.Rngs(0))
    module.value.bias[...] = jnp.asarray(normal(1, *module.value.bias.shape))
    x = normal(2, 2, 5, 8)
    found = attribution.value_weighted_norms(module, x)["attention"]
    weighted = heads_by_loop(module, x, inspect.capture(module, x)["attention"])
    np.testing.assert_allclose(found.heads, np.linalg.norm(weighted, axis=-1), atol=1e-5)
    np.testing.assert_allclose(found.total, np.linalg.norm(weighted.sum(1), axis=-1), atol=1e-5)


def contributions_by_loop(weights, parts, x, bias, scale=None, shift=None):
    """Returns the contributions of one layer; a layer norm follows if there is a scale."""
    B, T = x.shape[:2]
    weighted = np.einsum("bnts,bsnd->btsd", weights, parts)
    found = np.zeros((B, T, T))
    for b in range(B):
        for t in range(T):
            tokens = weighted[b, t].copy()
            tokens[t] += x[b, t]
            whole = tokens.sum(0) + bias
            y = whole
            if scale is not None:
                deviation = np.sqrt(whole.var() + 1e-5)
                y = scale * (whole - whole.mean()) / deviation + shift
                tokens = scale * (tokens - tokens.mean(-1, keepdims=True)) / deviation
            kept = np.abs(y).sum() - np.abs(y - tokens).sum(-1)
            kept = np.maximum(kept, 0)
            found[b, t] = kept / kept.sum()
    return found


def test_contributions_against_a_loop():
    bias = RANDOM.normal(size=5).astype("f")
    found = jax.jit(attribution.token_contributions)(WEIGHTS, PARTS, X, bias=bias)
    expected = contributions_by_loop(*(a.astype(np.float64) for a in (WEIGHTS, PARTS, X, bias)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.sum(found, -1), 1, atol=1e-5)


def test_a_token_without_contributions_attends_to_itself():
    one = attribution.token_contributions(WEIGHTS[:, :, :1, :1], PARTS[:, :1], X[:, :1])
    np.testing.assert_allclose(one, np.ones((2, 1, 1)))
    nothing = attribution.token_contributions(0 * WEIGHTS, PARTS, 0 * X)
    np.testing.assert_array_equal(nothing, [np.eye(4)] * 2)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_alti_of_an_encoder(norm):
    config = EncoderConfig(8, 2, 2, 16, norm=norm, positions="none", max_length=6)
    encoder = Encoder(config, rngs=nnx.Rngs(0))
    layers = list(encoder.layers)
    for number, layer in enumerate(layers):
        layer.attention.out.bias[...] = jnp.asarray(normal(number, 8))
        layer.attention_norm.scale[...] = jnp.asarray(1 + normal(number + 5, 8) / 4)
        layer.attention_norm.bias[...] = jnp.asarray(normal(number + 9, 8))
    x, expected = normal(20, 2, 6, 8), np.eye(6)
    found = attribution.alti(encoder, x)
    for layer in layers:
        given = layer.attention_norm(x) if norm == "pre" else x
        _, weights = layer.attention(given, return_weights=True)
        value, out = layer.attention.value, layer.attention.out
        values = np.einsum("bsd,dkv->bskv", given, value.kernel[...]) + value.bias[...]
        parts = np.einsum("bsnv,nvd->bsnd", values, out.kernel[...])
        after = layer.attention_norm
        options = (after.scale[...], after.bias[...]) if norm == "post" else ()
        one = contributions_by_loop(weights, parts, np.asarray(x), out.bias[...], *options)
        expected = one @ expected
        x, _ = layer(jnp.asarray(x), mask=None, dropout_key=None, return_weights=False)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: attribution.value_weighted_norms(attend, *[normal(0, 1, 3, 2, 4)] * 3),
            NotImplementedError,
            "attention: got attention without projected values",
        ),
        (
            lambda: attribution.value_weighted_norms(
                MultiHeadAttention(8, 2, gate="headwise", rngs=nnx.Rngs(0)), normal(0, 1, 3, 8)
            ),
            NotImplementedError,
            "attention: got .*without a gate",
        ),
        (
            lambda: attribution.alti(
                MultiHeadAttention(8, 2, rngs=nnx.Rngs(0)), normal(0, 1, 3, 8)
            ),
            NotImplementedError,
            "attention: got attention without a residual connection",
        ),
        (
            lambda: attribution.value_weighted_norms(jnp.tanh, normal(0, 1)),
            ValueError,
            "model: got a model without attention",
        ),
        (
            lambda: attribution.weighted_norms(WEIGHTS, PARTS[:, :3]),
            ValueError,
            r"transformed: got shape \[2, 3, 3, 5\], expected \[B, S, N, D\] with B=2, S=4, N=3",
        ),
        (
            lambda: attribution.token_contributions(WEIGHTS[:, :, :2], PARTS, X[:, :2]),
            ValueError,
            r"weights: got shape \[2, 3, 2, 4\], expected \[B, N, T, T\] of self-attention",
        ),
        (
            functools.partial(attribution.token_contributions, WEIGHTS, PARTS, X, norm=jnp.tanh),
            ValueError,
            "linear: got only one of norm and linear",
        ),
    ],
)
def test_what_cannot_be_done(call, error, message):
    with pytest.raises(error, match=message):
        call()
