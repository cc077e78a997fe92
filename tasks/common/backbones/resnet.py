"""Residual network (He et al. 2016, "Deep Residual Learning") with optional attention.

Each stage consists of basic blocks and an optional map attention: an attention module that maps a
feature map to one of the same shape, such as "cbam". The feature map of each stage after the first
has half the height and width of the previous one.

In shapes, B is the batch size, Y and X are height and width, and C is the number of channels.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from tasks.common.backbones.convolutional import (
    Convolution,
    StagesConfig,
    apply_map_attention,
    build_map_attention,
    run_stages,
)
from tasks.common.configs import PositiveInts, one_of

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ResNetConfig(StagesConfig):
    """Config of a residual network that computes feature maps at several scales.

    Attributes:
      depths: number of blocks of each stage.
      norm: norm after every convolution, "batch" or "group"; with group norm, results do not depend
        on the other images of a batch.
      stem: "small", a 3 x 3 convolution; or "imagenet", a 7 x 7 convolution with stride 2 and 3 x 3
        max pooling with stride 2, which the paper uses for the large images of ImageNet.
      stem_stride: stride of the stem "small", 1 or 2; the stem "imagenet" has stride 4.
      Other attributes: see `StagesConfig`.
    """

    depths: PositiveInts = (2, 2, 2, 2)
    norm: one_of("batch", "group") = "batch"
    stem: one_of("small", "imagenet") = "small"
    stem_stride: int = 1

    def __post_init__(self):
        super().__post_init__()
        stages = len(self.channels)
        self.expect("depths", len(self.depths) == stages, f"as many as channels, {stages}")
        small = self.stem == "small"
        expected = "1 or 2" if small else "1 with stem='imagenet'"
        self.expect("stem_stride", self.stem_stride in ((1, 2) if small else (1,)), expected)

    @property
    def first_stride(self) -> int:
        """Distance in input pixels between neighboring cells of the first stage's feature map."""
        return self.stem_stride if self.stem == "small" else 4


def max_pool_3x3(x: Array) -> Array:
    """Computes max pooling with 3 x 3 windows and a stride of 2.

    Args:
      x: [B, Y, X, C].

    Returns:
      [B, ceil(Y / 2), ceil(X / 2), C].
    """
    window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


class BasicBlock(nnx.Module):
    """Basic block: y = relu(norm(relu(norm(x * k_1)) * k_2) + s(x)) (figure 5, left).

    The shortcut s is the identity if input and output have equal shapes. Otherwise it is a 1 x 1
    convolution with the same stride, and a norm (option B of section 4.1).

    Args:
      inputs, outputs: number of channels.
      stride: stride of the first convolution.
      Other arguments: see `Convolution`.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, **options):
        self.first = Convolution(inputs, outputs, stride=stride, **options)
        self.second = Convolution(outputs, outputs, relu=False, **options)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            None
            if same
            else Convolution(inputs, outputs, size=1, stride=stride, relu=False, **options)
        )

    def __call__(self, x: Array, *, valid: Array | None = None, training: bool = False) -> Array:
        """Applies the block to feature maps x.

        Args:
          x: [B, Y, X, inputs].
          valid, training: as for `Convolution`.

        Returns:
          [B, ceil(Y / stride), ceil(X / stride), outputs].
        """
        flags = {"valid": valid, "training": training}
        y = self.second(self.first(x, **flags), **flags)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, **flags)))


class ResNetStage(nnx.Module):
    """Sequence of basic blocks and an optional map attention.

    Args:
      inputs, outputs: number of channels.
      depth: number of blocks.
      stride: stride of the first block.
      attention: as for `build_map_attention`.
      Other arguments: see `Convolution`.
    """

    def __init__(
        self, inputs: int, outputs: int, *, depth: int, stride: int, attention: str, **options
    ):
        self.blocks = nnx.List(
            [
                BasicBlock(outputs if number else inputs, outputs, stride=s, **options)
                for number, s in enumerate([stride, *[1] * (depth - 1)])
            ]
        )
        self.attention = build_map_attention(attention, outputs, options["dtype"], options["rngs"])

    def __call__(self, x: Array, *, return_weights: bool, **flags) -> tuple[Array, Array | None]:
        for block in self.blocks:
            x = block(x, **flags)
        return apply_map_attention(self.attention, x, **flags, return_weights=return_weights)


class ResNet(nnx.Module):
    """Residual network that returns the feature maps of all stages.

    Args:
      config: config of the network.
      image_channels: number of channels of the images.
    """

    def __init__(self, config: ResNetConfig, image_channels: int, *, rngs: nnx.Rngs):
        self.config = config
        options = {name: getattr(config, name) for name in ("norm", "momentum", "dtype")}
        options["rngs"] = rngs
        size, stride = (3, config.stem_stride) if config.stem == "small" else (7, 2)
        first = config.channels[0]
        self.stem = Convolution(image_channels, first, size=size, stride=stride, **options)
        self.stages = nnx.List(
            [
                ResNetStage(
                    *pair,
                    depth=depth,
                    stride=2 if number else 1,
                    attention=config.attention,
                    **options,
                )
                for number, (pair, depth) in enumerate(
                    zip(itertools.pairwise((first, *config.channels)), config.depths, strict=True)
                )
            ]
        )

    def __call__(
        self,
        images: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        return_weights: bool = False,
    ) -> tuple[list[Array], dict[str, Array]]:
        """Computes the feature maps of a batch of images.

        Args:
          images: [B, Y, X, image_channels], of any size.
          valid: bool [B], True for images that are included in batch statistics; all if None.
          training: whether to normalize by batch statistics and update the running statistics.
          return_weights: whether to return attention weights.

        Returns:
          A list and a dict. The list has the feature map of each stage i, [B, Y_i, X_i, C_i] in the
          config's dtype, where `ResNetConfig.sides` gives Y_i and X_i. The dict has, if requested,
          the weights of each stage's map attention, under the names "stage_1", "stage_2", ...

        Raises:
          ValueError: the images have another shape.
        """
        shapes.expect("images", images, "B Y X C", {"C": self.stem.kernel.shape[2]})
        flags = {"valid": valid, "training": training}
        x = self.stem(images, **flags)
        if self.config.stem == "imagenet":
            x = max_pool_3x3(x)
        return run_stages(self.stages, x, pool=False, **flags, return_weights=return_weights)
