"""Convolution of feature maps: by XLA, or on CPUs by C++ that runs on XLA's threads.

On CPUs, XLA's convolutions, above all the gradient of the kernel, are several times slower than C++
code that computes the same products in blocks that fit into the caches. The C++ sources are in
cpu/source and are compiled on first use (`cpu.build`). XLA is used if there is no compiler, on
other platforms, on several devices, and for dtypes other than float32 and bfloat16. The choice is
made when a program is lowered.

A convolution and its two transposes are bilinear primitives, and the transposes of each are among
the three. So derivatives of any order are available in forward and reverse mode.

B batch, Y X height and width, C input channels, O output channels.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

from attention import shapes
from attention.kernels import devices
from attention.kernels.cpu import build

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

_TARGETS = "Convolution", "ConvolutionByMap", "ConvolutionByKernel"


def convolve(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    """Computes a cross-correlation with zero padding (LeCun et al. 1989).

        y_ijo = Σ_uvc k_uvco · x_(i·s + u - top)(j·s + v - left)c

    Args:
      x: [B, Y, X, C].
      kernel: [height, width, C, O] in x's dtype.
      stride: s, at least 1.
      padding: (top, bottom), (left, right): numbers of rows and columns of zeros.

    Returns:
      y, [B, rows, columns, O] in x's dtype. Sums of bfloat16 are accumulated in float32.

    Raises:
      ValueError: shapes or dtypes do not fit, or a number is out of range.
    """
    sizes: dict[str, int] = {}
    shapes.expect("x", x, "B Y X C", sizes)
    shapes.expect("kernel", kernel, "height width C O", sizes)
    if x.dtype != kernel.dtype:
        raise ValueError(f"kernel: got {kernel.dtype}, expected the dtype of x, {x.dtype}")
    if stride < 1:
        raise ValueError(f"stride: got {stride}, expected at least 1")
    if min(min(pair) for pair in padding) < 0:
        raise ValueError(f"padding: got {padding}, expected numbers of at least 0")
    options = {"stride": stride, "padding": padding}
    y = jax.eval_shape(functools.partial(_by_xla, **options), x, kernel)
    # On a mesh with explicit axes, only XLA's operation can determine the sharding of its result.
    typed = any(kind != AxisType.Auto for kind in jax.sharding.get_abstract_mesh().axis_types)
    # A portable program may contain only operations that other formats and converters support.
    if typed or devices.is_portable() or 0 in (x.size, kernel.size, y.size):
        return _by_xla(x, kernel, **options)
    return _forward.bind(x, kernel, **options)


def _by_xla(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _map_by_xla(y: Array, kernel: Array, *, stride: int, padding: Padding, size) -> Array:
    x = jax.ShapeDtypeStruct((y.shape[0], *size, kernel.shape[2]), y.dtype)
    run = functools.partial(_by_xla, stride=stride, padding=padding)
    return jax.linear_transpose(lambda x: run(x, kernel), x)(y)[0]


def _kernel_by_xla(x: Array, y: Array, *, stride: int, padding: Padding, size) -> Array:
    kernel = jax.ShapeDtypeStruct((*size, x.shape[3], y.shape[3]), y.dtype)
    run = functools.partial(_by_xla, stride=stride, padding=padding)
    return jax.linear_transpose(lambda kernel: run(x, kernel), kernel)(y)[0]


# ------------------------------------------------------------------ on a CPU


def _natively(target: str, by_xla, first: Array, second: Array, **parameters) -> Array:
    like = jax.eval_shape(functools.partial(by_xla, **parameters), first, second)
    (top, _), (left, _) = parameters["padding"]
    attributes = {"stride": parameters["stride"], "top": top, "left": left}
    found = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(like.shape, jnp.float32))(
        first.astype(jnp.float32),
        second.astype(jnp.float32),
        **{name: np.int64(number) for name, number in attributes.items()},
    )
    return found.astype(like.dtype)


def _can(context: mlir.LoweringRuleContext, dtype: Any) -> bool:
    """Returns True if the C++ code can be used for the program that is being lowered.

    The program must run on one CPU, with a supported dtype.
    """
    supported = dtype in (jnp.float32, jnp.bfloat16)
    return supported and build.can_register(context, "convolution.cc", _TARGETS)


# ------------------------------------------------------------------ primitives


def _primitive(name: str, target: str, by_xla) -> core.Primitive:
    """Creates a primitive.

    This function defines abstract evaluation, eager calls, `vmap` and lowering. The derivatives are
    defined at the end of this file.

    Args:
      name: name of the primitive.
      target: name of the C++ function.
      by_xla: function that computes the same result by XLA.
    """
    primitive = core.Primitive(name)

    def outline(first: Any, second: Any, **parameters) -> Any:
        like = jax.eval_shape(functools.partial(by_xla, **parameters), first, second)
        return jax.core.ShapedArray(like.shape, like.dtype)

    def eager(*arrays, **parameters):
        return primitive.bind(*arrays, **parameters)

    def lower_on_a_cpu(context, *arrays, **parameters):
        can = _can(context, context.avals_in[0].dtype)
        run = functools.partial(_natively, target, by_xla) if can else by_xla
        return mlir.lower_fun(run, multiple_results=False)(context, *arrays, **parameters)

    primitive.def_impl(jax.jit(eager, static_argnames=("stride", "padding", "size")))
    primitive.def_abstract_eval(outline)
    batching.primitive_batchers[primitive] = functools.partial(_mapped, primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(by_xla, multiple_results=False))
    mlir.register_lowering(primitive, lower_on_a_cpu, platform="cpu")
    return primitive


def _mapped(primitive: core.Primitive, arrays, axes, **parameters) -> tuple[Array, int]:
    """Implements `vmap`: merges the mapped axis with the batch if possible, else loops over it."""
    arrays = [
        array if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    first, second = arrays
    if primitive is not _by_kernel and axes[1] is None:
        joined = first.reshape(-1, *first.shape[2:])
        found = primitive.bind(joined, second, **parameters)
        return found.reshape(*first.shape[:2], *found.shape[1:]), 0
    mapped = [array for array, axis in zip(arrays, axes, strict=True) if axis is not None]

    def one(some):
        some = iter(some)
        both = [
            array if axis is None else next(some) for array, axis in zip(arrays, axes, strict=True)
        ]
        return primitive.bind(*both, **parameters)

    return jax.lax.map(one, mapped), 0


_forward = _primitive("convolution", "Convolution", _by_xla)
_by_map = _primitive("convolution_by_map", "ConvolutionByMap", _map_by_xla)
_by_kernel = _primitive("convolution_by_kernel", "ConvolutionByKernel", _kernel_by_xla)


def _like_map(g: Array, x: Any, kernel: Array, *, size=None, **parameters) -> Array:
    return _by_map.bind(g, kernel, size=x.aval.shape[1:3], **parameters)


def _like_kernel(x: Array, g: Array, kernel: Any, *, size=None, **parameters) -> Array:
    return _by_kernel.bind(x, g, size=kernel.aval.shape[:2], **parameters)


def _like_result(x: Array, kernel: Array, *, size=None, **parameters) -> Array:
    return _forward.bind(x, kernel, **parameters)


ad.defbilinear(
    _forward,
    lambda g, x, kernel, **given: _like_map(g, x, kernel, **given),
    lambda g, x, kernel, **given: _like_kernel(x, g, kernel, **given),
)
ad.defbilinear(
    _by_map,
    lambda g, y, kernel, **given: _like_result(g, kernel, **given),
    lambda g, y, kernel, **given: _like_kernel(g, y, kernel, **given),
)
ad.defbilinear(
    _by_kernel,
    lambda g, x, y, **given: _like_map(y, x, g, **given),
    lambda g, x, y, **given: _like_result(x, g, **given),
)
