"""A GRU encoder-decoder with an alignment of the registry.

Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation"; with the
alignment "none" the control of Sutskever et al. 2014: all that the decoder has is one fixed vector.

B batch, S source length, T target length, E embedding size, D state size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import registry, shapes
from attention.dropout import dropout
from attention.projection import Projection
from tasks.common.backbones.recurrent import GRU
from tasks.sequence_copy.data import END, PAD, START, VOCABULARY

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """Two GRUs and what joins them.

    Attributes:
      embedding_size: E.
      state_size: D of both GRUs.
      alignment: an alignment of `attention.registry`, with options if any: "dot", "additive",
        "location_aware(width=5)"; "none" is the fixed-vector control, with as many weights as
        "dot".
      dropout_rate: of the embeddings and of what the words are read from.
    """

    name: str = "gru"
    embedding_size: int = 32
    state_size: int = 64
    alignment: str = "dot"
    dropout_rate: float = 0.0

    def __post_init__(self):
        for name in ("embedding_size", "state_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1), got {self.dropout_rate}")
        # Its options are checked where they are used: one is built and called, but no weight drawn
        # and nothing computed.
        try:
            nnx.eval_shape(
                lambda states: _one_step(self.build_alignment(nnx.Rngs(0)), states),
                jax.ShapeDtypeStruct((1, 1, self.state_size), jnp.float32),
            )
        except ValueError as error:
            known = str(error).startswith("alignment: ")
            raise ValueError(
                str(error) if known else f"alignment: {self.alignment!r}: {error}"
            ) from None

    @property
    def aligns(self) -> bool:
        """Whether there is any attention."""
        return registry.find("alignment", self.alignment).name != "none"

    def build_alignment(self, rngs: nnx.Rngs) -> nnx.Module:
        """The alignment, from its spec.

        Raises:
          ValueError: an unknown alignment or option, or one that does not fit.
        """
        D = self.state_size
        return registry.build("alignment", self.alignment, D, D, rngs=rngs)


def _one_step(alignment: Any, states: Array) -> Any:
    memory = alignment.prepare(states)
    return alignment.step(states[:, 0], memory, alignment.initial_state(memory))


MODEL_CONFIGS = {"gru": EncoderDecoderConfig}


class EncoderDecoder(nnx.Module):
    """Reads the source, then writes token by token.

        h_1 ... h_S = GRU_e(E x),   s_0 = h_S
        s_t = GRU_d([E y_{t-1}; c_{t-1}], s_{t-1})
        c_t = align(s_t, h),   logits_t = W_o tanh(W_c [c_t; s_t])

    with c_0 = 0 (Luong's input feeding, of the context).
    """

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        E, D = config.embedding_size, config.state_size
        self.config = config
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (VOCABULARY, E)))
        self.encoder = GRU(E, D, rngs=rngs)
        self.decoder = GRU(E + D, D, rngs=rngs)
        self.alignment = config.build_alignment(rngs)
        self.combine = Projection((2 * D,), (D,), rngs=rngs)
        self.classify = Projection((D,), (VOCABULARY,), rngs=rngs)

    def __call__(
        self, source: Array, lengths: Array, target: Array, *, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        """Teacher forcing: before each token the decoder reads the true one before it.

        Args:
          source: int [B, S].
          lengths: int [B], the digits of each source, which come first.
          target: int [B, T].
          dropout_key: None for evaluation.

        Returns:
          logits float32 [B, T, words] and the weights of every step: [B, T, S], or [B, T, N, S]
          of an alignment with N heads.

        Raises:
          ValueError: shapes do not fit.
        """
        B, T = len(source), target.shape[-1]
        shapes.expect("target", target, "B T", {"B": B})
        keys = [None] * 3 if dropout_key is None else list(jax.random.split(dropout_key, 3))
        memory, carry = self._encode(source, lengths, keys[0])
        previous = jnp.concatenate([jnp.full((B, 1), START, target.dtype), target[:, :-1]], axis=1)
        words = self._dropped(self._embed(previous), keys[1])

        def step(carry, word):
            carry, features, weights = self._step(word, memory, carry)
            return carry, (features, weights)

        _, (features, weights) = jax.lax.scan(step, carry, jnp.swapaxes(words, 0, 1), length=T)
        features = self._dropped(jnp.swapaxes(features, 0, 1), keys[2])
        return self.classify(features), jnp.swapaxes(weights, 0, 1)

    def generate(self, source: Array, lengths: Array, steps: int) -> tuple[Array, Array]:
        """Greedy decoding: each step reads the likeliest token of the one before.

        Args:
          source: int [B, S].
          lengths: int [B].
          steps: T, the most tokens written.

        Returns:
          Tokens int32 [B, T], PAD after the first END, and the weights of every step, [B, T, S] or
          [B, T, N, S], 0 where PAD is written.
        """
        memory, carry = self._encode(source, lengths, None)
        start = jnp.full((len(source),), START, jnp.int32)

        def step(carry, _):
            carry, token, ended = carry
            carry, features, weights = self._step(self._embed(token), memory, carry)
            token = jnp.argmax(self.classify(features), axis=-1).astype(jnp.int32)
            token = jnp.where(ended, PAD, token)
            weights = jnp.where(ended.reshape(-1, *[1] * (weights.ndim - 1)), 0, weights)
            return (carry, token, ended | (token == END)), (token, weights)

        carry = (carry, start, jnp.zeros(len(source), bool))
        _, (tokens, weights) = jax.lax.scan(step, carry, length=steps)
        return jnp.swapaxes(tokens, 0, 1), jnp.swapaxes(weights, 0, 1)

    def _encode(self, source: Array, lengths: Array, key: Array | None) -> tuple[Any, Any]:
        """The memory, and what the decoder starts from: state, context, alignment's state."""
        sizes: dict[str, int] = {}
        shapes.expect("source", source, "B S", sizes)
        shapes.expect("lengths", lengths, "B", sizes)
        valid = jnp.arange(sizes["S"]) < lengths[:, None]
        states, last = self.encoder(self._dropped(self._embed(source), key), valid=valid)
        memory = self.alignment.prepare(states, valid=valid)
        return memory, (last, jnp.zeros_like(last), self.alignment.initial_state(memory))

    def _step(self, word: Array, memory: Any, carry: Any) -> tuple[Any, Array, Array]:
        """word [B, E] -> the next carry, features [B, D], weights [B, S] or [B, N, S]."""
        state, context, aligned = carry
        state = self.decoder.step(jnp.concatenate([word, context], axis=-1), state)
        context, weights, aligned = self.alignment.step(state, memory, aligned)
        features = jnp.tanh(self.combine(jnp.concatenate([context, state], axis=-1)))
        return (state, context, aligned), features, weights

    def _embed(self, tokens: Array) -> Array:
        return jnp.take(self.embedding[...], tokens, axis=0)

    def _dropped(self, x: Array, key: Array | None) -> Array:
        return x if key is None else dropout(x, self.config.dropout_rate, key)
