"""Sparse attention patterns as masks.

The patterns can be combined with the masks of `attention.masks` by `&` and `|`. They are
bidirectional; together with `masks.causal()` they are the causal patterns of the papers:

    mask = patterns.strided(64) & masks.causal() & masks.lengths(key=lengths)

i is the position of a query among the keys (t + query_offset), j the position of a key. B examples,
T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention import masks, shapes
from attention.masks import Mask, pattern_terms
from attention.masks.terms import FAR, MaskTerm, Offset

Array = jax.Array


def dilated_window(
    left: int | None, right: int | None, dilation: int, query_offset: Offset | None = None
) -> Mask:
    """Returns a dilated sliding window (Beltagy et al. 2020, "Longformer", section 3.1).

        allowed_ij = (i - j = k·dilation),  -right <= k <= left

    Args:
      left, right: number of keys on each side besides the query's own position; None for all.
      dilation: distance between the visible keys, at least 1; with 1 this is `masks.window`.
      query_offset: position of the first query among the keys: an int, or an int array [] or [B].
        Required if T != S.

    Returns:
      The `Mask`, [1 or B, 1, T, S] if materialized.

    Raises:
      ValueError: a number is out of range.
    """
    left, right = (
        number if number is None else expect_int(name, number, 0)
        for name, number in (("left", left), ("right", right))
    )
    dilation = expect_int("dilation", dilation, 1)
    return _mask(pattern_terms.Dilated(left, right, dilation, _expect_offset(query_offset)))


def strided(stride: int, query_offset: Offset | None = None) -> Mask:
    """Returns the strided pattern of the Sparse Transformer (Child et al. 2019, section 4.2).

        allowed_ij = |i - j| < stride  or  (i - j) mod stride = 0

    With a stride near sqrt(T), a query attends to O(sqrt(T)) keys and reaches any position in two
    steps.

    Args:
      stride: distance between the distant visible keys, and bound of |i - j| for near ones; at
        least 1.
      query_offset: as in `dilated_window`.

    Returns:
      The `Mask`, [1 or B, 1, T, S] if materialized.

    Raises:
      ValueError: the stride is out of range.
    """
    return _mask(
        pattern_terms.Strided(expect_int("stride", stride, 1), _expect_offset(query_offset))
    )


def fixed(block: int, summary: int = 1, query_offset: Offset | None = None) -> Mask:
    """Returns the fixed pattern of the Sparse Transformer (Child et al. 2019, section 4.2).

        allowed_ij = floor(i / block) = floor(j / block)  or  j mod block >= block - summary

    A query attends to its own block and to the last `summary` positions of every block.

    Args:
      block: number of positions in a block (l in the paper), at least 1.
      summary: number of summary positions in a block (c in the paper), 1 to `block`.
      query_offset: as in `dilated_window`.

    Returns:
      The `Mask`, [1 or B, 1, T, S] if materialized.

    Raises:
      ValueError: a number is out of range.
    """
    block, summary = expect_int("block", block, 1), expect_int("summary", summary, 1)
    if summary > block:
        raise ValueError(f"summary: got {summary}, expected at most block={block}")
    return _mask(pattern_terms.Fixed(block, summary, _expect_offset(query_offset)))


def global_tokens(count: int, query_offset: Offset | None = None) -> Mask:
    """Returns global attention of the first positions (Beltagy et al. 2020, section 3.1).

        allowed_ij = min(i, j) <= count - 1

    A global position attends to all keys, and all queries attend to it. Other pairs are hidden, so
    combine this mask with another one by `|`.

    Args:
      count: number of global positions, at least 0.
      query_offset: as in `dilated_window`.

    Returns:
      The `Mask`, [1 or B, 1, T, S] if materialized.

    Raises:
      ValueError: the count is out of range.
    """
    return _mask(pattern_terms.Global(expect_int("count", count, 0), _expect_offset(query_offset)))


def global_marks(query: Array, key: Array) -> Mask:
    """Returns global attention of marked positions (Beltagy et al. 2020, section 3.1).

        allowed_ij = query_i or key_j

    As for `global_tokens`, combine this mask with another one by `|`.

    Args:
      query, key: bool [B, T], bool [B, S], True = global; for self-attention, pass one array twice.

    Returns:
      The `Mask`, [B, 1, T, S] if materialized.

    Raises:
      ValueError: an array is not boolean or not of rank 2.
    """
    for name, marks in (("query", query), ("key", key)):
        shapes.expect_boolean(name, marks, true_means="a global position")
        shapes.expect(name, marks, "B T" if name == "query" else "B S", {})
    return _mask(pattern_terms.GlobalPositions(jnp.asarray(query), jnp.asarray(key)))


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
    """Returns window, global and random blocks (Zaheer et al. 2020, "Big Bird").

        allowed_ij = |I - J| <= window  or  min(I, J) < global_blocks  or  {I, J} is drawn,
        I = floor(i / block),  J = floor(j / block)

    Each block draws `random_blocks` among the earlier blocks that it does not attend to otherwise;
    the two blocks of a drawn pair attend to each other. In the paper, a block draws from all
    blocks. Drawing from earlier blocks makes the pattern independent of sequence length and
    padding. With `masks.causal()` a block attends to `random_blocks` random blocks, otherwise to
    twice as many on average.

    Args:
      block: number of positions in a block, at least 1.
      window: number of neighboring blocks on each side, at least 0.
      global_blocks: number of global blocks at the start.
      random_blocks: number of blocks that each block draws, or fewer if not enough are available.
      seed: seed of the draws, 0 to 2³² - 1. All heads share the draws.
      links: links between blocks that replace the random draws, for parameters that were trained
        with another implementation. For each query block, these are the indices of the key blocks
        that it attends to in addition to window and global blocks.
      query_offset: as in `dilated_window`.

    Returns:
      The `Mask`, [1 or B, 1, T, S] if materialized.

    Raises:
      ValueError: a number is out of range; or, when the mask is used, `links` has fewer entries
        than there are query blocks.
    """
    seed = expect_int("seed", seed, 0)
    return _mask(
        pattern_terms.BigBird(
            expect_int("block", block, 1),
            expect_int("window", window, 0),
            expect_int("global_blocks", global_blocks, 0),
            expect_int("random_blocks", random_blocks, 0),
            seed,
            links if links is None else validate_links(links),
            _expect_offset(query_offset),
        )
    )


def expect_int(argument: str, number: Any, least: int) -> int:
    """Returns the number as an int.

    Raises:
      ValueError: the number is not an int, is below `least`, or is so large that positions would
        overflow.
    """
    is_int = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not is_int or number < least:
        raise ValueError(f"{argument}: got {number!r}, expected an int of at least {least}")
    if number > _MOST.get(argument, FAR):
        most = _MOST.get(argument, FAR)
        raise ValueError(f"{argument}: got {number!r}, expected at most {most}")
    return int(number)


# Seeds are not positions and have a different limit.
_MOST = {"seed": 2**32 - 1}


def _expect_offset(offset: Offset | None) -> Offset | None:
    """Returns the checked offset, as `masks.validate_offset` does.

    Raises:
      ValueError: as for `masks.validate_offset`, or for an int beyond the range of positions.
    """
    offset = masks.validate_offset(offset)
    if isinstance(offset, int) and abs(offset) > FAR:
        raise ValueError(f"query_offset: got {offset}, expected an int from {-FAR} to {FAR}")
    return offset


def _mask(term: MaskTerm) -> Mask:
    return Mask((term,))


def validate_links(links: Any) -> tuple[tuple[int, ...], ...]:
    """Returns the links of `big_bird` as hashable tuples.

    Raises:
      ValueError: the links are not one sequence of key block indices for each query block.
    """
    try:
        rows = [list(row) for row in links]
    except TypeError:
        raise ValueError(
            f"links: got {links!r}, expected a list of key block indices for each query block"
        ) from None
    return tuple(tuple(expect_int("links", number, 0) for number in row) for row in rows)
