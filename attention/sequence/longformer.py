"""Longformer: a sliding window, and a few global positions with separate projections.

Beltagy et al. 2020, "Longformer: The Long-Document Transformer".

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.cache import KeyValueCache, append_keys_values, valid_lengths
from attention.masks import patterns
from attention.multi_head import MultiHeadAttention
from attention.numerics import mix_heads
from attention.projection import Projection

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LongformerCache:
    """Cache of `Longformer`.

    Attributes:
      local: keys and values of all positions, computed by the local projections.
      start: keys and values of the global positions, computed by the global projections; None if
        there are no global positions or no global projections.
    """

    local: KeyValueCache
    start: KeyValueCache | None


jax.tree_util.register_dataclass(LongformerCache, data_fields=["local", "start"], meta_fields=[])


class Longformer(MultiHeadAttention):
    """Window and global attention (Beltagy et al. 2020, section 3.1).

        y_i = attend(x_i W_q, x W_k, x W_v)  over j with  |i - j| <= window  or  j global
        y_g = attend(x_g W_q', x W_k', x W_v')  over all j,  where g is global

    The first positions are global, as for a classification token. Alternatively, the caller marks
    the global positions.

    Parameters: those of `MultiHeadAttention`, and query_global, key_global and value_global with
      the shapes of query, key and value.

    Args:
      window: number of keys on each side of the query's own position (half of the paper's w).
      global_tokens: number of global first positions.
      share_projections: whether global positions use W_q, W_k and W_v too.
      options: those of `MultiHeadAttention`.

    Raises:
      ValueError: window or global_tokens is negative.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        window: int = 256,
        global_tokens: int = 1,
        share_projections: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.window = patterns.expect_int("window", window, 0)
        self.global_tokens = patterns.expect_int("global_tokens", global_tokens, 0)
        super().__init__(model_size, num_heads, rngs=rngs, **options)
        projection = self._projection(rngs)
        self.query_global, self.key_global, self.value_global = (
            None if share_projections else projection(local.inputs, local.outputs)
            for local in (self.query, self.key, self.value)
        )

    def pattern_mask(self, query_offset: masks.Offset | None = None) -> masks.Mask:
        """Returns the pattern in which the first `global_tokens` positions are global."""
        first = patterns.global_tokens(self.global_tokens, query_offset)
        return masks.window(self.window, self.window, query_offset) | first

    def __call__(
        self,
        x: Array,
        *,
        global_marks: Array | None = None,
        mask: masks.Mask | Array | None = None,
        bias: Array | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Attends from x to itself.

        Args:
          x: [B, T, D].
          global_marks: bool [B, T], True = global. The marks replace the first `global_tokens`
            positions. Any query may then be global, so the second equation is computed for all
            queries, at a cost of O(T²).
          mask, bias: as for `attend`.
          dropout_key: random key for dropout; None for evaluation.
          return_weights: whether to return the weights before dropout. The weights of global
            queries apply to the values x W_v'.

        Returns:
          y, [B, T, D]; with `return_weights`, also the weights, [B, N, T, T].

        Raises:
          ValueError: shapes do not fit.
        """
        sizes = {"D": self.model_size}
        shapes.expect("x", x, "B T D", sizes)
        shapes.expect_known_length("x", x)
        T = sizes["T"]
        rows = min(self.global_tokens, T) if global_marks is None else T
        split = self.query_global is not None and rows > 0
        mask = cast(masks.Mask, self._combine_masks(mask, self._pattern(global_marks, sizes)))
        positions = None if self.positions is None else jnp.arange(T)
        keys = [None, None] if dropout_key is None else jax.random.split(dropout_key)
        projected = (self._query(x, positions), *self._key_value(x, positions))
        near = self._branch(projected, T, positions, mask, bias)
        with recording.suppressed():
            result = self._attend(x, **near, dropout_key=keys[0])
        if split:
            wide = self._branch(self._global(x, positions), rows, positions, mask, bias)
            with recording.suppressed():
                others = self._attend(x[:, :rows], **wide, dropout_key=keys[1])
            marks = None if global_marks is None else global_marks[:, :, None]
            result = _merged(result, others, marks, axis=1)

        def weights_of(branch: dict[str, Any]) -> Array:
            return self._weights(**{name: branch[name] for name in branch if name != "value"})

        def weights() -> Array:
            near_rows = weights_of(near)
            if not split:
                return near_rows
            marks = None if global_marks is None else global_marks[:, None, :, None]
            return _merged(near_rows, weights_of(wide), marks, axis=2)

        def mix(weights: Array) -> Array:
            near_rows = self._output(x, mix_heads(weights, near["value"]))
            if not split:
                return near_rows
            marks = None if global_marks is None else global_marks[:, :, None]
            heads = mix_heads(weights[:, :, :rows], wide["value"])
            return _merged(near_rows, self._output(x[:, :rows], heads), marks, axis=1)

        drops = dropout_key is not None and self.dropout_rate > 0
        result = recording.record_result(result, weights, mix=None if drops else mix)
        return (result, weights()) if return_weights else result

    def init_cache(
        self, batch_size: int, max_length: int, *, dtype: jnp.dtype | None = None
    ) -> LongformerCache:
        """Returns an empty cache for `decode`; the first positions are global.

        Arguments are those of `MultiHeadAttention.init_cache`.
        """
        local = super().init_cache(batch_size, max_length, dtype=dtype)
        rows = min(self.global_tokens, max_length)
        if self.query_global is None or not rows:
            return LongformerCache(local, None)
        return LongformerCache(local, super().init_cache(batch_size, rows, dtype=dtype))

    def decode(
        self, x: Array, cache: LongformerCache, *, lengths: Array | None = None
    ) -> tuple[Array, LongformerCache]:
        if cache.start is None:
            near, local = super().decode(x, cache.local, lengths=lengths)
            return near, LongformerCache(local, None)
        near_weights: list[Callable[[], Array]] = []
        with recording.recorder(near_weights.append):
            near, local = super().decode(x, cache.local, lengths=lengths)
        # Global queries are the first positions. Their keys are those before them, in `start`.
        B, T = x.shape[:2]
        positions = cache.local.length[:, None] + jnp.arange(T)
        left = jnp.maximum(cache.start.capacity - cache.start.length, 0)
        lengths = jnp.minimum(valid_lengths(lengths, B, T), left)
        query, *new = self._global(x, positions)
        key, value = (y.astype(cache.start.key.dtype) for y in new)
        start, keys, values, key_positions, seen = append_keys_values(
            cache.start, key, value, lengths
        )
        keys, values = keys.astype(query.dtype), values.astype(query.dtype)
        bias = self._bias(query, positions, key_positions)
        with recording.suppressed():
            wide = self._attend(x, query, keys, values, mask=seen, bias=bias)
        first = positions < self.global_tokens

        def weights() -> Array:
            near_rows = near_weights[0]()
            others = self._weights(query, keys, mask=seen, bias=bias)
            unseen = near_rows.shape[-1] - others.shape[-1]
            others = jnp.pad(others, ((0, 0), (0, 0), (0, 0), (0, unseen)))
            return jnp.where(first[:, None, :, None], others, near_rows)

        recording.record(weights)
        return jnp.where(first[:, :, None], wide, near), LongformerCache(local, start)

    def _pattern(self, global_marks: Array | None, sizes: dict[str, int]) -> masks.Mask:
        if global_marks is None:
            return self.pattern_mask()
        shapes.expect_boolean("global_marks", global_marks, true_means="a global position")
        shapes.expect("global_marks", global_marks, "B T", dict(sizes))
        marked = patterns.global_marks(global_marks, global_marks)
        return masks.window(self.window, self.window) | marked

    def _branch(
        self,
        projected: tuple[Array, Array, Array],
        rows: int,
        positions: Array | None,
        mask: masks.Mask,
        bias: Array | None,
    ) -> dict[str, Any]:
        """Returns the arguments of `_attend` for the first `rows` queries."""
        query, key, value = projected
        B, T, N, _ = query.shape
        if rows < T:
            query = query[:, :rows]
            mask = masks.dense(mask.materialize(B, N, T, T)[:, :, :rows])
            bias = None if bias is None else bias[:, :, :rows]
        query_positions = None if positions is None else positions[:rows]
        bias = self._bias(query, query_positions, positions, bias)
        return {"query": query, "key": key, "value": value, "mask": mask, "bias": bias}

    def _global(self, x: Array, positions: Array | None) -> tuple[Array, Array, Array]:
        """Returns query, key and value of the global projections, with the local QK-norms."""
        projections = self.query_global, self.key_global, self.value_global
        query, key, value = (cast(Projection, projection)(x) for projection in projections)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if self.positions is not None:
            query, key = (self.positions.rotate(y, cast(Array, positions)) for y in (query, key))
        return query, key, value


def _merged(near: Array, wide: Array, marks: Array | None, *, axis: int) -> Array:
    """Replaces the global rows of an array.

    Args:
      near: the result of the local attention.
      wide: the result of the global attention; without marks, only for the first rows.
      marks: True where a row is global; None if the rows of `wide` are the global ones.
      axis: axis of the rows.
    """
    if marks is not None:
        return jnp.where(marks, wide, near)
    rest = jax.lax.slice_in_dim(near, wide.shape[axis], near.shape[axis], axis=axis)
    return jnp.concatenate([wide, rest], axis=axis)
