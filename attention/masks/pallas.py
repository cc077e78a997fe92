"""Masks inside a kernel: which blocks are gone through, and what is seen within one.

`prepare_for_kernel` turns the arrays of a mask into integers padded to whole blocks. They enter the
kernel as references, from which `evaluate_block` reads one block. Terms that depend on positions
alone take no memory.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.masks import Mask, pattern_terms, terms
from attention.masks.terms import MaskTerm, Offset

Array = jax.Array


class Sizes(NamedTuple):
    """Of what a mask is for; rows and columns are T and S, padded to whole blocks."""

    T: int
    S: int
    rows: int
    columns: int


class BlockIndex(NamedTuple):
    """A block of the logits: whose it is, where it begins, and its positions [rows, 1] and
    [1, columns]."""

    example: Any
    head: Any
    row: Any
    column: Any
    rows: Array
    columns: Array


class Steps(NamedTuple):
    """The order in which one axis of blocks goes through the other.

    Attributes:
      order: int [1 or B, 1 or blocks, steps], numbers of blocks: first those wholly seen, then
        those seen in part, then the others.
      bounds: int [1 or B, 1 or blocks, 2], where the second and the third kind begin.
    """

    order: Array
    bounds: Array


def steps(
    mask: Mask | None,
    B: int,
    T: int,
    S: int,
    query_block: int,
    key_block: int,
    *,
    by_key: bool = False,
    unseen: bool = False,
) -> Steps:
    """Which key blocks each query block goes through (block-sparse attention: Dao et al. 2022).

        steps_i = (j wholly seen by i), (j seen in part by i)

    Args:
      mask: of [B, 1, T, S], or None for all.
      B, T, S: sizes of what it is for.
      query_block, key_block: positions in a block.
      by_key: the other way round, which query blocks each key block goes through.
      unseen: whether the order has to hold those that nobody sees as well.

    Returns:
      The `Steps`, of shapes [1 or B, 1 or blocks, steps] and [1 or B, 1 or blocks, 2]; constants
      unless the data tell.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    visible = full = np.ones((1, 1, 1), bool)
    if mask is not None:
        visible, full = mask.block_visibility(B, T, S, query_block, key_block)
    if S % key_block:
        # The last block holds padding, which is seen by nobody.
        full = full & (np.arange(-(-S // key_block)) < S // key_block)
    if by_key:
        visible, full = visible.swapaxes(1, 2), full.swapaxes(1, 2)
    blocks = -(-T // query_block) if by_key else -(-S // key_block)
    static = isinstance(visible, np.ndarray) and isinstance(full, np.ndarray)
    xp = np if static else jnp
    kind = xp.where(visible, xp.where(full, 0, 1), 2)
    kind = xp.broadcast_to(kind, (*kind.shape[:2], blocks))
    order = xp.argsort(kind, axis=-1, stable=True)
    bounds = xp.stack([(kind < 1).sum(-1), (kind < 2).sum(-1)], axis=-1)
    if static and not unseen:
        order = order[..., : max(1, bounds[..., 1].max())]
    return Steps(jnp.asarray(order, jnp.int32), jnp.asarray(bounds, jnp.int32))


@dataclasses.dataclass(frozen=True)
class _Table(MaskTerm):
    """A block of positions sees another where the table says so."""

    block: int
    table: Array
    query_offset: Offset | None


@functools.singledispatch
def prepare_for_kernel(term: MaskTerm | Mask, sizes: Sizes) -> MaskTerm | Mask:
    """The condition with arrays as kernels read them (masks in the kernel: Dao et al. 2022).

        ready(m)_ts = m_ts,   and nothing is seen by or of padding that an array tells about

    Args:
      term: a condition, or a whole `Mask`.
      sizes: of what it is for.

    Returns:
      The condition; arrays are integers of shape [B, rows], [B, columns], [1 or B], ...

    Raises:
      NotImplementedError: this condition has no form by blocks.
    """
    raise NotImplementedError(f"mask: {term.describe()} cannot be computed by blocks")


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
    # Of each side an offset alone is left, which no sum of positions overflows.
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
    if max(term.query_ids.dtype.itemsize, term.key_ids.dtype.itemsize) > 4:
        raise NotImplementedError("mask: segments() with ids of 64 bits")
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


def _numbers(array: Array) -> Array:
    """[1 or B]."""
    return array.reshape(-1).astype(jnp.int32)


def _vector(array: Array, length: int) -> Array:
    """[B, length], zeros at the end."""
    return jnp.pad(array.astype(jnp.int32), ((0, 0), (0, length - array.shape[1])))


@functools.singledispatch
def evaluate_block(term: MaskTerm, index: BlockIndex) -> Array:
    """What a block sees, within a kernel (masks in the kernel: Dao et al. 2022).

        tile_ij = m_ts,   t and s positions of the block

    Args:
      term: a term from `prepare_for_kernel`, with references for arrays, or a whole `Mask`.
      index: of the block: positions [rows, 1] and [1, columns].

    Returns:
      bool [rows or 1, columns or 1].

    Raises:
      NotImplementedError: the term is not from `prepare_for_kernel`.
    """
    raise NotImplementedError(f"mask: {term.describe()} cannot be computed by blocks")


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
    seeing = jnp.clip(_query_position(term.query_offset, index) // term.block, 0, last)
    seen = jnp.minimum(index.columns // term.block, last)
    seeing, seen = jnp.broadcast_arrays(seeing, seen)
    return term.table[seeing, seen] != 0


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
    """The indices of leading axes, 0 where an axis has one entry for all."""
    return tuple(0 if size == 1 else index for size, index in zip(shape, indices, strict=False))


def slice_of(start: Any, size: int) -> Any:
    """Positions start, start + 1, ... of a reference's axis."""
    # Imported here, because it takes time and those who are refused need none of it.
    from jax.experimental import pallas as pl

    return pl.ds(start, size)


def _query_position(offset: Any, index: BlockIndex) -> Array:
    return index.rows + _number(offset, index)


def _number(number: Any, index: BlockIndex) -> Any:
    """An int, or the example's entry."""
    if isinstance(number, int):
        return number
    return number[of_shared(number.shape, index.example)[0]]


def _of_rows(vector: Any, index: BlockIndex) -> Array:
    return vector[index.example, slice_of(index.row, index.rows.shape[0])][:, None]


def _of_columns(vector: Any, index: BlockIndex) -> Array:
    return vector[index.example, slice_of(index.column, index.columns.shape[1])][None, :]
