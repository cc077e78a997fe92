"""Mask terms of the sparse patterns in `attention.masks.patterns`. T queries, S keys."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from attention import shapes
from attention.masks import terms
from attention.masks.terms import FAR, MaskTerm, Offset

Array = jax.Array


class Pattern(MaskTerm):
    """A term that depends only on query and key positions; its last field is `query_offset`."""

    query_offset: Offset | None

    def allowed(self, B, N, T, S, rows=None, columns=None):
        queries = terms.query_positions(self.query_offset, B, T, S, rows)
        return self.mask_mod(queries, terms.positions(S, columns))

    def block_visibility(self, B, T, S, query_block, key_block):
        if not terms.is_static(self.query_offset):
            return super().block_visibility(B, T, S, query_block, key_block)
        offset = terms.static_offset(self.query_offset, T, S)
        first, last = (ends[:, None] + offset for ends in terms.block_ends(T, query_block))
        ends = first, last, *terms.block_ends(S, key_block)
        return self.any_visible(*ends)[None], self.all_visible(*ends)[None]

    def mask_mod(self, query_index: Array, key_index: Array) -> Array:
        """Returns which queries may attend to which keys.

        Args:
          query_index: positions of the queries among the keys, [..., T, 1].
          key_index: positions of the keys, [S].

        Returns:
          bool [..., T, S].
        """
        raise NotImplementedError

    def any_visible(
        self,
        query_first: np.ndarray,
        query_last: np.ndarray,
        key_first: np.ndarray,
        key_last: np.ndarray,
    ) -> np.ndarray:
        """Returns whether any query of a query block attends to any key of a key block.

        The result is exact.

        Args:
          query_first, query_last: first and last positions of Q query blocks, [Q, 1].
          key_first, key_last: first and last positions of K key blocks, [K].

        Returns:
          bool [Q, K].
        """
        raise NotImplementedError

    def all_visible(self, query_first, query_last, key_first, key_last) -> np.ndarray:
        """Returns whether all queries of a query block attend to all keys of a key block.

        The arguments and the shape of the result are those of `any_visible`. The result may be
        False for a block that is full.
        """
        return np.zeros((len(query_first), len(key_first)), bool)


def _holds_multiple(low: np.ndarray, high: np.ndarray, number: int) -> np.ndarray:
    """Returns whether an integer from `low` to `high` is a multiple of `number`."""
    return high // number * number >= low


@dataclasses.dataclass(frozen=True)
class Dilated(Pattern):
    left: int | None
    right: int | None
    dilation: int
    query_offset: Offset | None

    def mask_mod(self, query_index, key_index):
        distance = query_index - key_index
        result = distance % self.dilation == 0
        if self.left is not None:
            result = result & (distance <= min(self.left * self.dilation, 2 * FAR))
        if self.right is not None:
            result = result & (distance >= -min(self.right * self.dilation, 2 * FAR))
        return result

    def any_visible(self, query_first, query_last, key_first, key_last):
        # Blocks are contiguous, so every distance between these two bounds occurs.
        low, high = query_first - key_last, query_last - key_first
        if self.left is not None:
            high = np.minimum(high, self.left * self.dilation)
        if self.right is not None:
            low = np.maximum(low, -self.right * self.dilation)
        return (low <= high) & _holds_multiple(low, high, self.dilation)

    def describe(self) -> str:
        return "dilated_window()"


@dataclasses.dataclass(frozen=True)
class Strided(Pattern):
    stride: int
    query_offset: Offset | None

    def mask_mod(self, query_index, key_index):
        distance = query_index - key_index
        return (jnp.abs(distance) < self.stride) | (distance % self.stride == 0)

    def any_visible(self, query_first, query_last, key_first, key_last):
        low, high = query_first - key_last, query_last - key_first
        near = (low < self.stride) & (high > -self.stride)
        return near | _holds_multiple(low, high, self.stride)


@dataclasses.dataclass(frozen=True)
class Fixed(Pattern):
    block: int
    summary: int
    query_offset: Offset | None

    def mask_mod(self, query_index, key_index):
        same = query_index // self.block == key_index // self.block
        return same | (key_index % self.block >= self.block - self.summary)

    def any_visible(self, query_first, query_last, key_first, key_last):
        same = query_first // self.block <= key_last // self.block
        same = same & (key_first // self.block <= query_last // self.block)
        # Distance from the first key to the first summary position at or after it.
        wait = np.maximum(self.block - self.summary - key_first % self.block, 0)
        return same | (key_first + wait <= key_last)


@dataclasses.dataclass(frozen=True)
class Global(Pattern):
    count: int
    query_offset: Offset | None

    def mask_mod(self, query_index, key_index):
        return (query_index < self.count) | (key_index < self.count)

    def any_visible(self, query_first, query_last, key_first, key_last):
        return (query_first < self.count) | (key_first < self.count)

    def all_visible(self, query_first, query_last, key_first, key_last):
        return (query_last < self.count) | (key_last < self.count)

    def describe(self) -> str:
        return "global_tokens()"


@dataclasses.dataclass(frozen=True)
class GlobalPositions(MaskTerm):
    query: Array
    key: Array

    def allowed(self, B, N, T, S, rows=None, columns=None):
        shapes.expect("mask global_marks(query)", self.query, "B T", {"B": B, "T": T})
        shapes.expect("mask global_marks(key)", self.key, "B S", {"B": B, "S": S})
        queries = terms.slice_span(self.query, 1, rows)
        keys = terms.slice_span(self.key, 1, columns)
        return queries[:, None, :, None] | keys[:, None, None, :]

    def block_visibility(self, B, T, S, query_block, key_block):
        queries = terms.split_into_blocks(self.query, query_block)[:, :, None]
        keys = terms.split_into_blocks(self.key, key_block)[:, None]
        return queries.any(-1) | keys.any(-1), queries.all(-1) | keys.all(-1)

    def describe(self) -> str:
        return "global_marks()"


@dataclasses.dataclass(frozen=True)
class BigBird(MaskTerm):
    block: int
    window: int
    global_blocks: int
    random_blocks: int
    seed: int
    links: tuple[tuple[int, ...], ...] | None
    query_offset: Offset | None

    def allowed(self, B, N, T, S, rows=None, columns=None):
        table = self.table(S)
        queries = terms.query_positions(self.query_offset, B, T, S, rows)[:, 0, :, 0]
        row = jnp.clip(queries // self.block, 0, len(table) - 1)
        column = terms.positions(S, columns) // self.block
        return jnp.asarray(table)[row[:, None, :, None], column]

    def block_visibility(self, B, T, S, query_block, key_block):
        if not terms.is_static(self.query_offset):
            return super().block_visibility(B, T, S, query_block, key_block)
        table, offset = self.table(S), terms.static_offset(self.query_offset, T, S)
        # Summed-area table: the number of visible pairs within a rectangle of the table is the
        # signed sum of four entries.
        sums = np.pad(table.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        top, bottom = (
            np.clip((ends[:, None] + offset) // self.block, 0, len(table) - 1)
            for ends in terms.block_ends(T, query_block)
        )
        left, right = (ends // self.block for ends in terms.block_ends(S, key_block))
        inside = sums[bottom + 1, right + 1] - sums[top, right + 1]
        inside = inside - sums[bottom + 1, left] + sums[top, left]
        area = (bottom + 1 - top) * (right + 1 - left)
        return (inside > 0)[None], (inside == area)[None]

    def table(self, S: int) -> np.ndarray:
        """Returns which query blocks attend to which key blocks, bool [blocks, blocks].

        Args:
          S: number of keys.
        """
        if not isinstance(S, int):
            raise NotImplementedError(
                f"mask: got {self.describe()} with S={S} keys, expected a number for S, not a "
                "symbol"
            )
        # There is at least one block, so that lookups are valid even without keys.
        count = max(-(-S // self.block), 1)
        number = np.arange(count)
        result = np.abs(number[:, None] - number) <= self.window
        result |= np.minimum(number[:, None], number) < self.global_blocks
        if self.links is None:
            drawn = _draws(count, self.window, self.global_blocks, self.random_blocks, self.seed)
            return result | drawn | drawn.T
        if len(self.links) < count:
            expected = f"one row for each of the {count} blocks into which {S} keys are divided"
            raise ValueError(f"links: got {len(self.links)} rows, expected {expected}")
        for row, linked in zip(result, self.links, strict=False):
            row[[number for number in linked if number < count]] = True
        return result

    def describe(self) -> str:
        return "big_bird()"


@functools.lru_cache(maxsize=64)
def _draws(count: int, window: int, global_blocks: int, random_blocks: int, seed: int):
    """Draws random earlier blocks for each block of `big_bird`.

    Args:
      count: number of blocks.
      window, global_blocks, random_blocks, seed: as for `big_bird`.

    Returns:
      bool [count, count], True if the block of the row draws the block of the column. A row does
      not depend on the number of blocks.
    """
    drawn = np.zeros((count, count), bool)
    for row in range(count):
        others = np.arange(global_blocks, row - window)
        # NumPy guarantees that the stream of this legacy generator never changes.
        order = np.random.RandomState([seed, row]).permutation(len(others))
        drawn[row, others[order[:random_blocks]]] = True
    return drawn
