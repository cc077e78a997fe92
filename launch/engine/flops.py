"""Number of floating-point operations of a traced program, counted in its jaxpr.

Compilers report this number only on some platforms, and not for attention kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


def count_flops(jaxpr: Any) -> float:
    """Counts the operations of matrix products and convolutions, two for each multiplication.

    The body of a loop of unknown length (`lax.while_loop`) counts once. For a `lax.cond`, only the
    branch with the most operations counts. Pallas kernels and foreign functions are not counted, so
    trace with the reference kernel (`attention.tracing.shapes_only`).

    Args:
      jaxpr: a `jax.extend.core.ClosedJaxpr` or Jaxpr, such as `jax.stages.Traced.jaxpr`.

    Returns:
      The number of operations on all devices.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "pallas_call":
            continue
        elif name == "cond":
            total += max(map(count_flops, params["branches"]))
        else:
            times = 1.0
            if name == "scan":
                times = params["length"]
            elif name == "shard_map":
                sizes = dict(params["mesh"].shape)
                times = math.prod(sizes[axis] for axis in _manual_axes(params))
            total += times * sum(map(count_flops, _inner(params)))
    return total


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    terms = math.prod(shape[axis] for axis in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * terms


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    # Each output element is a sum over the kernel entries of its output feature. Zeros that
    # dilation inserts into the input, as in the gradient of a strided convolution, do not count.
    dilation = math.prod(equation.params["lhs_dilation"])
    taps = math.prod(kernel) / max(out_features, 1)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps / dilation


def _manual_axes(params: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(params.get("manual_axes", params["mesh"].axis_names))


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the jaxprs among the parameters of an equation."""
    for value in params.values():
        for leaf in value if isinstance(value, tuple | list) else (value,):
            if hasattr(leaf, "eqns") or hasattr(getattr(leaf, "jaxpr", None), "eqns"):
                yield leaf
