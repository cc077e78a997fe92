"""A small Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words").

B batch, Y X image height and width, C channels, P patches, D model size, L layers, N heads, T
tokens (the patches and, for the head "cls", the class token).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention import registry, shapes
from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder
from tasks.common.backbones.transformer_layers import SmallEncoderConfig, maybe_dropout, split_keys
from tasks.common.class_weights import ClassWeightsConfig
from tasks.common.configs import PositiveInt, Rate, one_of
from tasks.image_classification.convnet import ConvNetConfig
from tasks.image_classification.resnet import ResNetClassifierConfig

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ViTConfig(ClassWeightsConfig, SmallEncoderConfig):
    """Config of a Transformer encoder over patches; for other fields see `EncoderConfig`.

    Attributes:
      patch_size: side of a patch in pixels; divides the side of the image.
      head: "cls", which reads the logits from a learned token prepended to the patches; or a pool
        of `attention.registry`, such as "multi_head", the MAP head of Zhai et al. 2022.
      head_dropout_rate: dropout rate of the pooled vector.
    """

    name: str = "vit"
    patch_size: PositiveInt = 2
    head_dropout_rate: Rate = 0.1
    dtype: str = "float32"
    head: one_of("cls", *registry.names("pool")) = "multi_head"


MODEL_CONFIGS = {"vit": ViTConfig, "convnet": ConvNetConfig, "resnet": ResNetClassifierConfig}


def patches(images: Array, size: int) -> Array:
    """Splits images into square patches, row by row.

    Args:
      images: [B, Y, X, C].
      size: side of a patch in pixels.

    Returns:
      [B, P, size² C] with P = (Y / size) (X / size); a patch is ordered by row, column, channel.

    Raises:
      ValueError: the size does not divide Y and X.
    """
    sizes: dict[str, int] = {}
    shapes.expect("images", images, "B Y X C", sizes)
    B, Y, X, C = sizes.values()
    if Y % size or X % size:
        raise ValueError(f"patch_size: got {size}, expected a divisor of {Y} and {X} pixels")
    cut = images.reshape(B, Y // size, size, X // size, size, C)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


class VisionTransformer(nnx.Module):
    """Vision Transformer with logits = dropout(head(Encoder(patches(image) W + b))) W_c + b_c.

    Args:
      config: see `ViTConfig`.
      image_shape: shape of an image, (Y, X, C).
      classes: number of classes.

    Raises:
      ValueError: patches do not divide the image.
    """

    def __init__(
        self, config: ViTConfig, image_shape: tuple[int, int, int], classes: int, *, rngs: nnx.Rngs
    ):
        D, dtype = config.model_size, jnp.dtype(config.dtype)
        cut = jax.eval_shape(lambda: patches(jnp.zeros((1, *image_shape)), config.patch_size))
        _, P, inputs = cut.shape
        first = config.head == "cls"
        self.config = config
        self.embed = Projection((inputs,), (D,), dtype=dtype, rngs=rngs)
        self.first = nnx.Param(0.02 * jax.random.normal(rngs.params(), (D,))) if first else None
        self.encoder = Encoder(config.encoder(P + first), rngs=rngs)
        self.pool = None if first else registry.load("pool", config.head)(D, dtype=dtype, rngs=rngs)
        self.classify = Projection((D,), (classes,), rngs=rngs)

    def __call__(
        self, images: Array, *, dropout_key: Array | None = None, return_weights: bool = False
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Classifies a batch.

        Args:
          images: [B, Y, X, C].
          dropout_key: None for evaluation.
          return_weights: whether to return the attention weights too.

        Returns:
          Logits float32 [B, classes]; with `return_weights` also the attention weights "encoder"
          [B, L, N, T, T], and "head" [B, heads, P], the weights of the head over the patches. For
          the head "cls", these are the weights of the class token in the last layer. Their sum may
          be less than 1, because the token also attends to itself. For the head "mean", they are
          the weights in the last layer, averaged over the queries.
        """
        keys = split_keys(dropout_key, 2)
        x = self.embed(patches(images, self.config.patch_size))
        if self.first is not None:
            first = jnp.broadcast_to(self.first[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        encoded = self.encoder(x, dropout_key=keys[0], return_weights=return_weights)
        weights = {}
        if return_weights:
            encoded, layers = encoded
            weights["encoder"] = jnp.swapaxes(layers, 0, 1)
        if self.pool is not None:
            pooled, weights["head"] = self.pool(encoded)
            if return_weights and self.config.head == "mean":
                weights["head"] = weights["encoder"][:, -1].mean(axis=2)
        else:
            pooled = encoded[:, 0]
            if return_weights:
                weights["head"] = weights["encoder"][:, -1, :, 0, 1:]
        pooled = maybe_dropout(pooled, self.config.head_dropout_rate, keys[1])
        logits = self.classify(pooled).astype(jnp.float32)
        return (logits, weights) if return_weights else logits
