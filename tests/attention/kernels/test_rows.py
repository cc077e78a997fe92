"""Reordering of rows in C++ against NumPy, and where it is used."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from attention.kernels.cpu import build
from attention.kernels.rows import reorder_rows

needs_a_compiler = pytest.mark.skipif(
    build.find_compiler() is None, reason="needs a C++ compiler: apt-get install g++"
)
RNG = np.random.default_rng(0)


def expected(x, rows):
    B, K = rows.shape
    return x[(np.arange(B)[:, None] * K + rows).ravel()]


@needs_a_compiler
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((12, 3, 77), np.float32),
        ((12, 2, 1031), np.float32),
        ((12, 700), np.int8),
        # Large enough for several threads.
        ((256, 5, 700), np.float32),
    ],
    ids=str,
)
def test_values(shape, dtype):
    x = (100 * RNG.normal(size=shape)).astype(dtype)
    rows = RNG.integers(0, 4, (shape[0] // 4, 4))
    # A row that stays, a swap, a row that is everywhere.
    rows[:3] = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 2, 2, 2]]
    lowered = jax.jit(reorder_rows).lower(x, rows)
    assert "ReorderRows" in lowered.as_text()
    np.testing.assert_array_equal(lowered.compile()(x, rows), expected(x, rows))


@needs_a_compiler
def test_a_loop_keeps_its_state_in_place_and_the_argument_unchanged():
    x = RNG.normal(size=(8, 512)).astype(np.float32)
    rows = np.array([[1, 2, 3, 0], [3, 3, 0, 1]])

    @jax.jit
    def run(x, rows):
        return jax.lax.fori_loop(0, 3, lambda _, y: reorder_rows(y, rows) + 1, x), x

    found, before = run(x, rows)
    wanted = x
    for _ in range(3):
        wanted = expected(wanted, rows) + 1
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(before, x)


@pytest.mark.parametrize("size", [1, 400])
def test_short_rows_maps_and_derivatives(size):
    x = jnp.asarray(RNG.normal(size=(3, 8, size)), jnp.float32)
    rows = jnp.asarray(RNG.integers(0, 4, (3, 2, 4)))
    one = reorder_rows(x[0], rows[0])
    np.testing.assert_array_equal(one, expected(np.asarray(x[0]), np.asarray(rows[0])))
    mapped = jax.vmap(reorder_rows)(x, rows)
    for number in range(3):
        np.testing.assert_array_equal(mapped[number], reorder_rows(x[number], rows[number]))
    gradient = jax.grad(lambda x: jnp.sum(reorder_rows(x, rows[0])))(x[0])
    counts = [(np.asarray(rows[0][b]) == n).sum() for b in range(2) for n in range(4)]
    np.testing.assert_array_equal(gradient[:, 0], np.array(counts, np.float32))


def test_exported_programs_use_xla():
    rows = jnp.zeros((2, 4), jnp.int32)
    (x,) = jax.export.symbolic_args_specs((jnp.zeros((8, 512)),), "8, n")
    assert "ReorderRows" not in jax.export.export(jax.jit(reorder_rows))(x, rows).mlir_module()


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"x: got shape \[7, 3\], expected a leading axis of 8"):
        reorder_rows(jnp.zeros((7, 3)), jnp.zeros((2, 4), jnp.int32))
