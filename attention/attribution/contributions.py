"""Contributions of positions to an attention's result, from weights and projected values.

B examples, N heads, T queries, S keys, D model size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import recording, shapes
from attention.numerics import accumulator
from attention.observation import Layers, choose_layers, prepare, sender, trace

Array = jax.Array
Linear = Callable[[Array, Array], Array]


class WeightedNorms(NamedTuple):
    """Norms of weighted values.

    Attributes:
      heads: [B, N, T, S], norms for each head.
      total: [B, T, S], norms of the sum over heads.
    """

    heads: Any
    total: Any


def weighted_norms(weights: Array, transformed: Array) -> WeightedNorms:
    """Computes norms of weighted, transformed values (Kobayashi et al. 2020, equations 3 and 4).

        heads_nts = |α_nts f_n(x_s)|,   total_ts = |Σ_n α_nts f_n(x_s)|,   L2 norms

    Args:
      weights: α, [B, N, T, S].
      transformed: f_n(x_s) = (x_s W_V,n + b_V,n) W_O,n, [B, S, N, D].

    Returns:
      `WeightedNorms`: heads [B, N, T, S] and total [B, T, S], in at least float32. One row t is
      computed at a time, in memory O(B·S·D).

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    weights, transformed = _expect(weights, transformed)
    norms = jnp.linalg.norm(transformed, axis=-1)
    heads = jnp.abs(weights) * jnp.moveaxis(norms, 2, 1)[:, :, None]
    total = _by_row(lambda row, t: jnp.linalg.norm(row, axis=-1), weights, transformed)
    return WeightedNorms(heads, total)


def value_weighted_norms(
    model: nnx.Module | Callable[..., Any],
    *inputs: Any,
    layers: Layers = None,
    method: str = "__call__",
    **keywords: Any,
) -> dict[str, WeightedNorms]:
    """Computes `weighted_norms` of each `MultiHeadAttention` of a model (Kobayashi et al. 2020).

        heads_nts = |α_nts f_n(x_s)|,   f_n(x) = (x W_V,n + b_V,n) W_O,n

    The model is not changed and runs with its own kernels. Each call of this function traces and
    compiles the model again.

    Args:
      model: a module, or any function of arrays, which may call modules.
      *inputs, **keywords: arguments of the model. Arrays are traced, other values are static.
      layers: names of the attention calls to include, as for `inspect.capture`; all if None.
      method: name of the method to call.

    Returns:
      A dict of `WeightedNorms` by the name of the attention: NumPy arrays heads [B, N, T, S] and
      total [B, T, S]. If an attention is called several times, they have a leading axis of calls.

    Raises:
      ValueError: the model has no attention, or layers do not exist.
      NotImplementedError: an attention is not computed by `MultiHeadAttention`, or has a gate.
    """

    def norms(recorded: recording.Weights) -> WeightedNorms:
        return weighted_norms(recorded(), _transformed(recorded))

    lacks = "projected values, expected MultiHeadAttention without a gate"
    found = _observed(
        norms, lambda w: w.output is not None, lacks, model, inputs, keywords, layers, method
    )
    return {name: WeightedNorms(*arrays) for name, arrays in found.items()}


def token_contributions(
    weights: Array,
    transformed: Array,
    x: Array,
    *,
    bias: Array | None = None,
    norm: Callable[[Array], Array] | None = None,
    linear: Linear | None = None,
) -> Array:
    """Computes contributions of tokens to the attention of a layer (Ferrando et al. 2022, ALTI).

        T_t(x_s) = L(Σ_n α_nts f_n(x_s) + [s = t] x_t),   y_t = norm(x_t + Σ_ns α_nts f_n(x_s) + b)
        c_ts = max(|y_t| - |y_t - T_t(x_s)|, 0),   rows scaled to sum to 1,   L1 norms

    These are equations 5 to 9 of "Measuring the Mixing of Contextual Information in the
    Transformer". L is the linear part of the norm, computed with the statistics of the norm's
    input. Without a norm after the residual connection (pre-norm layers), norm and L are the
    identity. If no contribution to row t is positive, c_tt is 1 and the others are 0.

    Args:
      weights: α, [B, N, T, T].
      transformed: f_n(x_s), [B, T, N, D], as for `weighted_norms`.
      x: input of the residual connection, [B, T, D].
      bias: b, bias of the output projection, [D]; 0 if None.
      norm: function of [B, T, D]; None for the identity.
      linear: L, a function of the norm's input z at one position, [B, 1, D], and of vectors u,
        [B, T, D]. It is linear in u. Required with a norm.

    Returns:
      c, [B, T, T] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit, or only one of norm and linear is given.
    """
    weights, transformed = _expect(weights, transformed)
    B, _, T, S = weights.shape
    shapes.expect_floating("x", x)
    shapes.expect("x", x, "B T D", {"B": B, "T": T, "D": transformed.shape[-1]})
    if T != S:
        got = shapes.show(weights.shape)
        raise ValueError(f"weights: got shape {got}, expected [B, N, T, T] of self-attention")
    if (norm is None) != (linear is None):
        raise ValueError("linear: got only one of norm and linear, expected both or neither")
    x = jnp.asarray(x).astype(weights.dtype)
    mixed = jnp.einsum("BNTS,BSND->BTD", weights, transformed, precision=jax.lax.Precision.HIGHEST)
    whole = x + mixed if bias is None else x + mixed + bias
    y = whole if norm is None else norm(whole)

    def contributions(row: Array, t: Array) -> Array:
        at = jnp.arange(T)[:, None] == t
        parts = row + jnp.where(at, jnp.take(x, t, axis=1)[:, None], 0)
        if linear is not None:
            parts = linear(jnp.take(whole, t, axis=1)[:, None], parts)
        result = jnp.take(y, t, axis=1)[:, None]
        kept = jnp.sum(jnp.abs(result), -1) - jnp.sum(jnp.abs(result - parts), -1)
        kept = jnp.maximum(kept, 0)
        total = jnp.sum(kept, axis=-1, keepdims=True)
        return jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), at[:, 0])

    return _by_row(contributions, weights, transformed)


def alti(
    model: nnx.Module | Callable[..., Any],
    *inputs: Any,
    layers: Layers = None,
    method: str = "__call__",
    **keywords: Any,
) -> Array:
    """Computes contributions of the inputs to the outputs of Transformer layers by ALTI.

        R = C_L ··· C_2 C_1

    C_l are the `token_contributions` of layer l (Ferrando et al. 2022, section 3.3). Each layer
    must use `MultiHeadAttention` and declare its residual connection with `recording.added`. The
    layers of `tasks.common.backbones` do so, with pre-norm and with post-norm.

    Args:
      model, inputs, method, keywords: as for `value_weighted_norms`; inputs are arrays [B, T] or
        other arguments that the model takes.
      layers: names of the self-attention of the layers, as for `inspect.capture`, such as
        "encoder/layers/.*/attention"; all if None. Their C_l are multiplied in the order of the
        calls.

    Returns:
      R, [B, T, T]; row t contains the contributions of the inputs to output t.

    Raises:
      ValueError: the model has no attention, layers do not exist, or their lengths differ.
      NotImplementedError: an attention is not computed by `MultiHeadAttention`, has a gate, or is
        in a layer that declares no residual connection.
    """

    def contributions(recorded: recording.Weights) -> tuple[Array]:
        residual, output = recorded.residual, recorded.output
        assert residual is not None
        assert output is not None
        found = token_contributions(
            recorded(),
            _transformed(recorded),
            residual.x,
            bias=output.bias,
            norm=residual.norm,
            linear=residual.linear,
        )
        return (found,)

    lacks = (
        "a residual connection or without projected values, expected MultiHeadAttention without a "
        "gate in a Transformer layer"
    )
    known = lambda w: w.output is not None and w.residual is not None  # noqa: E731
    found = _observed(contributions, known, lacks, model, inputs, keywords, layers, method)
    stacks = [calls if calls.ndim == 4 else calls[None] for (calls,) in found.values()]
    if len({stack.shape[1:] for stack in stacks}) != 1:
        got = [shapes.show(stack.shape[1:]) for stack in stacks]
        raise ValueError(f"layers: got contributions of shapes {got}, expected equal shapes")
    total = None
    for layer in np.concatenate(stacks):
        total = layer if total is None else np.matmul(layer, total)
    return jnp.asarray(total)


def _transformed(recorded: recording.Weights) -> Array:
    """Returns the projected values f_n(x_s) of `weighted_norms`, [B, S, N, D]."""
    assert recorded.values is not None
    assert recorded.output is not None
    assert recorded.result is not None
    values = recorded.values.astype(accumulator(recorded.values))
    return recorded.output.project(
        jnp.repeat(values, recorded.result.shape[2] // values.shape[2], 2)
    )


def _observed(
    compute: Callable[[recording.Weights], Sequence[Array]],
    is_known: Callable[[recording.Weights], bool],
    lacks: str,
    model: Any,
    inputs: tuple[Any, ...],
    keywords: dict[str, Any],
    layers: Layers,
    method: str,
) -> dict[str, list[np.ndarray]]:
    """Runs a model and applies a function to each chosen attention.

    Args:
      compute: function that returns arrays for a recorded attention.
      is_known: function that returns True if `compute` supports a recorded attention.
      lacks: properties that an unsupported attention lacks, for the error message.
      model, inputs, keywords, layers, method: as for `value_weighted_norms`.

    Returns:
      The arrays of `compute` for each attention by name, with a leading axis of calls if there are
      several.
    """
    called, arrays = prepare(model, method, inputs, keywords)

    def run(*arrays: Any) -> None:
        called(*arrays)

    unknown: set[str] = set()

    def check(name: str, recorded: recording.Weights, shape: tuple[int, ...]) -> None:
        if not is_known(recorded):
            unknown.add(name)

    chosen = choose_layers(layers, trace(run, arrays, check))
    for name in sorted(chosen & unknown):
        raise NotImplementedError(
            f"{name}: got attention without {lacks} (set layers= to select other attention)"
        )
    taken: dict[str, list[list[np.ndarray]]] = {}

    def send(name: str, recorded: recording.Weights, shape: tuple[int, ...]) -> None:
        if name in chosen:
            computed = compute(recorded)
            lists = taken.setdefault(name, [[] for _ in computed])
            for one, array in zip(lists, computed, strict=True):
                sender(one)(array)

    trace(run, arrays, send, jax.jit)
    jax.effects_barrier()
    found = {name: lists for name, lists in taken.items() if lists[0]}
    if not found:
        raise ValueError(f"layers: got {sorted(chosen)}, expected one that runs for these inputs")
    return {
        name: [calls[0] if len(calls) == 1 else np.stack(calls) for calls in lists]
        for name, lists in found.items()
    }


def _expect(weights: Array, transformed: Array) -> tuple[Array, Array]:
    """Returns both arrays in at least float32, after checking them."""
    shapes.expect_arrays({"weights": (weights, "B N T S"), "transformed": (transformed, "B S N D")})
    weights, transformed = jnp.asarray(weights), jnp.asarray(transformed)
    wide = jnp.promote_types(accumulator(weights), accumulator(transformed))
    return weights.astype(wide), transformed.astype(wide)


def _by_row(compute: Callable[[Array, Array], Array], weights: Array, transformed: Array) -> Array:
    """Applies a function to the weighted values of each row t.

    Args:
      compute: function of Σ_n α_nts f_n(x_s), [B, S, D], and t; returns [B, S].
      weights, transformed: α and f_n(x_s), as for `weighted_norms`.

    Returns:
      The results for all rows, [B, T, S].
    """

    def row(pair: tuple[Array, Array]) -> Array:
        alpha, t = pair
        mixed = jnp.einsum("BNS,BSND->BSD", alpha, transformed, precision=jax.lax.Precision.HIGHEST)
        return compute(mixed, t)

    rows = jax.lax.map(row, (jnp.moveaxis(weights, 2, 0), jnp.arange(weights.shape[2])))
    return jnp.moveaxis(rows, 0, 1)
