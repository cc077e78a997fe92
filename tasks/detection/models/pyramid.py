"""Standardization of images, and the feature pyramid over a ResNet.

In shapes, B is the batch size, Y and X are height and width, and C is the number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from tasks.common.backbones.convolutional import Convolution

Array = jax.Array


def valid_pixels(sizes: Array, Y: int, X: int) -> Array:
    """Returns the mask of pixels that are not padding.

    Args:
      sizes: int [B, 2], height and width without padding.
      Y, X: height and width with padding.

    Returns:
      bool [B, Y, X].
    """
    rows = jnp.arange(Y)[:, None] < sizes[:, 0, None, None]
    return rows & (jnp.arange(X) < sizes[:, 1, None, None])


def standardize(images: Array, sizes: Array) -> Array:
    """Standardizes each image over its own pixels and channels; padding is 0.

        y = (x - μ) / max(σ, 1)

    x is from 0 to 255, and μ and σ are mean and standard deviation of the image without padding.
    The maximum avoids amplifying the noise of uniform images.

    Args:
      images: [B, Y, X, C], uint8 or float.
      sizes: int [B, 2], height and width without padding.

    Returns:
      float32 [B, Y, X, C].
    """
    known: dict[str, int] = {}
    shapes.expect("images", images, "B Y X C", known)
    shapes.expect("sizes", sizes, "B two", {"B": known["B"], "two": 2})
    real = valid_pixels(sizes, known["Y"], known["X"])[..., None]
    x = images.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(real, axis=(1, 2, 3), keepdims=True) * known["C"], 1)
    mean = jnp.sum(jnp.where(real, x, 0), axis=(1, 2, 3), keepdims=True) / count
    centered = jnp.where(real, x - mean, 0)
    variance = jnp.sum(centered**2, axis=(1, 2, 3), keepdims=True) / count
    return centered / jnp.maximum(jnp.sqrt(variance), 1.0)


def upsample_nearest(x: Array, Y: int, X: int) -> Array:
    """Upsamples by a factor of 2 with nearest-neighbor interpolation, and crops to Y x X.

    Args:
      x: [B, ceil(Y / 2), ceil(X / 2), C].
      Y, X: size of the result.

    Returns:
      [B, Y, X, C].
    """
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :Y, :X]


class FeaturePyramid(nnx.Module):
    """Feature pyramid network (Lin et al. 2017, section 3).

        P_i = conv3x3(M_i),   M_i = conv1x1(C_i) + up(M_i+1),   M_last = conv1x1(C_last)

    C_i are the input maps, P_i the levels of the pyramid, and up doubles the size of a map
    (`upsample_nearest`). Extra levels subsample the previous level by 2.

    Args:
      channels: channels of the input maps C_i; each map is half as large as the previous one.
      outputs: channels of each P_i.
      extra: number of levels beyond the last input map.
      dtype: dtype of the computation; parameters are float32.
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        *,
        extra: int = 0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"norm": "none", "relu": False, "dtype": dtype, "rngs": rngs}
        self.extra = extra
        self.lateral = nnx.List(
            [Convolution(inputs, outputs, size=1, **options) for inputs in channels]
        )
        self.smooth = nnx.List([Convolution(outputs, outputs, size=3, **options) for _ in channels])

    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        """Computes the levels of the pyramid, the finest first.

        Args:
          maps: C_i [B, Yi, Xi, Ci], the finest first.

        Returns:
          P_i [B, Yi, Xi, outputs] for each map, and then the extra levels.
        """
        if len(maps) != len(self.lateral):
            raise ValueError(f"maps: got {len(maps)} maps, expected {len(self.lateral)}")
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            merged[level] += upsample_nearest(merged[level + 1], *merged[level].shape[1:3])
        pyramid = [smooth(x) for smooth, x in zip(self.smooth, merged, strict=True)]
        for _ in range(self.extra):
            pyramid.append(pyramid[-1][:, ::2, ::2])
        return pyramid
