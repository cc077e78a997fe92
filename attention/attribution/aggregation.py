"""Contributions of the inputs to the outputs of a stack of layers, computed from attention weights.

L layers (M layers of a decoder), B examples, N heads, T positions, S positions of an encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes
from attention.numerics import accumulator

Array = jax.Array
# `maximum_flow` needs integer capacities, so they are in units of 2^-30. The flow through a
# position then stays below 2^31, the limit of int32.
_UNIT = 2**30


def rollout(weights: Array, *, residual: float = 0.5) -> Array:
    """Computes attention rollout through a stack of layers (Abnar & Zuidema 2020).

        A_l = (1 - r) · mean_n W_ln + r · I, rows scaled to sum to 1;   R = A_L ··· A_2 A_1

    If a row of weights is zero and r > 0, the same row of A_l is the row of I.

    Args:
      weights: [L, B, N, T, T], first layer first, at least 0.
      residual: r, the weight of the residual connection, in [0, 1].

    Returns:
      R, [B, T, T] in at least float32; row t contains the contributions of the inputs to output t.

    Raises:
      ValueError: weights are not square or r is out of range.
    """
    layers = _with_residual(weights, residual)
    total = layers[0]
    for layer in layers[1:]:
        total = _product(layer, total)
    return total


def attention_flow(
    weights: Array, *, residual: float = 0.5, rows: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """Computes attention flow through a stack of layers (Abnar & Zuidema 2020, section 3).

        F_ts = maximum flow from output t to input s,   capacity of (l, t) -> (l - 1, s) = A_lts
        A_l = (1 - r) · mean_n W_ln + r · I, rows scaled to sum to 1

    The flow is computed on the host, with one maximum flow (Dinic 1970) for each pair of positions.
    Capacities are in units of 2^-30. There are B·R·T maximum flows in a graph of L·T² edges, so
    restrict `rows` for long sequences. If a row of weights is zero and r > 0, the same row of A_l
    is the row of I.

    Args:
      weights: [L, B, N, T, T], first layer first, at least 0.
      residual: r, the weight of the residual connection, in [0, 1].
      rows: indices of R output positions t; all if None.

    Returns:
      F, [B, R, T] in float32; row t contains the flow from output t to each input.

    Raises:
      ValueError: weights are not square, or r or a row is out of range.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    layers = np.asarray(_with_residual(weights, residual), np.float64)
    L, B, T, _ = layers.shape
    chosen = np.arange(T) if rows is None else np.atleast_1d(np.asarray(rows))
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"rows: got {rows!r}, expected integer indices")
    if chosen.size and (chosen.min() < -T or chosen.max() >= T):
        raise ValueError(f"rows: got {chosen.tolist()}, expected indices from {-T} to {T - 1}")
    # Position t of layer l is node l·T + t; the inputs are layer 0.
    level = np.arange(L)[:, None, None] * T
    source = np.broadcast_to(level + T + np.arange(T)[:, None], (L, T, T)).ravel()
    target = np.broadcast_to(level + np.arange(T), (L, T, T)).ravel()
    flow = np.zeros((B, len(chosen), T), np.float32)
    for b in range(B):
        capacity = np.rint(layers[:, b] * _UNIT).astype(np.int32).ravel()
        graph = csr_array((capacity, (source, target)), shape=((L + 1) * T,) * 2)
        graph.eliminate_zeros()
        for row, t in enumerate(chosen % T):
            for s in range(T):
                total = maximum_flow(graph, L * T + int(t), s, method="dinic").flow_value
                flow[b, row, s] = total / _UNIT
    return flow


def relevance(weights: Array, gradients: Array) -> Array:
    """Computes the relevance of the inputs of an encoder (Chefer et al. 2021, equations 5 and 6).

        Ā_l = mean_n max(∇W_ln ⊙ W_ln, 0),   R <- R + Ā_l R from R = I, first layer first

    The paper is "Generic Attention-model Explainability". Row 0 of R - I is the relevance for a
    classifier that reads position 0.

    Args:
      weights: W, [L, B, N, T, T], first layer first.
      gradients: ∇W, gradients of the explained score with respect to the weights, of the same
        shape; see `attention_gradients`.

    Returns:
      R, [B, T, T] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit, or there is no layer.
    """
    sizes: dict[str, int] = {}
    layers = _positive_mean(("weights", "gradients"), (weights, gradients), "L B N T T", sizes)
    total = jnp.broadcast_to(jnp.eye(sizes["T"], dtype=layers.dtype), layers.shape[1:])
    for layer in layers:
        total = total + _product(layer, total)
    return total


class CrossRelevance(NamedTuple):
    """Relevance of the positions of an encoder-decoder.

    Attributes:
      source: [B, S, S], relevance of the encoder's inputs for its outputs.
      target: [B, T, T], relevance of the decoder's inputs for its outputs.
      cross: [B, T, S], relevance of the encoder's inputs for the decoder's outputs.
    """

    source: Array
    target: Array
    cross: Array


def cross_relevance(
    encoder: tuple[Array, Array],
    decoder: tuple[Array, Array],
    cross: tuple[Array, Array],
) -> CrossRelevance:
    """Computes the relevance of the inputs of an encoder-decoder (Chefer et al. 2021, section 3.1).

        encoder layer:    R_ss <- R_ss + Ā R_ss
        self-attention:   R_tt <- R_tt + Ā R_tt,   R_ts <- R_ts + Ā R_ts
        cross-attention:  R_ts <- R_ts + N(R_tt)ᵀ Ā N(R_ss)
        N(R) = (R - I) / rowsum(R - I) + I,   Ā = mean_n max(∇W_n ⊙ W_n, 0)

    The initial values are R_ss = R_tt = I and R_ts = 0. These are equations 6 to 10 of "Generic
    Attention-model Explainability". Each decoder layer applies self-attention, then
    cross-attention. Where a row of R - I is zero, the same row of N(R) is the row of I.

    Args:
      encoder: weights and their gradients, each [L, B, N, S, S], first layer first.
      decoder: the same for the decoder's self-attention, [M, B, N, T, T].
      cross: the same for the decoder's cross-attention, [M, B, N, T, S].

    Returns:
      `CrossRelevance`: source [B, S, S], target [B, T, T], cross [B, T, S], in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit, or there is no layer.
    """
    sizes: dict[str, int] = {}
    names = ("weights of {}", "gradients of {}")
    layers = {
        part: _positive_mean([name.format(part) for name in names], pair, letters, sizes)
        for part, pair, letters in (
            ("encoder", encoder, "L B N S S"),
            ("decoder", decoder, "M B O T T"),
            ("cross", cross, "M B P T S"),
        )
    }
    wide = jnp.result_type(*layers.values())
    B, T, S = (sizes[letter] for letter in "BTS")
    source = jnp.broadcast_to(jnp.eye(S, dtype=wide), (B, S, S))
    target = jnp.broadcast_to(jnp.eye(T, dtype=wide), (B, T, T))
    across = jnp.zeros((B, T, S), wide)
    for layer in layers["encoder"]:
        source = source + _product(layer, source)
    for own, other in zip(layers["decoder"], layers["cross"], strict=True):
        target, across = target + _product(own, target), across + _product(own, across)
        mixed = _product(other, _normalized(source))
        across = across + _product(jnp.swapaxes(_normalized(target), -1, -2), mixed)
    return CrossRelevance(source, target, across)


def _with_residual(weights: Array, residual: float) -> Array:
    """Returns the matrices A_l of `rollout`, [L, B, T, T]."""
    sizes: dict[str, int] = {}
    shapes.expect_floating("weights", weights)
    shapes.expect("weights", weights, "L B N T T", sizes)
    if not 0.0 <= residual <= 1.0:
        raise ValueError(f"residual: got {residual}, expected a number in [0, 1]")
    if not sizes["L"]:
        raise ValueError("weights: got no layer, expected at least one")
    wide = jnp.asarray(weights).astype(accumulator(jnp.asarray(weights)))
    identity = jnp.eye(sizes["T"], dtype=wide.dtype)
    mixed = (1.0 - residual) * jnp.mean(wide, axis=2) + residual * identity
    total = jnp.sum(mixed, axis=-1, keepdims=True)
    return mixed / jnp.where(total == 0, 1, total)


def _positive_mean(
    names: Sequence[str], pair: tuple[Array, Array], letters: str, sizes: dict[str, int]
) -> Array:
    """Returns mean_n max(∇W ⊙ W, 0) of each layer, [L, B, T, S].

    Args:
      names: names of weights and gradients in error messages.
      pair: weights W and their gradients ∇W, both [L, B, N, T, S].
      letters: the dimensions of W and of ∇W, such as "L B N T S".
      sizes: known sizes by letter; the sizes of new letters are added.
    """
    for name, array in zip(names, pair, strict=True):
        shapes.expect_floating(name, array)
        shapes.expect(name, array, letters, sizes)
    if not sizes[letters[0]]:
        raise ValueError(f"{names[0]}: got no layer, expected at least one")
    weights, gradients = map(jnp.asarray, pair)
    wide = jnp.promote_types(accumulator(weights), accumulator(gradients))
    return jnp.mean(jnp.maximum(gradients.astype(wide) * weights.astype(wide), 0), axis=2)


def _normalized(relevance: Array) -> Array:
    """Returns N(R) of `cross_relevance` (Chefer et al. 2021, equations 8 and 9)."""
    identity = jnp.eye(relevance.shape[-1], dtype=relevance.dtype)
    rest = relevance - identity
    total = jnp.sum(rest, axis=-1, keepdims=True)
    return rest / jnp.where(total == 0, 1, total) + identity


def _product(a: Array, b: Array) -> Array:
    # On TPUs and GPUs the default precision would round float32 factors.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
