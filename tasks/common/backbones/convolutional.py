"""Modules of convolutional networks: normalized convolutions, stages with attention, and pooling.

A map attention is an attention module that maps a feature map [B, Y, X, C] to one of the same
shape. Its spec is its name in `attention.registry`, with options if any, such as "cbam" or
"se(reduction=4)".

In shapes, B is the batch size, Y and X are height and width, and C is the number of channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import registry, shapes
from attention.image.batch_norm import BatchNorm
from attention.image.maps import expect_positive, kernel_init
from attention.kernels.convolution import convolve
from attention.sharding import constrain
from tasks.common.configs import Config, Dtype, PositiveInts, spec_of, within

Array = jax.Array

NORMS = ("batch", "group", "none")
# Group norm (Wu & He 2018) has at most 32 groups, each of at least 8 channels if possible.
_MOST_GROUPS, _GROUP_CHANNELS = 32, 8

# Output channels of a convolution are sharded like hidden units of a Transformer. This rule must be
# the last one of a task, because it treats every kernel without another rule as a convolution.
SHARDING_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"(^|/)kernel$", (None, None, None, ("fsdp", "tensor"))),
)


# ---------------------------------------------------------------- map attention


def map_attention_entry(spec: str) -> registry.Mechanism | None:
    """Returns the registry entry of a map attention; None for "none".

    Args:
      spec: "none", or the spec of a map attention, such as "cbam" or "se(reduction=4)".

    Raises:
      ValueError: the spec cannot be parsed, or its name is unknown.
    """
    names = ["none", *registry.names("map_attention")]
    name, options = registry.parse("attention", spec, names)
    if name == "none" and options:
        raise ValueError(f"attention: got {spec!r}, expected 'none' without options")
    return None if name == "none" else registry.find("map_attention", name)


def build_map_attention(spec: str, channels: int, dtype: str, rngs: nnx.Rngs) -> nnx.Module | None:
    """Builds a map attention.

    Args:
      spec: "none", or the spec of a map attention.
      channels: number of channels of the feature maps.
      dtype: dtype of the computation.
      rngs: random number generators of the parameters.

    Returns:
      The attention module; None for "none".

    Raises:
      ValueError: a name or option is unknown or not valid.
    """
    if map_attention_entry(spec) is None:
        return None
    return registry.build("map_attention", spec, channels, dtype=jnp.dtype(dtype), rngs=rngs)


def check_map_attention(spec: str, channels: Sequence[int], dtype: str) -> None:
    """Checks that a map attention can be built for several feature maps.

    No parameters are created.

    Args:
      spec: "none", or the spec of a map attention.
      channels: number of channels of each feature map.
      dtype: dtype of the computation.

    Raises:
      ValueError: as for `build_map_attention`; the message begins with "attention".
    """
    if map_attention_entry(spec) is None:
        return
    for size in channels:
        registry.check_spec(
            "attention",
            spec,
            lambda x: build_map_attention(spec, x.shape[-1], dtype, nnx.Rngs(0))(x, training=True),
            jax.ShapeDtypeStruct((1, 1, 1, size), dtype),
        )


@dataclasses.dataclass(frozen=True)
class StagesConfig(Config):
    """Config of a convolutional network; each stage after the first halves height and width.

    Attributes:
      channels: number of channels of each stage.
      attention: map attention after each stage: "none" or a name of `attention.registry`, with
        options if any, such as "cbam" or "se(reduction=4)".
      momentum: momentum of batch norm: weight of the newest batch in the running statistics.
      dtype: dtype of the computation; parameters are float32.
    """

    channels: PositiveInts = (16, 32, 64, 128)
    attention: spec_of("none", *registry.names("map_attention")) = "none"
    momentum: within("(0, 1]") = 0.1
    dtype: Dtype = "float32"

    def __post_init__(self):
        super().__post_init__()
        check_map_attention(self.map_attention, self.channels, self.dtype)

    @property
    def map_attention(self) -> str:
        """The map attention after each stage, or "none"."""
        return self.attention

    @property
    def first_stride(self) -> int:
        """Distance in input pixels between neighboring cells of the first stage's feature map."""
        return 1

    @property
    def strides(self) -> list[int]:
        """Distance in input pixels between neighboring cells of the feature map of each stage."""
        return [self.first_stride * 2**number for number in range(len(self.channels))]

    def sides(self, Y: int, X: int) -> list[tuple[int, int]]:
        """Returns height and width of each stage's feature map, for images of Y by X pixels."""
        return [(-(-Y // stride), -(-X // stride)) for stride in self.strides]


def spatial_importance(weights: np.ndarray, grid: tuple[int, int], gate: bool) -> np.ndarray | None:
    """Computes a spatial importance map from the attention weights of one image.

    Args:
      weights: attention weights. Those of a gate, which multiplies the feature map by its weights,
        have shape [Y or 1, X or 1, C or 1]. Those of attention between positions have shape
        [N, P, P], for N heads and P = Y·X positions.
      grid: Y and X.
      gate: whether the weights are those of a gate: an attention with the capability "gate" in its
        registry entry.

    Returns:
      The map, [Y, X]. For a gate, it is the mean of the weights over the channels; otherwise, it is
      the attention to each position, averaged over heads and queries. None for a gate without
      spatial axes.
    """
    if not gate:
        return weights.mean(axis=(0, 1)).reshape(grid)
    if weights.shape[:2] == (1, 1) != tuple(grid):
        return None
    return np.broadcast_to(weights.mean(axis=-1), grid)


# ---------------------------------------------------------------- layers


def max_pool(x: Array, window: tuple[int, int] = (2, 2)) -> Array:
    """Computes the maximum of each block of a feature map.

    Blocks do not overlap. Those at the end of an axis may be incomplete.

    Args:
      x: [B, Y, X, C].
      window: h and w, the numbers of rows and columns of a block.

    Returns:
      [B, ceil(Y / h), ceil(X / w), C].
    """
    for axis, size in enumerate(window, 1):
        missing = -x.shape[axis] % size
        if missing:
            # The padding repeats the last row or column, which changes no maximum.
            x = jnp.pad(x, [(0, missing * (a == axis)) for a in range(4)], mode="edge")
        # Computed from slices, because the gradient of `jax.lax.reduce_window` is slow on CPU.
        parts = [jax.lax.slice_in_dim(x, i, None, size, axis) for i in range(size)]
        x = functools.reduce(jnp.maximum, parts)
    return x


class Convolution(nnx.Module):
    """Convolution, norm and ReLU: y = relu(norm(x * k)), where * is zero-padded cross-correlation.

    The kernel k is initialized for ReLU (He et al. 2015). A kernel of odd size is centered at cells
    0, s, 2s, ... of the feature map, as in PyTorch with a padding of (size - 1) / 2.

    Args:
      inputs, outputs: number of channels.
      size: height and width of the kernel.
      stride: s.
      norm: "batch" (Ioffe & Szegedy 2015), "group" (Wu & He 2018), or "none" for a bias instead of
        a norm. With group norm, results do not depend on the other images of a batch.
      relu: whether ReLU is applied.
      momentum: momentum of batch norm: weight of the newest batch in the running statistics.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: the norm is unknown, a number is below 1, or the momentum is out of range.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        stride: int = 1,
        norm: str = "batch",
        relu: bool = True,
        momentum: float = 0.1,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if norm not in NORMS:
            raise ValueError(f"norm: got {norm!r}, expected one of {', '.join(map(repr, NORMS))}")
        expect_positive(inputs=inputs, outputs=outputs, size=size, stride=stride)
        self.stride, self.relu, self.dtype = stride, relu, jnp.dtype(dtype)
        self.kernel = kernel_init(rngs, size, size, inputs, outputs)
        self.norm = _norm(norm, outputs, momentum, self.dtype, rngs)
        self.bias = nnx.Param(jnp.zeros((outputs,))) if norm == "none" else None

    def __call__(self, x: Array, *, valid: Array | None = None, training: bool = False) -> Array:
        """Convolves a batch.

        Args:
          x: [B, Y, X, inputs].
          valid: bool [B], True for images that are included in batch statistics; all if None.
          training: whether to normalize by batch statistics and update the running statistics.

        Returns:
          [B, ceil(Y / s), ceil(X / s), outputs] in `dtype`.

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        size, _, inputs, _ = self.kernel.shape
        shapes.expect("x", x, "B Y X C", {"C": inputs})
        x = convolve(
            constrain(x.astype(self.dtype), "B Y X _"),
            self.kernel[...].astype(self.dtype),
            stride=self.stride,
            padding=(((size - 1) // 2, size // 2),) * 2,
        )
        x = constrain(x, "B Y X _")
        if self.bias is not None:
            x = x + self.bias[...].astype(self.dtype)
        elif isinstance(self.norm, BatchNorm):
            x = self.norm(x, valid=valid, training=training)
        else:
            x = self.norm(x)
        return jax.nn.relu(x) if self.relu else x


def groups_of(channels: int) -> int:
    """Returns the number of groups of a group norm.

    It is the largest divisor of `channels` that is at most 32 and gives each group at least 8
    channels. With fewer than 8 channels there is a single group.
    """
    most = max(min(_MOST_GROUPS, channels // _GROUP_CHANNELS), 1)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _norm(
    norm: str, channels: int, momentum: float, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Module | None:
    if norm == "none":
        return None
    if norm == "batch":
        return BatchNorm(channels, momentum=momentum)
    groups = groups_of(channels)
    return nnx.GroupNorm(channels, num_groups=groups, epsilon=1e-5, dtype=dtype, rngs=rngs)


class ImageModel(nnx.Module):
    """Base class of convolutional models that can return attention weights."""

    def _apply(
        self, images: Array, dropout_key: Array | None, **flags: Any
    ) -> tuple[Array, dict[str, Array | None]]:
        """Computes the logits, and the attention weights by name, some of them None.

        Args:
          images, dropout_key: as for `__call__`.
          **flags: the arguments valid, training and return_weights of `__call__`.
        """
        raise NotImplementedError

    def __call__(
        self,
        images: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Computes the logits of a batch.

        Args:
          images: [B, Y, X, C], of any size.
          valid: bool [B], True for images that are included in batch statistics; all if None.
          training: whether to normalize by batch statistics and update the running statistics.
          dropout_key: None for evaluation.
          return_weights: whether to return also the attention weights.

        Returns:
          Logits in float32. With `return_weights`, also the attention weights by name.

        Raises:
          ValueError: shapes do not fit.
        """
        flags = {"valid": valid, "training": training, "return_weights": return_weights}
        result, weights = self._apply(images, dropout_key, **flags)
        result = result.astype(jnp.float32)
        if not return_weights:
            return result
        return result, {name: value for name, value in weights.items() if value is not None}


class Stage(nnx.Module):
    """Two convolutions, followed by an optional map attention.

    Args:
      inputs, outputs: number of channels.
      attention: as for `map_attention_entry`.
      Other arguments: see `Convolution`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        attention: str = "none",
        norm: str = "batch",
        momentum: float = 0.1,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"norm": norm, "momentum": momentum, "dtype": dtype, "rngs": rngs}
        self.first = Convolution(inputs, outputs, **options)
        self.second = Convolution(outputs, outputs, **options)
        self.attention = build_map_attention(attention, outputs, dtype, rngs)

    def __call__(
        self,
        x: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        return_weights: bool = False,
    ) -> tuple[Array, Array | None]:
        """Computes the feature map of the stage.

        Args:
          x: [B, Y, X, inputs].
          valid, training: as for `Convolution`.
          return_weights: whether to return the attention weights.

        Returns:
          The feature map, [B, Y, X, outputs], and the attention weights or None.
        """
        flags = {"valid": valid, "training": training}
        x = self.second(self.first(x, **flags), **flags)
        return apply_map_attention(self.attention, x, **flags, return_weights=return_weights)


def apply_map_attention(
    attention: nnx.Module | None, x: Array, *, return_weights: bool, **flags
) -> tuple[Array, Array | None]:
    """Applies a map attention to a feature map, which is unchanged if the attention is None.

    Returns:
      The new feature map, and the attention weights, which are None unless requested.
    """
    if attention is None:
        return x, None
    if return_weights:
        return attention(x, **flags, return_weights=True)
    return attention(x, **flags), None


def run_stages(
    stages: Iterable[nnx.Module], x: Array, *, name: str = "stage", pool: bool = True, **flags
) -> tuple[list[Array], dict[str, Array]]:
    """Applies a sequence of stages.

    Args:
      stages: `Stage` modules, or modules with the same call signature.
      x: [B, Y, X, C], input of the first stage.
      name: prefix of the names of the attention weights.
      pool: whether `max_pool` halves height and width between stages.
      **flags: keyword arguments of every stage.

    Returns:
      The feature map of each stage, and a dict with the attention weights of the stages that return
      any, under the names "<name>_1", "<name>_2", ...
    """
    maps, weights = [], {}
    for number, stage in enumerate(stages, 1):
        x, found = stage(max_pool(x) if pool and maps else x, **flags)
        maps.append(x)
        if found is not None:
            weights[f"{name}_{number}"] = found
    return maps, weights
