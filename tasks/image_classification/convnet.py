"""A small convolutional network with a place for attention after each stage.

B batch, Y X height and width, C channels. A stage is two 3 x 3 convolutions with batch norm (Ioffe
& Szegedy 2015) and ReLU; between stages the map is halved, as in VGG (Simonyan & Zisserman 2015).
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import registry, shapes
from attention.dropout import dropout
from attention.image.batch_norm import BatchNorm
from attention.image.maps import global_average, kernel_init
from attention.projection import Projection

Array = jax.Array

# Output channels of a convolution are split like hidden units of a Transformer.
SHARDING_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"(^|/)(first|second)/kernel$", (None, None, None, ("fsdp", "tensor"))),
)


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
        if not self.channels or min(self.channels) < 1:
            expected = "at least one number, each at least 1"
            raise ValueError(f"channels: got {list(self.channels)}, expected {expected}")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate: got {self.dropout_rate}, expected a rate in [0, 1)")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum: got {self.momentum}, expected a share in (0, 1]")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: got {self.dtype!r}, expected 'float32' or 'bfloat16'")
        if self.line is not None:
            for size in self.channels:
                self._try(size)

    def _try(self, size: int) -> None:
        """Raises ValueError unless the attention fits maps of that many channels."""
        x = jax.ShapeDtypeStruct((1, 1, 1, size), self.dtype)
        registry.expect_usable(
            "attention",
            self.attention,
            lambda x: self.build_attention(size, nnx.Rngs(0))(x, training=True),
            x,
        )

    @property
    def line(self) -> registry.Mechanism | None:
        """The attention's line in the registry; None for "none".

        Raises:
          ValueError: an unknown name.
        """
        names = ["none", *registry.names("map_attention")]
        name, options = registry.parse("attention", self.attention, names)
        if name == "none" and options:
            raise ValueError(f"attention: got {self.attention!r}, expected 'none' without options")
        return None if name == "none" else registry.find("map_attention", name)

    def build_attention(self, channels: int, rngs: nnx.Rngs) -> nnx.Module | None:
        """The attention of one stage.

        Raises:
          ValueError: an unknown option, or one that does not fit.
        """
        if self.line is None:
            return None
        options = {"dtype": jnp.dtype(self.dtype), "rngs": rngs}
        return registry.build("map_attention", self.attention, channels, **options)

    def sides(self, Y: int, X: int) -> list[tuple[int, int]]:
        """Height and width of the map of each stage."""
        found = [(Y, X)]
        for _ in self.channels[1:]:
            found.append(tuple(-(-side // 2) for side in found[-1]))
        return found


def halved(x: Array) -> Array:
    """The maximum of each 2 x 2 block; of what is left over at an odd side as well.

    Args:
      x: [B, Y, X, C].

    Returns:
      [B, ceil(Y / 2), ceil(X / 2), C].
    """
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "SAME")


class Convolution(nnx.Module):
    """relu(BN(x * k)) with a 3 x 3 kernel k [3, 3, inputs, outputs] and zeros around."""

    def __init__(
        self, inputs: int, outputs: int, *, momentum: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.dtype = dtype
        self.kernel = kernel_init(rngs, 3, 3, inputs, outputs)
        self.norm = BatchNorm(outputs, momentum=momentum)

    def __call__(self, x: Array, *, valid: Array | None, training: bool) -> Array:
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.relu(self.norm(x, valid=valid, training=training))


class Stage(nnx.Module):
    """Two convolutions and the attention, if there is one."""

    def __init__(self, config: ConvNetConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        options = {"momentum": config.momentum, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
        self.first = Convolution(inputs, outputs, **options)
        self.second = Convolution(outputs, outputs, **options)
        self.attention = config.build_attention(outputs, rngs)

    def __call__(
        self, x: Array, *, valid: Array | None, training: bool, return_weights: bool
    ) -> tuple[Array, Array | None]:
        flags = {"valid": valid, "training": training}
        x = self.second(self.first(x, **flags), **flags)
        if self.attention is None:
            return x, None
        if return_weights:
            return self.attention(x, **flags, return_weights=True)
        return self.attention(x, **flags), None


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
        self.stages = nnx.List(
            [
                Stage(config, inputs, outputs, rngs=rngs)
                for inputs, outputs in itertools.pairwise(sizes)
            ]
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
            x = x if number == 1 else halved(x)
            x, found = stage(x, valid=valid, training=training, return_weights=return_weights)
            if found is not None:
                weights[f"stage_{number}"] = found
        pooled = global_average(x)
        if dropout_key is not None:
            pooled = dropout(pooled, self.config.dropout_rate, dropout_key)
        logits = self.classify(pooled).astype(jnp.float32)
        return (logits, weights) if return_weights else logits


def places(weights: np.ndarray, grid: tuple[int, int], gate: bool) -> np.ndarray | None:
    """How much each place of a map counts, by the weights of one picture.

    Args:
      weights: of a gate [Y or 1, X or 1, C or 1], else [N, P, P].
      grid: Y and X.
      gate: whether they are a gate's.

    Returns:
      [Y, X]: of a gate its mean over channels; else how much is taken of each position, on average
      over heads and takers. None for a gate that is the same everywhere.
    """
    if not gate:
        return weights.mean(axis=(0, 1)).reshape(grid)
    if weights.shape[:2] == (1, 1) != tuple(grid):
        return None
    return np.broadcast_to(weights.mean(axis=-1), grid)
