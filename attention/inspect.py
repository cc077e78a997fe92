"""Attention weights of any model, and statistics of attention weights.

    weights = inspect.capture(model, tokens, lengths)
    weights["encoder/layers/0/attention"]                          # [B, N, T, T]
    weights = inspect.capture(model, tokens, lengths, layers="layers/0", heads=[0], rows=range(8))

The model is not changed. It runs with its own kernels, including fused ones, and the weights are
computed separately from the same queries and keys.

B examples, N heads, T queries, S keys. Mixers, pools and alignments are kinds of mechanisms; see
`attention.mechanisms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import recording, shapes
from attention.attribution.aggregation import rollout
from attention.numerics import accumulator
from attention.observation import Layers, choose_layers, prepare, sender, trace

__all__ = [
    "capture",
    "head_distance",
    "head_entropy",
    "head_pattern",
    "head_similarity",
    "rollout",
]

Array = jax.Array
Indices = int | Sequence[int] | np.ndarray


def capture(
    model: nnx.Module | Callable[..., Any],
    *inputs: Any,
    layers: Layers = None,
    heads: Indices | None = None,
    rows: Indices | None = None,
    method: str = "__call__",
    **keywords: Any,
) -> dict[str, np.ndarray]:
    """Runs a model once and returns the weights of each attention that it computes.

    The weights equal those that a module returns with `return_weights=True`: exact, before dropout,
    in at least float32. Attention inside jit, scan, remat, cond and vmap is captured too. Each call
    traces and compiles the model again, so do not call this in a training loop.

    If an attention runs once, its weights are [B, N, T, S] for a mixer, [B, heads, T] for a pool,
    and [B, S] or [B, N, S] for an alignment. If it runs several times (in a scan, or in a shared or
    stacked layer), they are [calls, ...] in the order of the calls. An axis that `jax.vmap` maps
    over comes first within each call. A branch of `jax.lax.cond` that is not taken has no weights
    (under vmap JAX takes both branches).

    Names are the paths of the modules, such as "encoder/layers/0/attention" or "pool"; the model
    itself and plain functions are named "attention". Further attention calls in a module get the
    suffixes "_1", "_2", ... A function with its own `jax.jit` is traced once per shape; if several
    modules call it, all its weights appear under the first module.

    Weights of layers that are not selected are not computed. Heads and rows are selected on the
    device, before the transfer to the host.

    Args:
      model: a module, or any function of arrays, which may call modules.
      *inputs, **keywords: arguments of the model. Arrays are traced, other values are static.
      layers: names of the attention calls to include; all if None. A regular expression selects the
        names that contain a match. An index selects one name in the order of the first calls; a
        negative index counts from the end. A sequence of expressions and indices selects several
        names.
      heads: indices into axis 1 of [B, N, T, S], [B, heads, T] and [B, N, S]; all if None.
      rows: indices into axis 2 of [B, N, T, S], the queries; all if None. Has no effect on pools
        and alignments, which have one query.
      method: name of the method to call, such as "generate".

    Returns:
      A dict of the weights by name, NumPy arrays [B, N, T, S], [B, heads, T], [B, N, S] or [B, S],
      with a leading axis of calls if there are several. A model on several devices is run on one of
      them.

    Raises:
      ValueError: the model has no attention, or layers, heads or rows do not exist.
    """
    called, arrays = prepare(model, method, inputs, keywords)

    def run(*arrays: Any) -> None:
        called(*arrays)

    everything = trace(run, arrays, lambda *recorded: None)
    chosen = choose_layers(layers, everything)
    taken: dict[str, list[np.ndarray]] = {}

    def send(name: str, weights: recording.Weights, shape: tuple[int, ...]) -> None:
        if name in chosen:
            sender(taken.setdefault(name, []))(_cut(weights, shape, heads, rows, name))

    trace(run, arrays, send, jax.jit)
    jax.effects_barrier()
    found = {name: calls for name, calls in taken.items() if calls}
    if not found:
        raise ValueError(f"layers: got {sorted(chosen)}, expected one that runs for these inputs")
    return {name: calls[0] if len(calls) == 1 else np.stack(calls) for name, calls in found.items()}


def _cut(
    weights: recording.Weights,
    shape: tuple[int, ...],
    heads: Indices | None,
    rows: Indices | None,
    name: str,
) -> Array:
    """Returns the weights of the chosen heads and rows; computes only these rows if possible.

    Args:
      weights: the recorded attention.
      shape: shape of the complete weights.
      heads, rows: as for `capture`.
      name: name of the attention, for error messages.
    """
    chosen_heads, chosen_rows = None, None
    if heads is not None and len(shape) in (3, 4):
        chosen_heads = _checked("heads", heads, shape[1], name)
    if rows is not None and len(shape) == 4:
        chosen_rows = _checked("rows", rows, shape[2], name)
    if chosen_rows is None:
        cut = weights()
    elif weights.of_rows is None:
        cut = jnp.take(weights(), chosen_rows, axis=2)
    else:
        cut = weights.of_rows(jnp.asarray(chosen_rows))
    return cut if chosen_heads is None else jnp.take(cut, chosen_heads, axis=1)


def _checked(argument: str, indices: Indices, size: int, name: str) -> np.ndarray:
    chosen = np.atleast_1d(np.asarray(indices))
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer) or not chosen.size:
        raise ValueError(f"{argument}: got {indices!r}, expected at least one integer index")
    if chosen.min() < -size or chosen.max() >= size:
        raise ValueError(
            f"{argument}: got {chosen.tolist()}, expected indices from {-size} to {size - 1} at "
            f"{name!r} (set layers= to select other attention)"
        )
    return chosen % size


def head_entropy(weights: Array, valid: Array | None = None) -> Array:
    """Computes the mean entropy of the rows of each head, in nats (Clark et al. 2019).

        E_n = mean_t (- Σ_s w_nts ln w_nts), rows scaled to sum to 1

    0 means that each query attends to one key, ln S that the weights are uniform. Rows of zeros are
    excluded.

    Args:
      weights: [..., B, N, T, S], at least 0.
      valid: bool [B, T], queries to include; all if None.

    Returns:
      [..., B, N] in at least float32; NaN if no row is included.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    wide, counted = _rows(weights, valid)
    return _mean(_entropy(_scaled(wide)), counted)


def head_similarity(weights: Array, valid: Array | None = None) -> Array:
    """Computes the mean Jensen-Shannon divergence between heads, in nats (Clark et al. 2019).

        JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2,   H(p) = - Σ_s p_s ln p_s

    0 means equal weights, ln 2 means disjoint weights. Rows of zeros in either head are excluded.

    Args:
      weights: [..., B, N, T, S], at least 0; rows are scaled to sum to 1.
      valid: bool [B, T], queries to include; all if None.

    Returns:
      [..., B, N, N], symmetric, in at least float32; NaN if no row is included in both heads.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    wide, counted = _rows(weights, valid)
    weights = _scaled(wide)
    entropy = _entropy(weights)

    def to_all(n: Array) -> Array:
        one = jnp.take(weights, n[None], axis=-3)
        alone = (entropy + jnp.take(entropy, n[None], axis=-2)) / 2
        both = counted & jnp.take(counted, n[None], axis=-2)
        return _mean(_entropy((weights + one) / 2) - alone, both)

    # One head at a time: all pairs at once would take N times the memory of the weights.
    result = jax.lax.map(to_all, jnp.arange(weights.shape[-3]))
    return jnp.moveaxis(result, 0, -2)


def head_distance(
    weights: Array, valid: Array | None = None, *, distances: Array | None = None
) -> Array:
    """Computes the mean distance between query and key in each head (Dosovitskiy et al. 2021, D.7).

        D_n = mean_t Σ_s w_nts d_ts,   d_ts = |t - s|, rows scaled to sum to 1

    Rows of zeros are excluded.

    Args:
      weights: [..., B, N, T, S], at least 0.
      valid: bool [B, T], queries to include; all if None.
      distances: d, [T, S], such as distances between the centers of patches; |t - s| if None.

    Returns:
      [..., B, N] in at least float32, in the unit of the distances; NaN if no row is included.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    wide, counted = _rows(weights, valid)
    T, S = wide.shape[-2:]
    if distances is None:
        distances = jnp.abs(jnp.arange(T)[:, None] - jnp.arange(S)).astype(wide.dtype)
    shapes.expect_floating("distances", distances)
    shapes.expect("distances", distances, "T S", {"T": T, "S": S})
    return _mean(jnp.sum(_scaled(wide) * distances, axis=-1), counted)


_PATTERN, _BROAD = 0.5, 0.9


def head_pattern(
    weights: Array,
    valid: Array | None = None,
    *,
    separators: Array | None = None,
    tokens: Array | None = None,
) -> list[str]:
    """Returns the name of the pattern that each head follows (Clark et al. 2019, section 3).

        m_n = mean_(b, t) Σ_(s ∈ P_t) w_nts,   rows scaled to sum to 1

    A pattern is a set P_t of keys for each query t. A head has the name of the pattern with the
    largest m_n, if m_n is at least 0.5:

    * "diagonal": s = t; "previous token": s = t - 1; "next token": s = t + 1;
    * "separator": the separators; "first token": s = 0, for t > 0;
    * "induction": s < t right after an earlier occurrence of the token at t, x_(s-1) = x_t (Olsson
      et al. 2022, "In-context Learning and Induction Heads").

    Otherwise the name is "broad" or "". For "broad", the entropy of each row is divided by that of
    uniform weights on the keys with nonzero weight; the mean of these ratios must be at least 0.9.
    Rows with an empty P_t are excluded from the mean m_n, and a pattern without rows is not
    assigned. Among patterns of equal m_n the first in the list is chosen. The computation uses
    NumPy, so it does not run under jit.

    Args:
      weights: [B, N, T, T], at least 0. Rows of zeros are excluded.
      valid: bool [B, T], queries to include; all if None.
      separators: bool [B, T], positions of separators such as "[SEP]"; none if None.
      tokens: x, int [B, T], the token ids; if None, "induction" is not tested.

    Returns:
      The names of the patterns of the N heads.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    sizes: dict[str, int] = {}
    shapes.expect("weights", weights, "B N T T", sizes)
    wide, counted = _rows(weights, valid)
    scaled, rows = np.asarray(_scaled(wide), np.float64), np.asarray(counted)
    T = sizes["T"]
    apart = np.arange(T) - np.arange(T)[:, None]
    first = (np.arange(T) == 0) & (apart < 0)
    sets = {"diagonal": apart == 0, "previous token": apart == -1, "next token": apart == 1}
    if separators is not None:
        shapes.expect_boolean("separators", separators, true_means="a separator")
        shapes.expect("separators", separators, "B T", sizes)
        sets["separator"] = np.asarray(separators)[:, None]
    sets["first token"] = first
    if tokens is not None:
        shapes.expect_integer("tokens", tokens)
        shapes.expect("tokens", tokens, "B T", sizes)
        known = np.asarray(tokens)
        follows = known[:, :, None] == np.roll(known, 1, axis=1)[:, None]
        sets["induction"] = follows & (apart < 0) & (np.arange(T) > 0)
    means = {name: _mean_on(scaled, rows, members) for name, members in sets.items()}
    keys = np.sum(scaled > 0, axis=-1)
    some = rows & (keys > 1)
    most = np.log(np.where(keys > 1, keys, 2))
    spread = np.asarray(_entropy(jnp.asarray(scaled))) / most
    broad = _mean_where(spread, some) >= _BROAD
    names = []
    for n in range(sizes["N"]):
        best = max(means, key=lambda name: np.nan_to_num(means[name][n], nan=-1.0))
        is_known = means[best][n] >= _PATTERN
        names.append(best if is_known else "broad" if broad[n] else "")
    return names


def _mean_on(scaled: np.ndarray, rows: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Returns the mean weight of each head on a set of keys.

    Args:
      scaled: weights [B, N, T, T] whose rows sum to 1.
      rows: rows to include, bool [B, N, T].
      members: the keys of each query, bool [..., T or 1, T].
    """
    members = np.broadcast_to(members, (scaled.shape[0], *scaled.shape[2:]))[:, None]
    return _mean_where(np.sum(scaled * members, axis=-1), rows & members.any(axis=-1))


def _mean_where(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Returns the mean of each head's values [B, N, T] where `counted`; NaN if there are none."""
    number = counted.sum(axis=(0, 2))
    total = np.where(counted, values, 0).sum(axis=(0, 2))
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _rows(weights: Array, valid: Array | None) -> tuple[Array, Array]:
    """Returns the weights in at least float32, and which rows to include, bool [..., B, N, T]."""
    shapes.expect_floating("weights", weights)
    weights = jnp.asarray(weights)
    if weights.ndim < 4:
        got = shapes.show(weights.shape)
        raise ValueError(f"weights: got shape {got}, expected [..., B, N, T, S]")
    wide = weights.astype(accumulator(weights))
    counted = jnp.sum(wide, axis=-1) > 0
    if valid is not None:
        B, _, T, _ = weights.shape[-4:]
        shapes.expect_boolean("valid", valid, true_means="a query to include")
        shapes.expect("valid", valid, "B T", {"B": B, "T": T})
        counted = counted & jnp.asarray(valid)[:, None]
    return wide, counted


def _scaled(rows: Array) -> Array:
    total = jnp.sum(rows, axis=-1, keepdims=True)
    return rows / jnp.where(total == 0, 1, total)


def _entropy(weights: Array) -> Array:
    return -jnp.sum(jax.scipy.special.xlogy(weights, weights), axis=-1)


def _mean(rows: Array, counted: Array) -> Array:
    return jnp.sum(jnp.where(counted, rows, 0), axis=-1) / jnp.sum(counted, axis=-1)
