"""Convolution of maps in C++ against XLA's: values, derivatives, and when it is which."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.kernels import convolution
from attention.kernels.convolution import convolve
from attention.kernels.cpu import build
from tests.attention.subjects import normal

AROUND = ((1, 1), (1, 1))
needs_a_compiler = pytest.mark.skipif(
    build.find_compiler() is None, reason="needs a C++ compiler: apt-get install g++"
)


def by_xla(x, kernel, stride=1, padding=AROUND):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def ours(x, kernel, stride=1, padding=AROUND):
    return convolve(x, kernel, stride=stride, padding=padding)


def arrays(B, Y, X, C, O, height=3, width=3):  # noqa: E741
    return jnp.asarray(normal(0, B, Y, X, C)), jnp.asarray(normal(1, height, width, C, O))


def values_and_slopes(run, x, kernel, **options):
    def weighed(x, kernel):
        y = run(x, kernel, **options)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

    (_, y), slopes = jax.jit(jax.value_and_grad(weighed, (0, 1), has_aux=True))(x, kernel)
    return y, *slopes


def assert_alike(found, expected, atol=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol * max(1, np.abs(other).max()))


@needs_a_compiler
@pytest.mark.parametrize(
    ("sizes", "stride", "padding"),
    [
        pytest.param((2, 9, 11, 3, 5), 1, AROUND, marks=pytest.mark.slow),
        pytest.param((1, 1, 1, 1, 1), 1, AROUND, marks=pytest.mark.slow),
        ((2, 9, 12, 7, 17), 2, AROUND),
        pytest.param((2, 10, 12, 7, 17), 2, ((0, 1), (0, 1)), marks=pytest.mark.slow),
        ((3, 8, 9, 16, 33, 1, 1), 1, ((0, 0), (0, 0))),
        ((3, 8, 9, 16, 33, 1, 1), 2, ((0, 0), (0, 0))),
        ((2, 20, 21, 3, 64, 7, 7), 2, ((3, 3), (3, 3))),
        # Larger than the map, which lies within the borders.
        ((2, 5, 6, 2, 1, 7, 7), 1, ((3, 3), (3, 3))),
        # Neither square nor even, strides that leave something out, borders of one side.
        ((2, 12, 13, 8, 24, 4, 2), 3, ((2, 0), (0, 1))),
        pytest.param((2, 12, 12, 8, 24, 4, 4), 4, ((0, 0), (0, 0)), marks=pytest.mark.slow),
        # Several blocks of rows and of depth, parts of the kernel's gradient.
        ((1, 30, 40, 130, 200), 1, AROUND),
        ((9, 33, 70, 24, 24), 1, AROUND),
    ],
)
def test_equals_xla_with_gradients(sizes, stride, padding):
    x, kernel = arrays(*sizes)
    options = {"stride": stride, "padding": padding}
    assert "@Convolution" in jax.jit(functools.partial(ours, **options)).lower(x, kernel).as_text()
    found = values_and_slopes(ours, x, kernel, **options)
    assert_alike(found, values_and_slopes(by_xla, x, kernel, **options))


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_derivatives_of_both_modes_and_second_order(stride):
    x, kernel = arrays(2, 5, 6, 3, 4)
    tangents = jnp.asarray(normal(2, *x.shape)), jnp.asarray(normal(3, *kernel.shape))

    def curved(run):
        return lambda x, kernel: jnp.sum(jnp.sin(run(x, kernel, stride=stride)))

    def found(run):
        slopes = jax.grad(curved(run), (0, 1))
        lengths = jax.grad(lambda *both: sum(jnp.sum(s**2) for s in slopes(*both)), (0, 1))
        forward = jax.jvp(functools.partial(run, stride=stride), (x, kernel), tangents)
        return forward, jax.jvp(slopes, (x, kernel), tangents), lengths(x, kernel)

    assert_alike(jax.jit(found, static_argnums=0)(ours), jax.jit(found, static_argnums=0)(by_xla))


@pytest.mark.parametrize(
    "axes", [(0, None), (None, 0), (2, 3), pytest.param((0, 0), marks=pytest.mark.slow)]
)
def test_vmap(axes):
    x, kernel = arrays(2, 5, 6, 3, 4)
    stacked = [
        array if axis is None else jnp.stack([array, 2 - array, 0.5 * array], axis)
        for array, axis in zip((x, kernel), axes, strict=True)
    ]

    def found(run):
        def curved(x, kernel):
            return jnp.sum(jnp.sin(run(x, kernel, stride=2)))

        each = jax.vmap(jax.grad(curved, (0, 1)), axes)(*stacked)
        of_all = jax.grad(lambda *both: jnp.sum(jax.vmap(curved, axes)(*both)), (0, 1))(*stacked)
        return jax.vmap(run, axes)(*stacked), each, of_all

    assert_alike(jax.jit(found, static_argnums=0)(ours), jax.jit(found, static_argnums=0)(by_xla))


def test_bfloat16_has_sums_of_float32():
    x, kernel = (array.astype(jnp.bfloat16) for array in arrays(2, 6, 7, 40, 9))
    found = values_and_slopes(ours, x, kernel)
    wide = values_and_slopes(by_xla, x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert found[0].dtype == jnp.bfloat16
    # What is left is the rounding of the result.
    assert_alike(found[0].astype(jnp.float32), wide[0], atol=4e-3)
    assert_alike([s.astype(jnp.float32) for s in found[1:]], wide[1:], atol=8e-3)


def test_nan_stays_where_it_is_seen():
    x, kernel = arrays(2, 9, 9, 3, 4)
    found = np.isnan(ours(x.at[0, 4, 4, 1].set(np.nan), kernel)).any(-1)
    expected = np.zeros((2, 9, 9), bool)
    expected[0, 3:6, 3:6] = True
    np.testing.assert_array_equal(found, expected)


def test_maps_without_examples_or_places():
    kernel = jnp.ones((3, 3, 2, 4))
    assert ours(jnp.ones((0, 5, 5, 2)), kernel).shape == (0, 5, 5, 4)
    assert ours(jnp.ones((1, 2, 5, 2)), kernel, padding=((0, 0), (0, 0))).shape == (1, 0, 3, 4)
    np.testing.assert_array_equal(ours(jnp.ones((1, 0, 3, 2)), kernel)[..., 0].shape, (1, 0, 3))


def test_wrong_calls_name_the_argument():
    x, kernel = arrays(2, 5, 6, 3, 4)
    with pytest.raises(ValueError, match=r"^x: got shape"):
        ours(x[0], kernel)
    with pytest.raises(ValueError, match=r"^kernel: got shape .*C=3"):
        ours(x, kernel[:, :, 1:])
    with pytest.raises(
        ValueError, match=r"^kernel: got bfloat16, expected the dtype of x, float32"
    ):
        ours(x, kernel.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"^stride: got 0"):
        ours(x, kernel, stride=0)
    with pytest.raises(ValueError, match=r"^padding: got .*-1.*at least 0"):
        ours(x, kernel, padding=((1, 1), (-1, 1)))


# ------------------------------------------------------------------ when it is XLA's


def test_an_exported_program_needs_no_sources():
    x, kernel = arrays(2, 5, 6, 3, 4)
    for platforms in (["cpu"], ["cpu", "cuda"], ["cuda"]):
        exported = jax.export.export(jax.jit(ours), platforms=platforms)(x, kernel)
        assert "stablehlo.convolution" in exported.mlir_module()
    exported = jax.export.export(jax.jit(ours), platforms=["cpu"])(x, kernel)
    assert_alike(jax.jit(exported.call)(x, kernel), by_xla(x, kernel))


def test_other_dtypes():
    x, kernel = (array.astype(jnp.float16) for array in arrays(2, 5, 6, 3, 4))
    assert "stablehlo.convolution" in jax.jit(ours).lower(x, kernel).as_text()


def test_on_a_mesh_it_is_cut_up_without_gathers():
    """Runs in a separate process with two devices."""
    code = """
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec as P
        from tests.attention.kernels import test_convolution as test
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        x, kernel = test.arrays(4, 5, 6, 3, 4)
        placed = jax.device_put(x, NamedSharding(mesh, P("data")))
        same = jax.device_put(kernel, NamedSharding(mesh, P()))
        program = jax.jit(test.ours).lower(placed, same).compile().as_text()
        assert "all-gather" not in program and "custom-call" not in program, program
        found = test.values_and_slopes(test.ours, placed, same)
        test.assert_alike(found, test.values_and_slopes(test.by_xla, x, kernel))
        explicit = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
        with jax.set_mesh(explicit):
            typed = jax.jit(test.ours)(jax.device_put(x, P("data")), jax.device_put(kernel, P()))
        assert jax.typeof(typed).sharding.spec[0] == "data"
        test.assert_alike(typed, test.by_xla(x, kernel))
        mapped = jax.shard_map(test.ours, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
        test.assert_alike(jax.jit(mapped)(placed, same), test.by_xla(x, kernel))
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    run_code(code, XLA_FLAGS=flags)


def test_without_a_compiler():
    """Runs in a separate process, because compiled code is cached."""
    code = """
        import jax
        from tests.attention.kernels import test_convolution as test
        x, kernel = test.arrays(2, 5, 6, 3, 4)
        assert "stablehlo.convolution" in jax.jit(test.ours).lower(x, kernel).as_text()
        found = test.values_and_slopes(test.ours, x, kernel)
        test.assert_alike(found, test.values_and_slopes(test.by_xla, x, kernel))
    """
    run_code(code, CXX="no-such-compiler")


def run_code(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr


def test_each_is_the_transpose_of_the_other():
    """⟨conv(x, k), g⟩ = ⟨x, by_map(g, k)⟩ = ⟨k, by_kernel(x, g)⟩, in float64 sums."""
    x, kernel = arrays(2, 6, 7, 3, 4)
    g = jnp.asarray(normal(4, 2, 3, 4, 4))
    options = {"stride": 2, "padding": AROUND}
    y = convolution._forward.bind(x, kernel, **options)
    by_map = convolution._by_map.bind(g, kernel, size=(6, 7), **options)
    by_kernel = convolution._by_kernel.bind(x, g, size=(3, 3), **options)
    sums = [np.vdot(*(np.asarray(a, np.float64) for a in pair))
            for pair in ((y, g), (x, by_map), (kernel, by_kernel))]  # fmt: skip
    np.testing.assert_allclose(sums, sums[0], rtol=1e-5)
