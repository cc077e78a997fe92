"""Which pairs of blocks of queries and keys are computed, and what a piece of attention is.

Lists of blocks instead of bounds: causal, padded, windowed and block-sparse attention (Zaheer et
al. 2020) are then one loop each way, whose length is the number of blocks that are seen.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.masks import Mask

Array = jax.Array


class BlockOffset(NamedTuple):
    """Where a piece lies in the whole; traced where devices differ.

    Attributes:
      example, head: the first of them; the mask has those of the piece alone.
      rows, columns: the numbers, in the whole, of its query blocks and of its key blocks, int32
        [blocks]; None for all of them in order.
    """

    example: int | Array = 0
    head: int | Array = 0
    rows: Array | None = None
    columns: Array | None = None


NO_OFFSET = BlockOffset()


@dataclasses.dataclass(frozen=True)
class BlockwiseSpec:
    """What all pieces share, known before running.

    Attributes:
      whole: B, N, T, S of all of the attention.
      scale, logit_cap, dropout_rate: as for `attend`.
      bias_slopes: whether the gradient of a bias, T x S, is asked for.
      query_block, key_block: sizes of a block; they have to divide what is not the whole.
    """

    whole: tuple[int, int, int, int]
    scale: float
    logit_cap: float | None
    dropout_rate: float
    query_block: int
    key_block: int
    needs_bias_grad: bool = True


class Visible(NamedTuple):
    """For each block of one side, which blocks of the other it meets; NumPy's where static.

    Attributes:
      order: int32 [1 or B, blocks, most], their numbers, the first `count` of which count.
      count: int32 [1 or B, blocks].
    """

    order: Any
    count: Any


class Plan(NamedTuple):
    """Which pairs of blocks are computed, and for which the elements of the mask are asked.

    Attributes:
      by_row, by_column: what each query block and each key block meets.
      whole: bool [1 or B, query blocks, key blocks], True where all see all.
      masked: whether any may be not whole; known before running.
    """

    by_row: Visible
    by_column: Visible
    whole: Any
    masked: bool


def make_plan(mask: Mask | None, B: int, spec: BlockwiseSpec, offset: BlockOffset) -> Plan:
    """The plan of a piece of B examples. Its lists are short: one entry a pair of blocks."""
    _, _, T, S = spec.whole
    sides = spec.query_block, spec.key_block
    some = whole = np.ones((1, 1, 1), bool)
    if mask is not None:
        some, whole = mask.block_visibility(B, T, S, *sides)
    counts = -(-T // sides[0]), -(-S // sides[1])
    numbers = offset.rows, offset.columns
    static = all(x is None or isinstance(x, np.ndarray) for x in (some, whole, *numbers))
    xp = np if static else jnp
    some, whole = (xp.broadcast_to(x, (x.shape[0], *counts)) for x in (some, whole))
    if S % sides[1]:
        # What stands beyond the last key is not to be seen.
        whole = whole & (np.arange(counts[1]) < counts[1] - 1)
    for axis, chosen in enumerate(numbers, start=1):
        if chosen is not None:
            some, whole = (xp.take(x, chosen, axis) for x in (some, whole))
    masked = not (isinstance(some, np.ndarray) and (whole | ~some).all())
    return Plan(_visible(some), _visible(some.swapaxes(1, 2)), whole, masked)


def _visible(some: Any) -> Visible:
    xp = np if isinstance(some, np.ndarray) else jnp
    order = xp.argsort(~some, axis=-1, stable=True).astype(np.int32)
    count = some.sum(-1, dtype=np.int32)
    if xp is np:
        order = order[..., : max(int(count.max()), 1)]
    return Visible(order, count)
