"""A small convolutional network with a place for attention after each stage.

B batch, Y X height and width, C channels. A stage is two 3 x 3 convolutions with batch norm (Ioffe
& Szegedy 2015) and ReLU; between stages the map is halved, as in VGG (Simonyan & Zisserman 2015).
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.dropout import dropout
from attention.image.maps import global_average
from attention.projection import Projection
from tasks.common.backbones.convolutional import Stage, check_layers, check_map_attention, max_pool

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ConvNetConfig:
    """A convolutional network.

    Attributes:
      channels: of each stage; from one to the next the map is halved.
      attention: after each stage, "none" or a map attention of `attention.registry`, with options
        if any: "cbam", "se(reduction=4)".
      dropout_rate: of the pooled vector.
      momentum: share of the newest batch in the running statistics.
      dtype: of the computation; weights are float32.
    """

    name: str = "convnet"
    channels: tuple[int, ...] = (32, 64, 128)
    attention: str = "none"
    dropout_rate: float = 0.3
    momentum: float = 0.1
    dtype: str = "float32"

    def __post_init__(self):
        check_layers(self.channels, self.momentum, self.dtype)
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate: got {self.dropout_rate}, expected a rate in [0, 1)")
        check_map_attention(self.attention, self.channels, self.dtype)

    def sides(self, Y: int, X: int) -> list[tuple[int, int]]:
        """Height and width of the map of each stage."""
        found = [(Y, X)]
        for _ in self.channels[1:]:
            found.append(tuple(-(-side // 2) for side in found[-1]))
        return found


class ConvNet(nnx.Module):
    """logits = dropout(mean_yx(stages(image))) W + b.

    Args:
      config: see `ConvNetConfig`.
      image_channels: of the picture.
      classes: number of them.
    """

    def __init__(self, config: ConvNetConfig, image_channels: int, classes: int, *, rngs: nnx.Rngs):
        sizes = (image_channels, *config.channels)
        self.config = config
        options = {name: getattr(config, name) for name in ("attention", "momentum", "dtype")}
        self.stages = nnx.List(
            [Stage(*pair, **options, rngs=rngs) for pair in itertools.pairwise(sizes)]
        )
        self.classify = Projection((sizes[-1],), (classes,), rngs=rngs)

    def __call__(
        self,
        images: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Classifies a batch.

        Args:
          images: [B, Y, X, C], of any size.
          valid: bool [B], the pictures that count in batch statistics; all if None.
          training: whether to normalise by the batch, and to take its statistics along.
          dropout_key: None for evaluation.
          return_weights: also return the attention weights.

        Returns:
          logits float32 [B, classes], or those and "stage_1", "stage_2", ...: what the attention
          after each stage gives; none without attention.
        """
        shapes.expect("images", images, "B Y X C", {"C": self.stages[0].first.kernel.shape[2]})
        x, weights = images, {}
        for number, stage in enumerate(self.stages, 1):
            x = x if number == 1 else max_pool(x)
            x, found = stage(x, valid=valid, training=training, return_weights=return_weights)
            if found is not None:
                weights[f"stage_{number}"] = found
        pooled = global_average(x)
        if dropout_key is not None:
            pooled = dropout(pooled, self.config.dropout_rate, dropout_key)
        logits = self.classify(pooled).astype(jnp.float32)
        return (logits, weights) if return_weights else logits
