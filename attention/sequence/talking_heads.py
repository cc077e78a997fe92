"""Talking-heads attention: linear maps across heads before and after the softmax.

Shazeer et al. 2020, "Talking-Heads Attention".

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.dropout import dropout, dropout_options
from attention.numerics import accumulator, mix_heads, softmax
from attention.sequence.base import CachedAttention

Array = jax.Array


def talking_heads(
    query: Array,
    key: Array,
    value: Array,
    logit_mixing: Array,
    weight_mixing: Array,
    *,
    mask: masks.Mask | Array | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Array | None = None,
) -> Array:
    """Computes talking-heads attention (Shazeer et al. 2020, section 3).

        l_n = Σ_m P_mn (scale · q_m kᵀ_m),   u_n = Σ_m softmax(l_m) R_mn,   o_n = u_n v_n

    Hidden keys stay hidden after both mixings. A mask with a head axis refers to the heads after
    the mixing. A query that may attend to nothing gives 0, with finite gradients.

    Args:
      query: [B, T, N, H].
      key: [B, S, N, H].
      value: [B, S, N, V].
      logit_mixing: P, [N, N], from the heads of q and k to those of the softmax.
      weight_mixing: R, [N, N], from the heads of the softmax to those of v.
      mask: a `Mask` or an array for `masks.dense`; True means may attend.
      scale: 1 / sqrt(H) if None.
      dropout_rate: dropout rate of the weights u.
      dropout_key: required if dropout_rate > 0.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
    """
    shapes.expect_attention(query, key, value)
    weights = talking_heads_weights(query, key, logit_mixing, weight_mixing, mask=mask, scale=scale)
    weights = dropout(weights, dropout_rate, dropout_key).astype(value.dtype)
    heads = jnp.einsum("BNTS,BSNV->BNTV", weights, value, preferred_element_type=accumulator(value))
    return heads.swapaxes(1, 2).astype(query.dtype)


def talking_heads_weights(
    query: Array,
    key: Array,
    logit_mixing: Array,
    weight_mixing: Array,
    *,
    mask: masks.Mask | Array | None = None,
    scale: float | None = None,
) -> Array:
    """Computes the weights u of `talking_heads` (Shazeer et al. 2020).

        u_n = Σ_m softmax(l_m) R_mn

    The weights may be negative.

    Args:
      query: [B, T, N, H].
      key: [B, S, N, H].
      logit_mixing, weight_mixing: P and R, [N, N].
      mask, scale: as for `talking_heads`.

    Returns:
      [B, N, T, S] in at least float32, before dropout.

    Raises:
      ValueError: as for `talking_heads`.
    """
    sizes = shapes.expect_attention(query, key)
    shapes.expect("key", key, "B S N H", sizes)
    mixings = {"logit_mixing": (logit_mixing, "N N"), "weight_mixing": (weight_mixing, "N N")}
    shapes.expect_arrays(mixings, sizes)
    B, N, T, S = (sizes[letter] for letter in "BNTS")
    wide = accumulator(query)
    logits = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=wide)
    logits = logits * (sizes["H"] ** -0.5 if scale is None else scale)
    logits = jnp.einsum("BMTS,MN->BNTS", logits, logit_mixing.astype(wide))
    seen = None
    if mask is not None:
        mask = mask if isinstance(mask, masks.Mask) else masks.dense(mask)
        seen = mask.materialize(B, N, T, S)
        logits = jnp.where(seen, logits, -jnp.inf)
    weights = jnp.einsum("BMTS,MN->BNTS", softmax(logits), weight_mixing.astype(wide))
    return weights if seen is None else jnp.where(seen, weights, 0.0)


class TalkingHeadsAttention(CachedAttention):
    """Self- or cross-attention by `talking_heads` (Shazeer et al. 2020).

        y = concat_n(Σ_s u_nts v_sn) W_o,   u as for `talking_heads`

    Parameters: query, key, value: kernel [D or D_m, N, H], bias [N, H]; logit_mixing, weight_mixing
      (P, R) [N, N], initialized to the identity (multi-head attention); out: kernel [N, H, D], bias
      [D].

    Args:
      model_size: D of x and of the result.
      num_heads: N, number of heads.
      head_size: H, size of a head; D / N if None.
      memory_size: D_m of the memory; D if None.
      options: those of `SequenceMixer`. Dropout is applied to the mixed weights. Heads are mixed in
        at least float32.

    Raises:
      ValueError: num_heads does not divide model_size.
    """

    takes_memory = True

    def __init__(
        self,
        model_size: int,
        num_heads: int,
        *,
        head_size: int | None = None,
        memory_size: int | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(model_size, **options)
        heads = num_heads, shapes.head_size(model_size, num_heads, head_size)
        self.memory_size = model_size if memory_size is None else memory_size
        self.cache_sizes = (*heads, heads[1])
        projection = self._projection(rngs)
        self.query = projection((model_size,), heads)
        self.key = projection((self.memory_size,), heads)
        self.value = projection((self.memory_size,), heads)
        self.out = projection(heads, (model_size,))
        self.logit_mixing = nnx.Param(jnp.eye(num_heads))
        self.weight_mixing = nnx.Param(jnp.eye(num_heads))

    def _query(self, x: Array, positions: Array | None) -> Array:
        return self.query(x)

    def _key_value(self, x: Array, positions: Array | None) -> tuple[Array, Array]:
        return self.key(x), self.value(x)

    def _weights(self, query, key, *, mask, bias) -> Array:
        return talking_heads_weights(query, key, *self._mixings(), mask=mask)

    def _attend(self, x, query, key, value, *, mask, bias, dropout_key=None) -> Array:
        options = dropout_options(self.dropout_rate, dropout_key)
        heads = talking_heads(query, key, value, *self._mixings(), mask=mask, **options)
        heads = recording.record_result(
            heads,
            lambda: self._weights(query, key, mask=mask, bias=bias),
            mix=None if options["dropout_rate"] else lambda weights: mix_heads(weights, value),
            values=value,
        )
        return self.out(heads)

    def _mixings(self) -> tuple[Array, Array]:
        return self.logit_mixing[...], self.weight_mixing[...]
