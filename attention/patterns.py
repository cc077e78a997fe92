"""Sparse patterns as masks: which few keys a query sees, whatever the data.

Parts of a `Mask` like those of `attention.masks`, joined with `&` and `|`. They look both ways in
time; with `& masks.causal()` they are those of the causal papers:

    mask = patterns.strided(64) & masks.causal() & masks.lengths(key=lengths)

i is the position of a query among the keys (t + query_offset), j that of a key.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention import conditions, masks, shapes
from attention.conditions import Offset, Part
from attention.masks import Mask

Array = jax.Array


def dilated_window(
    left: int | None, right: int | None, dilation: int, query_offset: Offset | None = None
) -> Mask:
    """Every `dilation`-th neighbour (Beltagy et al. 2020, "Longformer", section 3.1).

        i sees j  where  i - j = k·dilation,  -right <= k <= left

    Args:
      left, right: how many on each side, itself not counted; None for all.
      dilation: at least 1, which is `masks.window`.
      query_offset: position of the first query among the keys: an int, or an int array [] or [B].
        May be left out only where T == S.

    Returns:
      A mask, [1 or B, 1, T, S] as an array.

    Raises:
      ValueError: a number is out of range.
    """
    left, right = (
        number if number is None else expect_int(name, number, 0)
        for name, number in (("left", left), ("right", right))
    )
    dilation = expect_int("dilation", dilation, 1)
    return _mask(_Dilated(left, right, dilation, masks.checked_offset(query_offset)))


def strided(stride: int, query_offset: Offset | None = None) -> Mask:
    """The strided pattern of the Sparse Transformer (Child et al. 2019, section 4.2).

        i sees j  where  |i - j| < stride  or  (i - j) mod stride = 0

    With a stride near sqrt(T), a query sees O(sqrt(T)) keys and any position in two steps.

    Args:
      stride: at least 1.
      query_offset: as in `dilated_window`.

    Returns:
      A mask, [1 or B, 1, T, S] as an array.

    Raises:
      ValueError: the stride is out of range.
    """
    return _mask(_Strided(expect_int("stride", stride, 1), masks.checked_offset(query_offset)))


def fixed(block: int, summary: int = 1, query_offset: Offset | None = None) -> Mask:
    """The fixed pattern of the Sparse Transformer (Child et al. 2019, section 4.2).

        i sees j  where  floor(i / block) = floor(j / block)  or  j mod block >= block - summary

    Each block is seen by itself, and its last positions, which sum it up, by all.

    Args:
      block: the paper's l, at least 1.
      summary: the paper's c, how many positions of a block all see: 1 to `block`.
      query_offset: as in `dilated_window`.

    Returns:
      A mask, [1 or B, 1, T, S] as an array.

    Raises:
      ValueError: a number is out of range.
    """
    block, summary = expect_int("block", block, 1), expect_int("summary", summary, 1)
    if summary > block:
        raise ValueError(f"summary: got {summary}, expected at most block={block}")
    return _mask(_Fixed(block, summary, masks.checked_offset(query_offset)))


def global_tokens(count: int, query_offset: Offset | None = None) -> Mask:
    """The first positions see all and are seen by all (Beltagy et al. 2020, section 3.1).

        i sees j  where  min(i, j) <= count - 1

    Args:
      count: how many, at least 0.
      query_offset: as in `dilated_window`.

    Returns:
      A mask, [1 or B, 1, T, S] as an array.

    Raises:
      ValueError: the count is out of range.
    """
    return _mask(_Global(expect_int("count", count, 0), masks.checked_offset(query_offset)))


def global_marks(query: Array, key: Array) -> Mask:
    """`global_tokens` with the global positions marked one by one (Beltagy et al. 2020).

        i sees j  where  query_i or key_j = True

    Args:
      query, key: bool [B, T], bool [B, S], True = global. For self-attention twice the same.

    Returns:
      A mask, [B, 1, T, S] as an array.

    Raises:
      ValueError: not boolean, or of another rank.
    """
    for name, marks in (("query", query), ("key", key)):
        shapes.expect_boolean(name, marks, true_means="a global position")
        shapes.expect(name, marks, "B T" if name == "query" else "B S", {})
    return _mask(_Marked(jnp.asarray(query), jnp.asarray(key)))


def big_bird(
    block: int,
    *,
    window: int = 1,
    global_blocks: int = 1,
    random_blocks: int = 2,
    seed: int = 0,
    links: Sequence[Sequence[int]] | None = None,
    query_offset: Offset | None = None,
) -> Mask:
    """Blocks near by, blocks at the front and blocks at random (Zaheer et al. 2020, "Big Bird").

        i sees j  where  |I - J| <= window  or  min(I, J) < global_blocks  or  {I, J} is drawn,
        I = floor(i / block),  J = floor(j / block)

    Each block draws `random_blocks` of those before it that it does not see anyway, and a pair that
    is drawn sees one another. So, unlike in the paper, where each block draws among all, what a
    position sees does not depend on how long the sequence is or how much padding follows. Together
    with `masks.causal()` a block sees `random_blocks` random ones, without it twice as many in the
    mean.

    Args:
      block: positions in a block, at least 1.
      window: blocks seen on each side, at least 0.
      global_blocks: how many of the first blocks see all and are seen by all.
      random_blocks: how many each draws (all there are, where there are fewer).
      seed: of the draws, 0 to 2³² - 1; all heads share them.
      links: instead of draws, for each query block the key blocks that it sees besides window and
        global ones, one way: the plan of weights that were trained elsewhere.
      query_offset: as in `dilated_window`.

    Returns:
      A mask, [1 or B, 1, T, S] as an array.

    Raises:
      ValueError: a number is out of range; or, when the mask is used, a block has no links.
    """
    seed = expect_int("seed", seed, 0)
    if seed >= 2**32:
        raise ValueError(f"seed: got {seed}, expected at most {2**32 - 1}")
    return _mask(
        _BigBird(
            expect_int("block", block, 1),
            expect_int("window", window, 0),
            expect_int("global_blocks", global_blocks, 0),
            expect_int("random_blocks", random_blocks, 0),
            seed,
            links if links is None else checked_links(links),
            masks.checked_offset(query_offset),
        )
    )


def expect_int(argument: str, number: Any, least: int) -> int:
    """The number as an int.

    Raises:
      ValueError: it is none, or below `least`.
    """
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or number < least:
        raise ValueError(f"{argument}: got {number!r}, expected an int of at least {least}")
    return int(number)


def _mask(part: Part) -> Mask:
    return Mask((part,))


def checked_links(links: Any) -> tuple[tuple[int, ...], ...]:
    """The links of `big_bird` as tuples, hashable.

    Raises:
      ValueError: they are not the numbers of key blocks for each query block.
    """
    try:
        rows = [list(row) for row in links]
    except TypeError:
        raise ValueError(
            f"links: got {links!r}, expected the numbers of key blocks for each query block"
        ) from None
    return tuple(tuple(expect_int("links", number, 0) for number in row) for row in rows)


class _Pattern(Part):
    """A condition on the positions of a query and a key; `query_offset` is its last field."""

    def allowed(self, B, N, T, S, rows=None, columns=None):
        queries = conditions.query_positions(self.query_offset, B, T, S, rows)
        return self.sees(queries, conditions.positions(S, columns))

    def blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray | None:
        if not conditions.is_static(self.query_offset):
            return None
        offset = conditions.static_offset(self.query_offset, T, S)
        first, last = (ends[:, None] + offset for ends in conditions.block_ends(T, query_block))
        return self.meet(first, last, *conditions.block_ends(S, key_block))

    def reach(self, B, T, S, query_block, key_block):
        some, whole = super().reach(B, T, S, query_block, key_block)
        if conditions.is_static(self.query_offset):
            offset = conditions.static_offset(self.query_offset, T, S)
            first, last = (ends[:, None] + offset for ends in conditions.block_ends(T, query_block))
            whole = self.cover(first, last, *conditions.block_ends(S, key_block))[None]
        return some, whole

    def sees(self, query: Array, key: Array) -> Array:
        """bool [..., T, S] for positions [..., T, 1] and [S]."""
        raise NotImplementedError

    def meet(
        self,
        query_first: np.ndarray,
        query_last: np.ndarray,
        key_first: np.ndarray,
        key_last: np.ndarray,
    ) -> np.ndarray:
        """Whether a query of a block sees a key of another, exactly: first and last positions of
        the query blocks [Q, 1] and the key blocks [K] -> bool [Q, K]."""
        raise NotImplementedError

    def cover(self, query_first, query_last, key_first, key_last) -> np.ndarray:
        """As `meet`: whether every query of a block surely sees every key of another."""
        return np.zeros((len(query_first), len(key_first)), bool)


def _holds_multiple(low: np.ndarray, high: np.ndarray, number: int) -> np.ndarray:
    """Whether one of low, ..., high is a multiple."""
    return high // number * number >= low


@dataclasses.dataclass(frozen=True)
class _Dilated(_Pattern):
    left: int | None
    right: int | None
    dilation: int
    query_offset: Offset | None

    def sees(self, query, key):
        distance = query - key
        result = distance % self.dilation == 0
        if self.left is not None:
            result = result & (distance <= self.left * self.dilation)
        if self.right is not None:
            result = result & (distance >= -self.right * self.dilation)
        return result

    def meet(self, query_first, query_last, key_first, key_last):
        # Every distance between these two occurs, as both blocks are without gaps.
        low, high = query_first - key_last, query_last - key_first
        if self.left is not None:
            high = np.minimum(high, self.left * self.dilation)
        if self.right is not None:
            low = np.maximum(low, -self.right * self.dilation)
        return (low <= high) & _holds_multiple(low, high, self.dilation)

    def describe(self) -> str:
        return "dilated_window()"


@dataclasses.dataclass(frozen=True)
class _Strided(_Pattern):
    stride: int
    query_offset: Offset | None

    def sees(self, query, key):
        distance = query - key
        return (jnp.abs(distance) < self.stride) | (distance % self.stride == 0)

    def meet(self, query_first, query_last, key_first, key_last):
        low, high = query_first - key_last, query_last - key_first
        near = (low < self.stride) & (high > -self.stride)
        return near | _holds_multiple(low, high, self.stride)


@dataclasses.dataclass(frozen=True)
class _Fixed(_Pattern):
    block: int
    summary: int
    query_offset: Offset | None

    def sees(self, query, key):
        same = query // self.block == key // self.block
        return same | (key % self.block >= self.block - self.summary)

    def meet(self, query_first, query_last, key_first, key_last):
        same = query_first // self.block <= key_last // self.block
        same = same & (key_first // self.block <= query_last // self.block)
        # The first summary position that is not before the first key.
        wait = np.maximum(self.block - self.summary - key_first % self.block, 0)
        return same | (key_first + wait <= key_last)


@dataclasses.dataclass(frozen=True)
class _Global(_Pattern):
    count: int
    query_offset: Offset | None

    def sees(self, query, key):
        return (query < self.count) | (key < self.count)

    def meet(self, query_first, query_last, key_first, key_last):
        return (query_first < self.count) | (key_first < self.count)

    def cover(self, query_first, query_last, key_first, key_last):
        return (query_last < self.count) | (key_last < self.count)

    def describe(self) -> str:
        return "global_tokens()"


@dataclasses.dataclass(frozen=True)
class _Marked(Part):
    query: Array
    key: Array

    def allowed(self, B, N, T, S, rows=None, columns=None):
        shapes.expect("mask global_marks(query)", self.query, "B T", {"B": B, "T": T})
        shapes.expect("mask global_marks(key)", self.key, "B S", {"B": B, "S": S})
        queries, keys = conditions.cut(self.query, 1, rows), conditions.cut(self.key, 1, columns)
        return queries[:, None, :, None] | keys[:, None, None, :]

    def reach(self, B, T, S, query_block, key_block):
        queries = conditions.by_block(self.query, query_block)[:, :, None]
        keys = conditions.by_block(self.key, key_block)[:, None]
        return queries.any(-1) | keys.any(-1), queries.all(-1) | keys.all(-1)

    def describe(self) -> str:
        return "global_marks()"


@dataclasses.dataclass(frozen=True)
class _BigBird(Part):
    block: int
    window: int
    global_blocks: int
    random_blocks: int
    seed: int
    links: tuple[tuple[int, ...], ...] | None
    query_offset: Offset | None

    def allowed(self, B, N, T, S, rows=None, columns=None):
        table = self.table(S)
        queries = conditions.query_positions(self.query_offset, B, T, S, rows)[:, 0, :, 0]
        seeing = jnp.clip(queries // self.block, 0, len(table) - 1)
        seen = conditions.positions(S, columns) // self.block
        return jnp.asarray(table)[seeing[:, None, :, None], seen]

    def blocks(self, T: int, S: int, query_block: int, key_block: int) -> np.ndarray | None:
        if not conditions.is_static(self.query_offset):
            return None
        return self.reach(1, T, S, query_block, key_block)[0][0]

    def reach(self, B, T, S, query_block, key_block):
        if not conditions.is_static(self.query_offset):
            return super().reach(B, T, S, query_block, key_block)
        table, offset = self.table(S), conditions.static_offset(self.query_offset, T, S)
        # How many pairs of blocks are seen above and left of a place: what lies within a rectangle
        # of the table are four of these.
        sums = np.pad(table.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        top, bottom = (
            np.clip((ends[:, None] + offset) // self.block, 0, len(table) - 1)
            for ends in conditions.block_ends(T, query_block)
        )
        left, right = (ends // self.block for ends in conditions.block_ends(S, key_block))
        inside = sums[bottom + 1, right + 1] - sums[top, right + 1]
        inside = inside - sums[bottom + 1, left] + sums[top, left]
        area = (bottom + 1 - top) * (right + 1 - left)
        return (inside > 0)[None], (inside == area)[None]

    def table(self, S: int) -> np.ndarray:
        """bool [blocks, blocks]: which block sees which."""
        count = -(-S // self.block)
        number = np.arange(count)
        result = np.abs(number[:, None] - number) <= self.window
        result |= np.minimum(number[:, None], number) < self.global_blocks
        if self.links is None:
            drawn = _draws(count, self.window, self.global_blocks, self.random_blocks, self.seed)
            return result | drawn | drawn.T
        if len(self.links) < count:
            expected = f"one for each of the {count} blocks of {S} positions"
            raise ValueError(f"links: got {len(self.links)} rows, expected {expected}")
        for row, linked in zip(result, self.links, strict=False):
            row[[number for number in linked if number < count]] = True
        return result

    def describe(self) -> str:
        return "big_bird()"


@functools.lru_cache(maxsize=64)
def _draws(count: int, window: int, global_blocks: int, random_blocks: int, seed: int):
    """bool [count, count]: which earlier blocks each block drew. A row depends on its number and
    the seed alone, not on the count."""
    drawn = np.zeros((count, count), bool)
    for row in range(count):
        others = np.arange(global_blocks, row - window)
        # NumPy keeps the stream of this generator for good.
        order = np.random.RandomState([seed, row]).permutation(len(others))
        drawn[row, others[order[:random_blocks]]] = True
    return drawn
