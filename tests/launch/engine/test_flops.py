"""Operations counted in a jaxpr: products, convolutions, loops, branches and shards."""

import jax
import jax.numpy as jnp
import pytest

from attention import attend, tracing
from launch.engine.flops import count_flops

X, W = jnp.ones((64, 128)), jnp.ones((128, 256))
IMAGE, KERNEL = jnp.ones((2, 16, 16, 3)), jnp.ones((3, 3, 3, 8))


def count(function, *arguments):
    return count_flops(jax.jit(function).trace(*arguments).jaxpr)


def convolution(image, kernel):
    return jax.lax.conv_general_dilated(
        image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def looped(x):
    return jax.lax.scan(lambda c, _: (c @ jnp.ones((128, 128)), None), x, None, length=7)[0]


def branched(x):
    return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y.T @ y, lambda y: y, x)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (lambda x, w: x @ w, (X, W), 2 * 64 * 128 * 256),
        # The gradient of a weight is one product; the forward product is not needed but traced.
        (jax.grad(lambda w, x: (x @ w).sum()), (W, X), 2 * 2 * 64 * 128 * 256),
        (lambda x: jnp.einsum("btd,bsd->bts", x, x), (jnp.ones((3, 5, 7)),), 2 * 3 * 5 * 5 * 7),
        (convolution, (IMAGE, KERNEL), 2 * 2 * 8 * 8 * 8 * 27),
        # Of the gradients for input and kernel, each has the operations of the convolution.
        (jax.grad(lambda i, k: (convolution(i, k) ** 2).sum(), (0, 1)), (IMAGE, KERNEL),
         3 * 2 * 2 * 8 * 8 * 8 * 27),
        (looped, (X,), 7 * 2 * 64 * 128 * 128),
        (branched, (X,), 2 * 2 * 64 * 64 * 128),
        (lambda x: x + 1, (X,), 0),
    ],
)  # fmt: skip
def test_count(function, arguments, expected):
    assert count(function, *arguments) == expected


def test_attention_counts_two_products_for_each_pair():
    q = jnp.ones((2, 16, 4, 8))
    with tracing.shapes_only():
        assert count(lambda q: attend(q, q, q), q) == 4 * 2 * 4 * 16 * 16 * 8


def test_shards_count_for_all_devices():
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    shape = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    assert count_flops(jax.make_jaxpr(mapped)(shape)) == 4 * 2 * 2 * 2 * 16
