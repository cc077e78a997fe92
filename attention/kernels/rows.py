"""Reordering of the rows of each example, by XLA or, on a CPU, by C++ in place.

Beam search reorders the caches of its prefixes after each step. XLA's gather on a CPU moves one
number at a time and then copies the result into the state of the loop. The C++ code moves whole
rows within the state, and only rows that change. It is compiled on first use (`cpu.build`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from attention import shapes
from attention.kernels import devices
from attention.kernels.cpu import build

Array = jax.Array

# Smallest size of a row, in bytes, for which the C++ code is faster than XLA.
_LEAST = 512


def reorder_rows(x: Array, rows: Array) -> Array:
    """Reorders the K rows of each of B examples, as beam search does (Sutskever et al. 2014).

        y[b·K + n] = x[b·K + rows[b, n]]

    Args:
      x: [B·K, ...] of any dtype.
      rows: int [B, K] in 0 ... K - 1; a row may occur several times, or not at all.

    Returns:
      y, [B·K, ...] in x's dtype.

    Raises:
      ValueError: shapes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect("rows", rows, "B K", sizes)
    if x.ndim == 0 or x.shape[0] != sizes["B"] * sizes["K"]:
        got, expected = shapes.show(x.shape), f"a leading axis of {sizes['B'] * sizes['K']}"
        raise ValueError(f"x: got shape {got}, expected {expected}")
    rows = rows.astype(jnp.int32)
    return _by_xla(x, rows) if devices.is_portable() else _primitive.bind(x, rows)


def _by_xla(x: Array, rows: Array) -> Array:
    split = x.reshape(*rows.shape, *x.shape[1:])
    taken = jnp.take_along_axis(split, rows.reshape(*rows.shape, *[1] * (x.ndim - 1)), axis=1)
    return taken.reshape(x.shape)


def _natively(x: Array, rows: Array) -> Array:
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call("ReorderRows", result, input_output_aliases={0: 0})(x, rows)


def _lower_on_a_cpu(context: mlir.LoweringRuleContext, *arrays: Any) -> Any:
    # `_are_long` comes second: sizes may be symbolic in exported programs, where C++ is not used.
    can = build.can_register(context, "rows.cc", ("ReorderRows",)) and _are_long(*context.avals_in)
    run = _natively if can else _by_xla
    return mlir.lower_fun(run, multiple_results=False)(context, *arrays)


def _are_long(x: Any, rows: Any) -> bool:
    plain = not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return plain and x.size * x.dtype.itemsize >= _LEAST * rows.size


def _outline(x: Any, rows: Any) -> jax.core.ShapedArray:
    return jax.core.ShapedArray(x.shape, x.dtype)


def _mapped(arrays: Any, axes: Any) -> tuple[Array, int]:
    return jax.vmap(_by_xla, axes)(*arrays), 0


def _derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, rows = primals
    return _primitive.bind(x, rows), _by_xla(ad.instantiate_zeros(tangents[0]), rows)


_primitive = core.Primitive("reorder_rows")
_primitive.def_impl(jax.jit(_primitive.bind))
_primitive.def_abstract_eval(_outline)
batching.primitive_batchers[_primitive] = _mapped
ad.primitive_jvps[_primitive] = _derivative
mlir.register_lowering(_primitive, mlir.lower_fun(_by_xla, multiple_results=False))
mlir.register_lowering(_primitive, _lower_on_a_cpu, platform="cpu")
