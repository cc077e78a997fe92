"""The gradient of all blockwise kernels, on one device or several.

The gradient needs only the output and the log-sum-exp of each row; the weights are recomputed (Dao
et al. 2022). Symbols are defined in `online_softmax.py`, dimension letters in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from attention.kernels.blockwise import online_softmax
from attention.masks import Mask

Array = jax.Array


class BlockwiseMethod(Protocol):
    """Protocol of forward and backward passes over blocks.

    A method is static under jit, so it must be hashable. Both passes take `options`: mask, bias,
    key_data, spec and offset of `online_softmax.forward`.
    """

    def forward(self, query: Array, key: Array, value: Array, options: dict) -> tuple:
        """Computes the result of `online_softmax.forward`."""
        ...

    def backward(self, arrays: tuple[Array, ...], options: dict) -> tuple:
        """Computes `online_softmax.backward`, whose first six arguments are `arrays`."""
        ...


@dataclasses.dataclass(frozen=True)
class LocalMethod:
    """Computation on the calling device, without communication."""

    def forward(self, query, key, value, options):
        return online_softmax.forward(query, key, value, **options)

    def backward(self, arrays, options):
        return online_softmax.backward(*arrays, **options)


def attention(
    method: BlockwiseMethod,
    spec: online_softmax.BlockwiseSpec,
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | None,
    bias: Array | None,
    sinks: Array | None,
    key_data: Array | None,
    offset: online_softmax.BlockOffset = online_softmax.NO_OFFSET,
) -> Array:
    """Computes attention with a hand-written gradient (Dao et al. 2022).

        o_t = Σ_s exp(l_ts - z_t) v_s,   z_t = log(Σ_s exp(l_ts) + exp(sink))

    Args:
      method: forward and backward passes over the blocks.
      spec, query, key, value, mask, bias, key_data, offset: as for `online_softmax.forward`.
      sinks: [N], or None.

    Returns:
      o, [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    return _attention(method, spec, query, key, value, bias, sinks, (mask, key_data, offset))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(method, spec, query, key, value, bias, sinks, context):
    return _forward(method, spec, query, key, value, bias, sinks, context)[0]


def _options(
    spec: online_softmax.BlockwiseSpec, bias: Array | None, context: tuple
) -> dict[str, Any]:
    mask, key_data, offset = context
    return {"mask": mask, "bias": bias, "key_data": key_data, "spec": spec, "offset": offset}


def _forward(method, spec, query, key, value, bias, sinks, context):
    out, lse = method.forward(query, key, value, _options(spec, bias, context))
    out, lse = _with_sinks(out, lse, sinks)
    return out.astype(query.dtype), lse


def _forward_with_residuals(method, spec, *given):
    *_, bias, _, _ = given
    fixed = bias is not None and not bias.perturbed
    query, *others = jax.tree.map(lambda x: x.value, given, is_leaf=_is_primal)
    out, lse = _forward(method, spec, query, *others)
    # `fixed` means that the bias is not differentiated. It is stored as () or None, because the
    # tree structure of residuals is static. A bool would be traced.
    return out, ((query, *others), out, lse, () if fixed else None)


def _is_primal(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _backward(method, spec, residuals, cotangent):
    (query, key, value, bias, sinks, context), out, lse, fixed = residuals
    if fixed is not None:
        spec = dataclasses.replace(spec, needs_bias_grad=False)
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        cotangent = jnp.zeros(out.shape, out.dtype)
    delta = jnp.sum(cotangent.astype(lse.dtype) * out.astype(lse.dtype), axis=-1)
    arrays = query, key, value, cotangent, lse, delta
    grads = method.backward(arrays, _options(spec, bias, context))
    grads = *grads, None if sinks is None else _sink_grad(sinks, lse, delta)
    pairs = zip(grads, (query, key, value, bias, sinks), strict=True)
    return *(grad if grad is None or x is None else grad.astype(x.dtype) for grad, x in pairs), None


# Symbolic zeros show whether the bias is differentiated; if not, its gradient is not computed.
_differentiable.defvjp(_forward_with_residuals, _backward, symbolic_zeros=True)
# Jitted, so that calls outside jit are traced only once.
_attention = jax.jit(_differentiable, static_argnums=(0, 1))


def _with_sinks(out: Array, lse: Array, sinks: Array | None) -> tuple[Array, Array]:
    """Adds a sink to each row of the output of `forward` (Xiao et al. 2024).

        o' = o · exp(z - z'),   z' = log(exp(z) + exp(sink))

    Args:
      out: [B, T, N, V], without sinks.
      lse: [B, T, N], -inf for a row that may attend to nothing.
      sinks: [N], or None.

    Returns:
      o' and z', shaped like out and lse. For a row that may attend to nothing, z' is inf, as
      `backward` expects.

    Raises:
      TypeError: sinks of another shape.
    """
    visible = lse > -jnp.inf
    if sinks is None:
        return out, jnp.where(visible, lse, jnp.inf)
    total = jnp.logaddexp(lse, sinks.astype(lse.dtype))
    fraction = jnp.where(visible, jnp.exp(lse - jnp.where(visible, total, 0.0)), 0.0)
    return out * fraction[..., None], jnp.where(visible, total, jnp.inf)


def _sink_grad(sinks: Array, lse: Array, delta: Array) -> Array:
    """Computes the gradient of the sinks, whose weight is exp(sink - z) (Xiao et al. 2024).

        dsink = -Σ_bt exp(sink - z_bt) δ_bt

    Args:
      sinks: [N].
      lse, delta: as for `backward`; rows that may attend to nothing do not contribute.

    Returns:
      dsink, [N].

    Raises:
      TypeError: sinks of another shape.
    """
    weights = jnp.exp(sinks.astype(lse.dtype) - lse)
    return -jnp.sum(weights * delta, axis=(0, 1))
