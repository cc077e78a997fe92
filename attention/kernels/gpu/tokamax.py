"""The kernel "tokamax": attention by the library tokamax on NVIDIA GPUs.

The library is optional. Install it with `pip install tokamax`; it needs Python 3.12 or later.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import importlib
from typing import Unpack

import chex
import jax
import jax.numpy as jnp

from attention.kernels import costs, devices
from attention.kernels.options import KernelOptions, expect_absent
from attention.masks import Mask, terms

Array = jax.Array


def attend(query: Array, key: Array, value: Array, **options: Unpack[KernelOptions]) -> Array:
    """Computes attention by tokamax (DeepMind 2025); see `attention.attend`.

        o = softmax(cap(scale·qkᵀ + bias))·v

    A mask other than `causal()` is passed as an array, which takes O(T·S) memory. On a mesh,
    `attention.attend` runs this kernel on each device for the device's examples and heads.

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V].
      mask: any mask, or None.
      bias: [B or 1, N or 1, T, S], or None.
      scale, logit_cap: factor and bound of the logits, numbers; no cap if None.
      sinks, dropout_key: must be None.
      dropout_rate: must be 0.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      NotImplementedError: there is no NVIDIA GPU, tokamax is not installed, sinks or dropout are
        given, or tokamax does not support another argument.
      ValueError: the mask was made for other sizes.
    """
    devices.require_platform("cuda", can_be_interpreted=False)
    expect_absent(options, "sinks", "dropout_rate", by="tokamax")
    try:
        tokamax = importlib.import_module("tokamax")
    except ImportError:
        raise NotImplementedError("needs the package tokamax, which is not installed") from None
    B, T, N, _ = query.shape
    S, mask = key.shape[1], options["mask"]
    causal = mask is not None and _is_causal(mask, T, S)
    allowed = visible = None
    if mask is not None and not causal:
        allowed = mask.materialize(B, N, T, S)
        visible = allowed.any(-1, keepdims=True)
        # A row that may attend to nothing is computed as if all keys were visible, then set to 0.
        allowed = allowed | ~visible
    # The dense fallback of tokamax is excluded, as it would be no better than the reference.
    result = _first_supported(
        tokamax.dot_product_attention,
        ("mosaic", "triton"),
        query,
        key,
        value,
        bias=options["bias"],
        mask=allowed,
        scale=options["scale"],
        is_causal=causal,
        logits_soft_cap=options["logit_cap"],
    )
    if visible is not None:
        result = jnp.where(visible.transpose(0, 2, 1, 3), result, 0)
    chex.assert_shape(result, (B, T, N, value.shape[-1]))
    return result


def _is_causal(mask: Mask, T: int, S: int) -> bool:
    """Returns whether the mask is `causal()` alone, without an offset."""
    if T != S or len(mask.terms) != 1 or not isinstance(mask.terms[0], terms.Window):
        return False
    left, right, offset = (getattr(mask.terms[0], n) for n in ("left", "right", "query_offset"))
    return left is None and right == 0 and terms.is_static(offset) and not offset


def _first_supported(function, names, *arrays, **options) -> Array:
    reasons = []
    for name in names:
        try:
            return function(*arrays, **options, implementation=name)
        except (NotImplementedError, ValueError) as error:
            if isinstance(error, ValueError) and "Unknown implementation" not in str(error):
                raise
            reasons.append(f"{name}: {error}")
    raise NotImplementedError(f"tokamax: {'; '.join(reasons)}")


def cost(call: costs.Call) -> costs.Cost:
    """Returns the estimated cost of a call; the array of a mask counts only for a dense term."""
    return costs.Cost(
        operations=call.operations(7 if call.backward else 2, 64, 16) * call.visible,
        traffic=(call.vectors() + call.pairs() * call.array) * (4 if call.backward else 1),
        efficiency=0.5 * call.occupancy(call.batch * call.heads * -(-call.queries // 64)),
        launches=5 if call.backward else 1,
    )
