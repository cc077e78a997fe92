"""Translation models: a Transformer, and a recurrent encoder-decoder with an alignment.

B batch, S source length, T target length, D model or state size, E embedding size, N heads, L
layers, V vocabulary, R rows in decoding (B, or B times the number of beams). Both models have the
same interface: `logits = model(source, target, dropout_key=None)` under teacher forcing, and
`decoded = model.translate(source, config=DecodingConfig(...), max_length=T)`.

The vocabulary consists of the ids of the tokenizer, followed by two tokens: START, the first input
of a decoder, and END, which ends every sentence of both languages.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import registry, shapes
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.recurrent import CELLS, Bidirectional, find_cell
from tasks.common.backbones.recurrent_decoder import AttentionDecoder
from tasks.common.backbones.stacking import unstacked
from tasks.common.backbones.transformer import Decoder, Encoder, EncoderConfig
from tasks.common.backbones.transformer_layers import maybe_dropout, mixers_with, split_keys
from tasks.common.configs import (
    LATER,
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Rate,
    known_names,
    spec_of,
)
from tasks.common.decoding.generate import DecodingConfig, DecodingResult, TokenDecoder
from tasks.common.keys import example_keys
from tasks.common.text.tokenizer import CLS, PAD, UNKNOWN

Array = jax.Array

_NUM_ADDED_TOKENS = 2
# Mixers that can decode step by step.
_DECODER_MIXERS = [name for name in mixers_with("causal") if name in mixers_with("cache")]


def max_target_length(source: Array | int) -> Array | int:
    """Returns the maximum number of decoded target tokens for a number of source tokens.

    Both numbers include the end token.
    """
    return 2 * source + 10


def _beam() -> DecodingConfig:
    return DecodingConfig(method="beam", beam_size=5)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(EncoderConfig):
    """Config of a Transformer (Vaswani et al. 2017) with tied source, target and output embeddings.

    Attributes:
      num_layers: number of layers of the encoder.
      decoder_layers: number of layers of the decoder; its other sizes are the encoder's.
      mixer: mixer of the encoder; see `EncoderConfig`.
      decoder_mixer: mixer of the decoder's self-attention; it must support causal masks and a
        cache.
      label_smoothing: fraction of the probability of a target token that is spread over the
        vocabulary (Szegedy et al. 2016).
      r_drop: weight α of the divergence between two passes over each example with different dropout
        masks (Liang et al. 2021), which take twice the time; 0 for one pass.
      decoding: decoding method for the test split and predictions; validation uses greedy decoding.
      For the other attributes see `EncoderConfig`.
    """

    name: str = "transformer"
    num_layers: int = 4
    decoder_layers: PositiveInt = 4
    feedforward_size: int = 256
    attention_dropout_rate: float = 0.0
    activation: str = "relu"
    max_length: int = 256
    decoder_mixer: spec_of(*_DECODER_MIXERS) = "dot_product"
    label_smoothing: Rate = 0.1
    r_drop: NonNegativeFloat = dataclasses.field(default=0.0, metadata=LATER)
    decoding: DecodingConfig = dataclasses.field(default_factory=_beam)

    def __post_init__(self):
        super().__post_init__()
        try:
            entry = self.decoder.entry
        except ValueError as error:
            raise ValueError(f"decoder_{error}") from None
        if entry.name not in _DECODER_MIXERS:
            raise ValueError(
                f"decoder_mixer: got {self.decoder_mixer!r}, which cannot decode step by step; "
                f"expected one of {_DECODER_MIXERS}"
            )

    @property
    def decoder(self) -> EncoderConfig:
        """Config of the decoder."""
        changes = {"num_layers": self.decoder_layers, "mixer": self.decoder_mixer}
        return EncoderConfig.of(self, **changes)

    @property
    def aligns(self) -> bool:
        """True, because every Transformer has attention weights over the source."""
        return True


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(Config):
    """Config of a bidirectional encoder, and a decoder with an alignment (Bahdanau et al. 2015).

    Attributes:
      embedding_size: E, size of the token embeddings, which both languages share.
      state_size: D, state size of the decoder. The two directions of the encoder together have the
        same size.
      num_layers: number of layers of the decoder.
      cell: "gru" or "lstm".
      alignment: an alignment of `attention.registry`, such as "additive" or
        "location_aware(width=5)". "none" is the control without attention, whose decoder reads one
        fixed vector (Sutskever et al. 2014).
      temporal_attention: number of heads of the decoder's attention to its past states; 0 for no
        such attention.
      dropout_rate: dropout rate of embeddings, encoder states and the input of the output layer.
      label_smoothing, r_drop, decoding: see `TransformerConfig`.
    """

    name: str = "rnn"
    embedding_size: PositiveInt = 256
    state_size: PositiveInt = 256
    num_layers: PositiveInt = 1
    cell: known_names(*CELLS) = "gru"
    alignment: spec_of(*registry.names("alignment")) = "additive"
    temporal_attention: NonNegativeInt = 0
    dropout_rate: Rate = 0.3
    label_smoothing: Rate = 0.1
    r_drop: NonNegativeFloat = dataclasses.field(default=0.0, metadata=LATER)
    decoding: DecodingConfig = dataclasses.field(default_factory=_beam)

    def __post_init__(self):
        super().__post_init__()
        self.expect("state_size", self.state_size % 2 == 0, "an even number")
        heads = self.temporal_attention
        divides = not heads or self.state_size % heads == 0
        self.expect(
            "temporal_attention", divides, f"0 or a divisor of state_size={self.state_size}"
        )
        find_cell(self.cell)
        token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        registry.check_spec(
            "alignment",
            self.alignment,
            lambda tokens: RecurrentTranslator(self, 4, rngs=nnx.Rngs(0))(tokens, tokens),
            token,
        )

    @property
    def aligns(self) -> bool:
        """True if the decoder attends to the source."""
        return registry.find("alignment", self.alignment).name != "none"


MODEL_CONFIGS = {"transformer": TransformerConfig, "rnn": RecurrentConfig}


class Translator(nnx.Module):
    """Base class of translation models.

    Attributes:
      size: V, number of token ids including START and END.
      start, end: ids of START and END.
    """

    def __init__(self, vocabulary: int):
        """Adds START and END to the `vocabulary` ids of the tokenizer."""
        self.size = vocabulary + _NUM_ADDED_TOKENS
        self.start, self.end = vocabulary, vocabulary + 1

    def begin(self, source: Array, max_length: int) -> Any:
        """Returns the decoding state before the first step, a tree of arrays with first axis B."""
        raise NotImplementedError

    def step(self, tokens: Array, state: Any) -> tuple[Array, Any, Array]:
        """Computes a decoding step.

        Args:
          tokens: previous tokens, int [R].
          state: state returned by `begin` or by the previous step, with R rows.

        Returns:
          The logits [R, V] of the next tokens, the next state, and the attention weights
          [R, ..., S].
        """
        raise NotImplementedError

    def translate(
        self,
        source: Array,
        *,
        config: DecodingConfig,
        max_length: int,
        ids: Array | None = None,
        return_weights: bool = False,
    ) -> DecodingResult:
        """Decodes up to the end token or the maximum length.

        The maximum is `max_length`, or `max_target_length` of a source if that is smaller.

        Args:
          source: int [B, S], end token included, PAD after it.
          config: decoding method.
          max_length: T, maximum number of tokens of a translation.
          ids: int [B], ids of the examples, for sampling.
          return_weights: whether `extras` of the result contains the attention weights of every
            step, "alignment" [B, n_best, T, ..., S].
        """
        keys = example_keys(config.seed, ids) if config.method == "sample" else None
        return self.decoding(source, max_length, return_weights).generate(config, keys)

    def decoding(
        self, source: Array, max_length: int, return_weights: bool = False
    ) -> TokenDecoder:
        """Encodes sources, and returns a decoder of their translations.

        The arguments are those of `translate`.
        """
        T = min(max_length, max_target_length(source.shape[1]))
        lengths = jnp.sum(source != PAD, axis=1)
        left = jnp.minimum(max_target_length(lengths), T).astype(jnp.int32)
        model = unstacked(self)

        def step(tokens: Array, state: tuple[Any, Array]) -> tuple[Array, Any, dict[str, Array]]:
            inner, left = state
            logits, inner, weights = model.step(tokens, inner)
            logits = logits.astype(jnp.float32)
            others = jnp.arange(self.size) != self.end
            logits = jnp.where((left <= 1)[:, None] & others, -jnp.inf, logits)
            return logits, (inner, left - 1), {"alignment": weights} if return_weights else {}

        return TokenDecoder(
            step,
            (model.begin(source, T), left),
            batch_size=source.shape[0],
            max_length=T,
            start=self.start,
            end=self.end,
            pad=PAD,
            forbidden=(PAD, UNKNOWN, CLS, self.start),
        )

    def _shift_right(self, target: Array) -> Array:
        """Returns the decoder's input: START, then all target tokens but the last."""
        start = jnp.full((target.shape[0], 1), self.start, target.dtype)
        return jnp.concatenate([start, target[:, :-1]], axis=1)


class TransformerTranslator(Translator):
    """Transformer: memory = encoder(sqrt(D) E[x]), logits = decoder(sqrt(D) E[y], memory) Eᵀ.

    x are the source tokens, y the tokens before each target token, and E the tied embeddings.
    """

    def __init__(self, config: TransformerConfig, vocabulary: int, *, rngs: nnx.Rngs):
        super().__init__(vocabulary)
        D = config.model_size
        # At initialization both scaled embeddings and logits have variance 1.
        self.embedding = TokenEmbedding(
            self.size, D, scale=math.sqrt(D), init_scale=1 / math.sqrt(D), rngs=rngs
        )
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config.decoder, D, rngs=rngs)

    def __call__(self, source: Array, target: Array, *, dropout_key: Array | None = None) -> Array:
        """Computes logits float32 [B, T, V] under teacher forcing.

        Args:
          source: int [B, S], PAD after the end token.
          target: int [B, T], PAD after the end token.
          dropout_key: None for evaluation.

        Raises:
          ValueError: shapes do not fit, or a sequence is longer than max_length.
        """
        _expect_tokens(source, target)
        keys = split_keys(dropout_key, 2)
        valid = source != PAD
        memory = self.encoder(self.embedding(source), valid=valid, dropout_key=keys[0])
        x = self.embedding(self._shift_right(target))
        x = self.decoder(x, memory, memory_valid=valid, dropout_key=keys[1])
        return self.embedding.logits(x)

    def begin(self, source: Array, max_length: int) -> Any:
        """Returns the decoder's cache with the projected encoder memory."""
        valid = source != PAD
        memory = self.encoder(self.embedding(source), valid=valid)
        return self.decoder.init_cache(memory, valid, max_length)

    def step(self, tokens: Array, state: Any) -> tuple[Array, Any, Array]:
        """Computes a decoding step; see `Translator.step`. The weights are [R, L, N, S]."""
        x, state, weights = self.decoder.decode(self.embedding(tokens)[:, None], state)
        return self.embedding.logits(x[:, 0]), state, weights[..., 0, :]


class RecurrentTranslator(Translator):
    """Bidirectional recurrent encoder with an `AttentionDecoder`."""

    def __init__(self, config: RecurrentConfig, vocabulary: int, *, rngs: nnx.Rngs):
        super().__init__(vocabulary)
        E, D = config.embedding_size, config.state_size
        self.dropout_rate = config.dropout_rate
        self.embedding = TokenEmbedding(self.size, E, init_scale=1.0, rngs=rngs)
        self.encoder = Bidirectional(E, D // 2, cell=config.cell, rngs=rngs)
        self.decoder = AttentionDecoder(
            self.size,
            E,
            D,
            D,
            alignment=config.alignment,
            cell=config.cell,
            num_layers=config.num_layers,
            temporal_attention=config.temporal_attention,
            dropout_rate=config.dropout_rate,
            embedding=self.embedding,
            rngs=rngs,
        )

    def __call__(self, source: Array, target: Array, *, dropout_key: Array | None = None) -> Array:
        """Computes logits under teacher forcing; see `TransformerTranslator.__call__`."""
        _expect_tokens(source, target)
        keys = split_keys(dropout_key, 2)
        memory, valid, last = self._encode(source, keys[0])
        before = self._shift_right(target)
        return self.decoder(memory, valid, last, before, dropout_key=keys[1])[0]

    def begin(self, source: Array, max_length: int) -> Any:
        """Returns the initial state of the decoder, with the encoded source."""
        longest = max_length if self.decoder.temporal is not None else None
        return self.decoder.prepare(*self._encode(source, None), max_length=longest)

    def step(self, tokens: Array, state: Any) -> tuple[Array, Any, Array]:
        """Computes a decoding step; see `Translator.step`.

        The weights are [R, S], or [R, N, S] for an alignment with heads."""
        logits, state, extras = self.decoder.step(tokens, state)
        return logits, state, extras["alignment"]

    def _encode(self, source: Array, key: Array | None) -> tuple[Array, Array, Any]:
        """Encodes source sentences.

        Returns:
          States [B, S, D]; their validity, bool [B, S]; and the final state.
        """
        keys = split_keys(key, 2)
        valid = source != PAD
        x = maybe_dropout(self.embedding(source), self.dropout_rate, keys[0])
        states, last = self.encoder(x, valid=valid)
        return maybe_dropout(states, self.dropout_rate, keys[1]), valid, last


def _expect_tokens(source: Array, target: Array) -> None:
    sizes: dict[str, int] = {}
    shapes.expect("source", source, "B S", sizes)
    shapes.expect("target", target, "B T", sizes)


def build(
    config: TransformerConfig | RecurrentConfig, vocabulary: int, *, rngs: nnx.Rngs
) -> Translator:
    """Returns the model of a config.

    Args:
      config: one of MODEL_CONFIGS.
      vocabulary: number of ids of the tokenizer.
      rngs: random streams of the initialization.
    """
    kind = RecurrentTranslator if isinstance(config, RecurrentConfig) else TransformerTranslator
    return kind(config, vocabulary, rngs=rngs)
