"""Multi-head attention with static sparse patterns.

Sliding and dilated windows (Beltagy et al. 2020; Jiang et al. 2023), the strided and the fixed
pattern (Child et al. 2019, "Generating Long Sequences with Sparse Transformers") and the pattern of
Big Bird (Zaheer et al. 2020). `attention.masks.patterns` contains the patterns as masks for
`attend`.

Blockwise kernels skip hidden blocks (`Mask.static_block_mask`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attention import masks
from attention.masks import patterns
from attention.multi_head import MultiHeadAttention


class SparseAttention(MultiHeadAttention):
    """Multi-head self-attention restricted by the mask that `pattern_mask` returns."""

    takes_memory = False

    def pattern_mask(self, query_offset: masks.Offset | None = None) -> masks.Mask:
        """Returns the mask of the pattern, which is combined with the caller's mask by `&`."""
        raise NotImplementedError


class SlidingWindow(SparseAttention):
    """Sliding-window attention (Beltagy et al. 2020, section 3.1; Jiang et al. 2023, "Mistral").

        y_i = attend over j with  i - j = k·dilation,  -right <= k <= left

    Without dilation, the cache of `decode` holds only the last `left` + 1 keys.

    Args:
      left, right: number of keys on each side of the query's own position; None for all.
      dilation: distance between attended keys; with 1 no key in the window is skipped.
      options: those of `MultiHeadAttention`.

    Raises:
      ValueError: left or right is negative, or dilation is below 1.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        left: int | None = 128,
        right: int | None = 128,
        dilation: int = 1,
        **options: Any,
    ):
        self.left, self.right, self.dilation = left, right, dilation
        self.pattern_mask()
        super().__init__(model_size, num_heads, **options)

    def pattern_mask(self, query_offset: masks.Offset | None = None) -> masks.Mask:
        if self.dilation == 1:
            return masks.window(self.left, self.right, query_offset)
        return patterns.dilated_window(self.left, self.right, self.dilation, query_offset)

    def cache_window(self) -> int | None:
        return self.left if self.dilation == 1 else None


class Strided(SparseAttention):
    """Strided attention: a window and every stride-th position (Child et al. 2019, section 4.2).

        y_i = attend over j with  |i - j| < stride  or  (i - j) mod stride = 0

    Args:
      stride: about the square root of the length, or a period of the data (such as the width of an
        image).
      options: those of `MultiHeadAttention`.

    Raises:
      ValueError: the stride is below 1.
    """

    def __init__(self, model_size: int, num_heads: int, *, stride: int = 64, **options: Any):
        self.stride = stride
        self.pattern_mask()
        super().__init__(model_size, num_heads, **options)

    def pattern_mask(self, query_offset: masks.Offset | None = None) -> masks.Mask:
        return patterns.strided(self.stride, query_offset)


class Fixed(SparseAttention):
    """Fixed pattern: the query's block and the ends of all blocks (Child et al. 2019, section 4.2).

        y_i = attend over j with  ⌊i / block⌋ = ⌊j / block⌋  or  j mod block >= block - summary

    Args:
      block: number of positions in a block, the paper's l.
      summary: number of positions at the end of a block that all queries attend to, the paper's c.
      options: those of `MultiHeadAttention`.

    Raises:
      ValueError: a number is out of range.
    """

    def __init__(
        self, model_size: int, num_heads: int, *, block: int = 64, summary: int = 8, **options: Any
    ):
        self.block, self.summary = block, summary
        self.pattern_mask()
        super().__init__(model_size, num_heads, **options)

    def pattern_mask(self, query_offset: masks.Offset | None = None) -> masks.Mask:
        return patterns.fixed(self.block, self.summary, query_offset)


class BigBird(SparseAttention):
    """Big Bird: local, global and random blocks (Zaheer et al. 2020).

        y_i = attend over j with  |I - J| <= window  or  min(I, J) < global_blocks
              or  {I, J} is drawn,      I = ⌊i / block⌋,  J = ⌊j / block⌋

    Args:
      block, window, global_blocks, random_blocks, seed, links: as for `patterns.big_bird`.
      options: those of `MultiHeadAttention`.

    Raises:
      ValueError: a number is out of range; or, when called, `links` has too few entries.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        block: int = 64,
        window: int = 1,
        global_blocks: int = 1,
        random_blocks: int = 2,
        seed: int = 0,
        links: Sequence[Sequence[int]] | None = None,
        **options: Any,
    ):
        self.block, self.window, self.global_blocks = block, window, global_blocks
        self.random_blocks, self.seed = random_blocks, seed
        self.links = None if links is None else patterns.validate_links(links)
        self.pattern_mask()
        super().__init__(model_size, num_heads, **options)

    def pattern_mask(self, query_offset: masks.Offset | None = None) -> masks.Mask:
        blocks = {"window": self.window, "global_blocks": self.global_blocks}
        drawn = {"random_blocks": self.random_blocks, "seed": self.seed, "links": self.links}
        return patterns.big_bird(self.block, **blocks, **drawn, query_offset=query_offset)
