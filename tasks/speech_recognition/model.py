"""Recognisers: an encoder over log-mel features, and what writes.

Listen, attend and spell: Chan et al. 2016 (a pyramid of recurrent networks); the Transformer:
Dong et al. 2018, "Speech-Transformer"; the Conformer: Gulati et al. 2020.

B batch, S frames, F bands, S' frames after the encoder, M memory size, D model size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks, shapes
from attention.dropout import dropout
from attention.projection import Projection
from tasks.common.audio.features import LogMelConfig
from tasks.common.backbones.conformer import Conformer
from tasks.common.backbones.convolutional import Convolution
from tasks.common.backbones.recurrent import Bidirectional, LSTMState
from tasks.common.backbones.transcriber import EncoderOutput, Transcriber, TranscriberConfig
from tasks.common.backbones.transformer import Encoder, EncoderConfig

Array = jax.Array

ENCODERS = ("pyramid", "transformer", "conformer")


@dataclasses.dataclass(frozen=True)
class SpeechConfig:
    """An encoder, and what writes from it.

    Attributes:
      encoder: "pyramid", bidirectional GRUs of which each but the first reads two frames of the one
        before as one; "transformer" or "conformer", over frames that two convolutions make four
        times fewer.
      model_size: D; M too.
      num_layers: of the encoder. A pyramid halves the frames in each.
      num_heads, feedforward_size: of the encoder's attention layers.
      width: of the Conformer's convolutions.
      channels: of the convolutions before attention layers.
      chunk: frames (of the encoder's, 40 ms by default) of a chunk. An attention layer then sees
        the chunks up to its own, and the Conformer's convolutions only what was before: the
        encoder can run while someone speaks. 0: all of it.
      left_chunks: chunks before its own that an attention layer sees; -1: all.
      max_length: most frames that the encoder's attention is made for.
      dropout_rate: of the encoder.
      transcriber: what writes: see `TranscriberConfig`.
    """

    name: str = "speech"
    encoder: str = "conformer"
    model_size: int = 96
    num_layers: int = 3
    num_heads: int = 4
    feedforward_size: int = 256
    width: int = 15
    channels: int = 24
    chunk: int = 0
    left_chunks: int = -1
    max_length: int = 2000
    dropout_rate: float = 0.1
    transcriber: TranscriberConfig = dataclasses.field(default_factory=TranscriberConfig)

    def __post_init__(self):
        if self.encoder not in ENCODERS:
            expected = ", ".join(map(repr, ENCODERS))
            raise ValueError(f"encoder: got {self.encoder!r}, expected one of {expected}")
        for name in ("model_size", "num_layers", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.width < 1 or self.width % 2 == 0:
            raise ValueError(f"width: got {self.width}, expected an odd number")
        if self.chunk < 0 or self.left_chunks < -1:
            raise ValueError(
                f"chunk: got {self.chunk} and left_chunks {self.left_chunks}, expected at least 0 "
                "and -1"
            )
        if self.encoder == "pyramid":
            if self.model_size % 2:
                got = f"model_size: got {self.model_size}"
                raise ValueError(f"{got}, expected an even number for a pyramid")
            if self.chunk:
                got = f"chunk: got {self.chunk}"
                raise ValueError(f"{got}, expected 0 for a pyramid, which reads both ways")
        else:
            self.attention_layers()

    def attention_layers(self) -> EncoderConfig:
        """What the attention layers are made of."""
        return EncoderConfig(
            model_size=self.model_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            feedforward_size=self.feedforward_size,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.dropout_rate,
            activation="silu" if self.encoder == "conformer" else "relu",
            positions="rope",
            max_length=self.max_length,
        )

    def frames(self, frames: int) -> int:
        """Frames after the encoder."""
        for _ in range(self.num_layers if self.encoder == "pyramid" else 2):
            frames = -(-frames // 2)
        return frames


class Pyramid(nnx.Module):
    """h_l = BiGRU([h_{l-1, 2s}; h_{l-1, 2s+1}]), Chan et al. 2016, equation 5."""

    def __init__(self, config: SpeechConfig, bands: int, *, rngs: nnx.Rngs):
        self.dropout_rate, D = config.dropout_rate, config.model_size
        sizes = [2 * bands] + [2 * D] * (config.num_layers - 1)
        self.layers = nnx.List(Bidirectional(size, D // 2, rngs=rngs) for size in sizes)

    def __call__(self, features: Array, valid: Array, key: Array | None) -> EncoderOutput:
        """features [B, S, F], valid bool [B, S]."""
        x, last = features, None
        for number, layer in enumerate(self.layers):
            x, valid = _paired(x, valid)
            x, last = layer(x, valid=valid)
            if key is not None:
                x = dropout(x, self.dropout_rate, jax.random.fold_in(key, number))
        return EncoderOutput(x, valid, last)


class Subsampled(nnx.Module):
    """Two convolutions of 3 x 3 that take every second frame and band, and attention layers."""

    def __init__(self, config: SpeechConfig, bands: int, *, rngs: nnx.Rngs):
        self.config, C, D = config, config.channels, config.model_size
        self.convolutions = nnx.List(
            Convolution(inputs, C, stride=2, norm="none", rngs=rngs) for inputs in (1, C)
        )
        rows = (bands + 3) // 4
        self.project = Projection((rows * C,), (D,), rngs=rngs)
        layers = config.attention_layers()
        if config.encoder == "conformer":
            self.layers = Conformer(layers, config.width, config.chunk > 0, rngs=rngs)
        else:
            self.layers = Encoder(layers, rngs=rngs)

    def __call__(self, features: Array, valid: Array, key: Array | None) -> EncoderOutput:
        """features [B, S, F], valid bool [B, S]."""
        x = features[..., None]
        for convolution in self.convolutions:
            x = convolution(jnp.where(valid[:, :, None, None], x, 0.0))
            valid = valid[:, ::2]
        x = self.project(x.reshape(*x.shape[:2], -1))
        options = {"valid": valid, "mask": self._mask(x.shape[1]), "dropout_key": key}
        x = self.layers(x, **options)
        x = jnp.where(valid[..., None], x, 0.0)
        mean = jnp.sum(x, axis=1) / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None]
        return EncoderOutput(x, valid, mean)

    def _mask(self, length: int) -> masks.Mask | None:
        """Which frames each may see, by chunks."""
        config = self.config
        if not config.chunk:
            return None
        chunks = jnp.arange(length) // config.chunk
        seen = chunks[None] <= chunks[:, None]
        if config.left_chunks >= 0:
            seen &= chunks[None] >= chunks[:, None] - config.left_chunks
        return masks.dense(seen[None, None])


class SpeechRecognizer(nnx.Module):
    """Standardised log-mel features, an encoder, and a transcriber.

    Args:
      config: see `SpeechConfig`.
      features: of the sound.
      units: U, CTC's blank included.
    """

    def __init__(self, config: SpeechConfig, features: LogMelConfig, units: int, *, rngs: nnx.Rngs):
        self.config = config
        kind = Pyramid if config.encoder == "pyramid" else Subsampled
        self.encoder = kind(config, features.bands, rngs=rngs)
        self.transcriber = Transcriber(config.transcriber, config.model_size, units, rngs=rngs)

    def encode(
        self, features: Array, frames: Array, dropout_key: Array | None = None
    ) -> EncoderOutput:
        """features float32 [B, S, F], frames int [B] -> what the transcriber reads.

        Args:
          features, frames: of `log_mel`, standardised.
          dropout_key: None for evaluation.

        Raises:
          ValueError: shapes do not fit.
        """
        sizes: dict[str, int] = {}
        shapes.expect("features", features, "B S F", sizes)
        shapes.expect("frames", frames, "B", sizes)
        valid = jnp.arange(sizes["S"]) < frames[:, None]
        found = self.encoder(features, valid, dropout_key)
        if self.config.transcriber.cell == "lstm":
            found = found._replace(
                final_state=LSTMState(found.final_state, jnp.zeros_like(found.final_state))
            )
        return found


def _paired(x: Array, valid: Array) -> tuple[Array, Array]:
    """Two neighbours as one: [B, S, F] -> [B, ceil(S / 2), 2F]; real where the first is."""
    x = jnp.where(valid[..., None], x, 0.0)
    B, S, F = x.shape
    x = jnp.pad(x, ((0, 0), (0, S % 2), (0, 0)))
    return x.reshape(B, -1, 2 * F), valid[:, ::2]


MODEL_CONFIGS = {"speech": SpeechConfig}
