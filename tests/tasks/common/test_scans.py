"""A scan with linear maps beside the plain one, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import recording
from tasks.common.backbones.scans import applied, scan_maps

T, B, D, F = 5, 3, 4, 4
K = jax.random.split(jax.random.key(0), 6)
GIVEN = {
    "kernel": jax.random.normal(K[0], (D, F)),
    "bias": jax.random.normal(K[1], (F,)),
    "closed_over": jax.random.normal(K[2], (D, F)),
    "inputs": jax.random.normal(K[3], (T, B, D)),
    "initial": jax.random.normal(K[4], (B, D)),
}
VALID, KEYS = jnp.arange(T) % 2 == 0, jax.random.split(K[5], T)


def plainly(step, maps, initial, inputs, **options):
    return jax.lax.scan(lambda carry, x: step(applied(maps), carry, x), initial, inputs, **options)


def loss(scan, given, **options):
    """Reads flags, keys and nothing at all as inputs, and a kernel that it closes over."""

    def step(apply, carry, x):
        row, valid, key, _ = x
        sums = apply("map", carry) + row @ given["closed_over"] + jax.random.normal(key, (F,))
        new = jnp.where(valid, jnp.tanh(sums), carry)
        return new, 2 * new

    maps = {"map": (given["kernel"], given["bias"])}
    inputs = (given["inputs"], VALID, KEYS, None)
    last, found = scan(step, maps, given["initial"], inputs, **options)
    return jnp.sum(jnp.sin(found)) + jnp.sum(last)


@pytest.mark.parametrize("options", [{}, {"reverse": True, "unroll": 2}], ids=["plain", "reverse"])
def test_value_and_gradients_are_those_of_the_plain_scan(options):
    def both(scan):
        return jax.jit(jax.value_and_grad(lambda given: loss(scan, given, **options)))(GIVEN)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        both(scan_maps),
        both(plainly),
    )


def test_the_kernel_gets_its_gradient_outside_of_the_loop():
    """No loop carries an array as large as the kernel."""
    shapes = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                carried = equation.params["num_carry"]
                shapes.extend(v.aval.shape for v in equation.outvars[:carried])
            jax.tree.map(
                lambda value: visit(value.jaxpr) if hasattr(value, "jaxpr") else None,
                list(equation.params.values()),
                is_leaf=lambda value: hasattr(value, "jaxpr"),
            )

    given = {name: GIVEN[name] for name in ("kernel", "bias")}

    def of_maps(scan):
        return lambda maps: loss(scan, GIVEN | maps)

    visit(jax.make_jaxpr(jax.grad(of_maps(scan_maps)))(given).jaxpr)
    assert shapes
    assert (D, F) not in shapes
    visit(jax.make_jaxpr(jax.grad(of_maps(plainly)))(given).jaxpr)
    assert (D, F) in shapes


def test_a_map_is_applied_once_a_step():
    def step(apply, carry, x):
        return apply("map", apply("map", carry)), x

    maps = {"map": (GIVEN["kernel"], GIVEN["bias"])}
    with pytest.raises(ValueError, match="apply: got 'map' twice, expected each name once a step"):
        scan_maps(step, maps, GIVEN["initial"], GIVEN["inputs"])


def test_whoever_looks_meets_a_plain_loop():
    assert not recording.active()
    with recording.recorder(lambda weights: None):
        assert recording.active()
        np.testing.assert_allclose(loss(scan_maps, GIVEN), loss(plainly, GIVEN), rtol=1e-6)
