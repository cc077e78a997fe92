"""The kernel "native": C++ for CPUs that runs on XLA's threads.

Online softmax (Milakov & Gimelshein 2018) over blocks that fit into the L1 and L2 caches. Blocks
are recomputed in the backward pass (Dao et al. 2022, "FlashAttention"), so memory is O(T + S).
Hidden blocks are skipped, and masks are evaluated in partial blocks only. Decoding reads each key
once, in the layout of `attention.cache`.

The sources are in source/ and are compiled on first use (`build`). On a mesh the kernel is
partitioned by examples and heads.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from attention.dropout import keep_levels
from attention.kernels import devices, reference
from attention.kernels.cpu import build
from attention.kernels.cpu.ffi import Operand, call_partitioned
from attention.kernels.options import KernelOptions, validate_arrays, validate_numbers
from attention.masks import Mask
from attention.masks.arrays import MaskArrays, mask_arrays

Array = jax.Array

_QUERY_BLOCK, _KEY_BLOCK = 64, 256
# Up to this number of queries per key/value head, packing the keys into blocks costs more time than
# it saves.
_FEW = 16


def attend(query: Array, key: Array, value: Array, **options: Unpack[KernelOptions]) -> Array:
    """Computes attention by blocks on a CPU (Dao et al. 2022); see `attention.attend`.

        o_t = Σ_s exp(l_ts - m_t)·v_s / Σ_s exp(l_ts - m_t),   m_t = max_s l_ts

    The sums are rescaled by exp(m_old - m_new) from block to block.

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V]; float32 or bfloat16.
      options: all are supported; the dropout mask is the same as that of the reference.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      NotImplementedError: the platform is not a CPU, or there is no C++ compiler; the dtype or the
        dropout key is not supported; or a mask term is not given by intervals, ids, static patterns
        or arrays.
    """
    devices.require_platform("cpu", can_be_interpreted=False)
    if devices.context()[1] is not None:
        raise NotImplementedError(
            "is compiled for the CPU of this host only, and cannot be exported"
        )
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.dtype not in (jnp.float32, jnp.bfloat16) or array.dtype != query.dtype:
            raise NotImplementedError(
                f"{name}: got dtype {array.dtype}, expected float32 or bfloat16 for all"
            )
    mask, bias, sinks, key_data = validate_arrays(options).values()
    if query.size == 0 or key.size == 0 or value.size == 0:
        raise NotImplementedError("got an array without elements, expected at least one element")
    sizes = ("ATTENTION_QUERY_BLOCK", _QUERY_BLOCK), ("ATTENTION_KEY_BLOCK", _KEY_BLOCK)
    build.register_targets("attention.cc", ("AttentionForward", "AttentionBackward"), sizes)
    B, T = query.shape[:2]
    # Raises for an unsupported mask here, not within the gradient.
    jax.eval_shape(lambda m: _arrays_of(m, B, T, key.shape[1]), mask)
    scale, logit_cap, dropout_rate = validate_numbers(options)
    numbers = _Options(scale, logit_cap or 0.0, dropout_rate)
    return _attend(numbers, query, key, value, bias, sinks, (mask, key_data))


@dataclasses.dataclass(frozen=True)
class _Options:
    scale: float
    logit_cap: float
    dropout_rate: float


def _arrays_of(mask: Mask | None, B: int, T: int, S: int) -> MaskArrays:
    found = mask_arrays(mask, B, T, S, _QUERY_BLOCK, _KEY_BLOCK)
    return found._replace(block_codes=None, block_patterns=None)


# ------------------------------------------------------------------ gradients


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options, query, key, value, bias, sinks, others):
    return _forward(options, query, key, value, bias, sinks, others)[0]


def _attend_forward(options, *arguments):
    given = jax.tree.map(lambda leaf: leaf.value, arguments)
    query, key, value, bias, sinks, others = given
    output, log_sum = cast(tuple, _pair(options, query, key, value, bias, sinks, others))
    # A bias that is not differentiated, such as that of ALiBi, gets no gradient.
    wanted = bias is not None and jax.tree.leaves(arguments[3])[0].perturbed
    return output, (*given, output, log_sum, jnp.zeros(()) if wanted else None)


def _attend_backward(options, saved, cotangent):
    *given, output, log_sum, wanted = saved
    if isinstance(cotangent, SymbolicZero):
        cotangent = jnp.zeros(output.shape, output.dtype)
    static = (options, wanted is not None)
    gradients = cast(tuple, _gradient(static, *given, output, log_sum, cotangent))
    return (*gradients, None)


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pair(options, query, key, value, bias, sinks, others):
    """Returns the output and the log-sum-exp; their gradient can be differentiated again."""
    return _forward(options, query, key, value, bias, sinks, others)


def _pair_forward(options, *arguments):
    output, log_sum = cast(tuple, _pair(options, *arguments))
    return (output, log_sum), (*arguments, output, log_sum)


def _pair_backward(options, saved, cotangents):
    # The cotangent of the log-sum-exp is 0, because `_gradient` treats its residuals as constants.
    static = (options, saved[3] is not None)
    return (*cast(tuple, _gradient(static, *saved, cotangents[0])), None)


_pair.defvjp(_pair_forward, _pair_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(static, query, key, value, bias, sinks, others, output, log_sum, cotangent):
    """Returns the gradients of query, key, value, bias (None if not needed) and sinks."""
    options, bias_wanted = static
    problem = _Problem(options, query, key, value, bias, sinks, others)
    found = problem.run(
        "AttentionBackward",
        [
            Operand(output, "btnv"),
            Operand(log_sum, "bnt"),
            Operand(cotangent.astype(output.dtype), "btnv"),
        ],
        {
            "btnh": (query.shape, query.dtype),
            "bskh": (key.shape, key.dtype),
            "bskv": (value.shape, value.dtype),
            "BNts" if bias_wanted else "": (bias.shape if bias_wanted else (0,), jnp.float32),
        },
    )
    *gradients, by_bias = found
    by_bias = by_bias.astype(bias.dtype) if bias_wanted else None
    by_sinks = None
    if sinks is not None:
        # The sink takes weight from the keys but has no value: dsink = -Σ_bt weight · (do·o).
        pull = jnp.einsum("btnv,btnv->bnt", output, cotangent, preferred_element_type=jnp.float32)
        weight = jnp.exp(sinks.astype(jnp.float32)[:, None] - log_sum)
        by_sinks = -jnp.sum(weight * pull, (0, 2)).astype(sinks.dtype)
    return (*gradients, by_bias, by_sinks)


def _by_reference(static, others, query, key, value, bias, sinks, cotangent):
    """Computes the gradients by the reference kernel, which has higher derivatives."""
    (options, bias_wanted), (mask, key_data) = static, others

    def run(query, key, value, bias, sinks):
        return reference.attend(
            query, key, value, mask=mask, bias=bias, sinks=sinks, scale=options.scale,
            logit_cap=options.logit_cap or None, dropout_rate=options.dropout_rate,
            dropout_key=key_data,
        )  # fmt: skip

    *gradients, by_bias, by_sinks = jax.vjp(run, query, key, value, bias, sinks)[1](cotangent)
    return (*gradients, by_bias if bias_wanted else None, by_sinks)


def _gradient_forward(static, *arguments):
    return _gradient(static, *arguments), arguments


def _gradient_backward(static, saved, cotangents):
    *given, others, output, log_sum, cotangent = saved
    _, pull = jax.vjp(functools.partial(_by_reference, static, others), *given, cotangent)
    # The gradients of the other inputs already include the path through output and log-sum-exp.
    *gradients, by_cotangent = pull(cotangents)
    return (*gradients, None, jnp.zeros_like(output), jnp.zeros_like(log_sum), by_cotangent)


_gradient.defvjp(_gradient_forward, _gradient_backward)


# ------------------------------------------------------------------ calls


def _forward(options, query, key, value, bias, sinks, others) -> tuple[Array, Array]:
    """Returns the output and the log-sum-exp [B, N, T]."""
    B, T, N, _ = query.shape
    problem = _Problem(options, query, key, value, bias, sinks, others)
    few = T * (N // key.shape[2]) <= _FEW
    results = {
        "btnv": ((B, T, N, value.shape[-1]), query.dtype),
        "bnt": ((B, N, T), jnp.float32),
    }
    output, log_sum = problem.run("AttentionForward", [], results, heads_first=few)
    return output, log_sum


class _Problem:
    """The operands that the forward and backward passes share."""

    def __init__(self, options, query, key, value, bias, sinks, others):
        (mask, key_data), self._options = others, options
        B, T, self._heads, _ = query.shape
        found = mask_arrays(mask, B, T, key.shape[1], _QUERY_BLOCK, _KEY_BLOCK)
        drawn = key_data is not None
        self._operands = [
            Operand(query, "btnh"),
            Operand(key, "bskh"),
            Operand(value, "bskv"),
            Operand(found.low, "Bt"),
            Operand(found.high, "Bt"),
            Operand(found.query_ids, "Bt"),
            Operand(found.key_ids, "Bs"),
            Operand(_bytes(found.valid), "Bs"),
            Operand(_bytes(found.dense), "BNts"),
            Operand(found.block_codes, "xy"),
            Operand(_bytes(found.block_patterns), "zuw"),
            Operand(None if bias is None else bias.astype(jnp.float32), "BNts"),
            Operand(None if sinks is None else sinks.astype(jnp.float32)[None], "Bn"),
            Operand(key_data[None] if drawn else None, "Bc"),
            # Global indices of examples and heads, so that dropout is the same on any mesh.
            Operand(jnp.arange(B, dtype=jnp.int32) if drawn else None, "b"),
            Operand(jnp.arange(self._heads, dtype=jnp.int32) if drawn else None, "n"),
        ]

    def run(self, target: str, more: list[Operand], results: dict[str, Any], heads_first=False):
        options = self._options
        threshold, probability = 0, 1.0
        if options.dropout_rate:
            threshold, probability = keep_levels(options.dropout_rate)
        attributes = {
            "scale": np.float32(options.scale),
            "cap": np.float32(options.logit_cap),
            "kept_scale": np.float32(1.0 / probability),
            "threshold": np.int32(threshold),
            "total_heads": np.int32(self._heads),
            "heads_first": bool(heads_first),
        }
        layouts = {1: (0, 2, 1, 3), 2: (0, 2, 1, 3)} if heads_first else {}
        return call_partitioned(target, [*self._operands, *more], results, attributes, layouts)


def _bytes(marks: Array | np.ndarray | None) -> Array | None:
    return None if marks is None else jnp.asarray(marks).astype(jnp.uint8)
