"""Refusal of derivatives that a kernel does not have, where they are taken.

Most kernels have a first derivative in reverse mode, written by hand. JAX would say of any other
that a `custom_vjp` function or a loop has none. `guard_derivatives` names
the kernel that has it instead.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

Array = jax.Array


def guard_derivatives(array: Array, kernel: str, higher: bool) -> Array:
    """The array; forward-mode derivatives through it are refused, and second ones as well.

        y = x,   dx = dy of the first reverse-mode derivative

    Args:
      array: [...], an input of the kernel.
      kernel: its name, for the message.
      higher: whether the kernel has derivatives of derivatives in reverse mode.

    Returns:
      y, [...].

    Raises:
      NotImplementedError: once such a derivative is computed; it names "reference".
    """
    return _guard.bind(array, kernel=kernel, higher=higher, order=1)


def _refusal(kernel: str, mode: str) -> NotImplementedError:
    return NotImplementedError(
        f"implementation: got {kernel!r} for {mode}, expected 'reference', the kernel that has them"
    )


def _forward_mode(kernel: str) -> NotImplementedError:
    return _refusal(kernel, "forward-mode derivatives (jvp, jacfwd, hessian)")


# The identity of an input; its tangent goes through `_tangent`.
_guard = core.Primitive("kernel_input")
# The identity of a tangent: only its transpose, of reverse mode, is ever computed.
_tangent = core.Primitive("kernel_tangent")


def _differentiate(primals, tangents, *, kernel: str, higher: bool, order: int) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    if order > 1 and not higher:
        raise _refusal(kernel, "derivatives of derivatives")
    # Differentiated again, this one will know that it is not the first time.
    y = _guard.bind(x, kernel=kernel, higher=higher, order=order + 1)
    return y, tangent if isinstance(tangent, ad.Zero) else _tangent.bind(tangent, kernel=kernel)


def _refuse(*_, kernel: str) -> Any:
    raise _forward_mode(kernel)


_guard.def_impl(lambda x, **_: x)
_guard.def_abstract_eval(lambda x, **_: x)
ad.primitive_jvps[_guard] = _differentiate
batching.defvectorized(_guard)
mlir.register_lowering(_guard, lambda context, x, **_: [x])

_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda x, **_: x)
ad.primitive_transposes[_tangent] = lambda tangent, _, kernel: [tangent]
# Reverse mode transposes tangents before another derivative or `vmap` comes to them.
ad.primitive_jvps[_tangent] = lambda *_, kernel: _refuse(kernel=kernel)
batching.primitive_batchers[_tangent] = lambda *_, kernel: _refuse(kernel=kernel)
mlir.register_lowering(_tangent, lambda context, *arrays, kernel: _refuse(kernel=kernel))
