"""Rules of activations: shardings on eight virtual devices, and where they do nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.sharding import constrain, constrain_examples, dividing, over_examples
from tests.virtual_devices import printed

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from attention.sharding import constrain, constrain_examples, over_examples

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
found = {}

def spec(x, axes, run=constrain):
    with jax.set_mesh(mesh):
        found = jax.jit(lambda x: run(x, axes))(x).sharding.spec
    return [*(axis and list((axis,) if isinstance(axis, str) else axis) for axis in found),
            *[None] * (x.ndim - len(found))]

x = jnp.ones((4, 6, 8))
found["hidden"] = spec(x, "B T F")
found["plain"] = spec(x, "B T D")
found["indivisible batch"] = spec(jnp.ones((6, 8)), "B D")
found["odd batch"] = spec(jnp.ones((3, 8)), "B F")
found["indivisible heads"] = spec(jnp.ones((4, 6, 3, 2)), "B T N H")
found["examples"] = spec(x, None, lambda x, _: constrain_examples(x))
found["vmapped"] = spec(x, "T F", lambda x, axes: jax.vmap(lambda row: constrain(row, axes))(x))

def inside(x):
    run = jax.shard_map(
        lambda x: constrain(x, "B T F"), in_specs=P("data"), out_specs=P("data"),
        axis_names={"data"}, check_vma=False,
    )
    return run(x)

found["partly manual"] = spec(x, None, lambda x, _: inside(x))
with jax.set_mesh(mesh):
    every = jax.jit(jax.shard_map(
        lambda x: constrain(x, "B T F"), in_specs=P("data"), out_specs=P("data"), check_vma=False
    ))(x)
found["all manual"] = bool((every == x).all())

# A recurrent loop: its results and gradients, and where the gradient of the weights is summed.
def loop(w, x, each):
    def run(x, w):
        state = x[:, 0]
        for t in range(3):
            state = jnp.tanh(state @ w + x[:, t])
        return state, jnp.cumsum(x, axis=1)
    last, sums = each(run, x, shared=(w,))
    return jnp.sum(last**2) + jnp.sum(sums)

w, x = jax.random.normal(jax.random.key(0), (8, 8)), jax.random.normal(jax.random.key(1), (4, 6, 8))
plain = lambda run, x, shared: run(x, *shared)
with jax.set_mesh(mesh):
    split = jax.value_and_grad(lambda w, x: loop(w, x, over_examples), (0, 1))
    value, gradients = jax.jit(split)(w, x)
expected, correct = jax.value_and_grad(lambda w, x: loop(w, x, plain), (0, 1))(w, x)
found["loop"] = [
    float(abs(value - expected)),
    *(float(abs(one - other).max()) for one, other in zip(gradients, correct)),
]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    return printed("-c", SCRIPT)[-1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hidden", [["data", "fsdp"], None, ["tensor"]]),
        ("plain", [["data", "fsdp"], None, None]),
        ("examples", [["data", "fsdp"], None, None]),
        # Two devices have three examples each; more devices cannot have equally many.
        ("indivisible batch", [["data"], None]),
        ("odd batch", [None, ["tensor"]]),
        ("indivisible heads", [["data", "fsdp"], None, None, None]),
        ("vmapped", [None, None, ["tensor"]]),
    ],
)
def test_shardings(found, name, expected):
    assert found[name] == expected


def test_manual_axes_are_left_alone(found):
    assert found["all manual"] is True
    assert found["partly manual"] == [["data", "fsdp"], None, ["tensor"]]


def test_over_examples_gives_the_values_and_gradients_of_one_device(found):
    np.testing.assert_allclose(found["loop"], 0, atol=1e-5)


def test_without_a_mesh_nothing_is_added():
    """The traced program is the same as without the calls."""
    x = jnp.ones((4, 6, 8))
    assert constrain(x, "B T D") is x
    assert constrain_examples(x) is x
    program = jax.make_jaxpr(lambda x, w: over_examples(lambda x, w: x @ w, x, shared=(w,)))
    assert str(program(x, x[0].T)) == str(jax.make_jaxpr(lambda x, w: x @ w)(x, x[0].T))


def test_axes_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"axes: got 'B D', expected 3 letters"):
        constrain(jnp.ones((4, 6, 8)), "B D")


def test_dividing_axes():
    sizes = {"data": 2, "fsdp": 3}
    assert dividing(("data", "fsdp"), 12, sizes) == ("data", "fsdp")
    assert dividing(("data", "fsdp"), 9, sizes) == ("fsdp",)
    assert dividing(("data", "tensor"), 4, sizes) == ("data",)
    assert dividing((), 4, sizes) == ()
