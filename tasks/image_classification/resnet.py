"""A residual network (He et al. 2016) with optional map attention after each stage.

B batch, Y X height and width, C channels. Map attention is a module of `attention.registry`, such
as CBAM, that is applied to the feature map.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from tasks.common.backbones.resnet import ResNet, ResNetConfig
from tasks.common.class_weights import ClassWeightsConfig
from tasks.common.configs import Rate
from tasks.image_classification.convnet import ConvolutionalClassifier

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ResNetClassifierConfig(ClassWeightsConfig, ResNetConfig):
    """Config of a residual network with a classifier; for other fields see `ResNetConfig`.

    Attributes:
      dropout_rate: dropout rate of the pooled vector.
    """

    name: str = "resnet"
    dropout_rate: Rate = 0.0


class ResNetClassifier(ConvolutionalClassifier):
    """Classifier on the last map of a `ResNet`; see `ResNetClassifierConfig`."""

    def _build(self, image_channels: int, rngs: nnx.Rngs) -> None:
        self.backbone = ResNet(self.config, image_channels, rngs=rngs)

    def _maps(self, images: Array, **flags: Any) -> tuple[list[Array], dict[str, Array]]:
        return self.backbone(images, **flags)
