"""Rewriting of traced programs into primitives that converters to other formats support.

`rewrite` evaluates a jaxpr under a new trace: calls are inlined, and some primitives are replaced
by others with the same results. Complex numbers become pairs of real arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from launch.engine import jaxprs

Array = jax.Array

# Primitives that return their arguments.
_IDENTITIES = ("copy", "copy_p", "stop_gradient", "optimization_barrier")
# Linear primitives, which apply to the real and the imaginary part alike.
_BY_PART = ("add", "broadcast_in_dim", "concatenate", "neg", "pad", "reduce_sum", "reshape", "rev",
            "select_n", "slice", "squeeze", "sub", "transpose")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Complex:
    """A complex array as two real ones of the same shape."""

    real: Array
    imaginary: Array


def rewrite(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Returns a program with the same inputs and outputs, without calls.

    Args:
      closed: traced program; sizes may be symbols of `jax.export`.

    Raises:
      NotImplementedError: random numbers are drawn, or an operation on complex numbers has no real
        equivalent here.
    """
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(_function(closed))(*shapes)


def _function(closed: Any) -> Callable[..., list[Any]]:
    """Returns a function that evaluates a jaxpr, which may be closed or have no constants."""
    jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())

    def run(*arrays: Any) -> list[Any]:
        known = dict(zip(jaxpr.constvars, map(_split, constants), strict=True))
        known |= dict(zip(jaxpr.invars, arrays, strict=True))

        def value(variable: Any) -> Any:
            literal = isinstance(variable, core.Literal)
            return _split(variable.val) if literal else known[variable]

        for equation in jaxpr.eqns:
            found = _apply(equation, [value(v) for v in equation.invars])
            many = found if equation.primitive.multiple_results else [found]
            known |= dict(zip(equation.outvars, many, strict=True))
        return [value(v) for v in jaxpr.outvars]

    return run


def _apply(equation: Any, arrays: list[Any]) -> Any:
    name, options = equation.primitive.name, equation.params
    for variable in equation.outvars:
        if jax.dtypes.issubdtype(variable.aval.dtype, jax.dtypes.prng_key):
            raise NotImplementedError(f"operation {name!r} on keys of random numbers")
    if name in jaxprs.CALLS:
        return _function(jaxprs.callee(options))(*arrays)
    if name in _IDENTITIES:
        return arrays if equation.primitive.multiple_results else arrays[0]
    if name in ("real", "imag"):
        return arrays[0].real if name == "real" else arrays[0].imaginary
    if name == "fft":
        return _fourier(arrays[0], options)
    if name == "convert_element_type" and _is_complex(options["new_dtype"]):
        return _as_complex(arrays[0])
    if name == "complex":
        return _Complex(*arrays)
    if any(isinstance(array, _Complex) for array in arrays):
        return _complex_result(equation.primitive, arrays, options)
    return _real_result(equation.primitive, arrays, options)


def _real_result(primitive: Any, arrays: list[Any], options: Mapping[str, Any]) -> Any:
    rule = _RULES.get(primitive.name)
    found = NotImplemented if rule is None else rule(arrays, options)
    return primitive.bind(*arrays, **options) if found is NotImplemented else found


# ---------------------------------------------------------------- control flow


def _scan(arrays: list[Any], options: Mapping[str, Any]) -> list[Any]:
    """Rewrites a scan with an inlined body; a reverse scan becomes a scan of reversed arrays."""
    constants, carried = jaxprs.scan_sizes(options)
    body = _function(options["jaxpr"])

    def step(carry: Any, slices: Any) -> tuple[Any, Any]:
        found = body(*arrays[:constants], *carry, *slices)
        return tuple(found[:carried]), tuple(found[carried:])

    def ordered(some: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(lax.rev(x, (0,)) if options["reverse"] else x for x in some)

    first = constants + carried
    carry, stacked = lax.scan(
        step, tuple(arrays[constants:first]), ordered(arrays[first:]), length=options["length"]
    )
    return [*carry, *ordered(stacked)]


def _while(arrays: list[Any], options: Mapping[str, Any]) -> list[Any]:
    first, second = options["cond_nconsts"], options["cond_nconsts"] + options["body_nconsts"]
    condition, body = _function(options["cond_jaxpr"]), _function(options["body_jaxpr"])
    return lax.while_loop(
        lambda carry: condition(*arrays[:first], *carry)[0],
        lambda carry: tuple(body(*arrays[first:second], *carry)),
        tuple(arrays[second:]),
    )


def _cond(arrays: list[Any], options: Mapping[str, Any]) -> list[Any]:
    branches = [_function(branch) for branch in options["branches"]]
    if isinstance(arrays[0], np.integer):
        return branches[arrays[0]](*arrays[1:])
    return lax.switch(arrays[0], branches, *arrays[1:])


def _platform_index(arrays: list[Any], options: Mapping[str, Any]) -> np.int32:
    """Returns the index of the branch for all platforms or, if there is none, of that for CPUs.

    `_cond` inlines the branch with this index.
    """
    platforms = options["platforms"]
    for index, names in enumerate(platforms):
        if names is None or (None not in platforms and "cpu" in names):
            return np.int32(index)
    raise NotImplementedError(f"a program for {platforms} alone")


# ---------------------------------------------------------------- arrays


def _pad(arrays: list[Any], options: Mapping[str, Any]) -> Any:
    """Pads by concatenating constants, since converters of "pad" need static sizes of all axes."""
    x, value = arrays
    if any(interior for *_, interior in options["padding_config"]):
        return NotImplemented
    for axis, (before, after, _) in enumerate(options["padding_config"]):
        if min(before, after) < 0:
            stop = x.shape[axis] - max(-after, 0)
            x = lax.slice_in_dim(x, max(-before, 0), stop, axis=axis)

        def constant(count: int, axis: int = axis, x: Any = x) -> list[Array]:
            shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
            return [lax.broadcast(value, shape)] if count > 0 else []

        parts = [*constant(before), x, *constant(after)]
        x = lax.concatenate(parts, axis) if len(parts) > 1 else x
    return x


def _remainder(arrays: list[Any], options: Mapping[str, Any]) -> Any:
    x, y = arrays
    if not np.issubdtype(x.dtype, np.integer):
        return NotImplemented
    return lax.sub(x, lax.mul(y, lax.div(x, y)))


def _select(arrays: list[Any], options: Mapping[str, Any]) -> Any:
    """Selects booleans by logical operations, because onnxruntime selects only among numbers."""
    which, *cases = arrays
    if len(cases) != 2 or any(np.result_type(x) != np.bool_ for x in arrays):
        return NotImplemented
    if not np.ndim(which):
        which = lax.broadcast(which, np.shape(cases[0]))
    no, yes = cases
    return lax.bitwise_or(lax.bitwise_and(which, yes), lax.bitwise_and(lax.bitwise_not(which), no))


def _gather(arrays: list[Any], options: Mapping[str, Any]) -> Any:
    """Gathers booleans as integers, because onnxruntime gathers only numbers.

    For booleans, the default fill value is True. For int32 it is not 0, so it becomes True in the
    conversion back to booleans.
    """
    x, indices = arrays
    if np.result_type(x) != np.bool_ or options["fill_value"] is not None:
        return NotImplemented
    numbers = lax.convert_element_type(x, np.int32)
    return lax.ne(lax.gather_p.bind(numbers, indices, **options), np.int32(0))


_RULES: dict[str, Callable[[list[Any], Mapping[str, Any]], Any]] = {
    "scan": _scan, "while": _while, "cond": _cond, "platform_index": _platform_index,
    "gather": _gather, "pad": _pad, "rem": _remainder, "select_n": _select,
}  # fmt: skip


# ---------------------------------------------------------------- complex numbers


def _is_complex(dtype: Any) -> bool:
    return np.issubdtype(np.dtype(dtype), np.complexfloating)


def _split(constant: Any) -> Any:
    """Returns a constant; a complex one becomes a pair of real arrays."""
    if not np.iscomplexobj(constant):
        return constant
    parts = np.real(constant), np.imag(constant)
    return _Complex(*(np.asarray(part, np.float32) for part in parts))


def _as_complex(x: Any) -> _Complex:
    if isinstance(x, _Complex):
        return x
    x = lax.convert_element_type(x, np.float32)
    return _Complex(x, lax.full_like(x, 0))


def _complex_result(primitive: Any, arrays: Sequence[Any], options: Mapping[str, Any]) -> _Complex:
    if primitive.name == "mul":
        x, y = map(_as_complex, arrays)
        return _Complex(
            lax.sub(lax.mul(x.real, y.real), lax.mul(x.imaginary, y.imaginary)),
            lax.add(lax.mul(x.real, y.imaginary), lax.mul(x.imaginary, y.real)),
        )
    if primitive.name in _BY_PART:
        real = [x.real if isinstance(x, _Complex) else x for x in arrays]
        imaginary = [x.imaginary if isinstance(x, _Complex) else x for x in arrays]
        parts = (_real_result(primitive, part, options) for part in (real, imaginary))
        return _Complex(*parts)
    raise NotImplementedError(f"operation {primitive.name!r} on complex numbers")


def _fourier(x: Any, options: Mapping[str, Any]) -> Any:
    """Computes Fourier transforms of the last axes as products with cosines and sines."""
    kind, lengths = options["fft_type"].name, options["fft_lengths"]
    x = _as_complex(x)
    first = x.real.ndim - len(lengths)
    if kind == "RFFT":
        x = _transform(x, x.real.ndim - 1, *_waves(lengths[-1], -1, lengths[-1] // 2 + 1))
    inverse = kind in ("IFFT", "IRFFT")
    for axis, length in enumerate(lengths[: -1 if kind in ("RFFT", "IRFFT") else None], first):
        cosines, sines = _waves(length, 1 if inverse else -1, length)
        scale = np.float32(1 / length if inverse else 1)
        x = _transform(x, axis, cosines * scale, sines * scale)
    if kind != "IRFFT":
        return x
    # All frequencies except 0 and length / 2 count twice, because the input does not contain their
    # conjugates.
    length = lengths[-1]
    count = length // 2 + 1
    cosines, sines = (wave[:count] for wave in _waves(length, 1, length))
    frequencies = np.arange(count)
    twice = np.where((frequencies == 0) | (2 * frequencies == length), 1, 2)[:, None] / length
    scaled = (cosines * twice).astype(np.float32), (sines * twice).astype(np.float32)
    return _transform(x, x.real.ndim - 1, *scaled).real


def _waves(length: int, sign: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines and sines of sign · 2π n k / length for n < length and k < count.

    Both are float32 [length, count].
    """
    turns = np.outer(np.arange(length), np.arange(count)) % length / length
    angles = sign * 2 * math.pi * turns
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _transform(x: _Complex, axis: int, cosines: np.ndarray, sines: np.ndarray) -> _Complex:
    """Multiplies an axis of x by the matrix cosines + i sines."""
    order = list(range(x.real.ndim))
    order.insert(axis, order.pop())

    def product(part: Array, matrix: np.ndarray) -> Array:
        # `dot_general` makes the transformed axis the last one.
        found = lax.dot_general(part, matrix, (((axis,), (0,)), ((), ())), lax.Precision.HIGHEST)
        return lax.transpose(found, order)

    return _Complex(
        lax.sub(product(x.real, cosines), product(x.imaginary, sines)),
        lax.add(product(x.real, sines), product(x.imaginary, cosines)),
    )
