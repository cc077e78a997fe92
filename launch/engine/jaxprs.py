"""Parameters of equations that call another jaxpr, in the supported versions of JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Primitives that call another jaxpr once.
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
         "custom_jvp_call", "custom_vjp_call")  # fmt: skip


def callee(options: Mapping[str, Any]) -> Any:
    """Returns the jaxpr that an equation of one of `CALLS` calls.

    Args:
      options: parameters of the equation.
    """
    return next(value for value in options.values() if hasattr(value, "eqns"))


def scan_sizes(options: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the numbers of constant and of carried inputs in an equation of `jax.lax.scan`.

    The remaining inputs are the arrays that are read slice by slice.

    Args:
      options: parameters of the equation.
    """
    if "ft_in" in options:  # from JAX 0.12
        constants, carried, _ = options["ft_in"].unpack()
        return len(constants), len(carried)
    return options["num_consts"], options["num_carry"]
