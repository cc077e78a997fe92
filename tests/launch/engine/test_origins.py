"""The operation that produces the first non-finite value, with its module and source line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.engine import origins


class Logarithm(nnx.Module):
    def __init__(self):
        self.shift = nnx.Param(jnp.array(0.0))

    def __call__(self, x):
        return jnp.log(x + self.shift[...])


class Net(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([Logarithm(), Logarithm()])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.sum()


def origin(function, *arguments):
    found = origins.first_nonfinite(function, *arguments)
    assert found is not None
    return found


def test_the_module_and_the_line_are_named():
    with origins.module_scopes(Net()) as model:
        found = origin(lambda x: model(x), jnp.array([2.0, 0.5]))
    # log(log(0.5)) is NaN: in the second layer.
    assert (found.kind, found.primitive, found.module) == ("nan", "log", "layers/1")
    assert "test_origins.py" in found.line
    assert "__call__" in found.line
    assert not found.backward
    assert Logarithm.__call__.__name__ == "__call__"


def test_the_cause_of_nan_is_an_infinite_value():
    found = origin(lambda x: jnp.exp(x) - jnp.exp(x + 1), jnp.array(1e3))
    assert (found.kind, found.primitive) == ("nan", "sub")
    assert found.cause is not None
    assert (found.cause.kind, found.cause.primitive) == ("inf", "exp")
    assert "whose input has inf from operation exp" in str(found)


def test_infinite_results_are_found_and_masked_logits_are_not():
    masked = jnp.array([0.0, -jnp.inf])
    assert origins.first_nonfinite(lambda x: jax.nn.softmax(x), masked) is None
    found = origin(lambda x: 1 / x, jnp.array(0.0))
    assert (found.kind, found.primitive) == ("inf", "div")


def test_the_backward_pass_is_searched():
    def loss(x):
        return jnp.where(x > 0, jnp.sqrt(x), 0.0).sum()

    found = origin(jax.value_and_grad(loss), jnp.array([1.0, 0.0]))
    assert found.backward
    assert found.kind == "nan"


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda f: f])
def test_calls_loops_and_branches_are_entered(wrap):
    @wrap
    def body(carry, x):
        return jax.lax.cond(x > 1, jnp.log, jnp.exp, carry), x

    found = origin(lambda xs: jax.lax.scan(body, -1.0, xs), jnp.array([0.0, 2.0, 2.0, 2.0]))
    # exp(-1) = 0.37, log = -1, log(-1) is NaN.
    assert (found.kind, found.primitive) == ("nan", "log")


def test_random_keys_pass_through():
    def function(key, x):
        return jax.random.normal(key, (2,)) * 0 + jnp.log(x)

    assert origin(function, jax.random.key(0), jnp.array(-1.0)).primitive == "log"


def test_names_of_arrays_that_are_not_finite():
    tree = {"a": np.array([1.0, np.nan]), "b": {"c": np.array([1, 2]), "d": np.array(np.inf)}}
    names = origins.nonfinite_names(tree, lambda path: "/".join(str(key.key) for key in path))
    assert names == ["a", "b/d"]
