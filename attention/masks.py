"""Masks: which query may attend to which key. True always means "may attend".

A `Mask` keeps its structure (causal, lengths, ...) as a frozen pytree, so that kernels can skip
what nobody sees and an array is made only where one is needed. Masks are joined with `&` (both
must allow) and `|` (either may):

    mask = masks.causal() & masks.lengths(key=lengths)
    mask.materialize(B, N, T, S)              # bool [B or 1, N or 1, T, S]
    mask.visible_blocks(T, S, 256, 512)       # bool [query blocks, key blocks], known before
    running

Sparse patterns (strided, global tokens, random blocks, ...) are in `attention.patterns`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes

Array = jax.Array
Offset = int | Array


@dataclasses.dataclass(frozen=True)
class Part:
    """One condition. Fields that are ints, tuples or None are static, arrays are pytree leaves."""

    def allowed(self, B: int, N: int, T: int, S: int) -> Array:
        """bool [B or 1, N or 1, T or 1, S or 1]."""
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
class Mask:
    """A conjunction of conditions; build it with the functions of this module."""

    parts: tuple[Part, ...]

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Mask(self.parts + other.parts)

    def __or__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Mask((_Either(self, other),))

    def materialize(self, B: int, N: int, T: int, S: int) -> Array:
        """The mask as an array: bool [B or 1, N or 1, T, S], 1 where all share it.

        Raises:
          ValueError: the mask was made for other sizes, or is causal with T != S and no offset.
        """
        result = jnp.ones((1, 1, T, S), bool)
        for part in self.parts:
            result = result & part.allowed(B, N, T, S)
        return result

    def visible_blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray:
        """Which key blocks a query block may see, known before running.

        Returns:
          NumPy bool [ceil(T / query_block), ceil(S / key_block)]. False is certain: no query of the
          block sees any key of the block. Conditions that depend on data count as True.
        """
        if query_block < 1 or key_block < 1:
            raise ValueError(
                f"blocks: got {query_block} x {key_block}, expected sizes of at least 1"
            )
        result = np.ones((-(-T // query_block), -(-S // key_block)), bool)
        for part in self.parts:
            blocks = part.blocks(T, S, query_block, key_block)
            if blocks is not None:
                result &= blocks
        return result


jax.tree_util.register_dataclass(Mask, data_fields=["parts"], meta_fields=[])


@dataclasses.dataclass(frozen=True)
class Padding:
    """A mask of which only padding and the arrow of time are left; see `padding`.

    Attributes:
      causal: no query sees a later key.
      query: bool [B, T], True = a real query; None for all.
      key: bool [B, S], True = a real key; None for all.
    """

    causal: bool
    query: Array | None
    key: Array | None

    @property
    def seen(self) -> Array | None:
        """bool [B, T] of a sequence that attends to itself: neither query nor key is padding."""
        if self.query is None or self.key is None:
            return self.key if self.query is None else self.query
        return self.query & self.key


def padding(
    mask: Mask | Array | None, B: int, T: int, S: int, *, of: str, causal: bool = True
) -> Padding:
    """What a mechanism needs of a mask that never forms a weight for each query and key.

    Args:
      mask: joined from `causal()`, `lengths(...)` and `valid(...)`, or None; an array
        [B or 1, N or 1, T, S] is refused as a `Mask` of other kinds is.
      B, T, S: batch, queries, keys.
      of: the mechanism's name, for the message.
      causal: whether it can be causal.

    Returns:
      What is left: `Padding`, with bool [B, T] and [B, S] or None.

    Raises:
      NotImplementedError: the mask holds anything else: it would not be honoured.
      ValueError: the mask was made for other sizes.
    """
    found: dict[str, Any] = {"causal": False, "query": None, "key": None}
    if mask is None:
        return Padding(**found)
    for part in (mask if isinstance(mask, Mask) else dense(mask)).parts:
        # Whether it fits, at no cost: T x S is never formed.
        jax.eval_shape(lambda part=part: part.allowed(B, 1, T, S))
        if isinstance(part, _Window) and (part.left, part.right) == (None, 0) and causal:
            if not is_static(part.query_offset) or static_offset(part.query_offset, T, S) != 0:
                raise NotImplementedError(f"mask: {of} is causal from the first position only")
            found["causal"] = True
        elif isinstance(part, _Lengths | _Valid):
            for side, length in (("query", T), ("key", S)):
                marks = getattr(part, side)
                if marks is None:
                    continue
                if isinstance(part, _Lengths):
                    marks = jnp.arange(length) < marks[:, None]
                found[side] = marks if found[side] is None else found[side] & marks
        else:
            can = "causal(), lengths() and valid()" if causal else "lengths() and valid()"
            raise NotImplementedError(
                f"mask: {of} honours {can} alone, got {part.describe()}; mixers whose `can` has "
                f"'mask' take any"
            )
    return Padding(**found)


def causal(query_offset: Offset | None = None) -> Mask:
    """A query sees keys at or before its own position (Vaswani et al. 2017, section 3.2.3).

        allowed_ts = (s <= t + query_offset)

    Args:
      query_offset: position of the first query among the keys, an int, or an int array [] or [B].
        May be left out only where T == S.

    Returns:
      The `Mask`.

    Raises:
      ValueError: query_offset is no integer, or not of that shape.
    """
    return Mask((_Window(None, 0, checked_offset(query_offset)),))


def window(left: int | None, right: int | None, query_offset: Offset | None = None) -> Mask:
    """A query sees its neighbours, itself not counted (Beltagy et al. 2020, "Longformer").

        allowed_ts = (t - left <= s <= t + right),   with query_offset added to t

    Args:
      left, right: how many before and after, ints of at least 0; None for all.
      query_offset: an int, [] or [B], as for `causal`.

    Returns:
      The `Mask`.

    Raises:
      ValueError: a number is no integer or below 0.
    """
    for name, size in (("left", left), ("right", right)):
        if size is not None and (not isinstance(size, int) or size < 0):
            raise ValueError(f"{name}: got {size}, expected an int of at least 0, or None for all")
    return Mask((_Window(left, right, checked_offset(query_offset)),))


def lengths(query: Array | None = None, key: Array | None = None) -> Mask:
    """Real positions that come first (Vaswani et al. 2017, section 3.2.3: what must not be seen).

        allowed_bts = (t < query_b) and (s < key_b)

    Args:
      query, key: how many are real, int [B]; None for all.

    Returns:
      The `Mask`.

    Raises:
      ValueError: both are None, or not integers of rank 1.
    """
    if query is None and key is None:
        raise ValueError("lengths: got neither query nor key, expected at least one, int [B]")
    return Mask((_Lengths(_ints("query", query, 1), _ints("key", key, 1)),))


def valid(query: Array | None = None, key: Array | None = None) -> Mask:
    """Real positions that are marked one by one (as `lengths`; Vaswani et al. 2017).

        allowed_bts = query_bt and key_bs

    Args:
      query, key: bool [B, T], bool [B, S], True = a real position; None for all.

    Returns:
      The `Mask`.

    Raises:
      ValueError: both are None, or not boolean of rank 2.
    """
    if query is None and key is None:
        raise ValueError(
            "valid: got neither query nor key, expected at least one, bool [B, length]"
        )
    return Mask((_Valid(_bools("query", query), _bools("key", key)),))


def segments(query_ids: Array, key_ids: Array) -> Mask:
    """Packed sequences: a query sees its own segment (Raffel et al. 2020; Krell et al. 2021).

        allowed_bts = (query_ids_bt = key_ids_bs)

    Args:
      query_ids, key_ids: int [B, T], int [B, S].

    Returns:
      The `Mask`.

    Raises:
      ValueError: they are not integers of rank 2.
    """
    return Mask((_Segments(_ints("query_ids", query_ids, 2), _ints("key_ids", key_ids, 2)),))


def prefix(length: Offset, query_offset: Offset | None = None) -> Mask:
    """The prefix-LM mask: all see the first keys, the rest is causal (Raffel et al. 2020).

        allowed_ts = (s < length) or (s <= t + query_offset)

    Args:
      length: an int, or an int array [] or [B].
      query_offset: an int, [] or [B], as for `causal`.

    Returns:
      The `Mask`.

    Raises:
      ValueError: a number is no integer, or not of that shape.
    """
    return Mask((_Prefix(checked_offset(length, "length"), checked_offset(query_offset)),))


def dense(array: Array) -> Mask:
    """Any mask as an array (Vaswani et al. 2017, section 3.2.3).

        allowed_bnts = array_bnts

    Args:
      array: bool [B or 1, N or 1, T, S], True = may attend. The last two are never broadcast, so
        that [B, S] cannot pass for [T, S].

    Returns:
      The `Mask`.

    Raises:
      ValueError: it is not boolean, or not of rank 4.
    """
    shapes.expect_boolean("mask", array, true_means="may attend; float masks go into bias")
    if jnp.ndim(array) != 4:
        got = shapes.show(jnp.shape(array))
        hint = "; padding [B, S] is masks.valid(key=...)" if jnp.ndim(array) == 2 else ""
        expected = f"[B or 1, N or 1, T, S], always rank 4{hint}"
        raise ValueError(f"mask: got shape {got}, expected {expected}")
    return Mask((_Dense(jnp.asarray(array)),))


@dataclasses.dataclass(frozen=True)
class _Window(Part):
    left: int | None
    right: int | None
    query_offset: Offset | None

    def allowed(self, B: int, N: int, T: int, S: int) -> Array:
        distance = jnp.arange(S) - query_positions(self.query_offset, B, T, S)
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
class _Prefix(Part):
    length: Offset
    query_offset: Offset | None

    def allowed(self, B: int, N: int, T: int, S: int) -> Array:
        keys = jnp.arange(S)
        in_prefix = keys < _per_example(self.length, B, "length")
        return in_prefix | (keys <= query_positions(self.query_offset, B, T, S))

    def blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray | None:
        if not is_static(self.length) or not is_static(self.query_offset):
            return None
        causal_part = _Window(None, 0, self.query_offset).blocks(T, S, query_block, key_block)
        return causal_part | (block_ends(S, key_block)[0] < self.length)


@dataclasses.dataclass(frozen=True)
class _Either(Part):
    left: Mask
    right: Mask

    def allowed(self, B: int, N: int, T: int, S: int) -> Array:
        return self.left.materialize(B, N, T, S) | self.right.materialize(B, N, T, S)

    def blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray | None:
        sizes = (T, S, query_block, key_block)
        return self.left.visible_blocks(*sizes) | self.right.visible_blocks(*sizes)

    def describe(self) -> str:
        return "a mask joined with |"


@dataclasses.dataclass(frozen=True)
class _Lengths(Part):
    query: Array | None
    key: Array | None

    def allowed(self, B: int, N: int, T: int, S: int) -> Array:
        result = jnp.ones((1, 1, 1, 1), bool)
        if self.query is not None:
            shapes.expect("mask lengths(query=)", self.query, "B", {"B": B})
            result = result & (jnp.arange(T)[:, None] < self.query[:, None, None, None])
        if self.key is not None:
            shapes.expect("mask lengths(key=)", self.key, "B", {"B": B})
            result = result & (jnp.arange(S) < self.key[:, None, None, None])
        return result


@dataclasses.dataclass(frozen=True)
class _Valid(Part):
    query: Array | None
    key: Array | None

    def allowed(self, B: int, N: int, T: int, S: int) -> Array:
        result = jnp.ones((1, 1, 1, 1), bool)
        if self.query is not None:
            hint = shapes.layout_hint(self.query.shape[1:], (T,), N)
            shapes.expect("mask valid(query=)", self.query, "B T", {"B": B, "T": T}, hint=hint)
            result = result & self.query[:, None, :, None]
        if self.key is not None:
            hint = shapes.layout_hint(self.key.shape[1:], (S,), N)
            shapes.expect("mask valid(key=)", self.key, "B S", {"B": B, "S": S}, hint=hint)
            result = result & self.key[:, None, None, :]
        return result


@dataclasses.dataclass(frozen=True)
class _Segments(Part):
    query_ids: Array
    key_ids: Array

    def allowed(self, B: int, N: int, T: int, S: int) -> Array:
        sizes = {"B": B, "T": T, "S": S}
        for name, ids, axes, size in (
            ("query_ids", self.query_ids, "B T", T),
            ("key_ids", self.key_ids, "B S", S),
        ):
            hint = shapes.layout_hint(ids.shape[1:], (size,), N)
            shapes.expect(f"mask segments({name})", ids, axes, sizes, hint=hint)
        return self.query_ids[:, None, :, None] == self.key_ids[:, None, None, :]


@dataclasses.dataclass(frozen=True)
class _Dense(Part):
    array: Array

    def allowed(self, B: int, N: int, T: int, S: int) -> Array:
        sizes = {"B": B, "N": N, "T": T, "S": S}
        hint = shapes.layout_hint(self.array.shape[-2:], (T, S), N)
        shapes.expect_broadcastable("mask", self.array, "B N T S", sizes, hint=hint)
        return self.array


def query_positions(offset: Offset | None, B: int, T: int, S: int) -> Array:
    """[1 or B, 1, T, 1]: the place of each query among the keys."""
    if offset is None or isinstance(offset, int):
        return (jnp.arange(T) + static_offset(offset, T, S))[None, None, :, None]
    return jnp.arange(T)[:, None] + _per_example(offset, B, "query_offset")


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


def checked_offset(number: Any, argument: str = "query_offset") -> Offset | None:
    """The number as an int or an array; ValueError unless it is an int, [] or [B]."""
    if number is None:
        return None
    shapes.expect_integer(argument, number)
    if jnp.ndim(number) > 1:
        got = shapes.show(jnp.shape(number))
        raise ValueError(f"{argument}: got shape {got}, expected an int, [] or [B]")
    return int(number) if isinstance(number, int | np.integer) else jnp.asarray(number)


def _ints(argument: str, array: Any, rank: int) -> Array | None:
    if array is None:
        return None
    shapes.expect_integer(argument, array)
    return _ranked(argument, array, rank)


def _bools(argument: str, array: Any) -> Array | None:
    if array is None:
        return None
    shapes.expect_boolean(argument, array, true_means="a real position")
    return _ranked(argument, array, 2)


def _ranked(argument: str, array: Any, rank: int) -> Array:
    if jnp.ndim(array) != rank:
        expected = "[B]" if rank == 1 else "[B, length]"
        got = shapes.show(jnp.shape(array))
        raise ValueError(f"{argument}: got shape {got}, expected {expected}")
    return jnp.asarray(array)
