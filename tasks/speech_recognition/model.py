"""Speech recognizers: an encoder of log-mel features, and a hybrid CTC/attention transcriber.

Encoders: a pyramid of recurrent networks (Chan et al. 2016, "Listen, Attend and Spell"), a
Transformer (Dong et al. 2018, "Speech-Transformer"), or a Conformer (Gulati et al. 2020).

B batch, S frames, F mel bands, D model size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import masks, shapes
from attention.dropout import dropout
from attention.masks.pattern_terms import Pattern
from attention.masks.terms import FAR, Offset
from attention.projection import Projection
from tasks.common.audio.features import LogMelConfig
from tasks.common.backbones.conformer import Conformer
from tasks.common.backbones.convolutional import Convolution
from tasks.common.backbones.recurrent import Bidirectional
from tasks.common.backbones.transcriber import EncoderOutput, Transcriber, TranscriberConfig
from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.common.configs import Config, NonNegativeInt, PositiveInt, at_least, one_of

Array = jax.Array

ENCODERS = ("pyramid", "transformer", "conformer")


@dataclasses.dataclass(frozen=True)
class SpeechConfig(Config):
    """Config of the encoder and the transcriber.

    Attributes:
      encoder: "pyramid" for bidirectional GRUs that each join pairs of adjacent frames;
        "transformer" or "conformer" for attention layers after two convolutions that subsample
        frames by 4.
      model_size: D, size of the encoder's output.
      num_layers: number of layers of the encoder. Each layer of a pyramid halves the number of
        frames.
      num_heads, feedforward_size: number of heads and feed-forward size of the attention layers.
      conv_kernel_size: kernel size of the Conformer's convolutions.
      channels: channels of the subsampling convolutions.
      chunk_size: number of encoded frames (of 40 ms by default) in a chunk, for streaming. Frames
        then attend only to their own and earlier chunks, and the Conformer's convolutions are
        causal. 0 for no chunks.
      left_chunks: number of previous chunks that are visible; -1 for all.
      max_length: maximum number of encoded frames.
      dropout_rate: dropout rate of the encoder.
      transcriber: config of the transcriber.
    """

    name: str = "speech"
    encoder: one_of(*ENCODERS) = "conformer"
    model_size: PositiveInt = 96
    num_layers: PositiveInt = 3
    num_heads: int = 4
    feedforward_size: int = 256
    conv_kernel_size: PositiveInt = dataclasses.field(default=15, metadata={"formerly": "width"})
    channels: PositiveInt = 24
    chunk_size: NonNegativeInt = dataclasses.field(default=0, metadata={"formerly": "chunk"})
    left_chunks: at_least(-1) = -1
    max_length: int = 2000
    dropout_rate: float = 0.1
    transcriber: TranscriberConfig = dataclasses.field(default_factory=TranscriberConfig)

    def __post_init__(self):
        super().__post_init__()
        self.expect("conv_kernel_size", self.conv_kernel_size % 2 == 1, "an odd number")
        if self.encoder == "pyramid":
            self.expect("model_size", self.model_size % 2 == 0, "an even number for a pyramid")
            self.expect(
                "chunk_size", not self.chunk_size, "0 for a pyramid, which is bidirectional"
            )
        else:
            self.attention_layers()

    def attention_layers(self) -> EncoderConfig:
        """Returns the config of the attention layers."""
        return EncoderConfig.of(
            self,
            attention_dropout_rate=self.dropout_rate,
            activation="silu" if self.encoder == "conformer" else "relu",
            positions="rope",
        )

    def frames(self, frames: int) -> int:
        """Returns the number of encoded frames for a number of feature frames."""
        for _ in range(self.num_layers if self.encoder == "pyramid" else 2):
            frames = -(-frames // 2)
        return frames


class Pyramid(nnx.Module):
    """Pyramid of bidirectional GRUs (Chan et al. 2016, equation 5).

        h_l = BiGRU([h_{l-1, 2s}; h_{l-1, 2s+1}]_s)

    Layer l joins each pair of adjacent frames 2s and 2s + 1 of the layer below.
    """

    def __init__(self, config: SpeechConfig, bands: int, *, rngs: nnx.Rngs):
        self.dropout_rate, D = config.dropout_rate, config.model_size
        sizes = [2 * bands] + [2 * D] * (config.num_layers - 1)
        self.layers = nnx.List(Bidirectional(size, D // 2, rngs=rngs) for size in sizes)

    def __call__(self, features: Array, valid: Array, key: Array | None) -> EncoderOutput:
        """Encodes features [B, S, F]; `valid`, bool [B, S], is False for padding."""
        x, last = features, None
        for number, layer in enumerate(self.layers):
            x, valid = _paired(x, valid)
            x, last = layer(x, valid=valid)
            if key is not None:
                x = dropout(x, self.dropout_rate, jax.random.fold_in(key, number))
        return EncoderOutput(x, valid, last)


@dataclasses.dataclass(frozen=True)
class ChunkTerm(Pattern):
    """Mask term: a frame attends to its own chunk and to previous chunks.

    Attributes:
      chunk_size: number of frames in a chunk.
      left_chunks: number of previous chunks that are visible; -1 for all.
    """

    chunk_size: int
    left_chunks: int
    query_offset: Offset | None = None

    def mask_mod(self, query_index, key_index):
        distance = query_index // self.chunk_size - key_index // self.chunk_size
        return (distance >= 0) & (distance <= self._limit)

    def any_visible(self, query_first, query_last, key_first, key_last):
        # Queries and keys of a block are contiguous, so every distance from low to high occurs.
        low = query_first // self.chunk_size - key_last // self.chunk_size
        high = query_last // self.chunk_size - key_first // self.chunk_size
        return np.maximum(low, 0) <= np.minimum(high, self._limit)

    def all_visible(self, query_first, query_last, key_first, key_last):
        low = query_first // self.chunk_size - key_last // self.chunk_size
        high = query_last // self.chunk_size - key_first // self.chunk_size
        return (low >= 0) & (high <= self._limit)

    @property
    def _limit(self) -> int:
        return FAR if self.left_chunks < 0 else self.left_chunks


class Subsampled(nnx.Module):
    """Two 3 x 3 convolutions with stride 2 over frames and bands, and attention layers."""

    def __init__(self, config: SpeechConfig, bands: int, *, rngs: nnx.Rngs):
        self.config, C, D = config, config.channels, config.model_size
        self.convolutions = nnx.List(
            Convolution(inputs, C, stride=2, norm="none", rngs=rngs) for inputs in (1, C)
        )
        rows = (bands + 3) // 4
        self.project = Projection((rows * C,), (D,), rngs=rngs)
        layers = config.attention_layers()
        if config.encoder == "conformer":
            causal = config.chunk_size > 0
            self.layers = Conformer(layers, config.conv_kernel_size, causal, rngs=rngs)
        else:
            self.layers = Encoder(layers, rngs=rngs)

    def __call__(self, features: Array, valid: Array, key: Array | None) -> EncoderOutput:
        """Encodes features [B, S, F]; `valid`, bool [B, S], is False for padding."""
        x = features[..., None]
        for convolution in self.convolutions:
            x = convolution(jnp.where(valid[:, :, None, None], x, 0.0))
            valid = valid[:, ::2]
        x = self.project(x.reshape(*x.shape[:2], -1))
        size, mask = self.config.chunk_size, None
        if size:
            mask = masks.Mask((ChunkTerm(size, self.config.left_chunks),))
        x = self.layers(x, valid=valid, mask=mask, dropout_key=key)
        x = jnp.where(valid[..., None], x, 0.0)
        mean = jnp.sum(x, axis=1) / jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None]
        return EncoderOutput(x, valid, mean)


class SpeechRecognizer(nnx.Module):
    """Encoder of standardized log-mel features, and a transcriber.

    Args:
      config: see `SpeechConfig`.
      features: config of the features.
      units: number of output units, including CTC's blank.
    """

    def __init__(self, config: SpeechConfig, features: LogMelConfig, units: int, *, rngs: nnx.Rngs):
        self.config = config
        kind = Pyramid if config.encoder == "pyramid" else Subsampled
        self.encoder = kind(config, features.bands, rngs=rngs)
        self.transcriber = Transcriber(config.transcriber, config.model_size, units, rngs=rngs)

    def encode(
        self, features: Array, frames: Array, dropout_key: Array | None = None
    ) -> EncoderOutput:
        """Encodes features for the transcriber.

        Args:
          features: float32 [B, S, F], standardized.
          frames: int [B], number of frames.
          dropout_key: None for evaluation.

        Raises:
          ValueError: shapes do not fit.
        """
        sizes: dict[str, int] = {}
        shapes.expect("features", features, "B S F", sizes)
        shapes.expect("frames", frames, "B", sizes)
        valid = jnp.arange(sizes["S"]) < frames[:, None]
        found = self.encoder(features, valid, dropout_key)
        return found.for_cell(self.config.transcriber.cell)


def _paired(x: Array, valid: Array) -> tuple[Array, Array]:
    """Joins pairs of adjacent frames. A pair is valid if its first frame is valid.

    Args:
      x: features of the frames, [B, S, F].
      valid: bool [B, S], False for padding.

    Returns:
      [B, ceil(S / 2), 2F], and bool [B, ceil(S / 2)].
    """
    x = jnp.where(valid[..., None], x, 0.0)
    B, S, F = x.shape
    x = jnp.pad(x, ((0, 0), (0, S % 2), (0, 0)))
    return x.reshape(B, -1, 2 * F), valid[:, ::2]


MODEL_CONFIGS = {"speech": SpeechConfig}
