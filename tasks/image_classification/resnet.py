"""A residual network (He et al. 2016) with optional map attention after each stage.

B batch, Y X height and width, C channels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention.dropout import dropout
from attention.image.maps import global_average
from attention.projection import Projection
from tasks.common.backbones.resnet import ResNet, ResNetConfig
from tasks.common.configs import Rate

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ResNetClassifierConfig(ResNetConfig):
    """Config of a residual network with a classifier; for other fields see `ResNetConfig`.

    Attributes:
      dropout_rate: dropout rate of the pooled vector.
    """

    name: str = "resnet"
    dropout_rate: Rate = 0.0


class ResNetClassifier(nnx.Module):
    """logits = dropout(mean_yx(the last map of ResNet(image))) W + b.

    Args:
      config: see `ResNetClassifierConfig`.
      image_channels: number of channels of the input.
      classes: number of classes.
    """

    def __init__(
        self, config: ResNetClassifierConfig, image_channels: int, classes: int, *, rngs: nnx.Rngs
    ):
        self.config = config
        self.backbone = ResNet(config, image_channels, rngs=rngs)
        self.classify = Projection((config.channels[-1],), (classes,), rngs=rngs)

    def __call__(
        self,
        images: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Classifies a batch; arguments and results are those of `ConvNet`."""
        maps, weights = self.backbone(
            images, valid=valid, training=training, return_weights=return_weights
        )
        pooled = global_average(maps[-1])
        if dropout_key is not None:
            pooled = dropout(pooled, self.config.dropout_rate, dropout_key)
        logits = self.classify(pooled).astype(jnp.float32)
        return (logits, weights) if return_weights else logits
