"""Gradients of attention weights: every kernel, transformations, several calls, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import (
    AttentionPool,
    MaxPool,
    MultiHeadAttention,
    attend,
    attention_weights,
    attribution,
    inspect,
    masks,
)
from attention.projection import Projection
from tests.attention import subjects
from tests.attention.subjects import normal

QUERY, KEY = jnp.asarray(normal(0, 2, 5, 4, 8)), jnp.asarray(normal(1, 2, 7, 2, 8))
VALUE, COTANGENT = jnp.asarray(normal(2, 2, 7, 2, 8)), normal(3, 2, 5, 4, 8)
X = jnp.asarray(normal(4, 2, 5, 8))


def total(result):
    return jnp.sum(result * COTANGENT, axis=(1, 2, 3))


@pytest.mark.parametrize("kernel", subjects.KERNELS)
def test_every_kernel_by_hand(kernel):
    mask = masks.lengths(key=jnp.array([7, 0]))
    run = functools.partial(attend, mask=mask, implementation=kernel)
    with subjects.running(kernel):
        weights, gradients = attribution.attention_gradients(run, QUERY, KEY, VALUE, score=total)
    expected = np.einsum("btnv,bsnv->bnts", COTANGENT, np.repeat(VALUE, 2, axis=2))
    np.testing.assert_allclose(gradients["attention"], expected, atol=1e-5)
    # The second example may attend to nothing.
    assert not weights["attention"][1].any()
    expected = attention_weights(QUERY, KEY, mask=mask)
    np.testing.assert_allclose(weights["attention"], expected, atol=1e-6)


def test_bfloat16_and_one_position():
    arrays = (x[:, :1].astype(jnp.bfloat16) for x in (QUERY, KEY, VALUE))
    score = lambda out: jnp.sum(out.astype(jnp.float32) * COTANGENT[:, :1])  # noqa: E731
    found = attribution.attention_gradients(attend, *arrays, score=score)
    gradients = found.gradients["attention"]
    assert gradients.dtype == np.float32
    expected = np.einsum("btnv,bsnv->bnts", COTANGENT[:, :1], np.repeat(VALUE[:, :1], 2, axis=2))
    np.testing.assert_allclose(gradients, expected, atol=0.1)


class Block(nnx.Module):
    """x + attention."""

    def __init__(self, rngs):
        self.attention = MultiHeadAttention(8, 2, rngs=rngs)

    def __call__(self, x):
        return x + self.attention(x)


class Stack(nnx.Module):
    """Three blocks whose parameters are stacked, in a scan with rematerialization, and a pool."""

    def __init__(self, rngs):
        self.blocks = nnx.vmap(Block)(rngs.split(3))
        self.pool = AttentionPool(8, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def forward(x, block):
            return block(x)

        return self.pool(forward(x, self.blocks))


def mixed(attention, x, added):
    """Returns the result of the attention with `added` to its weights."""
    value = attention.value(x)
    weights = attention_weights(attention.query(x), attention.key(x)) + added
    return attention.out(jnp.einsum("bnts,bsnv->btnv", weights, value))


def test_a_scan_with_rematerialization():
    model = Stack(nnx.Rngs(0))
    score = lambda out: jnp.sum(out[0] ** 2, axis=-1)  # noqa: E731
    weights, gradients = attribution.attention_gradients(model, X, score=score)
    captured = inspect.capture(model, X)
    assert list(weights) == list(gradients) == list(captured) == ["blocks/attention", "pool"]
    graphdef, state = nnx.split(model.blocks)

    def perturbed(added):
        x = X
        for layer in range(3):
            block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=layer: leaf[i], state))
            x = x + mixed(block.attention, x, added[layer])
        return jnp.sum(score(model.pool(x)))

    expected = jax.grad(perturbed)(jnp.zeros((3, 2, 2, 5, 5)))
    np.testing.assert_allclose(gradients["blocks/attention"], expected, atol=1e-5, rtol=1e-5)
    for name in weights:
        np.testing.assert_allclose(weights[name], captured[name], atol=1e-7)
    # A name selects one layer alone.
    some = attribution.attention_gradients(model, X, score=score, layers="pool")
    assert list(some.gradients) == list(some.weights) == ["pool"]
    np.testing.assert_allclose(some.gradients["pool"], gradients["pool"], atol=1e-6)


class Wrapped(nnx.Module):
    """An attention inside of what a test asks for."""

    def __init__(self, wrap):
        self.attention, self.wrap = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0)), wrap

    def __call__(self, x):
        return self.wrap(self.attention)(x)


def twice(module):
    return lambda x: module(module(x))


def one_branch(module):
    return lambda x: jax.lax.cond(x[0, 0, 0] > 1e3, twice(module), module, x)


@pytest.mark.parametrize(
    ("wrap", "calls"),
    [(jax.jit, 1), (jax.checkpoint, 1), (one_branch, 1), (twice, 2)],
    ids=["jit", "remat", "cond", "twice"],
)
def test_inside_of_transformations(wrap, calls):
    model = Wrapped(wrap)
    score = lambda out: jnp.sum(out**2)  # noqa: E731
    found = attribution.attention_gradients(model, X, score=score).gradients["attention"]

    def perturbed(added):
        x = X
        for one in added:
            x = mixed(model.attention, x, one)
        return score(x)

    expected = jax.grad(perturbed)(jnp.zeros((calls, 2, 2, 5, 5)))
    expected = expected if calls > 1 else expected[0]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_vmap_keeps_its_axis_first():
    model = Wrapped(lambda module: jax.vmap(jax.jit(twice(module))))
    x = jnp.asarray(normal(5, 3, 1, 5, 8))
    score = lambda out: jnp.sum(out**2)  # noqa: E731
    found = attribution.attention_gradients(model, x, score=score).gradients["attention"]
    one = attribution.attention_gradients(
        Wrapped(lambda module: twice(module)), x[:, 0], score=score
    ).gradients["attention"]
    assert found.shape == (2, 3, 1, 2, 5, 5)
    np.testing.assert_allclose(found[:, :, 0], one, atol=1e-5)


def test_attention_without_effect_has_gradient_0():
    def run(x):
        first = x * attend(QUERY, KEY, VALUE)
        return first, attend(QUERY, KEY, 2 * VALUE)

    score = lambda out: jnp.sum(out[1] * COTANGENT)  # noqa: E731
    weights, gradients = attribution.attention_gradients(run, jnp.ones(()), score=score)
    assert not gradients["attention"].any()
    assert gradients["attention"].shape == weights["attention"].shape
    assert gradients["attention_1"].any()


def test_a_method_of_a_model():
    model = Wrapped(lambda module: module)
    score = lambda out: jnp.sum(out**2)  # noqa: E731
    expected = attribution.attention_gradients(model, X, score=score).gradients
    found = attribution.attention_gradients(model.__call__, X, score=score).gradients
    np.testing.assert_array_equal(found["attention"], expected["attention"])


def run_partly(x):
    # The same line, hence one name.
    first, second = (MODULE(y) for y in (x, x + 1))
    return first, jax.lax.stop_gradient(second)


MODULE = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: attribution.attention_gradients(
                Projection((8,), (3,), rngs=nnx.Rngs(0)), X, score=jnp.sum
            ),
            ValueError,
            "model: got a model without attention",
        ),
        (
            lambda: attribution.attention_gradients(MODULE, X, score=lambda out: out),
            ValueError,
            r"score: got shape \[2, 5, 8\], expected a scalar or \[B\]",
        ),
        (
            lambda: attribution.attention_gradients(MODULE, X, score=jnp.argmax),
            ValueError,
            "score: got dtype int32",
        ),
        (
            lambda: attribution.attention_gradients(MODULE, X, score=jnp.sum, layers="no"),
            ValueError,
            r"layers: got 'no', expected names or indices of \['attention'\]",
        ),
        (
            lambda: attribution.attention_gradients(
                MaxPool(8, rngs=nnx.Rngs(0)), X, score=lambda out: out[0].sum()
            ),
            NotImplementedError,
            r"attention: got attention without gradients .*'gradients'.* \(set layers=",
        ),
        (
            lambda: attribution.attention_gradients(
                MultiHeadAttention(8, 2, dropout_rate=0.5, rngs=nnx.Rngs(0)),
                X,
                dropout_key=jax.random.key(0),
                score=jnp.sum,
            ),
            NotImplementedError,
            "attention: got .*without dropout",
        ),
        (
            lambda: attribution.attention_gradients(
                run_partly, X, score=lambda out: out[0].sum() + out[1].sum()
            ),
            ValueError,
            "attention: got 1 calls that affect the score, expected all 2 calls or none",
        ),
    ],
)
def test_what_cannot_be_done(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
