"""Error messages for derivatives that a kernel does not support.

Most kernels have only a hand-written first derivative in reverse mode. For other derivatives, the
error message of JAX would mention a `custom_vjp` function or a loop. With `guard_derivatives`, the
error names a kernel that has these derivatives.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

Array = jax.Array


def guard_derivatives(array: Array, kernel: str, higher: bool) -> Array:
    """Returns the array unchanged, but raises an error for forward-mode and higher derivatives.

        y = x,   dx = dy in the first reverse-mode derivative

    Args:
      array: [...], an input of the kernel.
      kernel: name of the kernel, for the message.
      higher: whether the kernel has higher derivatives in reverse mode.

    Returns:
      y, [...].

    Raises:
      NotImplementedError: a forward-mode derivative is computed, or a higher derivative that the
        kernel lacks. The message suggests "reference".
    """
    return _guard.bind(array, kernel=kernel, higher=higher, order=1)


def _unsupported(kernel: str, mode: str) -> NotImplementedError:
    return NotImplementedError(
        f"implementation: got {kernel!r} for {mode}, expected 'reference', which supports them"
    )


def _forward_mode(kernel: str) -> NotImplementedError:
    return _unsupported(kernel, "forward-mode derivatives (jvp, jacfwd, hessian)")


# Returns x; its tangent goes through `_tangent`.
_guard = core.Primitive("kernel_input")
# Returns the tangent; only the transpose of this function, in reverse mode, is ever computed.
_tangent = core.Primitive("kernel_tangent")


def _differentiate(primals, tangents, *, kernel: str, higher: bool, order: int) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    if order > 1 and not higher:
        raise _unsupported(kernel, "derivatives of derivatives")
    # Counts the order, to recognize a second differentiation.
    y = _guard.bind(x, kernel=kernel, higher=higher, order=order + 1)
    return y, tangent if isinstance(tangent, ad.Zero) else _tangent.bind(tangent, kernel=kernel)


def _raise(*_, kernel: str) -> Any:
    raise _forward_mode(kernel)


_guard.def_impl(lambda x, **_: x)
_guard.def_abstract_eval(lambda x, **_: x)
ad.primitive_jvps[_guard] = _differentiate
batching.defvectorized(_guard)
mlir.register_lowering(_guard, lambda context, x, **_: [x])

_tangent.def_impl(_raise)
_tangent.def_abstract_eval(lambda x, **_: x)
ad.primitive_transposes[_tangent] = lambda tangent, _, kernel: [tangent]
# Reverse mode transposes tangents first, so only forward mode reaches these rules.
ad.primitive_jvps[_tangent] = lambda *_, kernel: _raise(kernel=kernel)
batching.primitive_batchers[_tangent] = lambda *_, kernel: _raise(kernel=kernel)
mlir.register_lowering(_tangent, lambda context, *arrays, kernel: _raise(kernel=kernel))
