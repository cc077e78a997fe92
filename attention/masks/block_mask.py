"""Block masks: the pairs of query and key blocks that a blockwise kernel computes.

With a block mask, causal, padded, windowed and block-sparse attention (Zaheer et al. 2020) are the
same loop over a list of visible blocks.

B examples, N heads, T queries, S keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention.masks import Mask

Array = jax.Array


class BlockMask(NamedTuple):
    """Key blocks to visit for each query block, or query blocks to visit for each key block.

    The arrays are NumPy arrays if the mask does not depend on data. Axes of size 1 are shared by
    all examples or by all blocks.

    Attributes:
      indices: int32 [1 or B, 1 or blocks, L], lists of block indices: first full, then partial,
        then hidden blocks. For NumPy arrays without hidden blocks, L is the largest number of
        visible blocks in a list.
      num_full: int32 [1 or B, 1 or blocks], number of full blocks, in which each query attends to
        each key.
      num_visible: int32 [1 or B, 1 or blocks], number of full and partial blocks.
    """

    indices: Any
    num_full: Any
    num_visible: Any

    @property
    def has_partial(self) -> bool:
        """True if a block may be partial, so that the mask has to be evaluated."""
        return not isinstance(self.num_full, np.ndarray) or bool(
            (self.num_full != self.num_visible).any()
        )


def make_block_mask(
    mask: Mask | None,
    B: int,
    T: int,
    S: int,
    query_block: int,
    key_block: int,
    *,
    rows: Array | None = None,
    columns: Array | None = None,
    by_key: bool = False,
    hidden: bool = False,
) -> BlockMask:
    """Sorts the blocks of a mask into full, partial and hidden ones (Dao et al. 2022).

        indices_i = (j full for i), (j partial for i), (j hidden for i)

    Args:
      mask: a mask of [B, N, T, S], or None if all keys are visible.
      B, T, S: number of examples, queries and keys.
      query_block, key_block: number of positions in a block.
      rows, columns: int32 [blocks], global indices of the query and key blocks of a shard; None for
        all.
      by_key: whether to list query blocks for each key block instead of key blocks for each query
        block.
      hidden: whether `indices` of a static mask also contain the hidden blocks. The `indices` of
        a data-dependent mask always contain them.

    Returns:
      The `BlockMask`, `indices` of shape [1 or B, 1 or blocks, L].

    Raises:
      ValueError: the mask was made for other sizes.
    """
    visible = full = np.ones((1, 1, 1), bool)
    if mask is not None:
        visible, full = mask.block_visibility(B, T, S, query_block, key_block)
    counts = [-(-T // query_block), -(-S // key_block)]
    if S % key_block:
        # The last key block contains padding, so it is never full.
        full = full & (np.arange(counts[1]) < counts[1] - 1)
    for axis, numbers in enumerate((rows, columns)):
        if numbers is not None:
            visible, full = (_take(x, numbers, axis + 1, counts[axis]) for x in (visible, full))
            counts[axis] = len(numbers)
    if by_key:
        visible, full = visible.swapaxes(1, 2), full.swapaxes(1, 2)
    static = isinstance(visible, np.ndarray) and isinstance(full, np.ndarray)
    xp = np if static else jnp
    kind = xp.where(visible, xp.where(full, 0, 1), 2)
    kind = xp.broadcast_to(kind, (*kind.shape[:2], counts[0 if by_key else 1]))
    indices = xp.argsort(kind, axis=-1, stable=True).astype(np.int32)
    num_full, num_visible = ((kind < limit).sum(-1, dtype=np.int32) for limit in (1, 2))
    if static and not hidden:
        indices = indices[..., : max(1, num_visible.max())]
    return BlockMask(indices, num_full, num_visible)


def _take(x: Any, numbers: Array, axis: int, count: int) -> Array:
    """Selects blocks of an axis; an axis of size 1 stands for `count` equal blocks."""
    return jnp.take(x, numbers if x.shape[axis] == count else jnp.zeros_like(numbers), axis)
