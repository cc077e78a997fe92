"""Activation functions and norms: values, derivatives, and what a train step keeps of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.activations import gelu, gelu_tanh, silu
from attention.normalization import layer_norm, rms_norm

ACTIVATIONS = {
    "gelu": (gelu, functools.partial(jax.nn.gelu, approximate=False)),
    "gelu_tanh": (gelu_tanh, functools.partial(jax.nn.gelu, approximate=True)),
    "silu": (silu, jax.nn.silu),
}


def plain_layer_norm(x, scale, bias):
    centered = x - x.mean(-1, keepdims=True)
    return centered / jnp.sqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-5) * scale + bias


def plain_rms_norm(x, scale, _):
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale


NORMS = {
    "layer": (layer_norm, plain_layer_norm),
    "rms": (lambda x, scale, _: rms_norm(x, scale), plain_rms_norm),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_derivatives(name):
    ours, theirs = ACTIVATIONS[name]
    x = jnp.concatenate([jnp.linspace(-12, 12, 97), jnp.array([-1e4, 0.0, 1e4])])
    ones = jnp.ones_like(x)
    for function, error in (
        (lambda f: f(x), 1e-6),
        (lambda f: jax.vmap(jax.grad(f))(x), 2e-6),
        (lambda f: jax.jvp(f, (x,), (ones,))[1], 2e-6),
        # 1 - tanh² cancels.
        (lambda f: jax.vmap(jax.grad(jax.grad(f)))(x), 3e-5),
    ):
        np.testing.assert_allclose(function(ours), function(theirs), rtol=1e-5, atol=error)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf, jnp.nan])
def test_values_that_are_not_finite(name, value):
    ours, theirs = ACTIVATIONS[name]
    np.testing.assert_array_equal(ours(jnp.array(value)), theirs(jnp.array(value)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_bfloat16_is_rounded_once(name):
    ours, theirs = ACTIVATIONS[name]
    x = jnp.linspace(-6, 6, 257).astype(jnp.bfloat16)
    expected = theirs(x.astype(jnp.float32)).astype(jnp.bfloat16)
    found = ours(x)
    assert found.dtype == jax.grad(lambda x: ours(x).sum())(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(
        *(a.astype(np.float32) for a in (found, expected)), rtol=8e-3, atol=1e-6
    )


@pytest.mark.parametrize("name", NORMS)
def test_norms_and_derivatives(name):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(1, 2, shape), jnp.float32) for shape in ((3, 4, 8), 8, 8)]
    weights = jnp.asarray(rng.normal(size=(3, 4, 8)), jnp.float32)

    def loss(norm, *arrays):
        return jnp.sum(jnp.sin(norm(*arrays)) * weights)

    def twice(norm, x):
        slope = jax.grad(functools.partial(loss, norm))(x, *arrays[1:])
        return jnp.sum(jnp.square(slope))

    for function in (
        lambda f: f(*arrays),
        lambda f: jax.grad(functools.partial(loss, f), argnums=(0, 1, 2))(*arrays),
        lambda f: jax.jvp(f, arrays, arrays[:1] + arrays[:0:-1])[1],
        lambda f: jax.grad(functools.partial(twice, f))(arrays[0]),
    ):
        for pair in zip(*(jax.tree.leaves(function(norm)) for norm in NORMS[name]), strict=True):
            np.testing.assert_allclose(*pair, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NORMS)
def test_equal_entries_have_finite_gradients(name):
    for value in (0.0, 3.0, 1e20):
        x = jnp.full((2, 8), value)
        found = jax.grad(lambda x: NORMS[name][0](x, jnp.ones(8), jnp.zeros(8)).sum())(x)
        assert np.isfinite(found).all(), value


def temporaries(loss, *arrays):
    """Returns the bytes of temporaries of a gradient."""
    compiled = jax.jit(jax.grad(loss)).lower(*arrays).compile()
    return compiled.memory_analysis().temp_size_in_bytes


LAYERS = 6


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_train_step_keeps_input_and_output_of_an_activation(name):
    """Products before and after the activation need its output, and its gradient the input."""
    T, D = 4096, 64
    x, kernels = jnp.ones((T, D)), jnp.ones((LAYERS, D, D))

    def loss(kernels, function):
        hidden = x
        for kernel in kernels:
            hidden = function(hidden @ kernel)
        return jnp.sum(hidden)

    kept = [temporaries(functools.partial(loss, function=f), kernels) / x.nbytes
            for f in ACTIVATIONS[name]]  # fmt: skip
    assert kept[0] < 2 * LAYERS + 3
    assert kept[0] < kept[1]


@pytest.mark.parametrize("name", NORMS)
def test_a_train_step_keeps_less_of_a_norm(name):
    T, D = 4096, 64
    x, parameters = jnp.ones((T, D)), jnp.ones((LAYERS, D + 2, D))

    def loss(parameters, norm):
        hidden = x
        for one in parameters:
            hidden = hidden + norm(hidden, one[0], one[1]) @ one[2:]
        return jnp.sum(hidden)

    kept = [temporaries(functools.partial(loss, norm=norm), parameters) / x.nbytes
            for norm in NORMS[name]]  # fmt: skip
    assert kept[0] < 0.9 * kept[1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_integers_are_an_error(name):
    with pytest.raises(ValueError, match="x: got dtype int32, expected"):
        ACTIVATIONS[name][0](jnp.arange(3))
