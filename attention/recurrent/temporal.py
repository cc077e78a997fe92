"""Temporal attention: a recurrent state attends to its past states.

Cheng et al. 2016, "Long Short-Term Memory-Networks for Machine Reading" ("intra-attention"). Paulus
et al. 2018 use it in a decoder. Multiple heads follow Vaswani et al. 2017.

Complete sequences and the single steps of a decoder give equal results:

    contexts = temporal(states, mask=masks.valid(key=valid))             # [B, T, D]

    cache = temporal.init_cache(batch_size, max_length)                  # carry of a scan
    context, weights, cache = temporal.step(state, cache, valid=valid)

B sequences, T positions, D size of a state, N heads.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.cache import KeyValueCache, append_keys_values
from attention.multi_head import MultiHeadAttention
from attention.numerics import mix_heads

Array = jax.Array


class TemporalAttention(MultiHeadAttention):
    """Multi-head attention of a sequence of states to its past (Cheng et al. 2016).

        c_t = concat_n(attend(h_t W_q,n, h_s W_k,n, h_s W_v,n)) W_o
        over s <= t with `current`, else over s < t

    The attention is always causal. The caller combines h_t and c_t, by a sum or by
    tanh(W [c_t; h_t]) (Luong et al. 2015). Without `current`, the first state attends to nothing.
    Its context c is then the bias of W_o (0 in Paulus et al. 2018, equation 5).

    Parameters: those of `MultiHeadAttention`.

    Args:
      model_size: D of the states and of the result.
      num_heads: N, number of heads.
      current: whether a state attends to itself.
      use_bias: whether the projections have biases.
      dropout_rate: dropout rate of the attention weights, active if a dropout_key is given.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: num_heads does not divide model_size, or the rate is out of range.
    """

    takes_memory = False

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        current: bool = True,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.current = current
        super().__init__(
            model_size,
            num_heads,
            use_bias=use_bias,
            dropout_rate=dropout_rate,
            dtype=dtype,
            rngs=rngs,
        )

    def pattern_mask(self, query_offset: masks.Offset | None = None) -> masks.Mask:
        """Returns the mask of the past: s <= t with `current`, else s < t."""
        if self.current:
            return masks.causal(query_offset)
        return masks.causal(-1 if query_offset is None else query_offset - 1)

    def step(
        self, state: Array, cache: KeyValueCache, *, valid: Array | None = None
    ) -> tuple[Array, Array, KeyValueCache]:
        """Computes one step of each sequence as `decode` does, and also returns the weights.

        Args:
          state: h_t, [B, D].
          cache: cache returned by `init_cache`, or by the previous step.
          valid: bool [B], True = a real state. Other states are not stored, but attend to the real
            states before them. All are real if None.

        Returns:
          c_t, [B, D]; the weights over the real states so far, [B, N, max_length]; the new cache.
          Under jit, an overflow of the cache gives NaN.

        Raises:
          ValueError: shapes do not fit, or, outside jit, the cache is full.
        """
        B = cache.length.shape[0]
        shapes.expect("state", state, "B D", {"B": B, "D": self.model_size})
        lengths = None
        if valid is not None:
            shapes.expect_boolean("valid", valid, true_means="a real state")
            shapes.expect("valid", valid, "B", {"B": B})
            lengths = jnp.asarray(valid, jnp.int32)
        x, before = state[:, None], cache.length
        query = self._query(x, None)
        key, value = (y.astype(cache.key.dtype) for y in self._key_value(x, None))
        cache, keys, values, _, _ = append_keys_values(cache, key, value, lengths)
        seen = jnp.arange(cache.capacity) < (cache.length if self.current else before)[:, None]
        keys, values = keys.astype(query.dtype), values.astype(query.dtype)
        mask = masks.valid(key=seen)
        with recording.suppressed():
            result = self._attend(x, query, keys, values, mask=mask, bias=None)[:, 0]
        weights = self._weights(query, keys, mask=mask)[:, :, 0]
        result = recording.record_result(
            result, lambda: weights, mix=lambda w: self.out(mix_heads(w[:, :, None], values))[:, 0]
        )
        return jnp.where(cache.overflow()[:, None], jnp.nan, result), weights, cache
