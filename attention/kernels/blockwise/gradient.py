"""One gradient for all kernels that compute block by block, on one device or on many.

The gradient needs the output and the logarithm of each row's sum alone; the weights are computed
again (Dao et al. 2022).
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


class Method(Protocol):
    """How `blocks.forward` and `blocks.backward` are called; hashable, known before running.

    Both are given `options`: mask, bias, words, rules and origin, as for `blocks.forward`.
    """

    def forward(self, query: Array, key: Array, value: Array, options: dict) -> tuple:
        """As `blocks.forward`."""

    def backward(self, arrays: tuple[Array, ...], options: dict) -> tuple:
        """As `blocks.backward`, for its first six arguments."""


@dataclasses.dataclass(frozen=True)
class Here:
    """On the device, or the part of a device, where it is called."""

    def forward(self, query, key, value, options):
        return online_softmax.forward(query, key, value, **options)

    def backward(self, arrays, options):
        return online_softmax.backward(*arrays, **options)


def attention(
    method: Method,
    rules: online_softmax.Rules,
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | None,
    bias: Array | None,
    sinks: Array | None,
    words: Array | None,
    origin: online_softmax.Origin = online_softmax.WHOLE,
) -> Array:
    """Attention with its gradient by hand, by a method (Dao et al. 2022).

        o_t = Σ_s exp(l_ts - z_t) v_s,   z_t = log(Σ_s exp(l_ts) + exp(sink))

    Args:
      method: how the blocks are computed.
      rules, query, key, value, mask, bias, words, origin: as for `blocks.forward`.
      sinks: [N], or None.

    Returns:
      o, [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    return _attention(method, rules, query, key, value, bias, sinks, (mask, words, origin))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _differentiable(method, rules, query, key, value, bias, sinks, place):
    return _forward(method, rules, query, key, value, bias, sinks, place)[0]


def _options(rules: online_softmax.Rules, bias: Array | None, place: tuple) -> dict[str, Any]:
    mask, words, origin = place
    return {"mask": mask, "bias": bias, "words": words, "rules": rules, "origin": origin}


def _forward(method, rules, query, key, value, bias, sinks, place):
    out, logs = method.forward(query, key, value, _options(rules, bias, place))
    out, logs = _with_sinks(out, logs, sinks)
    return out.astype(query.dtype), logs


def _forward_and_keep(method, rules, *given):
    *_, bias, _, _ = given
    fixed = bias is not None and not bias.perturbed
    query, *others = jax.tree.map(lambda x: x.value, given, is_leaf=_is_primal)
    out, logs = _forward(method, rules, query, *others)
    # What a residual is made of is known before running, unlike a flag in it.
    return out, ((query, *others), out, logs, () if fixed else None)


def _is_primal(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _backward(method, rules, kept, cotangent):
    (query, key, value, bias, sinks, place), out, logs, fixed = kept
    if fixed is not None:
        rules = dataclasses.replace(rules, bias_slopes=False)
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        cotangent = jnp.zeros(out.shape, out.dtype)
    delta = jnp.sum(cotangent.astype(logs.dtype) * out.astype(logs.dtype), axis=-1)
    arrays = query, key, value, cotangent, logs, delta
    slopes = method.backward(arrays, _options(rules, bias, place))
    slopes = *slopes, None if sinks is None else _sink_slopes(sinks, logs, delta)
    pairs = zip(slopes, (query, key, value, bias, sinks), strict=True)
    return *(None if slope is None else slope.astype(x.dtype) for slope, x in pairs), None


# With symbolic zeros it is known whether a bias is learned: else its gradient is not formed.
_differentiable.defvjp(_forward_and_keep, _backward, symbolic_zeros=True)
# Compiled, so that calls outside of jit are traced once.
_attention = jax.jit(_differentiable, static_argnums=(0, 1))


def _with_sinks(out: Array, logs: Array, sinks: Array | None) -> tuple[Array, Array]:
    """Adds a sink to each row of what `forward` gave (Xiao et al. 2024).

        o' = o · exp(z - z'),   z' = log(exp(z) + exp(sink))

    Args:
      out: [B, T, N, V], without sinks.
      logs: [B, T, N], -inf for a row that sees nothing.
      sinks: [N], or None.

    Returns:
      o' and z', shaped as out and logs are; z' = inf for a row that sees nothing, as `backward`
      takes it.

    Raises:
      TypeError: sinks of another shape.
    """
    seen = logs > -jnp.inf
    if sinks is None:
        return out, jnp.where(seen, logs, jnp.inf)
    total = jnp.logaddexp(logs, sinks.astype(logs.dtype))
    share = jnp.where(seen, jnp.exp(logs - jnp.where(seen, total, 0.0)), 0.0)
    return out * share[..., None], jnp.where(seen, total, jnp.inf)


def _sink_slopes(sinks: Array, logs: Array, delta: Array) -> Array:
    """The gradient of the sinks, of which each has the weight exp(sink - z) (Xiao et al. 2024).

        dsink = -Σ_bt exp(sink - z_bt) δ_bt

    Args:
      sinks: [N].
      logs, delta: as for `backward`; a row that sees nothing has no part in it.

    Returns:
      dsink, [N].

    Raises:
      TypeError: sinks of another shape.
    """
    weights = jnp.exp(sinks.astype(logs.dtype) - logs)
    return -jnp.sum(weights * delta, axis=(0, 1))
