"""A residual network (He et al. 2016, "Deep Residual Learning") with a place for attention.

B batch, Y X height and width, C channels. Basic blocks in stages, each stage's map half as high and
wide as the one before, and after each stage a map attention or none.
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
    apply_map_attention,
    build_map_attention,
    check_layers,
    check_map_attention,
    check_norm,
)

Array = jax.Array

STEMS = ("small", "imagenet")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Maps of several scales from a picture.

    Attributes:
      channels: of each stage.
      depths: blocks of each stage.
      attention: after each stage, "none" or a map attention of `attention.registry`, with options
        if any: "cbam", "se(reduction=4)".
      norm: of every convolution, "batch", or "group", which does not depend on the other pictures.
      stem: "small", one 3 x 3 convolution, or "imagenet", 7 x 7 with stride 2 and 3 x 3 max pooling
        with stride 2, as the paper has it for large pictures.
      stem_stride: of the small stem, 1 or 2; the other's is 4.
      momentum: of batch norm: share of the newest batch in the running statistics.
      dtype: of the computation; weights are float32.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    attention: str = "none"
    norm: str = "batch"
    stem: str = "small"
    stem_stride: int = 1
    momentum: float = 0.1
    dtype: str = "float32"

    def __post_init__(self):
        check_layers(self.channels, self.momentum, self.dtype)
        if min(self.depths, default=0) < 1:
            expected = "at least one number, each at least 1"
            raise ValueError(f"depths: got {list(self.depths)}, expected {expected}")
        if len(self.depths) != len(self.channels):
            raise ValueError(
                f"depths: got {list(self.depths)}, expected as many as channels, "
                f"{len(self.channels)}"
            )
        check_norm(self.norm)
        if self.norm == "none":
            raise ValueError("norm: got 'none', expected 'batch' or 'group'")
        if self.stem not in STEMS:
            raise ValueError(f"stem: got {self.stem!r}, expected one of {', '.join(STEMS)}")
        if self.stem_stride not in ((1, 2) if self.stem == "small" else (1,)):
            expected = "1 or 2" if self.stem == "small" else "1 with stem='imagenet'"
            raise ValueError(f"stem_stride: got {self.stem_stride}, expected {expected}")
        check_map_attention(self.attention, self.channels, self.dtype)

    @property
    def strides(self) -> list[int]:
        """Pixels of the picture by which neighbours in the map of each stage are apart."""
        first = self.stem_stride if self.stem == "small" else 4
        return [first * 2**number for number in range(len(self.channels))]

    def sides(self, Y: int, X: int) -> list[tuple[int, int]]:
        """Height and width of the map of each stage, of a picture of Y by X pixels."""
        return [(-(-Y // stride), -(-X // stride)) for stride in self.strides]


def max_pool_3x3(x: Array) -> Array:
    """The maximum of each 3 x 3 block around every second place.

    Args:
      x: [B, Y, X, C].

    Returns:
      [B, ceil(Y / 2), ceil(X / 2), C].
    """
    window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


class BasicBlock(nnx.Module):
    """y = relu(norm(relu(norm(x * k_1)) * k_2) + s(x)) (He et al. 2016, figure 5, left).

    s is x itself where the shapes are equal, else a 1 x 1 convolution with the stride and a norm
    (option B of section 4.1).

    Args:
      inputs, outputs: channels.
      stride: of the first convolution.
      For the others see `Convolution`.
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
        """x [B, Y, X, inputs] -> [B, ceil(Y / stride), ceil(X / stride), outputs]."""
        flags = {"valid": valid, "training": training}
        y = self.second(self.first(x, **flags), **flags)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, **flags)))


class ResNetStage(nnx.Module):
    """Basic blocks, the first with a stride, and the attention, if there is one."""

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
    """The maps of all stages of a residual network.

    Args:
      config: see `ResNetConfig`.
      image_channels: of the picture.
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
        """Maps of a batch.

        Args:
          images: [B, Y, X, image_channels], of any size.
          valid: bool [B], the pictures that count in batch statistics; all if None.
          training: whether to normalise by the batch, and to take its statistics along.
          return_weights: whether to give the attention weights.

        Returns:
          The map of each stage, [B, Y_i, X_i, C_i] in the config's dtype with the sides of
          `ResNetConfig.sides`; and "stage_1", "stage_2", ...: what the attention after each stage
          gives, if it was asked for.

        Raises:
          ValueError: images of another shape.
        """
        shapes.expect("images", images, "B Y X C", {"C": self.stem.kernel.shape[2]})
        flags = {"valid": valid, "training": training}
        x = self.stem(images, **flags)
        if self.config.stem == "imagenet":
            x = max_pool_3x3(x)
        maps, weights = [], {}
        for number, stage in enumerate(self.stages, 1):
            x, found = stage(x, **flags, return_weights=return_weights)
            maps.append(x)
            if found is not None:
                weights[f"stage_{number}"] = found
        return maps, weights
