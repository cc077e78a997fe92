"""Mask construction: which queries may attend to which keys. True always means "may attend".

A `Mask` is a frozen pytree that keeps the structure of the mask (causal, lengths, ...), so that
kernels can skip hidden blocks without forming an array. Masks are combined with `&` and `|`:

    mask = masks.causal() & masks.lengths(key=lengths)
    mask.materialize(B, N, T, S)              # bool [B or 1, N or 1, T, S]
    mask.materialize(B, N, T, S, Span(start, 256), Span(0, 512))   # one block
    mask.static_block_mask(T, S, 256, 512)    # bool [query blocks, key blocks], without the data

Sparse patterns (strided, global tokens, random blocks, ...) are in `attention.masks.patterns`.

B examples, N heads, T queries, S keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes
from attention.masks.terms import (
    Dense,
    Lengths,
    MaskTerm,
    Offset,
    Or,
    Prefix,
    Segments,
    Span,
    Valid,
    Window,
    is_static,
    static_offset,
)

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Mask:
    """A conjunction of mask terms; build it with the functions of this module."""

    terms: tuple[MaskTerm, ...]

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Mask(self.terms + other.terms)

    def __or__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return Mask((Or(self, other),))

    def materialize(
        self, B: int, N: int, T: int, S: int, rows: Span | None = None, columns: Span | None = None
    ) -> Array:
        """Returns the mask as an array, bool [B or 1, N or 1, T, S].

        Args:
          B, N, T, S: number of examples, heads, queries and keys.
          rows, columns: `Span`s of queries and keys to return; all if None.

        Raises:
          ValueError: the mask was made for other sizes, or is causal with T != S and no offset.
        """
        height, width = (n if span is None else span.size for n, span in ((T, rows), (S, columns)))
        result = jnp.ones((1, 1, height, width), bool)
        for term in self.terms:
            result = result & term.allowed(B, N, T, S, rows, columns)
        return result

    def select(self, example: int | Array, heads: Span) -> Mask:
        """Returns the mask restricted to one example and to some heads: B = 1, N = heads.size."""
        return Mask(tuple(term.select(example, heads) for term in self.terms))

    def static_block_mask(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray:
        """Returns which blocks may be visible, without reading the arrays in the mask.

        Returns:
          NumPy bool [ceil(T / query_block), ceil(S / key_block)]. A block marked False is hidden
          for all values of the arrays: no query attends to any key. Terms that depend on data count
          as True.
        """
        if query_block < 1 or key_block < 1:
            raise ValueError(
                f"blocks: got {query_block} x {key_block}, expected sizes of at least 1"
            )
        result = np.ones((-(-T // query_block), -(-S // key_block)), bool)
        for term in self.terms:
            visible = term.static_block_mask(T, S, query_block, key_block)
            if visible is not None:
                result &= visible
        return result

    def block_visibility(
        self, B: int, T: int, S: int, query_block: int, key_block: int
    ) -> tuple[Array | np.ndarray, Array | np.ndarray]:
        """Returns which blocks are visible and which are full, given the arrays in the mask.

        Returns:
          Two bool arrays [1 or B, ceil(T / query_block) or 1, ceil(S / key_block) or 1]. Both are
          conservative: a visible block is never marked hidden, and a partial block is never marked
          full. They are NumPy arrays if the mask does not depend on data.
        """
        visible = full = np.ones((1, 1, 1), bool)
        for term in self.terms:
            pair = term.block_visibility(B, T, S, query_block, key_block)
            visible, full = visible & pair[0], full & pair[1]
        return visible, full


jax.tree_util.register_dataclass(Mask, data_fields=["terms"], meta_fields=[])


# Arguments of mechanisms: a mask, or an array for `dense`.
MaskLike = Mask | Array


@dataclasses.dataclass(frozen=True)
class Padding:
    """A mask reduced to causality and padding by the function `padding`.

    Attributes:
      causal: whether the keys after a query's position are hidden.
      query: bool [B, T], True = a real query; None if all are real.
      key: bool [B, S], True = a real key; None if all are real.
    """

    causal: bool
    query: Array | None
    key: Array | None


def padding(
    mask: Mask | Array | None, B: int, T: int, S: int, *, of: str, causal: bool = True
) -> Padding:
    """Reduces a mask to causality and padding, for mechanisms that support no other mask.

    Args:
      mask: conjunction of `causal()`, `lengths(...)` and `valid(...)`, or None. Other masks and
        arrays [B or 1, N or 1, T, S] are not supported.
      B, T, S: number of examples, queries and keys.
      of: name of the mechanism in the error message.
      causal: whether the mechanism supports `causal()`.

    Returns:
      The `Padding`, with bool [B, T] and [B, S] or None.

    Raises:
      NotImplementedError: the mask has another term.
      ValueError: the mask was made for other sizes.
    """
    found: dict[str, Any] = {"causal": False, "query": None, "key": None}
    if mask is None:
        return Padding(**found)
    for term in (mask if isinstance(mask, Mask) else dense(mask)).terms:
        # This checks the sizes without forming T x S entries.
        jax.eval_shape(lambda term=term: term.allowed(B, 1, T, S))
        if isinstance(term, Window) and (term.left, term.right) == (None, 0) and causal:
            if not is_static(term.query_offset) or static_offset(term.query_offset, T, S) != 0:
                raise NotImplementedError(
                    "mask: got causal() with a query_offset that is an array or not 0, expected "
                    f"a query_offset of 0 for {of}"
                )
            found["causal"] = True
        elif isinstance(term, Lengths | Valid):
            for side, length in (("query", T), ("key", S)):
                real = term.real(side, length)
                if real is not None:
                    found[side] = real if found[side] is None else found[side] & real
        else:
            can = "causal(), lengths() and valid()" if causal else "lengths() and valid()"
            raise NotImplementedError(
                f"mask: got {term.describe()}, expected only {can} for {of}; use a mixer with the "
                f"capability 'mask'"
            )
    return Padding(**found)


def causal(query_offset: Offset | None = None) -> Mask:
    """Returns the causal mask, which hides later keys (Vaswani et al. 2017, section 3.2.3).

        allowed_ts = (s <= t + query_offset)

    Args:
      query_offset: position of the first query among the keys, an int, or an int array [] or [B].
        Required if T != S.

    Returns:
      The `Mask`.

    Raises:
      ValueError: query_offset has another shape or is not an integer.
    """
    return Mask((Window(None, 0, validate_offset(query_offset)),))


def window(left: int | None, right: int | None, query_offset: Offset | None = None) -> Mask:
    """Returns a sliding-window mask (Beltagy et al. 2020, "Longformer").

        allowed_ts = (t - left <= s <= t + right),   with query_offset added to t

    Args:
      left, right: number of keys before and after a query's own position, at least 0; None for all.
      query_offset: an int, [] or [B], as for `causal`.

    Returns:
      The `Mask`.

    Raises:
      ValueError: a number is below 0 or not an integer.
    """
    for name, size in (("left", left), ("right", right)):
        if size is not None and (not isinstance(size, int) or size < 0):
            raise ValueError(f"{name}: got {size}, expected an int of at least 0, or None for all")
    return Mask((Window(left, right, validate_offset(query_offset)),))


def lengths(query: Array | None = None, key: Array | None = None) -> Mask:
    """Returns the mask of sequences with padding at the end (Vaswani et al. 2017, section 3.2.3).

        allowed_bts = (t < query_b) and (s < key_b)

    Args:
      query, key: number of real positions, int [B]; None if all are real.

    Returns:
      The `Mask`.

    Raises:
      ValueError: both are None, or an array is not of integers or not of rank 1.
    """
    if query is None and key is None:
        raise ValueError(
            "lengths: got neither query nor key, expected at least one of them, int [B]"
        )
    return Mask((Lengths(_lengths("query", query), _lengths("key", key)),))


def valid(query: Array | None = None, key: Array | None = None) -> Mask:
    """Returns the mask of sequences with padding anywhere (Vaswani et al. 2017).

        allowed_bts = query_bt and key_bs

    Args:
      query, key: bool [B, T], bool [B, S], True = a real position; None if all are real.

    Returns:
      The `Mask`.

    Raises:
      ValueError: both are None, or an array is not boolean or not of rank 2.
    """
    if query is None and key is None:
        raise ValueError(
            "valid: got neither query nor key, expected at least one of them, bool [B, length]"
        )
    return Mask((Valid(_bools("query", query), _bools("key", key)),))


def segments(query_ids: Array, key_ids: Array) -> Mask:
    """Returns the mask of packed sequences (Raffel et al. 2020; Krell et al. 2021).

        allowed_bts = (query_ids_bt = key_ids_bs)

    Args:
      query_ids, key_ids: int [B, T], int [B, S], the sequence that each position belongs to.

    Returns:
      The `Mask`.

    Raises:
      ValueError: an array is not of integers or not of rank 2.
    """
    return Mask((Segments(_ids("query_ids", query_ids), _ids("key_ids", key_ids)),))


def prefix(length: Offset, query_offset: Offset | None = None) -> Mask:
    """Returns the prefix-LM mask: causal, but all queries attend to a prefix (Raffel et al. 2020).

        allowed_ts = (s < length) or (s <= t + query_offset)

    Args:
      length: number of keys in the prefix, an int, or an int array [] or [B].
      query_offset: an int, [] or [B], as for `causal`.

    Returns:
      The `Mask`.

    Raises:
      ValueError: a number has another shape or is not an integer.
    """
    length = cast(Offset, validate_offset(length, "length"))
    return Mask((Prefix(length, validate_offset(query_offset)),))


def dense(array: Array) -> Mask:
    """Returns a mask that is given by an array (Vaswani et al. 2017, section 3.2.3).

        allowed_bnts = array_bnts

    Args:
      array: bool [B or 1, N or 1, T, S], True = may attend. The last two axes do not broadcast, so
        that [B, S] is not mistaken for [T, S].

    Returns:
      The `Mask`.

    Raises:
      ValueError: the array is not boolean or not of rank 4.
    """
    shapes.expect_boolean("mask", array, true_means="may attend; pass a float mask as bias")
    if jnp.ndim(array) != 4:
        got = shapes.show(jnp.shape(array))
        hint = "; for padding [B, S] use masks.valid(key=...)" if jnp.ndim(array) == 2 else ""
        expected = f"[B or 1, N or 1, T, S], always rank 4{hint}"
        raise ValueError(f"mask: got shape {got}, expected {expected}")
    return Mask((Dense(jnp.asarray(array)),))


def validate_offset(number: Any, argument: str = "query_offset") -> Offset | None:
    """Checks that an offset is None, an int, or an int array of shape [] or [B].

    Args:
      number: the offset.
      argument: name of the argument in the error message.

    Returns:
      The offset: None, an int, or an int32 array.

    Raises:
      ValueError: the offset has another shape or is not an integer.
    """
    if number is None:
        return None
    shapes.expect_integer(argument, number)
    if jnp.ndim(number) > 1:
        got = shapes.show(jnp.shape(number))
        raise ValueError(
            f"{argument}: got shape {got}, expected an int, or an array of shape [] or [B]"
        )
    if isinstance(number, int | np.integer):
        return int(number)
    return _int32(number)


def _lengths(argument: str, array: Any) -> Array | None:
    if array is None:
        return None
    shapes.expect_integer(argument, array)
    return _ranked(argument, _int32(array), 1)


def _ids(argument: str, array: Any) -> Array:
    shapes.expect_integer(argument, array)
    if isinstance(array, np.ndarray) and array.size:
        # Larger ids are rejected: JAX would drop their upper 32 bits and could make them equal.
        limits = jnp.iinfo(jnp.asarray(array[:0]).dtype)
        for number in (array.min(), array.max()):
            if not limits.min <= number <= limits.max:
                expected = f"ids from {limits.min} to {limits.max}"
                raise ValueError(f"{argument}: got an id of {number}, expected {expected}")
    return _ranked(argument, array, 2)


def _int32(numbers: Any) -> Array:
    """Converts integers of any dtype to int32; numbers beyond its range are clipped."""
    numbers = numbers if hasattr(numbers, "dtype") else np.asarray(numbers)
    limits = jnp.iinfo(jnp.int32)
    if numbers.dtype.itemsize >= 4 and numbers.dtype != jnp.int32:
        xp = np if isinstance(numbers, np.ndarray) else jnp
        least = max(limits.min, jnp.iinfo(numbers.dtype).min)
        numbers = xp.clip(numbers, least, limits.max).astype(np.int32)
    return jnp.asarray(numbers)


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
