"""A small convolutional network with optional map attention after each stage.

B batch, Y X height and width, C channels. A stage is two 3 x 3 convolutions with batch norm (Ioffe
& Szegedy 2015) and ReLU. Each stage halves the map, as in VGG (Simonyan & Zisserman 2015). Map
attention is a module of `attention.registry`, such as CBAM, that is applied to the feature map.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
from flax import nnx

from attention import shapes
from attention.image.maps import global_average
from attention.projection import Projection
from tasks.common.backbones.convolutional import ImageModel, Stage, StagesConfig, run_stages
from tasks.common.backbones.transformer_layers import maybe_dropout
from tasks.common.class_weights import ClassWeightsConfig
from tasks.common.configs import PositiveInts, Rate

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ConvNetConfig(ClassWeightsConfig, StagesConfig):
    """Config of a convolutional network; for the other fields see `StagesConfig`.

    Attributes:
      dropout_rate: dropout rate of the pooled vector.
    """

    name: str = "convnet"
    channels: PositiveInts = (32, 64, 128)
    dropout_rate: Rate = 0.3


class ConvolutionalClassifier(ImageModel):
    """Base class of classifiers with logits = dropout(mean_yx(last map of the backbone)) W + b.

    Args:
      config: a `StagesConfig` with `dropout_rate`.
      image_channels: number of channels of the input.
      classes: number of classes.
    """

    def __init__(self, config: StagesConfig, image_channels: int, classes: int, *, rngs: nnx.Rngs):
        self.config = config
        self._build(image_channels, rngs)
        self.classify = Projection((config.channels[-1],), (classes,), rngs=rngs)

    def _build(self, image_channels: int, rngs: nnx.Rngs) -> None:
        """Creates the backbone."""
        raise NotImplementedError

    def _maps(self, images: Array, **flags: Any) -> tuple[list[Array], dict[str, Array]]:
        """Returns the feature map of each stage of the backbone, and attention weights by name."""
        raise NotImplementedError

    def _apply(
        self, images: Array, dropout_key: Array | None, **flags: Any
    ) -> tuple[Array, dict[str, Array]]:
        """Returns logits [B, classes], and the attention weights of each stage, "stage_1", ..."""
        maps, weights = self._maps(images, **flags)
        pooled = maybe_dropout(global_average(maps[-1]), self.config.dropout_rate, dropout_key)
        return self.classify(pooled), weights


class ConvNet(ConvolutionalClassifier):
    """Classifier on the last map of a sequence of `Stage`s; see `ConvNetConfig`."""

    def _build(self, image_channels: int, rngs: nnx.Rngs) -> None:
        config, sizes = self.config, (image_channels, *self.config.channels)
        options = {name: getattr(config, name) for name in ("attention", "momentum", "dtype")}
        self.stages = nnx.List(
            [Stage(*pair, **options, rngs=rngs) for pair in itertools.pairwise(sizes)]
        )

    def _maps(self, images: Array, **flags: Any) -> tuple[list[Array], dict[str, Array]]:
        shapes.expect("images", images, "B Y X C", {"C": self.stages[0].first.kernel.shape[2]})
        return run_stages(self.stages, images, **flags)
