"""A small convolutional network with optional map attention after each stage.

B batch, Y X height and width, C channels. A stage is two 3 x 3 convolutions with batch norm (Ioffe
& Szegedy 2015) and ReLU. Each stage halves the map, as in VGG (Simonyan & Zisserman 2015).
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
from tasks.common.backbones.convolutional import Stage, StagesConfig, run_stages
from tasks.common.configs import PositiveInts, Rate

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ConvNetConfig(StagesConfig):
    """Config of a convolutional network; for the other fields see `StagesConfig`.

    Attributes:
      dropout_rate: dropout rate of the pooled vector.
    """

    name: str = "convnet"
    channels: PositiveInts = (32, 64, 128)
    dropout_rate: Rate = 0.3


class ConvNet(nnx.Module):
    """logits = dropout(mean_yx(stages(image))) W + b.

    Args:
      config: see `ConvNetConfig`.
      image_channels: number of channels of the input.
      classes: number of classes.
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
          valid: bool [B], the images that count in batch statistics; all if None.
          training: normalize by the batch, and update the batch statistics.
          dropout_key: None for evaluation.
          return_weights: also return the attention weights.

        Returns:
          logits float32 [B, classes]; with `return_weights` also "stage_1", "stage_2", ...: the
          weights of the attention after each stage, if there is one.
        """
        shapes.expect("images", images, "B Y X C", {"C": self.stages[0].first.kernel.shape[2]})
        flags = {"valid": valid, "training": training, "return_weights": return_weights}
        maps, weights = run_stages(self.stages, images, **flags)
        pooled = global_average(maps[-1])
        if dropout_key is not None:
            pooled = dropout(pooled, self.config.dropout_rate, dropout_key)
        logits = self.classify(pooled).astype(jnp.float32)
        return (logits, weights) if return_weights else logits
