"""From encoded frames to written units: CTC, a decoder with attention, or the two together.

Chan et al. 2016, "Listen, Attend and Spell"; Kim, Hori & Watanabe 2017, "Joint CTC-Attention based
End-to-End Speech Recognition using Multi-task Learning"; decoding by both in one pass: Watanabe et
al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section IV-C.

B batch, S frames, M memory size, T units, U units with the blank, V = U + 2 what a decoder writes,
R rows of decoding, N heads, L layers. Unit 0 is CTC's blank, and padding in what is written; START
and END come after the units.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from attention import registry, shapes
from attention.projection import Projection
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.recurrent import find_cell
from tasks.common.backbones.recurrent_decoder import AttentionDecoder
from tasks.common.backbones.transformer import Decoder, EncoderConfig
from tasks.common.configs import Config, Fraction, NonNegativeInt, PositiveInt, Rate, one_of
from tasks.common.decoding import ctc
from tasks.common.decoding.generate import DecodingConfig, DecodingResult, generate

Array = jax.Array

PAD = ctc.BLANK


@dataclasses.dataclass(frozen=True)
class TranscriberConfig(Config):
    """What writes, and how.

    Attributes:
      decoder: "recurrent" (Chan et al. 2016), "transformer", or "none": CTC alone.
      ctc_weight: share of CTC in the loss; 1 without a decoder. At 0 there is no CTC.
      decoding_ctc_weight: share of CTC in the scores by which a decoder's beam writes.
      alignment: of a recurrent decoder: one of `attention.registry`, with options if any:
        "additive", "location_aware", "multi_head(num_heads=4)"; "none" is the control, one fixed
        vector.
      cell: of a recurrent decoder, "gru" or "lstm".
      state_size: of the decoder.
      embedding_size: of the units that a recurrent decoder reads.
      num_layers: of the decoder.
      num_heads, feedforward_size: of a Transformer decoder.
      temporal_attention: heads of a recurrent decoder's attention to its own past; 0 for none.
      dropout_rate: of the decoder.
      label_smoothing: share of the target's probability that is spread over all units, in the
        decoder's loss.
      max_length: units written at most.
      decoding: how units are chosen on test and in predictions; on validation it is greedy. CTC
        alone takes the best path where it is greedy.
    """

    decoder: one_of("recurrent", "transformer", "none") = "recurrent"
    ctc_weight: Fraction = 0.3
    decoding_ctc_weight: Fraction = 0.3
    alignment: str = "location_aware"
    cell: str = "gru"
    state_size: PositiveInt = 128
    embedding_size: PositiveInt = 32
    num_layers: PositiveInt = 1
    num_heads: PositiveInt = 4
    feedforward_size: PositiveInt = 512
    temporal_attention: NonNegativeInt = 0
    dropout_rate: Rate = 0.1
    label_smoothing: Rate = 0.1
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
        """What a Transformer decoder is made of."""
        return EncoderConfig(
            model_size=self.state_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            feedforward_size=self.feedforward_size,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.dropout_rate,
            # One more for the end.
            max_length=self.max_length + 1,
        )

    @property
    def aligns(self) -> bool:
        """Whether a decoder has weights over the frames."""
        return self.decoder == "transformer" or (
            self.decoder == "recurrent" and self.alignment.partition("(")[0] != "none"
        )


class Losses(NamedTuple):
    """Sums over the units of each example.

    Attributes:
      decoder: float32 [B], smoothed cross-entropy of the units and the end; 0 without a decoder.
      ctc: float32 [B]; 0 without CTC, and where no path is long enough.
      num_units: float32 [B], units and the end token: the divisor of the losses.
      has_path: bool [B], whether CTC has a path.
    """

    decoder: Array
    ctc: Array
    num_units: Array
    has_path: Array


class Transcriber(nnx.Module):
    """Writes what frames say.

        loss = (1 - λ) · -log P_decoder(units) + λ · -log P_ctc(units)

    Args:
      config: see `TranscriberConfig`.
      memory_size: M of the frames.
      units: U, the blank included.
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
        last: Any,
        targets: Array,
        *,
        dropout_key: Array | None = None,
        smoothing: bool = True,
    ) -> Losses:
        """Losses of what is known to be said.

        Args:
          memory: [B, S, M].
          valid: bool [B, S], True = a real frame.
          last: the encoder's last state, leaves [B, M], of the kind of the decoder's cell; None
            where there is none.
          targets: int [B, T], units, PAD after them.
          dropout_key: None for evaluation.
          smoothing: whether labels are smoothed.

        Raises:
          ValueError: shapes do not fit.
        """
        sizes = {"M": self.memory_size}
        shapes.expect("memory", memory, "B S M", sizes)
        shapes.expect("valid", valid, "B S", sizes)
        shapes.expect("targets", targets, "B T", sizes)
        targets = jnp.asarray(targets, jnp.int32)
        said = jnp.sum(targets != PAD, axis=1)
        zeros = jnp.zeros(said.shape, jnp.float32)
        losses = Losses(zeros, zeros, said + 1.0, jnp.ones(said.shape, bool))
        if self.frames is not None:
            found, has_path = ctc.ctc_loss(self.frames(memory), valid, targets)
            losses = losses._replace(ctc=found, has_path=has_path)
        if self.config.decoder == "none":
            return losses
        outputs = jnp.pad(targets, ((0, 0), (0, 1)), constant_values=PAD)
        places = jnp.arange(outputs.shape[1])
        outputs = jnp.where(places == said[:, None], self.end, outputs)
        start = jnp.full((len(targets), 1), self.start, jnp.int32)
        logits = self._forced(
            memory, valid, last, jnp.concatenate([start, targets], axis=1), dropout_key
        )
        rate = self.config.label_smoothing if smoothing else 0.0
        wanted = optax.smooth_labels(jax.nn.one_hot(outputs, self.units + 2), rate)
        found = optax.softmax_cross_entropy(logits, wanted)
        counted = places <= said[:, None]
        return losses._replace(decoder=jnp.sum(jnp.where(counted, found, 0.0), axis=1))

    def joint(self, losses: Losses) -> Array:
        """[B], the two weighed as the config has it."""
        weight = self.config.ctc_weight
        return (1 - weight) * losses.decoder + weight * losses.ctc

    def transcribe(
        self,
        memory: Array,
        valid: Array,
        last: Any,
        *,
        decoding: DecodingConfig | None = None,
        return_weights: bool = False,
    ) -> DecodingResult:
        """Writes until the end token, which comes after as many units as there are frames at the
        latest, or `max_length`.

        Args:
          memory, valid, last: as when called.
          decoding: in place of the config's.
          return_weights: `extras` has the decoder's weights of every step under "alignment":
            [B, n_best, T, ..., S].
        """
        config = self.config
        decoding = decoding or config.decoding
        greedy = decoding.method == "greedy" or decoding.beam_size == 1
        if config.decoder == "none" and greedy:
            return self._best_path(memory, valid)
        joint = config.decoder == "none" or (config.decoding_ctc_weight > 0 and not greedy)
        weight = 1.0 if config.decoder == "none" else config.decoding_ctc_weight
        T = min(config.max_length, memory.shape[1]) + 1
        left = jnp.minimum(jnp.sum(valid, axis=1) + 1, T).astype(jnp.int32)
        prefix = ctc.empty_prefix(self.frames(memory), valid) if joint else ()

        def step(tokens: Array, state: Any) -> tuple[Array, Any, dict[str, Array]]:
            inner, prefix, left = state
            scores, extras = jnp.zeros((len(tokens), self.units + 2)), {}
            if config.decoder != "none":
                logits, inner, weights = self._step(tokens, inner)
                scores = jax.nn.log_softmax(logits.astype(jnp.float32))
                extras = {"alignment": weights} if return_weights else {}
            if joint:
                prefix = _extended(prefix, tokens, self.start)
                units, end = ctc.next_scores(prefix)
                nothing = jnp.full_like(end, -jnp.inf)
                heard = jnp.concatenate([units, nothing[:, None], end[:, None]], axis=1)
                scores = weight * heard + ((1 - weight) * scores if weight < 1 else 0)
            others = jnp.arange(self.units + 2) != self.end
            scores = jnp.where((left <= 1)[:, None] & others, -jnp.inf, scores)
            return scores, (inner, prefix, left - 1), extras

        return generate(
            step,
            (self._begin(memory, valid, last, T), prefix, left),
            config=decoding,
            batch_size=len(memory),
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
        sure = jnp.max(jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
        T = min(self.config.max_length, memory.shape[1]) + 1
        tokens = jnp.pad(tokens, ((0, 0), (0, 1)), constant_values=PAD)
        # As a decoder would end it.
        ends = jnp.arange(tokens.shape[1]) == jnp.sum(tokens != PAD, axis=1)[:, None]
        tokens = jnp.where(ends, self.end, tokens)[:, None, :T]
        return DecodingResult(tokens, jnp.sum(jnp.where(valid, sure, 0.0), axis=1)[:, None], {})

    def _forced(
        self, memory: Array, valid: Array, last: Any, before: Array, key: Array | None
    ) -> Array:
        """Logits [B, T, V] after the true units before."""
        if self.recurrent is not None:
            return self.recurrent(memory, valid, last, before, dropout_key=key)[0]
        x = self.embedding(before)
        x = self.transformer(x, memory, memory_valid=valid, dropout_key=key)
        return self.embedding.logits(x)

    def _begin(self, memory: Array, valid: Array, last: Any, T: int) -> Any:
        if self.recurrent is not None:
            longest = T if self.recurrent.temporal is not None else None
            return self.recurrent.prepare(memory, valid, last, max_length=longest)
        if self.transformer is not None:
            return self.transformer.init_cache(memory, valid, T)
        return ()

    def _step(self, tokens: Array, state: Any) -> tuple[Array, Any, Array]:
        """tokens int [R] -> logits [R, V], the next state, weights [R, ..., S]."""
        if self.recurrent is not None:
            logits, state, extras = self.recurrent.step(tokens, state)
            return logits, state, extras["alignment"]
        x, state, weights = self.transformer.decode(self.embedding(tokens)[:, None], state)
        return self.embedding.logits(x[:, 0]), state, weights[..., 0, :]


def _extended(prefix: ctc.Prefix, tokens: Array, start: int) -> ctc.Prefix:
    """With the units just written; rows that have only begun, or ended, stay as they are."""
    units = (tokens != PAD) & (tokens < start)
    longer = ctc.extend(prefix, jnp.where(units, tokens, PAD + 1))

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(units.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    kept = jax.tree.map(chosen, longer._replace(log_probs=()), prefix._replace(log_probs=()))
    return kept._replace(log_probs=prefix.log_probs)


class EncoderOutput(NamedTuple):
    """What an encoder gives.

    Attributes:
      memory: [B, S, M].
      valid: bool [B, S].
      final_state: the initial state of a recurrent decoder, leaves [B, M]; None without one.
    """

    memory: Any
    valid: Any
    final_state: Any
