"""Evaluation of masks inside a Pallas kernel, block by block.

`prepare_for_kernel` converts the arrays of a mask to integers padded to complete blocks. A kernel
receives references to the converted arrays, from which `evaluate_block` reads one block. Terms that
depend only on positions take no memory.

B examples, T queries, S keys.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention.masks import Mask, pattern_terms, terms
from attention.masks.terms import MaskTerm, Offset

Array = jax.Array


class Sizes(NamedTuple):
    """Sizes T and S of a mask, and `rows` and `columns`: T and S rounded up to complete blocks."""

    T: int
    S: int
    rows: int
    columns: int


class BlockIndex(NamedTuple):
    """Index of a block of logits.

    It consists of the example, the head, the first row and the first column. `rows` and `columns`
    are the positions of all queries and keys in the block, [rows, 1] and [1, columns].
    """

    example: Any
    head: Any
    row: Any
    column: Any
    rows: Array
    columns: Array


@dataclasses.dataclass(frozen=True)
class _Table(MaskTerm):
    """Mask term given by a table of visible pairs of blocks."""

    block: int
    table: Array
    query_offset: Offset | None


@functools.singledispatch
def prepare_for_kernel(term: MaskTerm, sizes: Sizes) -> Any:
    """Converts the arrays of a term for a kernel (masks in the kernel: Dao et al. 2022).

        prepared_ts = m_ts for t < T, s < S

    The mask m of the term does not change; its arrays are padded with zeros to complete blocks.

    Args:
      term: a mask term or a `Mask`.
      sizes: sizes of the mask.

    Returns:
      The term with integer arrays of shape [B, rows], [B, columns], [1 or B], ...

    Raises:
      NotImplementedError: the term cannot be evaluated by blocks.
    """
    raise NotImplementedError(
        f"mask: got {term.describe()}, expected a term that can be evaluated by blocks"
    )


@prepare_for_kernel.register
def _(term: Mask, sizes):
    return Mask(tuple(prepare_for_kernel(each, sizes) for each in term.terms))


@prepare_for_kernel.register
def _(term: terms.Or, sizes):
    return terms.Or(prepare_for_kernel(term.left, sizes), prepare_for_kernel(term.right, sizes))


@prepare_for_kernel.register
def _(term: terms.Window, sizes):
    low, high = (
        each if terms.is_static(each) else _numbers(each) for each in term.bounds(sizes.T, sizes.S)
    )
    # Each bound becomes the query_offset of a window with left = 0 or right = 0, so that no sum of
    # an offset and a width can overflow.
    sides = () if low is None else (terms.Window(0, None, low),)
    return Mask(sides if high is None else (*sides, terms.Window(None, 0, high)))


@prepare_for_kernel.register
def _(term: pattern_terms.Pattern, sizes):
    return dataclasses.replace(term, query_offset=_offset(term.query_offset, sizes))


@prepare_for_kernel.register
def _(term: terms.Prefix, sizes):
    length = terms.clipped_sum(term.length, 0)
    length = length if terms.is_static(length) else _numbers(length)
    return terms.Prefix(length, _offset(term.query_offset, sizes))


@prepare_for_kernel.register
def _(term: pattern_terms.BigBird, sizes):
    table = jnp.asarray(term.table(sizes.S), jnp.int8)
    return _Table(term.block, table, _offset(term.query_offset, sizes))


@prepare_for_kernel.register
def _(term: terms.Lengths, sizes):
    return terms.Lengths(
        *(None if lengths is None else _numbers(lengths) for lengths in (term.query, term.key))
    )


@prepare_for_kernel.register
def _(term: terms.Valid, sizes):
    return terms.Valid(
        None if term.query is None else _vector(term.query, sizes.rows),
        None if term.key is None else _vector(term.key, sizes.columns),
    )


@prepare_for_kernel.register
def _(term: pattern_terms.GlobalPositions, sizes):
    return pattern_terms.GlobalPositions(
        _vector(term.query, sizes.rows), _vector(term.key, sizes.columns)
    )


@prepare_for_kernel.register
def _(term: terms.Segments, sizes):
    if term.is_wide:
        raise NotImplementedError("mask: got segments() with 64-bit ids, expected 32-bit ids")
    return terms.Segments(_vector(term.query_ids, sizes.rows), _vector(term.key_ids, sizes.columns))


@prepare_for_kernel.register
def _(term: terms.Dense, sizes):
    missing = (sizes.rows - term.array.shape[2], sizes.columns - term.array.shape[3])
    widths = [(0, 0), (0, 0), *((0, number) for number in missing)]
    return terms.Dense(jnp.pad(term.array, widths).astype(jnp.int8))


def _offset(offset: Offset | None, sizes: Sizes) -> Offset:
    if terms.is_static(offset):
        return terms.clipped_sum(terms.static_offset(offset, sizes.T, sizes.S), 0)
    return _numbers(terms.clipped_sum(offset, 0))


def _numbers(array: Offset) -> Array:
    """Converts [] or [B] to int32 [1 or B]."""
    return jnp.asarray(array).reshape(-1).astype(jnp.int32)


def _vector(array: Array, length: int) -> Array:
    """Converts [B, T] to int32 [B, length], padded with zeros."""
    return jnp.pad(array.astype(jnp.int32), ((0, 0), (0, length - array.shape[1])))


@functools.singledispatch
def evaluate_block(term: MaskTerm, index: BlockIndex) -> Array:
    """Evaluates a term for a block, within a kernel (masks in the kernel: Dao et al. 2022).

        result_ij = m_ts,   t and s positions of query i and key j of the block

    Args:
      term: a term or a `Mask` from `prepare_for_kernel`, with references instead of arrays.
      index: the block, with positions [rows, 1] and [1, columns].

    Returns:
      bool [rows or 1, columns or 1].

    Raises:
      NotImplementedError: the term is not from `prepare_for_kernel`.
    """
    raise NotImplementedError(
        f"mask: got {term.describe()}, expected a term that can be evaluated by blocks"
    )


@evaluate_block.register
def _(term: Mask, index):
    result = jnp.ones((1, 1), bool)
    for each in term.terms:
        result = result & evaluate_block(each, index)
    return result


@evaluate_block.register
def _(term: terms.Or, index):
    return evaluate_block(term.left, index) | evaluate_block(term.right, index)


@evaluate_block.register
def _(term: terms.Window, index):
    distance = index.columns - _query_position(term.query_offset, index)
    result = jnp.ones((1, 1), bool)
    if term.left is not None:
        result = result & (distance >= -term.left)
    if term.right is not None:
        result = result & (distance <= term.right)
    return result


@evaluate_block.register
def _(term: terms.Prefix, index):
    in_prefix = index.columns < _number(term.length, index)
    return in_prefix | (index.columns <= _query_position(term.query_offset, index))


@evaluate_block.register
def _(term: pattern_terms.Pattern, index):
    return term.mask_mod(_query_position(term.query_offset, index), index.columns)


@evaluate_block.register
def _(term: _Table, index):
    last = term.table.shape[0] - 1
    row = jnp.clip(_query_position(term.query_offset, index) // term.block, 0, last)
    column = jnp.minimum(index.columns // term.block, last)
    row, column = jnp.broadcast_arrays(row, column)
    return term.table[row, column] != 0


@evaluate_block.register
def _(term: terms.Lengths, index):
    result = jnp.ones((1, 1), bool)
    if term.query is not None:
        result = result & (index.rows < _number(term.query, index))
    if term.key is not None:
        result = result & (index.columns < _number(term.key, index))
    return result


@evaluate_block.register
def _(term: terms.Valid, index):
    result = jnp.ones((1, 1), bool)
    if term.query is not None:
        result = result & (_of_rows(term.query, index) != 0)
    if term.key is not None:
        result = result & (_of_columns(term.key, index) != 0)
    return result


@evaluate_block.register
def _(term: pattern_terms.GlobalPositions, index):
    return (_of_rows(term.query, index) != 0) | (_of_columns(term.key, index) != 0)


@evaluate_block.register
def _(term: terms.Segments, index):
    return _of_rows(term.query_ids, index) == _of_columns(term.key_ids, index)


@evaluate_block.register
def _(term: terms.Dense, index):
    example, head = of_shared(term.array.shape, index.example, index.head)
    rows = slice_of(index.row, index.rows.shape[0])
    return term.array[example, head, rows, slice_of(index.column, index.columns.shape[1])] != 0


def of_shared(shape: tuple[int, ...], *indices: Any) -> tuple[Any, ...]:
    """Returns indices into the leading axes of a shape; the index of an axis of size 1 is 0."""
    return tuple(0 if size == 1 else index for size, index in zip(shape, indices, strict=False))


def slice_of(start: Any, size: int) -> Any:
    """Returns a slice of `size` positions that begins at `start`, to index a reference."""
    # The import is slow, and only a Pallas kernel that is being traced needs it.
    from jax.experimental import pallas as pl

    return pl.ds(start, size)


def _query_position(offset: Any, index: BlockIndex) -> Array:
    return index.rows + _number(offset, index)


def _number(number: Any, index: BlockIndex) -> Any:
    """Returns an int unchanged, or the example's entry of an array [1 or B]."""
    if isinstance(number, int):
        return number
    return number[of_shared(number.shape, index.example)[0]]


def _of_rows(vector: Any, index: BlockIndex) -> Array:
    return vector[index.example, slice_of(index.row, index.rows.shape[0])][:, None]


def _of_columns(vector: Any, index: BlockIndex) -> Array:
    return vector[index.example, slice_of(index.column, index.columns.shape[1])][None, :]
