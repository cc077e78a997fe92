"""Masks inside a kernel: which blocks are gone through, and what is seen within one.

A mask is made ready outside (`ready`: arrays of integers, padded to whole blocks), its arrays
travel into the kernel as references, and `tile` reads there what one block needs. Conditions on
positions alone take no memory.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.masks import Mask, pattern_terms, terms
from attention.masks.terms import Offset, Part

Array = jax.Array


class Sizes(NamedTuple):
    """Of what a mask is for; rows and columns are T and S, padded to whole blocks."""

    T: int
    S: int
    rows: int
    columns: int


class Place(NamedTuple):
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
    some = whole = np.ones((1, 1, 1), bool)
    if mask is not None:
        some, whole = mask.reach(B, T, S, query_block, key_block)
    if S % key_block:
        # The last block holds padding, which is seen by nobody.
        whole = whole & (np.arange(-(-S // key_block)) < S // key_block)
    if by_key:
        some, whole = some.swapaxes(1, 2), whole.swapaxes(1, 2)
    blocks = -(-T // query_block) if by_key else -(-S // key_block)
    static = isinstance(some, np.ndarray) and isinstance(whole, np.ndarray)
    xp = np if static else jnp
    kind = xp.where(some, xp.where(whole, 0, 1), 2)
    kind = xp.broadcast_to(kind, (*kind.shape[:2], blocks))
    order = xp.argsort(kind, axis=-1, stable=True)
    bounds = xp.stack([(kind < 1).sum(-1), (kind < 2).sum(-1)], axis=-1)
    if static and not unseen:
        order = order[..., : max(1, bounds[..., 1].max())]
    return Steps(jnp.asarray(order, jnp.int32), jnp.asarray(bounds, jnp.int32))


@dataclasses.dataclass(frozen=True)
class _Table(Part):
    """A block of positions sees another where the table says so."""

    block: int
    table: Array
    query_offset: Offset | None


@functools.singledispatch
def ready(part: Part | Mask, sizes: Sizes) -> Part | Mask:
    """The condition with arrays as kernels read them (masks in the kernel: Dao et al. 2022).

        ready(m)_ts = m_ts,   and nothing is seen by or of padding that an array tells about

    Args:
      part: a condition, or a whole `Mask`.
      sizes: of what it is for.

    Returns:
      The condition; arrays are integers of shape [B, rows], [B, columns], [1 or B], ...

    Raises:
      NotImplementedError: this condition has no form by blocks.
    """
    raise NotImplementedError(f"mask: {part.describe()} cannot be computed by blocks")


@ready.register
def _(part: Mask, sizes):
    return Mask(tuple(ready(each, sizes) for each in part.parts))


@ready.register
def _(part: terms.Either, sizes):
    return terms.Either(ready(part.left, sizes), ready(part.right, sizes))


@ready.register
def _(part: terms.Window, sizes):
    low, high = (
        each if terms.is_static(each) else _numbers(each) for each in part.bounds(sizes.T, sizes.S)
    )
    # Of each side an offset alone is left, which no sum of positions overflows.
    sides = () if low is None else (terms.Window(0, None, low),)
    return Mask(sides if high is None else (*sides, terms.Window(None, 0, high)))


@ready.register
def _(part: pattern_terms.Pattern, sizes):
    return dataclasses.replace(part, query_offset=_offset(part.query_offset, sizes))


@ready.register
def _(part: terms.Prefix, sizes):
    length = terms.clipped_sum(part.length, 0)
    length = length if terms.is_static(length) else _numbers(length)
    return terms.Prefix(length, _offset(part.query_offset, sizes))


@ready.register
def _(part: pattern_terms.BigBird, sizes):
    table = jnp.asarray(part.table(sizes.S), jnp.int8)
    return _Table(part.block, table, _offset(part.query_offset, sizes))


@ready.register
def _(part: terms.Lengths, sizes):
    return terms.Lengths(
        *(None if lengths is None else _numbers(lengths) for lengths in (part.query, part.key))
    )


@ready.register
def _(part: terms.Valid, sizes):
    return terms.Valid(
        None if part.query is None else _vector(part.query, sizes.rows),
        None if part.key is None else _vector(part.key, sizes.columns),
    )


@ready.register
def _(part: pattern_terms.Marked, sizes):
    return pattern_terms.Marked(_vector(part.query, sizes.rows), _vector(part.key, sizes.columns))


@ready.register
def _(part: terms.Segments, sizes):
    if max(part.query_ids.dtype.itemsize, part.key_ids.dtype.itemsize) > 4:
        raise NotImplementedError("mask: segments() with ids of 64 bits")
    return terms.Segments(_vector(part.query_ids, sizes.rows), _vector(part.key_ids, sizes.columns))


@ready.register
def _(part: terms.Dense, sizes):
    missing = (sizes.rows - part.array.shape[2], sizes.columns - part.array.shape[3])
    widths = [(0, 0), (0, 0), *((0, number) for number in missing)]
    return terms.Dense(jnp.pad(part.array, widths).astype(jnp.int8))


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
def tile(part: Part, place: Place) -> Array:
    """What a block sees, within a kernel (masks in the kernel: Dao et al. 2022).

        tile_ij = m_ts,   t and s positions of the block

    Args:
      part: a condition that is `ready`, with references for arrays, or a whole `Mask`.
      place: of the block: positions [rows, 1] and [1, columns].

    Returns:
      bool [rows or 1, columns or 1].

    Raises:
      NotImplementedError: the condition is not `ready`.
    """
    raise NotImplementedError(f"mask: {part.describe()} cannot be computed by blocks")


@tile.register
def _(part: Mask, place):
    result = jnp.ones((1, 1), bool)
    for each in part.parts:
        result = result & tile(each, place)
    return result


@tile.register
def _(part: terms.Either, place):
    return tile(part.left, place) | tile(part.right, place)


@tile.register
def _(part: terms.Window, place):
    distance = place.columns - _seeing(part.query_offset, place)
    result = jnp.ones((1, 1), bool)
    if part.left is not None:
        result = result & (distance >= -part.left)
    if part.right is not None:
        result = result & (distance <= part.right)
    return result


@tile.register
def _(part: terms.Prefix, place):
    in_prefix = place.columns < _number(part.length, place)
    return in_prefix | (place.columns <= _seeing(part.query_offset, place))


@tile.register
def _(part: pattern_terms.Pattern, place):
    return part.sees(_seeing(part.query_offset, place), place.columns)


@tile.register
def _(part: _Table, place):
    last = part.table.shape[0] - 1
    seeing = jnp.clip(_seeing(part.query_offset, place) // part.block, 0, last)
    seen = jnp.minimum(place.columns // part.block, last)
    seeing, seen = jnp.broadcast_arrays(seeing, seen)
    return part.table[seeing, seen] != 0


@tile.register
def _(part: terms.Lengths, place):
    result = jnp.ones((1, 1), bool)
    if part.query is not None:
        result = result & (place.rows < _number(part.query, place))
    if part.key is not None:
        result = result & (place.columns < _number(part.key, place))
    return result


@tile.register
def _(part: terms.Valid, place):
    result = jnp.ones((1, 1), bool)
    if part.query is not None:
        result = result & (_of_rows(part.query, place) != 0)
    if part.key is not None:
        result = result & (_of_columns(part.key, place) != 0)
    return result


@tile.register
def _(part: pattern_terms.Marked, place):
    return (_of_rows(part.query, place) != 0) | (_of_columns(part.key, place) != 0)


@tile.register
def _(part: terms.Segments, place):
    return _of_rows(part.query_ids, place) == _of_columns(part.key_ids, place)


@tile.register
def _(part: terms.Dense, place):
    example, head = of_shared(part.array.shape, place.example, place.head)
    rows = slice_of(place.row, place.rows.shape[0])
    return part.array[example, head, rows, slice_of(place.column, place.columns.shape[1])] != 0


def of_shared(shape: tuple[int, ...], *indices: Any) -> tuple[Any, ...]:
    """The indices of leading axes, 0 where an axis has one entry for all."""
    return tuple(0 if size == 1 else index for size, index in zip(shape, indices, strict=False))


def slice_of(start: Any, size: int) -> Any:
    """Positions start, start + 1, ... of a reference's axis."""
    # Imported here, because it takes time and those who are refused need none of it.
    from jax.experimental import pallas as pl

    return pl.ds(start, size)


def _seeing(offset: Any, place: Place) -> Array:
    return place.rows + _number(offset, place)


def _number(number: Any, place: Place) -> Any:
    """An int, or the example's entry."""
    if isinstance(number, int):
        return number
    return number[of_shared(number.shape, place.example)[0]]


def _of_rows(vector: Any, place: Place) -> Array:
    return vector[place.example, slice_of(place.row, place.rows.shape[0])][:, None]


def _of_columns(vector: Any, place: Place) -> Array:
    return vector[place.example, slice_of(place.column, place.columns.shape[1])][None, :]
