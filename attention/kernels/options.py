"""Keyword arguments of all kernels, after the checks of `attention.attend`.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

from typing import Any, TypedDict, cast

import jax

from attention.dropout import validate_threefry
from attention.masks import Mask

Array = jax.Array


class KernelOptions(TypedDict):
    """Options of `attend`; each kernel documents those that it supports.

    Attributes:
      mask: a `Mask`, or None if all keys are visible.
      bias: [B or 1, N or 1, T, S], or None.
      scale: factor of the products of queries and keys.
      logit_cap: bound of the logits, as for `attention.attend`; None for no cap.
      sinks: [N], or None.
      dropout_rate: dropout rate of the weights.
      dropout_key: None if the rate is 0.
    """

    mask: Mask | None
    bias: Array | None
    scale: float
    logit_cap: float | None
    sinks: Array | None
    dropout_rate: float
    dropout_key: Array | None


def validate_numbers(options: KernelOptions) -> tuple[float, float | None, float]:
    """Returns the scale, the logit cap and the dropout rate as floats.

    Raises:
      NotImplementedError: a number is traced.
    """
    scale, logit_cap, rate = options["scale"], options["logit_cap"], options["dropout_rate"]
    if any(isinstance(number, jax.Array) for number in (scale, logit_cap, rate)):
        raise NotImplementedError("scale, logit_cap: got an array, expected Python numbers")
    return float(scale), None if logit_cap is None else float(logit_cap), float(rate)


def validate_arrays(options: KernelOptions) -> dict[str, Any]:
    """Returns the options that are arrays: "mask", "bias", "sinks" and "key_data".

    "key_data" contains the words of the dropout key; it is None if the rate is 0.
    """
    key = options["dropout_key"]
    key_data = validate_threefry(cast(Array, key)) if options["dropout_rate"] else None
    return {name: options[name] for name in ("mask", "bias", "sinks")} | {"key_data": key_data}


def expect_absent(options: KernelOptions, *names: str, by: str) -> None:
    """Raises NotImplementedError for the first of the named options that is given."""
    for name in names:
        if options[name] if name == "dropout_rate" else options[name] is not None:
            raise NotImplementedError(f"{name}: not supported by {by}")
