"""Sparse patterns as masks: which few keys a query sees, whatever the data.

Parts of a `Mask` like those of `attention.masks`, joined with `&` and `|`. They look both ways in
time; with `& masks.causal()` they are those of the causal papers:

    mask = patterns.strided(64) & masks.causal() & masks.lengths(key=lengths)

i is the position of a query among the keys (t + query_offset), j that of a key.
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
    return _mask(pattern_terms.Dilated(left, right, dilation, _expect_offset(query_offset)))


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
    return _mask(
        pattern_terms.Strided(expect_int("stride", stride, 1), _expect_offset(query_offset))
    )


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
    return _mask(pattern_terms.Fixed(block, summary, _expect_offset(query_offset)))


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
    return _mask(pattern_terms.Global(expect_int("count", count, 0), _expect_offset(query_offset)))


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
    """The number as an int.

    Raises:
      ValueError: it is none, below `least`, or so large that positions would overflow.
    """
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or number < least:
        raise ValueError(f"{argument}: got {number!r}, expected an int of at least {least}")
    if number > _MOST.get(argument, FAR):
        most = _MOST.get(argument, FAR)
        raise ValueError(f"{argument}: got {number!r}, expected at most {most}")
    return int(number)


# Seeds are no positions.
_MOST = {"seed": 2**32 - 1}


def _expect_offset(offset: Offset | None) -> Offset | None:
    """`masks.validate_offset`, and no further off than positions of an int32 allow."""
    offset = masks.validate_offset(offset)
    if isinstance(offset, int) and abs(offset) > FAR:
        raise ValueError(f"query_offset: got {offset}, expected an int from {-FAR} to {FAR}")
    return offset


def _mask(term: MaskTerm) -> Mask:
    return Mask((term,))


def validate_links(links: Any) -> tuple[tuple[int, ...], ...]:
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
