"""Masks as arrays for compiled kernels: bounds, ids and block patterns instead of T x S entries.

Only a dense term (`masks.dense`) keeps its array with T x S entries.

B examples, N heads, T queries, S keys.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.masks import Mask, terms
from attention.masks.terms import Dense, Lengths, MaskTerm, Prefix, Segments, Span, Valid, Window

Array = jax.Array


class MaskArrays(NamedTuple):
    """Arrays that each hide some keys from queries; None if no term of the mask needs the array.

    Attributes:
      low, high: int32 [B or 1, T]. A query attends to keys low <= s < high.
      query_ids, key_ids: int32 [B or 1, T] and [B or 1, S]. A query attends to the keys that have
        the same id.
      valid: bool [B or 1, S]. False hides a key from all queries.
      dense: bool [B or 1, N or 1, T, S]. False hides a key from a query.
      block_codes: int32 [query blocks, key blocks]: 0 for a hidden block, 1 for a full block, k + 2
        for a block with pattern k of `block_patterns`.
      block_patterns: bool [patterns, query_block, key_block], visible pairs within a block.
    """

    low: Array | None = None
    high: Array | None = None
    query_ids: Array | None = None
    key_ids: Array | None = None
    valid: Array | None = None
    dense: Array | None = None
    block_codes: np.ndarray | None = None
    block_patterns: np.ndarray | None = None


def mask_arrays(
    mask: Mask | None, B: int, T: int, S: int, query_block: int, key_block: int
) -> MaskArrays:
    """Converts a mask to arrays.

    Args:
      mask: the mask, or None if all keys are visible.
      B, T, S: number of examples, queries and keys.
      query_block, key_block: block sizes of `block_codes` and `block_patterns`.

    Raises:
      NotImplementedError: a term depends on data and is not given by intervals, ids or an array.
    """
    found: dict[str, Any] = {}
    patterns: list[MaskTerm] = []

    def intersect(name: str, array: Array, join) -> None:
        found[name] = join(found[name], array) if name in found else array

    for term in () if mask is None else mask.terms:
        if isinstance(term, Window):
            low, high = term.bounds(T, S)
            if low is not None and not (terms.is_static(low) and low <= -T):
                intersect("low", jnp.arange(T) + _column(low), jnp.maximum)
            if high is not None and not (terms.is_static(high) and high >= S):
                intersect("high", jnp.arange(T) + _column(high) + 1, jnp.minimum)
        elif isinstance(term, Prefix):
            position = terms.query_positions(term.query_offset, B, T, S)[:, 0, :, 0]
            length = _column(terms.clipped_sum(term.length, 0))
            intersect("high", jnp.maximum(position + 1, length), jnp.minimum)
        elif isinstance(term, Lengths):
            if term.key is not None:
                high = jnp.broadcast_to(_column(term.key), (term.key.shape[0], T))
                intersect("high", high, jnp.minimum)
            if term.query is not None:
                intersect("high", _rows(jnp.arange(T) < _column(term.query), S), jnp.minimum)
        elif isinstance(term, Valid):
            if term.key is not None:
                intersect("valid", term.key, jnp.logical_and)
            if term.query is not None:
                intersect("high", _rows(term.query, S), jnp.minimum)
        elif isinstance(term, Segments) and "query_ids" not in found and not term.is_wide:
            found |= {"query_ids": term.query_ids, "key_ids": term.key_ids}
        elif isinstance(term, Dense):
            intersect("dense", term.array, jnp.logical_and)
        elif not jax.tree.leaves(term):
            patterns.append(term)
        else:
            raise NotImplementedError(
                f"mask: got {term.describe()} that depends on data, expected a static term"
            )
    integers = ("low", "high", "query_ids", "key_ids")
    found = {k: v.astype(jnp.int32) if k in integers else v for k, v in found.items()}
    if patterns:
        block_codes, block_patterns = _table(tuple(patterns), T, S, query_block, key_block)
        return MaskArrays(**found, block_codes=block_codes, block_patterns=block_patterns)
    return MaskArrays(**found)


def _column(number: terms.Offset) -> Array:
    return jnp.asarray(number).reshape(-1, 1)


def _rows(real: Array, S: int) -> Array:
    """Returns the bound `high`: S for a real query, 0 to hide all keys from a padding query."""
    return jnp.where(real, S, 0)


@functools.lru_cache(maxsize=64)
def _table(
    terms: tuple[MaskTerm, ...], T: int, S: int, query_block: int, key_block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `block_codes` and `block_patterns` of `MaskArrays`.

    Args:
      terms: terms that do not depend on data.
      T, S: numbers of queries and keys.
      query_block, key_block: block sizes.
    """
    mask = Mask(terms)
    # Under jit, evaluates the mask during the trace instead of adding operations to the program.
    with jax.ensure_compile_time_eval():
        visible, full = (
            np.asarray(x)[0] for x in mask.block_visibility(1, T, S, query_block, key_block)
        )
        shape = (-(-T // query_block), -(-S // key_block))
        visible, full = (np.broadcast_to(x, shape) for x in (visible, full))
        block_codes = np.where(visible, 1, 0).astype(np.int32)
        known: dict[bytes, int] = {}
        block_patterns = [np.zeros((0, query_block, key_block), bool)]
        for row in np.flatnonzero((visible & ~full).any(1)):
            start, size = int(row) * query_block, min(query_block, T)
            strip = np.asarray(mask.materialize(1, 1, T, S, Span(start, size)))
            strip = np.broadcast_to(strip, (1, 1, size, S))[0, 0]
            # `materialize` leaves entries beyond the last query undefined; they become False.
            strip = np.pad(
                strip[: T - start],
                ((0, query_block - min(size, T - start)), (0, -S % key_block)),
            )
            for column in np.flatnonzero(visible[row] & ~full[row]):
                pattern = strip[:, column * key_block : (column + 1) * key_block]
                if not pattern.any():
                    block_codes[row, column] = 0
                    continue
                content = pattern.tobytes()
                if content not in known:
                    known[content] = len(known)
                    block_patterns.append(pattern[None])
                block_codes[row, column] = known[content] + 2
    return block_codes, np.concatenate(block_patterns)
