"""Rewritten programs give the results of the original ones, without the primitives they replace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

from launch.exports.rewriting import rewrite

X = np.random.default_rng(0).standard_normal((3, 10, 12)).astype(np.float32)


def rewritten(function, *arrays):
    """Returns the result of the rewritten program, and the names of its primitives."""
    program = rewrite(jax.make_jaxpr(function)(*arrays))
    return core.jaxpr_as_fun(program)(*arrays)[0], _names(program.jaxpr)


def _names(jaxpr):
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "eqns"):
                    found |= _names(getattr(inner, "jaxpr", inner))
    return found


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: jnp.fft.fft2(x).real, lambda x: np.fft.fft2(x).real),
        (lambda x: jnp.fft.ifft(x).imag, lambda x: np.fft.ifft(x).imag),
        (lambda x: jnp.fft.rfft(x, n=16).imag, lambda x: np.fft.rfft(x, n=16).imag),
        (lambda x: jnp.fft.rfft(x, n=7).real, lambda x: np.fft.rfft(x, n=7).real),
        (lambda x: jnp.fft.rfft2(x).real, lambda x: np.fft.rfft2(x).real),
        (lambda x: jnp.fft.irfft2(jnp.fft.rfft2(x) * 2), lambda x: 2 * x),
        (lambda x: jnp.fft.irfft(jnp.fft.rfft(x, n=13), n=13)[..., :12], lambda x: x),
    ],
)
def test_fourier_transforms_are_those_of_numpy(function, expected):
    found, names = rewritten(function, X)
    np.testing.assert_allclose(found, expected(X), atol=1e-5)
    assert not names & {"fft", "real", "imag", "complex"}


def test_integers_have_the_remainder_of_python():
    numbers = np.arange(-9, 10, dtype=np.int32)
    for divisor in (5, -4):
        found, names = rewritten(lambda x, divisor=divisor: x % divisor, numbers)
        np.testing.assert_array_equal(found, [n % divisor for n in range(-9, 10)])
        assert "rem" not in names


def test_padding_is_concatenated():
    pads = ((1, 0, 0), (-2, 3, 0), (2, -1, 0))
    found, names = rewritten(lambda x: lax.pad(x, np.float32(0.5), pads), X)
    cut = X[:, 2:, :-1]
    expected = np.pad(cut, ((1, 0), (0, 3), (2, 0)), constant_values=0.5)
    np.testing.assert_array_equal(found, expected)
    assert "pad" not in names
    # Padding between elements is kept.
    assert "pad" in rewritten(lambda x: lax.pad(x, np.float32(0), ((0, 0, 1),) * 3), X)[1]


def test_control_flow_is_inlined():
    def reverse(x):
        return lax.scan(lambda sum_, row: (sum_ + row, jax.nn.relu(sum_ + row)), x[0], x,
                        reverse=True)[1]  # fmt: skip

    found, names = rewritten(reverse, X)
    sums = np.cumsum(X[::-1], axis=0)[::-1] + X[0]
    np.testing.assert_allclose(found, np.maximum(sums, 0), atol=1e-5)
    assert not names & {"jit", "pjit", "custom_jvp_call"}

    def doubled(x):
        return lax.while_loop(lambda c: jnp.sum(c) < 100, lambda c: jax.jit(jnp.add)(c, c), x)

    found, names = rewritten(doubled, np.float32([1, 2]))
    np.testing.assert_array_equal(found, [64, 128])
    assert "jit" not in names

    def chosen(x):
        return lax.cond(x[0] > 0, jax.nn.relu, lambda x: x * 3, x)

    for x, expected in (([1, -2], [1, 0]), ([-1, 2], [-3, 6])):
        found, names = rewritten(chosen, np.float32(x))
        np.testing.assert_array_equal(found, expected)
        assert not names & {"jit", "custom_jvp_call"}


def test_the_branch_for_any_platform_is_inlined():
    def negated(x):
        return lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: -x)

    found, names = rewritten(negated, X)
    np.testing.assert_array_equal(found, -X)
    assert names == {"neg"}


def test_truth_values_are_selected_by_logic():
    which = np.array([True, True, False, False])
    yes, no = np.array([True, False, True, False]), np.array([False, True, True, False])
    found, names = rewritten(jnp.where, which, yes, no)
    np.testing.assert_array_equal(found, [True, False, True, False])
    assert "select_n" not in names
    found, _ = rewritten(lax.select, np.True_, yes, no)
    np.testing.assert_array_equal(found, yes)


def test_truth_values_are_gathered_as_numbers():
    flags, indices = np.array([True, False, True, False]), np.array([3, 0, 1, 9])
    for mode in ("fill", "clip"):
        found, _ = rewritten(lambda x, i, mode=mode: x.at[i].get(mode=mode), flags, indices)
        # The fill of truth values is True.
        np.testing.assert_array_equal(found, [False, True, False, mode == "fill"])


def test_symbolic_sizes_are_kept():
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, 3), np.float32)
    traced = jax.make_jaxpr(lambda x: jnp.pad(jax.nn.softmax(x), ((0, 0), (1, 0))))(shape)
    (result,) = rewrite(traced).out_avals
    assert [str(size) for size in result.shape] == ["batch", "4"]


def test_random_numbers_are_refused():
    traced = jax.make_jaxpr(lambda x: x + jax.random.normal(jax.random.key(x[0]), (2,)))(
        np.int32([3, 4])
    )
    with pytest.raises(NotImplementedError, match="on keys of random numbers"):
        rewrite(traced)


def test_other_operations_on_complex_numbers_are_refused():
    traced = jax.make_jaxpr(lambda x: jnp.exp(jnp.fft.fft(x)).real)(X)
    with pytest.raises(NotImplementedError, match="operation 'exp' on complex numbers"):
        rewrite(traced)
