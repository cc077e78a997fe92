"""Mask terms, which `attention.masks` combines into masks.

B examples, N heads, T queries, S keys. Kernels evaluate a term as an array for all positions or for
a block (`allowed`). They use the visibility of blocks (`static_block_mask`, `block_visibility`) to
skip hidden blocks, and to evaluate the array only in partial blocks. A block consists of
consecutive queries and consecutive keys. It is hidden if no query attends to any key, full if each
query attends to each key, and otherwise partial.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Array = jax.Array
Offset = int | Array

# Positions are below FAR, so larger offsets, lengths and widths are clipped to FAR. The sum of a
# position and a clipped number fits into an int32.
FAR = 2**30 - 1


class Span(NamedTuple):
    """Positions start, start + 1, ... of a sequence.

    Attributes:
      start: first position; may be traced.
      size: number of positions, at most the length of the sequence. Entries at positions beyond the
        end of the sequence are undefined.
    """

    start: int | Array
    size: int


@dataclasses.dataclass(frozen=True)
class MaskTerm:
    """One term of a mask, with static fields (int, tuple, None) and arrays as pytree leaves."""

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        """Returns which queries may attend to which keys.

        Args:
          B, N, T, S: number of examples, heads, queries and keys.
          rows, columns: spans of queries and keys to return; all if None.

        Returns:
          bool [B or 1, N or 1, T or 1, S or 1], with the sizes of the spans in place of T and S.
        """
        raise NotImplementedError

    def static_block_mask(
        self, T: int, S: int, query_block: int, key_block: int
    ) -> np.ndarray | None:
        """Returns which blocks may be visible, bool [query blocks or 1, key blocks or 1].

        The result is None if the term depends on data."""
        if jax.tree.leaves(self):
            return None
        return np.asarray(self.block_visibility(1, T, S, query_block, key_block)[0][0])

    def block_visibility(
        self, B: int, T: int, S: int, query_block: int, key_block: int
    ) -> tuple[Array | np.ndarray, Array | np.ndarray]:
        """Returns which blocks are visible and which are full.

        A visible block is never marked hidden, and a partial block is never marked full. Both
        results are bool [1 or B, query blocks or 1, key blocks or 1], NumPy arrays if static.
        """
        return np.ones((1, 1, 1), bool), np.zeros((1, 1, 1), bool)

    def select(self, example: int | Array, heads: Span) -> MaskTerm:
        """Returns the term for one example of the batch and the given heads."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return type(self)(**{name: _row(value, example) for name, value in given.items()})

    def describe(self) -> str:
        """Returns the name of the term in messages."""
        return type(self).__name__.removeprefix("_").lower() + "()"

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_node(
            cls, _flatten, lambda aux, leaves: _build(cls, aux, leaves)
        )


def _flatten(term: MaskTerm) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    # A Python int is not a leaf, since jit would trace it and blocks could not be skipped
    # statically.
    fields = [(field.name, getattr(term, field.name)) for field in dataclasses.fields(term)]
    leaves = tuple(value for _, value in fields if not is_static(value))
    return leaves, tuple((name, value if is_static(value) else _LEAF) for name, value in fields)


def _build(cls: type, aux: tuple[tuple[str, Any], ...], leaves: tuple[Any, ...]) -> MaskTerm:
    remaining = iter(leaves)
    return cls(**{name: next(remaining) if value == _LEAF else value for name, value in aux})


_LEAF = "leaf"


def is_static(value: Any) -> TypeIs[int | tuple[Any, ...] | None]:
    """Returns whether a field is static under jit; otherwise it is a leaf of the pytree."""
    return value is None or isinstance(value, int | tuple)


@dataclasses.dataclass(frozen=True)
class Window(MaskTerm):
    left: int | None
    right: int | None
    query_offset: Offset | None

    def allowed(self, B, N, T, S, rows=None, columns=None):
        low, high = self.bounds(T, S)
        distance = positions(S, columns) - positions(T, rows)[:, None]
        result = jnp.ones((1, 1, 1, 1), bool)
        if low is not None:
            result = result & (distance >= _per_example(low, B, "query_offset"))
        if high is not None:
            result = result & (distance <= _per_example(high, B, "query_offset"))
        return result

    def bounds(self, T: int, S: int) -> tuple[Offset | None, Offset | None]:
        """Returns the bounds low and high of the visible keys, t + low <= s <= t + high.

        They are clipped to ±`FAR`. None stands for no bound.
        """
        offset = self.query_offset
        offset = static_offset(offset, T, S) if is_static(offset) else offset
        low = None if self.left is None else clipped_sum(offset, -self.left)
        return low, None if self.right is None else clipped_sum(offset, self.right)

    def block_visibility(self, B, T, S, query_block, key_block):
        low, high = self.bounds(T, S)
        queries, keys = _block_pairs(T, S, query_block, key_block)
        visible = full = np.ones(
            (1, *np.broadcast_shapes(queries[0].shape[1:], keys[0].shape)), bool
        )
        if low is not None:
            low = _of_blocks(low, B, "query_offset")
            visible = visible & (keys[1] >= queries[0] + low)
            full = full & (keys[0] >= queries[1] + low)
        if high is not None:
            high = _of_blocks(high, B, "query_offset")
            visible = visible & (keys[0] <= queries[1] + high)
            full = full & (keys[1] <= queries[0] + high)
        return visible, full


@dataclasses.dataclass(frozen=True)
class Prefix(MaskTerm):
    length: Offset
    query_offset: Offset | None

    def allowed(self, B, N, T, S, rows=None, columns=None):
        keys = positions(S, columns)
        in_prefix = keys < _per_example(clipped_sum(self.length, 0), B, "length")
        return in_prefix | (keys <= query_positions(self.query_offset, B, T, S, rows))

    def block_visibility(self, B, T, S, query_block, key_block):
        queries, keys = _block_pairs(T, S, query_block, key_block)
        offset = self.query_offset
        offset = static_offset(offset, T, S) if is_static(offset) else offset
        offset = _of_blocks(clipped_sum(offset, 0), B, "query_offset")
        length = _of_blocks(clipped_sum(self.length, 0), B, "length")
        visible = (keys[0] < length) | (keys[0] <= queries[1] + offset)
        return visible, (keys[1] < length) | (keys[1] <= queries[0] + offset)


@dataclasses.dataclass(frozen=True)
class Or(MaskTerm):
    left: Any  # a `masks.Mask`
    right: Any

    def allowed(self, B, N, T, S, rows=None, columns=None):
        place = (B, N, T, S, rows, columns)
        return self.left.materialize(*place) | self.right.materialize(*place)

    def static_block_mask(
        self, T: int, S: int, query_block: int, key_block: int
    ) -> np.ndarray | None:
        sizes = (T, S, query_block, key_block)
        return self.left.static_block_mask(*sizes) | self.right.static_block_mask(*sizes)

    def block_visibility(self, B, T, S, query_block, key_block):
        sizes = (B, T, S, query_block, key_block)
        pairs = (side.block_visibility(*sizes) for side in (self.left, self.right))
        visible, full = zip(*pairs, strict=True)
        return visible[0] | visible[1], full[0] | full[1]

    def select(self, example, heads):
        return Or(self.left.select(example, heads), self.right.select(example, heads))

    def describe(self) -> str:
        return "a mask joined with |"


@dataclasses.dataclass(frozen=True)
class Lengths(MaskTerm):
    query: Array | None
    key: Array | None

    def real(self, side: str, length: int) -> Array | None:
        """Returns the mask of real positions of a side, "query" or "key"; None if all are real."""
        lengths = getattr(self, side)
        return None if lengths is None else jnp.arange(length) < lengths[:, None]

    def allowed(self, B, N, T, S, rows=None, columns=None):
        result = jnp.ones((1, 1, 1, 1), bool)
        if self.query is not None:
            shapes.expect("mask lengths(query=)", self.query, "B", {"B": B})
            result = result & (positions(T, rows)[:, None] < self.query[:, None, None, None])
        if self.key is not None:
            shapes.expect("mask lengths(key=)", self.key, "B", {"B": B})
            result = result & (positions(S, columns) < self.key[:, None, None, None])
        return result

    def block_visibility(self, B, T, S, query_block, key_block):
        visible = full = np.ones((1, 1, 1), bool)
        for axis, lengths, (first, last) in (
            (2, self.query, block_ends(T, query_block)),
            (1, self.key, block_ends(S, key_block)),
        ):
            if lengths is not None:
                visible = visible & jnp.expand_dims(first < lengths[:, None], axis)
                full = full & jnp.expand_dims(last < lengths[:, None], axis)
        return visible, full


@dataclasses.dataclass(frozen=True)
class Valid(MaskTerm):
    query: Array | None
    key: Array | None

    def real(self, side: str, length: int) -> Array | None:
        """Returns the mask of real positions of a side, "query" or "key"; None if all are real."""
        return getattr(self, side)

    def allowed(self, B, N, T, S, rows=None, columns=None):
        result = jnp.ones((1, 1, 1, 1), bool)
        if self.query is not None:
            hint = shapes.layout_hint(self.query.shape[1:], (T,), N)
            shapes.expect("mask valid(query=)", self.query, "B T", {"B": B, "T": T}, hint=hint)
            result = result & slice_span(self.query, 1, rows)[:, None, :, None]
        if self.key is not None:
            hint = shapes.layout_hint(self.key.shape[1:], (S,), N)
            shapes.expect("mask valid(key=)", self.key, "B S", {"B": B, "S": S}, hint=hint)
            result = result & slice_span(self.key, 1, columns)[:, None, None, :]
        return result

    def block_visibility(self, B, T, S, query_block, key_block):
        visible = full = np.ones((1, 1, 1), bool)
        for axis, marks, block in ((2, self.query, query_block), (1, self.key, key_block)):
            if marks is not None:
                visible = visible & jnp.expand_dims(
                    split_into_blocks(marks, block, False).any(-1), axis
                )
                full = full & jnp.expand_dims(split_into_blocks(marks, block, True).all(-1), axis)
        return visible, full


@dataclasses.dataclass(frozen=True)
class Segments(MaskTerm):
    query_ids: Array
    key_ids: Array

    @property
    def is_wide(self) -> bool:
        """True for 64-bit ids, which kernels cannot compare as int32."""
        return max(self.query_ids.dtype.itemsize, self.key_ids.dtype.itemsize) > 4

    def allowed(self, B, N, T, S, rows=None, columns=None):
        sizes = {"B": B, "T": T, "S": S}
        for name, ids, axes, size in (
            ("query_ids", self.query_ids, "B T", T),
            ("key_ids", self.key_ids, "B S", S),
        ):
            hint = shapes.layout_hint(ids.shape[1:], (size,), N)
            shapes.expect(f"mask segments({name})", ids, axes, sizes, hint=hint)
        queries, keys = slice_span(self.query_ids, 1, rows), slice_span(self.key_ids, 1, columns)
        return queries[:, None, :, None] == keys[:, None, None, :]

    def block_visibility(self, B, T, S, query_block, key_block):
        # Blocks whose ranges of ids do not overlap share no id. Full blocks have a single id.
        queries, keys = (
            split_into_blocks(self.query_ids, query_block),
            split_into_blocks(self.key_ids, key_block),
        )
        least, most = queries.min(-1)[:, :, None], queries.max(-1)[:, :, None]
        first, last = keys.min(-1)[:, None], keys.max(-1)[:, None]
        return (least <= last) & (first <= most), (least == last) & (first == most)


@dataclasses.dataclass(frozen=True)
class Dense(MaskTerm):
    array: Array

    def allowed(self, B, N, T, S, rows=None, columns=None):
        sizes = {"B": B, "N": N, "T": T, "S": S}
        hint = shapes.layout_hint(self.array.shape[-2:], (T, S), N)
        shapes.expect_broadcastable("mask", self.array, "B N T S", sizes, hint=hint)
        return slice_span(slice_span(self.array, 2, rows), 3, columns)

    def block_visibility(self, B, T, S, query_block, key_block):
        def blocks(beyond: bool) -> Array:
            tall = split_into_blocks(jnp.swapaxes(self.array, 2, 3), query_block, beyond)
            return split_into_blocks(jnp.moveaxis(tall, 2, 4), key_block, beyond)

        axes = (1, 3, 5)
        return blocks(False).any(axes), blocks(True).all(axes)

    def select(self, example, heads):
        array = _row(self.array, example)
        return Dense(array if array.shape[1] == 1 else slice_span(array, 1, heads))


def _row(value: Any, example: int | Array) -> Any:
    """Returns the entry of one example, [1, ...], of an array [B or 1, ...]."""
    if is_static(value) or value.ndim == 0 or value.shape[0] == 1:
        return value
    return jax.lax.dynamic_slice_in_dim(value, example, 1)


def positions(length: int, span: Span | None) -> Array:
    """Returns the positions 0 ... length - 1, or those of a span, [size]."""
    return jnp.arange(length) if span is None else span.start + jnp.arange(span.size)


def slice_span(array: Array, axis: int, span: Span | None) -> Array:
    """Slices an axis to a span; entries beyond the end of the axis are undefined."""
    if span is None:
        return array
    result = jax.lax.dynamic_slice_in_dim(array, span.start, span.size, axis)
    length = array.shape[axis]
    if length % span.size == 0:
        return result
    # JAX moves the start of a slice that would end beyond the array; the roll undoes this.
    return jnp.roll(result, jnp.minimum(length - span.size - span.start, 0), axis)


def split_into_blocks(array: Array, block: int, beyond: bool | None = None) -> Array:
    """Reshapes [..., length] to [..., blocks, block].

    The last block is padded with `beyond`, or with the last entry if None.
    """
    missing = -array.shape[-1] % block
    widths = [(0, 0)] * (array.ndim - 1) + [(0, missing)]
    kind: dict[str, Any] = {"mode": "edge"} if beyond is None else {"constant_values": beyond}
    padded = jnp.pad(array, widths, **kind) if missing else array
    return padded.reshape(*array.shape[:-1], -1, block)


def query_positions(
    offset: Offset | None, B: int, T: int, S: int, rows: Span | None = None
) -> Array:
    """Returns the positions of queries among the keys, [1 or B, 1, T, 1].

    Args:
      offset: position of the first query, as for `masks.causal`.
      B, T, S: number of examples, queries and keys.
      rows: span of the queries to return; all if None.
    """
    queries = positions(T, rows)
    if is_static(offset):
        offset = static_offset(offset, T, S)
        return (queries + clipped_sum(offset, 0))[None, None, :, None]
    return queries[:, None] + _per_example(clipped_sum(offset, 0), B, "query_offset")


def static_offset(offset: int | None, T: int, S: int) -> int:
    """Returns the offset, or 0 if it is None and T == S.

    Raises:
      ValueError: the offset is None and T != S.
    """
    if offset is None and T != S:
        raise ValueError(
            f"query_offset: got none with T={T} queries and S={S} keys, expected an explicit "
            f"offset (0 aligns the first positions, {S - T} aligns the last positions)"
        )
    return offset or 0


def clipped_sum(offset: Offset, more: int) -> Offset:
    """Returns offset + more clipped to ±`FAR`, without overflow."""
    if is_static(offset):
        return max(-FAR, min(offset + more, FAR))
    offset = offset.astype(jnp.promote_types(offset.dtype, jnp.int32))
    limits = jnp.iinfo(offset.dtype)
    least, most = max(-FAR - more, limits.min), min(FAR - more, limits.max)
    if least > most:
        return jnp.full(offset.shape, -FAR if more < 0 else FAR, jnp.int32)
    # The difference is at most 2·FAR and `least + more` within ±FAR, so neither overflows int32.
    return (jnp.clip(offset, least, most) - least).astype(jnp.int32) + (least + more)


def _per_example(number: Offset, B: int, argument: str) -> Array:
    """Converts an int, or an array [] or [B], to an array [1 or B, 1, 1, 1]."""
    number = jnp.asarray(number)
    if number.ndim:
        shapes.expect(f"mask {argument}", number, "B", {"B": B})
    return number.reshape(-1, 1, 1, 1)


def _of_blocks(number: Offset, B: int, argument: str) -> int | Array:
    """Returns an int unchanged; reshapes an array [] or [B] to [1 or B, 1, 1]."""
    return number if is_static(number) else _per_example(number, B, argument)[:, 0]


def _block_pairs(T: int, S: int, query_block: int, key_block: int) -> tuple[Any, Any]:
    """Returns the first and last positions of all blocks.

    Returns:
      The first and last positions of the query blocks, [1, blocks, 1] each; and those of the key
      blocks, [blocks] each.
    """
    ends = block_ends(T, query_block)
    return tuple(end[None, :, None] for end in ends), block_ends(S, key_block)


def block_ends(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and the last position of each block, [blocks]."""
    first = np.arange(0, length, block)
    return first, np.minimum(first + block, length) - 1
