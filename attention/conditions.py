"""The conditions that masks are made of; `attention.masks` joins them.

T queries, S keys. Kernels ask a condition twice: for an array where they need one, of all or of a
block (`allowed`), and before running, block by block (`blocks`), to skip what nobody sees.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes

Array = jax.Array
Offset = int | Array


class Span(NamedTuple):
    """Positions start, start + 1, ... of a sequence.

    Attributes:
      start: the first; may be traced.
      size: how many, at most the sequence's length; those beyond its end mean nothing.
    """

    start: int | Array
    size: int


@dataclasses.dataclass(frozen=True)
class Part:
    """One condition. Fields that are ints, tuples or None are static, arrays are pytree leaves."""

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        """bool [B or 1, N or 1, T or 1, S or 1], or of a span of the queries and of the keys."""
        raise NotImplementedError

    def blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray | None:
        """bool [query blocks, key blocks], or None where only the data tell."""
        return None

    def describe(self) -> str:
        """What a message calls it."""
        return type(self).__name__.removeprefix("_").lower() + "()"

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_node(
            cls, _flatten, lambda aux, leaves: _build(cls, aux, leaves)
        )


def _flatten(part: Part) -> tuple[tuple[Any, ...], tuple[tuple[str, Any], ...]]:
    # A Python int stays outside the leaves: jit would otherwise trace it, and with it the block
    # skipping.
    fields = [(field.name, getattr(part, field.name)) for field in dataclasses.fields(part)]
    leaves = tuple(value for _, value in fields if not is_static(value))
    return leaves, tuple((name, value if is_static(value) else _LEAF) for name, value in fields)


def _build(cls: type, aux: tuple[tuple[str, Any], ...], leaves: tuple[Any, ...]) -> Part:
    remaining = iter(leaves)
    return cls(**{name: next(remaining) if value == _LEAF else value for name, value in aux})


_LEAF = "leaf"


def is_static(value: Any) -> bool:
    """Whether jit knows it: it is no leaf of the pytree."""
    return value is None or isinstance(value, int | tuple)


@dataclasses.dataclass(frozen=True)
class Window(Part):
    left: int | None
    right: int | None
    query_offset: Offset | None

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        distance = positions(S, columns) - query_positions(self.query_offset, B, T, S, rows)
        result = jnp.ones((1, 1, 1, 1), bool)
        if self.left is not None:
            result = result & (distance >= -self.left)
        if self.right is not None:
            result = result & (distance <= self.right)
        return result

    def blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray | None:
        if not is_static(self.query_offset):
            return None
        offset = static_offset(self.query_offset, T, S)
        query_first, query_last = block_ends(T, query_block)
        key_first, key_last = block_ends(S, key_block)
        result = np.ones((len(query_first), len(key_first)), bool)
        if self.left is not None:
            result &= key_last >= (query_first + offset - self.left)[:, None]
        if self.right is not None:
            result &= key_first <= (query_last + offset + self.right)[:, None]
        return result


@dataclasses.dataclass(frozen=True)
class Prefix(Part):
    length: Offset
    query_offset: Offset | None

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        keys = positions(S, columns)
        in_prefix = keys < _per_example(self.length, B, "length")
        return in_prefix | (keys <= query_positions(self.query_offset, B, T, S, rows))

    def blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray | None:
        if not is_static(self.length) or not is_static(self.query_offset):
            return None
        causal_part = Window(None, 0, self.query_offset).blocks(T, S, query_block, key_block)
        return causal_part | (block_ends(S, key_block)[0] < self.length)


@dataclasses.dataclass(frozen=True)
class Either(Part):
    left: Any  # a `masks.Mask`
    right: Any

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        place = (B, N, T, S, rows, columns)
        return self.left.materialize(*place) | self.right.materialize(*place)

    def blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray | None:
        sizes = (T, S, query_block, key_block)
        return self.left.visible_blocks(*sizes) | self.right.visible_blocks(*sizes)

    def describe(self) -> str:
        return "a mask joined with |"


@dataclasses.dataclass(frozen=True)
class Lengths(Part):
    query: Array | None
    key: Array | None

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        result = jnp.ones((1, 1, 1, 1), bool)
        if self.query is not None:
            shapes.expect("mask lengths(query=)", self.query, "B", {"B": B})
            seen = positions(T, rows)[:, None] < self.query[:, None, None, None]
            result = result & seen
        if self.key is not None:
            shapes.expect("mask lengths(key=)", self.key, "B", {"B": B})
            result = result & (positions(S, columns) < self.key[:, None, None, None])
        return result


@dataclasses.dataclass(frozen=True)
class Valid(Part):
    query: Array | None
    key: Array | None

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        result = jnp.ones((1, 1, 1, 1), bool)
        if self.query is not None:
            hint = shapes.layout_hint(self.query.shape[1:], (T,), N)
            shapes.expect("mask valid(query=)", self.query, "B T", {"B": B, "T": T}, hint=hint)
            result = result & cut(self.query, 1, rows)[:, None, :, None]
        if self.key is not None:
            hint = shapes.layout_hint(self.key.shape[1:], (S,), N)
            shapes.expect("mask valid(key=)", self.key, "B S", {"B": B, "S": S}, hint=hint)
            result = result & cut(self.key, 1, columns)[:, None, None, :]
        return result


@dataclasses.dataclass(frozen=True)
class Segments(Part):
    query_ids: Array
    key_ids: Array

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        sizes = {"B": B, "T": T, "S": S}
        for name, ids, axes, size in (
            ("query_ids", self.query_ids, "B T", T),
            ("key_ids", self.key_ids, "B S", S),
        ):
            hint = shapes.layout_hint(ids.shape[1:], (size,), N)
            shapes.expect(f"mask segments({name})", ids, axes, sizes, hint=hint)
        queries, keys = cut(self.query_ids, 1, rows), cut(self.key_ids, 1, columns)
        return queries[:, None, :, None] == keys[:, None, None, :]


@dataclasses.dataclass(frozen=True)
class Dense(Part):
    array: Array

    def allowed(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        sizes = {"B": B, "N": N, "T": T, "S": S}
        hint = shapes.layout_hint(self.array.shape[-2:], (T, S), N)
        shapes.expect_broadcastable("mask", self.array, "B N T S", sizes, hint=hint)
        return cut(cut(self.array, 2, rows), 3, columns)


def positions(length: int, span: Span | None) -> Array:
    """[length], or [size] of a span."""
    return jnp.arange(length) if span is None else span.start + jnp.arange(span.size)


def cut(array: Array, axis: int, span: Span | None) -> Array:
    """The span of an axis; beyond the end stands anything."""
    if span is None:
        return array
    result = jax.lax.dynamic_slice_in_dim(array, span.start, span.size, axis)
    length = array.shape[axis]
    if length % span.size == 0:
        return result
    # A slice that would end beyond the array begins earlier instead.
    return jnp.roll(result, jnp.minimum(length - span.size - span.start, 0), axis)


def query_positions(
    offset: Offset | None, B: int, T: int, S: int, rows: Span | None = None
) -> Array:
    """[1 or B, 1, T, 1]: the place of each query, or of a span of them, among the keys."""
    queries = positions(T, rows)
    if offset is None or isinstance(offset, int):
        return (queries + static_offset(offset, T, S))[None, None, :, None]
    return queries[:, None] + _per_example(offset, B, "query_offset")


def static_offset(offset: int | None, T: int, S: int) -> int:
    """The offset, 0 if None; ValueError where it is needed and not given."""
    if offset is None and T != S:
        raise ValueError(
            f"query_offset: got none with T={T} queries and S={S} keys, expected an explicit one "
            f"(0 lines up the first positions, {S - T} the last ones)"
        )
    return offset or 0


def _per_example(number: Offset, B: int, argument: str) -> Array:
    """[1 or B, 1, 1, 1] of an int, [] or [B]."""
    number = jnp.asarray(number)
    if number.ndim:
        shapes.expect(f"mask {argument}", number, "B", {"B": B})
    return number.reshape(-1, 1, 1, 1)


def block_ends(length: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last position of each block."""
    first = np.arange(0, length, block)
    return first, np.minimum(first + block, length) - 1
