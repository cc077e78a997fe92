"""Base classes of sequence mixers: calls, recorded weights, decoding, projections.

A mixer maps a sequence [B, T, D] to a sequence of the same shape. Dimension letters are defined in
`attention.shapes`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.cache import KeyValueCache, append_keys_values, valid_lengths
from attention.dropout import dropout_options
from attention.masks import MaskLike
from attention.numerics import mix_heads
from attention.projection import Projection

Array = jax.Array


class SequenceMixer(nnx.Module):
    """Base class of mixers with projections to and from heads.

    Args:
      model_size: D of x and of the result.
      use_bias: whether the projections have biases.
      dropout_rate: dropout rate, active if a dropout_key is given. The subclass determines to which
        array dropout is applied.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: the rate is out of range.
    """

    def __init__(
        self,
        model_size: int,
        *,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
    ):
        shapes.expect_rate("dropout_rate", dropout_rate, key="given when called")
        self.model_size, self.use_bias = model_size, use_bias
        self.dropout_rate, self.dtype = dropout_rate, dtype

    def _projection(self, rngs: nnx.Rngs) -> Callable[..., Projection]:
        """Returns a function of `inputs` and `outputs` that builds a `Projection`."""
        options = {"use_bias": self.use_bias, "dtype": self.dtype, "rngs": rngs}
        return functools.partial(Projection, **options)


class CachedAttention(SequenceMixer):
    """Base class of attention that keeps keys and values in a cache for decoding.

    A subclass sets `cache_sizes` (K, H and V of the cache) and defines `_query`, `_key_value`,
    `_attend` and `_weights`. With `takes_memory` it also sets `memory_size`.
    """

    takes_memory: ClassVar[bool] = False
    memory_size: int
    cache_sizes: tuple[int, int, int]

    def _query(self, x: Array, positions: Array | None) -> Array:
        raise NotImplementedError

    def _key_value(self, x: Array, positions: Array | None) -> tuple[Array, Array]:
        raise NotImplementedError

    def _attend(
        self, x: Array, query: Array, key: Array, value: Array, *, mask, bias, dropout_key=None
    ) -> Array:
        """Returns the result [B, T, D] and records the weights."""
        raise NotImplementedError

    def _weights(self, query: Array, key: Array, *, mask, bias) -> Array:
        raise NotImplementedError

    def _bias(self, query: Array, query_positions: Array, key_positions: Array) -> Any:
        """Returns the bias of the logits in the form that `_attend` and `_weights` expect."""
        return None

    def pattern_mask(self, query_offset: masks.Offset | None = None) -> masks.Mask | None:
        """Returns the mask that is combined with the caller's mask; None for no restriction.

        Args:
          query_offset: position of the first query among the keys, as for `masks.causal`.
        """
        return None

    def cache_window(self) -> int | None:
        """Returns the number of past positions that a query attends to; None for all.

        The query's own position is not counted. If the result is a number, `pattern_mask` must
        return exactly this window to the left. The cache then stores only the keys in the window
        and the query's own key, and decoding does not call `pattern_mask`.
        """
        return None

    def __call__(
        self,
        x: Array,
        memory: Array | None = None,
        *,
        mask: MaskLike | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Attends from x to itself, or to the memory.

        Args:
          x: [B, T, D], at positions 0 ... T - 1.
          memory: [B, S, D_m]; x if None.
          mask: a `Mask` or an array for `masks.dense`; True means may attend.
          dropout_key: random key for dropout; None for evaluation.
          return_weights: whether to return the weights before dropout.

        Returns:
          The result, [B, T, D]; with `return_weights`, also the weights, [B, N, T, S].

        Raises:
          ValueError: shapes do not fit.
          NotImplementedError: the class takes no memory.
        """
        source = self._source(x, memory)
        query_positions, key_positions = (jnp.arange(y.shape[1]) for y in (x, source))
        query = self._query(x, query_positions)
        key, value = self._key_value(source, key_positions)
        options = {"mask": mask, "bias": self._bias(query, query_positions, key_positions)}
        result = self._attend(x, query, key, value, dropout_key=dropout_key, **options)
        return (result, self._weights(query, key, **options)) if return_weights else result

    def _source(self, x: Array, memory: Array | None) -> Array:
        """Checks the arguments and returns the sequence of the keys: the memory, or x if None."""
        if memory is not None and not self.takes_memory:
            raise NotImplementedError(
                f"memory: got an array, expected None because {type(self).__name__} attends from x "
                "to itself; use a mixer with the capability 'cross'"
            )
        sizes = {"D": self.model_size}
        shapes.expect("x", x, "B T D", sizes)
        if not self.takes_memory:
            return x
        source, sizes["M"] = x if memory is None else memory, self.memory_size
        shapes.expect("x" if memory is None else "memory", source, "B S M", sizes)
        return source

    def init_cache(
        self, batch_size: int, max_length: int, *, dtype: jnp.dtype | None = None
    ) -> KeyValueCache:
        """Returns an empty cache for `decode`.

        Args:
          batch_size: B, number of examples.
          max_length: largest number of positions, prompt included.
          dtype: dtype of keys and values; the dtype of the computation if None.
        """
        K, H, V = self.cache_sizes
        return KeyValueCache.empty(
            batch_size,
            max_length,
            K,
            H,
            value_head_size=V,
            window=self.cache_window(),
            dtype=self.dtype if dtype is None else dtype,
        )

    def decode(
        self, x: Array, cache: KeyValueCache, *, lengths: Array | None = None
    ) -> tuple[Array, KeyValueCache]:
        """Computes the next T positions of causal sequences: a prompt, or a step of decoding.

        The result equals `self(x_of_all_positions, mask=masks.causal())` at these positions.

        Args:
          x: [B, T, D].
          cache: cache returned by `init_cache`, or by the previous call.
          lengths: int [B], number of real positions (not padding) among the T. Real positions come
            first. Padding is not stored, and the next call continues after the real positions. All
            are real if None.

        Returns:
          The result, [B, T, D], undefined at positions that are not real; and the new cache. Under
          jit, the result is NaN for an example that overflows the cache.

        Raises:
          ValueError: shapes do not fit, or, outside jit, the cache is full.
        """
        shapes.expect("x", x, "B T D", {"D": self.model_size, "B": cache.length.shape[0]})
        offset = cache.length
        positions = offset[:, None] + jnp.arange(x.shape[1])
        query = self._query(x, positions)
        key, value = (y.astype(cache.key.dtype) for y in self._key_value(x, positions))
        cache, keys, values, key_positions, mask = append_keys_values(cache, key, value, lengths)
        if cache.window is None:
            mask = self._combine_masks(mask, self.pattern_mask(offset))
        bias = self._bias(query, positions, key_positions)
        keys, values = keys.astype(query.dtype), values.astype(query.dtype)
        result = self._attend(x, query, keys, values, mask=mask, bias=bias)
        return jnp.where(cache.overflow()[:, None, None], jnp.nan, result), cache

    @staticmethod
    def _combine_masks(mask: MaskLike | None, pattern: masks.Mask | None):
        if mask is None or pattern is None:
            return pattern if mask is None else mask
        return pattern & (mask if isinstance(mask, masks.Mask) else masks.dense(mask))


class Mixer(SequenceMixer):
    """Base class of self-attention mixers that record their own weights.

    A subclass sets the projection `out` and defines `_mix`.
    """

    out: Projection

    def _mix(
        self, x: Array, mask: MaskLike | None, dropout_rate: float, dropout_key: Array | None
    ) -> tuple[Array, Callable[[], Array]]:
        """Returns the outputs of the heads, and a function that computes the weights.

        The outputs are [B, T, N, V], before the projection `out`.

        Args:
          x: [B, T, D].
          mask: as for `__call__`.
          dropout_rate, dropout_key: as for `attend`.
        """
        raise NotImplementedError

    def __call__(
        self,
        x: Array,
        *,
        mask: MaskLike | None = None,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Mixes the positions of x.

        Args:
          x: [B, T, D].
          mask: conjunction of `masks.lengths`, `masks.valid` and, if the mixer supports it,
            `masks.causal`; or None.
          dropout_key: random key for dropout; None for evaluation.
          return_weights: whether to return the weights before dropout, which takes O(T²) memory.

        Returns:
          The result, [B, T, D]; with `return_weights`, also the weights, [B, N, T, T].

        Raises:
          ValueError: shapes do not fit.
          NotImplementedError: the mask has a term that is not listed for `mask`, or that the mixer
            does not support.
        """
        shapes.expect("x", x, "B T D", {"D": self.model_size})
        dropout = dropout_options(self.dropout_rate, dropout_key)
        with recording.suppressed():
            heads, weights = self._mix(x, mask, **dropout)
        mix = None if dropout["dropout_rate"] else self._weights_to_heads(x)
        if mix is None:
            recording.record(weights)
        else:
            heads = recording.record_result(heads, weights, mix=mix)
        result = self.out(heads)
        return (result, weights()) if return_weights else result

    def _weights_to_heads(self, x: Array) -> Callable[[Array], Array] | None:
        """Returns the linear function from weights for x to heads; None if there is none."""
        return None


class RecurrentMixer(Mixer):
    """Base class of mixers that decode with a recurrent state of constant size.

    A subclass defines `_empty_state` and `_decode`.
    """

    def _empty_state(self, batch_size: int, dtype: jnp.dtype) -> Any:
        raise NotImplementedError

    def _decode(self, x: Array, state: Any, valid: Array | None) -> tuple[Array, Any]:
        """Returns the outputs of the heads, and the state after the last position.

        The outputs are [B, T, N, V], before the projection `out`.

        Args:
          x: [B, T, D].
          state: state before the first position.
          valid: bool [B, T], True = a real position; other positions do not change the state.
        """
        raise NotImplementedError

    def init_cache(
        self, batch_size: int, max_length: int, *, dtype: jnp.dtype | None = None
    ) -> Any:
        """Returns the initial state for `decode`.

        Args:
          batch_size: B, number of examples.
          max_length: not used; the state has the same size for any length.
          dtype: dtype of the state, raised to at least float32; float32 if None.
        """
        return self._empty_state(batch_size, jnp.promote_types(dtype or jnp.float32, jnp.float32))

    def decode(self, x: Array, cache: Any, *, lengths: Array | None = None) -> tuple[Array, Any]:
        """Computes the next T positions as `CachedAttention.decode` does, without a maximum length.

        Args:
          x, cache, lengths: as for `CachedAttention.decode`.

        Returns:
          The result, [B, T, D], undefined at positions that are not real; and the new state.

        Raises:
          ValueError: shapes do not fit.
        """
        B = jax.tree.leaves(cache)[0].shape[0]
        sizes = {"D": self.model_size, "B": B}
        shapes.expect("x", x, "B T D", sizes)
        valid = None
        if lengths is not None:
            valid = jnp.arange(sizes["T"]) < valid_lengths(lengths, B, sizes["T"])[:, None]
        heads, state = self._decode(x, cache, valid)
        return self.out(heads), jax.tree.map(lambda new, old: new.astype(old.dtype), state, cache)


class MultiHeadMixer(Mixer):
    """Base class of mixers with as many key and value heads as query heads.

    Parameters: query/kernel, key/kernel, value/kernel [D, N, H], out/kernel [N, H, D], and biases
      [N, H], [D].

    Args:
      model_size: D of x and of the result.
      num_heads: N, number of heads.
      head_size: H, size of a head; D / N if None.
      options: `use_bias`, `dropout_rate` and `dtype`, as for `SequenceMixer`.

    Raises:
      ValueError: an argument does not fit the others.
    """

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        head_size: int | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(model_size, **options)
        self.num_heads = num_heads
        self.head_size = shapes.head_size(model_size, num_heads, head_size)
        heads, projection = (num_heads, self.head_size), self._projection(rngs)
        self.query = projection((model_size,), heads)
        self.key = projection((model_size,), heads)
        self.value = projection((model_size,), heads)
        self.out = projection(heads, (model_size,))

    def _weights_to_heads(self, x: Array) -> Callable[[Array], Array] | None:
        return lambda weights: mix_heads(weights, self.value(x))
