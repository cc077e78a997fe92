"""Line recognizer: convolutions, bidirectional GRUs, and a hybrid CTC/attention transcriber.

With CTC: Shi, Bai & Yao 2017, "An End-to-End Trainable Neural Network for Image-based Sequence
Recognition". With an attention decoder: Bluche, Louradour & Messina 2017, "Scan, Attend and Read".

B batch, X columns, Y rows, C channels, S columns after the convolutions, D model size.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.dropout import dropout
from attention.projection import Projection
from tasks.common.backbones.convolutional import Convolution, max_pool
from tasks.common.backbones.recurrent import Bidirectional
from tasks.common.backbones.transcriber import EncoderOutput, Transcriber, TranscriberConfig
from tasks.common.configs import Config, PositiveInt, Rate
from tasks.handwriting_recognition.datasets.digit_lines import HEIGHT

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LineConfig(Config):
    """Config of the encoder and the transcriber.

    Attributes:
      channels: channels of the convolutions. Pooling after each of them halves the number of rows;
        after the first two, it also halves the number of columns.
      model_size: D, state size of both directions of the GRUs together.
      num_layers: number of GRU layers.
      dropout_rate: dropout rate after convolutions and GRUs.
      transcriber: config of the transcriber.
    """

    name: str = "line"
    channels: tuple[int, ...] = (16, 32, 64)
    model_size: PositiveInt = 128
    num_layers: PositiveInt = 1
    dropout_rate: Rate = 0.1
    transcriber: TranscriberConfig = dataclasses.field(default_factory=TranscriberConfig)

    def __post_init__(self):
        super().__post_init__()
        possible = 2 <= len(self.channels) <= 5 and min(self.channels) >= 1
        self.expect("channels", possible, "two to five numbers above 0")
        self.expect("model_size", self.model_size % 2 == 0, "an even number")

    def frames(self, columns: int) -> int:
        """Returns the number of encoded columns S for a number of image columns X."""
        return -(-columns // 4)


class LineRecognizer(nnx.Module):
    """Encoder of image columns, and a transcriber.

    Args:
      config: see `LineConfig`.
      units: number of output units, including CTC's blank.
    """

    def __init__(self, config: LineConfig, units: int, *, rngs: nnx.Rngs):
        self.config, D = config, config.model_size
        sizes = (1, *config.channels)
        self.convolutions = nnx.List(
            Convolution(inputs, outputs, rngs=rngs) for inputs, outputs in itertools.pairwise(sizes)
        )
        rows = HEIGHT >> len(config.channels)
        self.project = Projection((rows * config.channels[-1],), (D,), rngs=rngs)
        self.layers = nnx.List(
            Bidirectional(D, D // 2, rngs=rngs) for _ in range(config.num_layers)
        )
        self.transcriber = Transcriber(config.transcriber, D, units, rngs=rngs)

    def encode(
        self,
        columns: Array,
        lengths: Array,
        real: Array | None = None,
        dropout_key: Array | None = None,
    ) -> EncoderOutput:
        """Encodes columns to the memory [B, S, D] of the transcriber.

        Args:
          columns: float32 [B, X, Y] in [0, 1], 1 for ink. Values at padding are ignored.
          lengths: int [B], number of columns.
          real: bool [B], rows to include in batch statistics; None for all rows.
          dropout_key: None for evaluation, which uses the running statistics of batch norm.

        Raises:
          ValueError: shapes do not fit.
        """
        sizes = {"Y": HEIGHT}
        shapes.expect("columns", columns, "B X Y", sizes)
        shapes.expect("lengths", lengths, "B", sizes)
        valid = jnp.arange(sizes["X"]) < lengths[:, None]
        x = columns[..., None]
        for number, convolution in enumerate(self.convolutions):
            x = jnp.where(valid[:, :, None, None], x, 0.0)
            x = convolution(x, valid=real, training=dropout_key is not None)
            x = jnp.where(valid[:, :, None, None], x, 0.0)
            across = 2 if number < 2 else 1
            x = max_pool(x, (across, 2))
            valid = valid[:, ::across]
        x = self._dropped(self.project(x.reshape(*x.shape[:2], -1)), dropout_key, 0)
        last = None
        for number, layer in enumerate(self.layers, 1):
            x, last = layer(x, valid=valid)
            x = self._dropped(x, dropout_key, number)
        return EncoderOutput(x, valid, last).for_cell(self.config.transcriber.cell)

    def _dropped(self, x: Array, key: Array | None, number: int) -> Array:
        if key is None:
            return x
        return dropout(x, self.config.dropout_rate, jax.random.fold_in(key, number))


MODEL_CONFIGS = {"line": LineConfig}
