"""Multi-head attention of a decoder's state over an encoder's states.

Vaswani et al. 2017, "Attention Is All You Need", as an alignment. `attention.recurrent.memory`
defines the interface of alignments and the dimension letters.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, recording, shapes
from attention.dot_product import attend, attention_weights
from attention.numerics import mix_heads
from attention.projection import Projection
from attention.recurrent.memory import Alignment, Memory, validate_states

Array = jax.Array


class MultiHeadAlignment(Alignment):
    """Scaled dot-product attention of several heads with one query (Vaswani et al. 2017).

        a_n = softmax_s(q W_q,n · h_s W_k,n / √H),   c = concat_n(Σ_s a_ns h_s W_v,n) W_o

    Keys and values are computed once, in `prepare`. Each head has its own weights, [B, N, S].
    There is no output bias, so that an empty memory gives 0.

    Parameters: query/kernel [Q, N, H], key/kernel and value/kernel [D, N, H], biases [N, H],
    out/kernel [N, H, D].

    Args:
      query_size: Q of the decoder's state.
      memory_size: D of the encoder's states and of the context.
      num_heads: N, number of heads.
      head_size: H, size of a head; D / N if None.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: num_heads is below 1 or, without a head_size, does not divide memory_size.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        num_heads: int = 4,
        head_size: int | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        H = shapes.head_size(memory_size, num_heads, head_size)
        super().__init__(query_size, memory_size, dtype=dtype, rngs=rngs)
        heads, options = (num_heads, H), {"dtype": dtype, "rngs": rngs}
        self.query = Projection((query_size,), heads, **options)
        self.key = Projection((memory_size,), heads, **options)
        self.value = Projection((memory_size,), heads, **options)
        self.out = Projection(heads, (memory_size,), use_bias=False, **options)

    def prepare(self, states: Array, *, valid: Array | None = None) -> Memory:
        states, valid = validate_states(states, valid, self.memory_size, self.dtype)
        return Memory(self.key(states), self.value(states), valid)

    def _step(self, query: Array, memory: Memory) -> tuple[Array, Array]:
        query, mask = self.query(query)[:, None], masks.valid(key=memory.valid)
        with recording.suppressed():
            heads = attend(query, memory.keys, memory.values, mask=mask)
        weights = attention_weights(query, memory.keys, mask=mask)[:, :, 0]
        heads = recording.record_result(
            heads, lambda: weights, mix=lambda w: mix_heads(w[:, :, None], memory.values)
        )
        return self.out(heads)[:, 0], weights
