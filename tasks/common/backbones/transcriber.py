"""Hybrid CTC/attention model that transcribes encoded frames: CTC, an attention decoder, or both.

Chan et al. 2016, "Listen, Attend and Spell"; Kim, Hori & Watanabe 2017, "Joint CTC-Attention based
End-to-End Speech Recognition using Multi-task Learning"; joint one-pass decoding: Watanabe et al.
2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section IV-C.

Units are the tokens of transcripts. Unit 0 is the CTC blank and the padding of transcripts. The ids
of the start token and the end token follow those of the units.

In shapes, B is the batch size, S the number of frames, M the memory size, T the number of units of
a transcript, U the number of different units including the blank, V = U + 2 the number of outputs
of a decoder, and R the number of rows in decoding (B, or B times the number of beams).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention import registry, shapes
from attention.projection import Projection
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.recurrent import CELLS, LSTMState, find_cell
from tasks.common.backbones.recurrent_decoder import AttentionDecoder
from tasks.common.backbones.transformer import Decoder, EncoderConfig
from tasks.common.configs import (
    LATER,
    Config,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Rate,
    known_names,
    one_of,
    spec_of,
)
from tasks.common.decoding import ctc
from tasks.common.decoding.generate import DecodingConfig, DecodingResult, TokenDecoder
from tasks.common.losses import divergence_of_passes, first_passes, smoothed_cross_entropy

Array = jax.Array

PAD = ctc.BLANK


@dataclasses.dataclass(frozen=True)
class TranscriberConfig(Config):
    """Loss, decoder and decoding method of a `Transcriber`.

    Attributes:
      decoder: "recurrent" (Chan et al. 2016), "transformer", or "none" for CTC alone.
      ctc_weight: weight of the CTC loss, which must be 1 without a decoder; 0 disables CTC.
      decoding_ctc_weight: weight of CTC in the scores of beam search with a decoder.
      alignment: alignment of a recurrent decoder, a name of `attention.registry`, with options if
        any: "additive", "location_aware", "multi_head(num_heads=4)"; "none" is the baseline with
        one fixed context vector.
      cell: cell of a recurrent decoder, "gru" or "lstm".
      state_size: state size of the decoder; the model size of a Transformer.
      embedding_size: embedding size of the units that a recurrent decoder reads.
      num_layers: number of layers of the decoder.
      num_heads, feedforward_size: number of heads and feed-forward size of a Transformer decoder.
      temporal_attention: number of heads of a recurrent decoder's attention to its own past states;
        0 for none.
      dropout_rate: dropout rate of the decoder.
      label_smoothing: probability mass that is moved from the target to all outputs of the decoder,
        in equal parts.
      consistency: weight α of the divergence between two passes over each training example, with
        different dropout masks and, in speech recognition, different changes of the features
        (CR-CTC, Yao et al. 2025; R-Drop, Liang et al. 2021); 0 for one pass.
      max_length: largest number of units of a transcript.
      decoding: decoding method for the test split and predictions; validation uses greedy decoding.
        With CTC alone, greedy decoding takes the best path.
    """

    decoder: one_of("recurrent", "transformer", "none") = "recurrent"
    ctc_weight: Fraction = 0.3
    decoding_ctc_weight: Fraction = 0.3
    alignment: spec_of(*registry.names("alignment")) = "location_aware"
    cell: known_names(*CELLS) = "gru"
    state_size: PositiveInt = 128
    embedding_size: PositiveInt = 32
    num_layers: PositiveInt = 1
    num_heads: PositiveInt = 4
    feedforward_size: PositiveInt = 512
    temporal_attention: NonNegativeInt = 0
    dropout_rate: Rate = 0.1
    label_smoothing: Rate = 0.1
    consistency: NonNegativeFloat = dataclasses.field(default=0.0, metadata=LATER)
    max_length: PositiveInt = 64
    decoding: DecodingConfig = dataclasses.field(
        default_factory=lambda: DecodingConfig(method="beam", beam_size=5)
    )

    def __post_init__(self):
        super().__post_init__()
        alone = self.decoder == "none"
        expected = "1 without a decoder" if alone else "a fraction below 1 with a decoder"
        self.expect("ctc_weight", (self.ctc_weight == 1) == alone, expected)
        has_ctc = self.ctc_weight > 0 or self.decoding_ctc_weight == 0
        self.expect("decoding_ctc_weight", has_ctc, "0 if ctc_weight is 0")
        below = alone or self.decoding_ctc_weight < 1
        self.expect("decoding_ctc_weight", below, "a fraction below 1, or decoder 'none'")
        if self.decoding.method == "sample":
            raise ValueError("decoding.method: got 'sample', expected 'greedy' or 'beam'")
        if self.decoder == "recurrent":
            registry.find("alignment", self.alignment)
            find_cell(self.cell)
        if self.decoder == "transformer":
            self.transformer()

    def transformer(self) -> EncoderConfig:
        """Returns the config of a Transformer decoder."""
        return EncoderConfig.of(
            self,
            model_size=self.state_size,
            attention_dropout_rate=self.dropout_rate,
            # One more position for the end token.
            max_length=self.max_length + 1,
        )

    @property
    def aligns(self) -> bool:
        """True if there is a decoder with attention weights over the frames."""
        return self.decoder == "transformer" or (
            self.decoder == "recurrent" and self.alignment.partition("(")[0] != "none"
        )


class Losses(NamedTuple):
    """Losses of each example, summed over its units.

    Attributes:
      decoder: float32 [B], cross-entropy of the units and the end token, with label smoothing if
        requested; 0 without a decoder.
      ctc: float32 [B], CTC loss; 0 without CTC, and for examples without a CTC path.
      num_units: float32 [B], number of units including the end token. The mean loss per unit is the
        sum of the losses divided by the sum of these numbers.
      has_path: bool [B], whether there are enough frames for a CTC path of the units.
      divergence: float32 [B / 2], divergence of the two passes over each example; 0 if rows are not
        paired. It is the sum of the divergence of the decoder over units and that of CTC over
        frames, weighted like their losses.
    """

    decoder: Array
    ctc: Array
    num_units: Array
    has_path: Array
    divergence: Array


class Transcriber(nnx.Module):
    """Hybrid CTC/attention model that transcribes encoded frames.

        loss = (1 - λ) · -log P_decoder(units) + λ · -log P_ctc(units),      λ = ctc_weight

    Args:
      config: config of the model.
      memory_size: M, number of features of an encoded frame.
      units: U, number of units including the blank.
    """

    def __init__(self, config: TranscriberConfig, memory_size: int, units: int, *, rngs: nnx.Rngs):
        if units < 2:
            raise ValueError(f"units: got {units}, expected the blank and at least one unit")
        self.config, self.memory_size, self.units = config, memory_size, units
        self.start, self.end = units, units + 1
        self.frames = Projection((memory_size,), (units,), rngs=rngs) if config.ctc_weight else None
        self.recurrent = self._recurrent(rngs) if config.decoder == "recurrent" else None
        is_transformer, D = config.decoder == "transformer", config.state_size
        self.embedding = (
            TokenEmbedding(units + 2, D, scale=math.sqrt(D), init_scale=1 / math.sqrt(D), rngs=rngs)
            if is_transformer
            else None
        )
        self.transformer = (
            Decoder(config.transformer(), memory_size, rngs=rngs) if is_transformer else None
        )

    def _recurrent(self, rngs: nnx.Rngs) -> AttentionDecoder:
        config = self.config
        return AttentionDecoder(
            self.units + 2,
            config.embedding_size,
            config.state_size,
            self.memory_size,
            alignment=config.alignment,
            cell=config.cell,
            num_layers=config.num_layers,
            temporal_attention=config.temporal_attention,
            dropout_rate=config.dropout_rate,
            rngs=rngs,
        )

    def __call__(
        self,
        memory: Array,
        valid: Array,
        final_state: Any,
        targets: Array,
        *,
        dropout_key: Array | None = None,
        smoothing: bool = True,
        pairs: bool = False,
    ) -> Losses:
        """Computes the losses of transcripts, with teacher forcing.

        Args:
          memory: encoded frames, [B, S, M].
          valid: bool [B, S], True = a real frame.
          final_state: state of the encoder from which a recurrent decoder starts. It has the
            structure of the decoder's cell, with leaves [B, M]. None for other decoders.
          targets: int [B, T], the units of each transcript, followed by PAD.
          dropout_key: None for evaluation.
          smoothing: whether labels are smoothed.
          pairs: whether rows 2b and 2b + 1 are two passes over the same example. If so, their
            divergence is computed.

        Raises:
          ValueError: shapes do not match.
        """
        sizes = {"M": self.memory_size}
        shapes.expect("memory", memory, "B S M", sizes)
        shapes.expect("valid", valid, "B S", sizes)
        shapes.expect("targets", targets, "B T", sizes)
        targets = jnp.asarray(targets, jnp.int32)
        lengths = jnp.sum(targets != PAD, axis=1)
        zeros = jnp.zeros(lengths.shape, jnp.float32)
        has_path = jnp.ones(lengths.shape, bool)
        losses = Losses(zeros, zeros, lengths + 1.0, has_path, jnp.zeros((len(lengths) // 2,)))
        if self.frames is not None:
            by_frame = self.frames(memory)
            found, has_path = ctc.ctc_loss(by_frame, valid, targets)
            losses = losses._replace(ctc=found, has_path=has_path)
            if pairs:
                share = self.config.ctc_weight * self._divergence(by_frame, valid)
                losses = losses._replace(divergence=share)
        if self.config.decoder == "none":
            return losses
        outputs = jnp.pad(targets, ((0, 0), (0, 1)), constant_values=PAD)
        positions = jnp.arange(outputs.shape[1])
        outputs = jnp.where(positions == lengths[:, None], self.end, outputs)
        start = jnp.full((len(targets), 1), self.start, jnp.int32)
        inputs = jnp.concatenate([start, targets], axis=1)
        logits = self._teacher_forcing(memory, valid, final_state, inputs, dropout_key)
        rate = self.config.label_smoothing if smoothing else 0.0
        found, _ = smoothed_cross_entropy(logits, outputs, rate)
        real = positions <= lengths[:, None]
        losses = losses._replace(decoder=jnp.sum(jnp.where(real, found, 0.0), axis=1))
        if pairs:
            share = (1 - self.config.ctc_weight) * self._divergence(logits, real)
            losses = losses._replace(divergence=losses.divergence + share)
        return losses

    def _divergence(self, logits: Array, real: Array) -> Array:
        """Computes the divergence of each pair of rows, summed over the real positions, [B / 2]."""
        return jnp.sum(jnp.where(first_passes(real), divergence_of_passes(logits), 0.0), axis=1)

    def joint(self, losses: Losses) -> Array:
        """Computes the total loss of each example, [B], where CTC has the weight `ctc_weight`."""
        weight = self.config.ctc_weight
        return (1 - weight) * losses.decoder + weight * losses.ctc

    def transcribe(
        self,
        memory: Array,
        valid: Array,
        final_state: Any,
        *,
        decoding: DecodingConfig | None = None,
        return_weights: bool = False,
    ) -> DecodingResult:
        """Decodes transcripts with at most `max_length` units, and at most one unit per real frame.

        Args:
          memory, valid, final_state: as for `__call__`.
          decoding: decoding method; None for that of the config.
          return_weights: whether the `extras` of the result contain the decoder's attention weights
            of every step, "alignment" [B, n_best, T, ..., S].
        """
        config = self.config
        decoding = decoding or config.decoding
        greedy = decoding.method == "greedy" or decoding.beam_size == 1
        if config.decoder == "none" and greedy:
            return self._best_path(memory, valid)
        joint = config.decoder == "none" or (config.decoding_ctc_weight > 0 and not greedy)
        found = self.decoding(
            memory, valid, final_state, joint=joint, return_weights=return_weights
        )
        return found.generate(decoding)

    def decoding(
        self,
        memory: Array,
        valid: Array,
        final_state: Any,
        *,
        joint: bool = False,
        return_weights: bool = False,
    ) -> TokenDecoder:
        """Returns an autoregressive decoder that attends to the encoded inputs.

        Args:
          memory, valid, final_state: as for `__call__`.
          joint: whether the scores of the decoder are combined with CTC prefix scores.
          return_weights: whether to return attention weights, see `transcribe`.
        """
        config = self.config
        weight = 1.0 if config.decoder == "none" else config.decoding_ctc_weight
        T = min(config.max_length, memory.shape[1]) + 1
        steps_left = jnp.minimum(jnp.sum(valid, axis=1) + 1, T).astype(jnp.int32)
        prefix = ctc.empty_prefix(self.frames(memory), valid) if joint else ()

        def step(tokens: Array, state: Any) -> tuple[Array, Any, dict[str, Array]]:
            inner, prefix, steps_left = state
            scores, extras = jnp.zeros((tokens.shape[0], self.units + 2)), {}
            if config.decoder != "none":
                logits, inner, weights = self._step(tokens, inner)
                scores = jax.nn.log_softmax(logits.astype(jnp.float32))
                extras = {"alignment": weights} if return_weights else {}
            if joint:
                prefix = _extend_prefix(prefix, tokens, self.start)
                units, end = ctc.next_scores(prefix)
                start = jnp.full_like(end, -jnp.inf)
                ctc_scores = jnp.concatenate([units, start[:, None], end[:, None]], axis=1)
                scores = weight * ctc_scores + ((1 - weight) * scores if weight < 1 else 0)
            others = jnp.arange(self.units + 2) != self.end
            scores = jnp.where((steps_left <= 1)[:, None] & others, -jnp.inf, scores)
            return scores, (inner, prefix, steps_left - 1), extras

        return TokenDecoder(
            step,
            (self._begin(memory, valid, final_state, T), prefix, steps_left),
            batch_size=memory.shape[0],
            max_length=T,
            start=self.start,
            end=self.end,
            pad=PAD,
            forbidden=(PAD, self.start),
            scores_are_log_probs=True,
        )

    def _best_path(self, memory: Array, valid: Array) -> DecodingResult:
        logits = self.frames(memory)
        tokens = ctc.best_path(logits, valid)
        log_probs = jnp.max(jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
        T = min(self.config.max_length, memory.shape[1]) + 1
        tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=PAD)
        # An end token is appended, as with a decoder.
        ends = jnp.arange(tokens.shape[1]) == jnp.sum(tokens != PAD, axis=1)[:, None]
        tokens = jnp.where(ends, self.end, tokens)[:, None, :T]
        return DecodingResult(
            tokens, jnp.sum(jnp.where(valid, log_probs, 0.0), axis=1)[:, None], {}
        )

    def _teacher_forcing(
        self, memory: Array, valid: Array, final_state: Any, inputs: Array, key: Array | None
    ) -> Array:
        """Computes the logits of the decoder with teacher forcing, [B, T, V].

        Args:
          memory, valid, final_state: as for `__call__`.
          inputs: int [B, T], the start token followed by the units.
          key: dropout key; None for evaluation.
        """
        if self.recurrent is not None:
            return self.recurrent(memory, valid, final_state, inputs, dropout_key=key)[0]
        x = self.embedding(inputs)
        x = self.transformer(x, memory, memory_valid=valid, dropout_key=key)
        return self.embedding.logits(x)

    def _begin(self, memory: Array, valid: Array, final_state: Any, T: int) -> Any:
        if self.recurrent is not None:
            longest = T if self.recurrent.temporal is not None else None
            return self.recurrent.prepare(memory, valid, final_state, max_length=longest)
        if self.transformer is not None:
            return self.transformer.init_cache(memory, valid, T)
        return ()

    def _step(self, tokens: Array, state: Any) -> tuple[Array, Any, Array]:
        """Runs one step of the decoder on one token per row.

        Args:
          tokens: int [R], the previous tokens.
          state: state returned by `_begin`, or by the previous step.

        Returns:
          The logits [R, V], the next state, and the attention weights [R, ..., S].
        """
        if self.recurrent is not None:
            logits, state, extras = self.recurrent.step(tokens, state)
            return logits, state, extras["alignment"]
        x, state, weights = self.transformer.decode(self.embedding(tokens)[:, None], state)
        return self.embedding.logits(x[:, 0]), state, weights[..., 0, :]


def _extend_prefix(prefix: ctc.Prefix, tokens: Array, start: int) -> ctc.Prefix:
    """Appends the last token of each row to its CTC prefix, unless the token is not a unit.

    Args:
      prefix: prefixes of R rows.
      tokens: int [R].
      start: id of the start token; smaller ids are units.
    """
    is_unit = (tokens != PAD) & (tokens < start)
    longer = ctc.extend(prefix, jnp.where(is_unit, tokens, PAD + 1))

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(is_unit.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    kept = jax.tree.map(chosen, longer._replace(log_probs=()), prefix._replace(log_probs=()))
    return kept._replace(log_probs=prefix.log_probs)


class EncoderOutput(NamedTuple):
    """Output of an encoder.

    Attributes:
      memory: encoded frames, [B, S, M].
      valid: bool [B, S], True = a real frame.
      final_state: initial state of a recurrent decoder, leaves [B, M]; None for other decoders.
    """

    memory: Any
    valid: Any
    final_state: Any

    def for_cell(self, cell: str) -> EncoderOutput:
        """Converts `final_state`, an array [B, M], to the state of a recurrent decoder.

        The state of a GRU is the array itself. For an LSTM, the array becomes the hidden state, and
        the cell state is 0.

        Args:
          cell: cell of the decoder, "gru" or "lstm".
        """
        if cell != "lstm":
            return self
        state = self.final_state
        return self._replace(final_state=LSTMState(state, jnp.zeros_like(state)))
