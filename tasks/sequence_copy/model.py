"""A GRU encoder-decoder whose decoder attends to the source by an alignment.

Luong et al. 2015, "Effective Approaches to Attention-based Neural Machine Translation". The
alignments are those of `attention.registry`. With the alignment "none", the decoder reads one fixed
vector instead, as in Sutskever et al. 2014.

B batch, S source length, T target length, E embedding size, D state size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import registry, shapes
from tasks.common.backbones.recurrent import GRU
from tasks.common.backbones.recurrent_decoder import AttentionDecoder
from tasks.common.backbones.transformer_layers import maybe_dropout, split_keys
from tasks.common.configs import Config, PositiveInt, Rate, spec_of
from tasks.common.decoding import generate
from tasks.sequence_copy.data import END, PAD, START, VOCABULARY

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(Config):
    """Config of two GRUs, encoder and decoder, and of the alignment between them.

    Attributes:
      embedding_size: E, size of the token embeddings.
      state_size: D, state size of each GRU.
      alignment: an alignment of `attention.registry`, such as "dot", "additive" or
        "location_aware(width=5)"; or "none" for a decoder that reads one fixed vector. Models with
        "none" and "dot" have the same number of parameters.
      dropout_rate: dropout rate of the embeddings and of the inputs of the output layer.
    """

    name: str = "gru"
    embedding_size: PositiveInt = 32
    state_size: PositiveInt = 64
    alignment: spec_of(*registry.names("alignment")) = "dot"
    dropout_rate: Rate = 0.0

    def __post_init__(self):
        super().__post_init__()
        registry.check_spec(
            "alignment",
            self.alignment,
            lambda states: _one_step(self.build_alignment(nnx.Rngs(0)), states),
            jax.ShapeDtypeStruct((1, 1, self.state_size), jnp.float32),
        )

    @property
    def aligns(self) -> bool:
        """True if the decoder attends to the source."""
        return registry.find("alignment", self.alignment).name != "none"

    def build_alignment(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the alignment module from the spec `alignment`.

        Raises:
          ValueError: the alignment or an option is unknown, or an option has an invalid value.
        """
        D = self.state_size
        return registry.build("alignment", self.alignment, D, D, rngs=rngs)


def _one_step(alignment: Any, states: Array) -> Any:
    memory = alignment.prepare(states)
    return alignment.step(states[:, 0], memory, alignment.initial_state(memory))


MODEL_CONFIGS = {"gru": EncoderDecoderConfig}


class EncoderDecoder(nnx.Module):
    """Recurrent encoder-decoder.

        h_1 ... h_S = GRU(e(x)),   s_0 = h_S

    x is the source and e(x) are its embeddings. The encoder states h are the memory of an
    `AttentionDecoder`, which starts from the state s_0 and uses the same embeddings.
    """

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs):
        E, D = config.embedding_size, config.state_size
        self.config = config
        self.encoder = GRU(E, D, rngs=rngs)
        self.decoder = AttentionDecoder(
            VOCABULARY,
            E,
            D,
            D,
            alignment=config.alignment,
            dropout_rate=config.dropout_rate,
            rngs=rngs,
        )

    def __call__(
        self, source: Array, lengths: Array, target: Array, *, dropout_key: Array | None = None
    ) -> tuple[Array, Array]:
        """Computes logits under teacher forcing.

        Args:
          source: ids of the source digits, int [B, S].
          lengths: int [B], number of digits of each source.
          target: target ids with the end token, int [B, T].
          dropout_key: None for evaluation.

        Returns:
          Logits float32 [B, T, vocabulary]; and the attention weights of every step, [B, T, S], or
          [B, T, N, S] for an alignment with N heads.

        Raises:
          ValueError: shapes do not fit.
        """
        B = source.shape[0]
        shapes.expect("target", target, "B T", {"B": B})
        keys = split_keys(dropout_key, 2)
        inputs = jnp.concatenate([jnp.full((B, 1), START, target.dtype), target[:, :-1]], axis=1)
        encoded = self._encode(source, lengths, keys[0])
        return self.decoder(*encoded, inputs, dropout_key=keys[1])

    def generate(self, source: Array, lengths: Array, steps: int) -> tuple[Array, Array]:
        """Decodes greedily.

        Args:
          source: ids of the source digits, int [B, S].
          lengths: int [B], number of digits of each source.
          steps: T, maximum number of tokens.

        Returns:
          Tokens int32 [B, T], PAD after the first END; and the attention weights of every step,
          [B, T, S] or [B, T, N, S], 0 for PAD.
        """
        decoded = self.decoding(source, lengths, steps).generate(generate.DecodingConfig())
        return decoded.tokens[:, 0], decoded.extras["alignment"][:, 0]

    def decoding(self, source: Array, lengths: Array, steps: int) -> generate.TokenDecoder:
        """Encodes strings, and returns a decoder of their targets.

        The arguments are those of `generate`.
        """
        return generate.TokenDecoder(
            self.decoder.step,
            self.decoder.prepare(*self._encode(source, lengths, None)),
            batch_size=source.shape[0],
            max_length=steps,
            start=START,
            end=END,
            pad=PAD,
        )

    def _encode(
        self, source: Array, lengths: Array, key: Array | None
    ) -> tuple[Array, Array, Array]:
        """Encodes strings.

        Returns:
          States [B, S, D]; their validity, bool [B, S]; and the final state [B, D].
        """
        sizes: dict[str, int] = {}
        shapes.expect("source", source, "B S", sizes)
        shapes.expect("lengths", lengths, "B", sizes)
        valid = jnp.arange(sizes["S"]) < lengths[:, None]
        words = maybe_dropout(self.decoder.embedding(source), self.config.dropout_rate, key)
        states, last = self.encoder(words, valid=valid)
        return states, valid, last
