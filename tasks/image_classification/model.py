"""The Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"), small.

B batch, Y X image height and width, C channels, P patches, D model size.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention import registry, shapes
from attention.dropout import dropout
from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.image_classification.convnet import ConvNetConfig
from tasks.image_classification.resnet import ResNetClassifierConfig

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A Transformer encoder over the patches of a picture.

    Attributes:
      patch_size: pixels a side of a patch; divides the picture's side.
      head: "cls", the state of a learned token put first, or a pool of `attention.registry`:
        "multi_head" is the MAP head of Zhai et al. 2022.
      head_dropout_rate: of the pooled vector.
      For the others see `EncoderConfig`.
    """

    name: str = "vit"
    patch_size: int = 2
    model_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    feedforward_size: int = 128
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    head_dropout_rate: float = 0.1
    norm: str = "pre"
    activation: str = "gelu"
    positions: str = "learned"
    mixer: str = "dot_product"
    dtype: str = "float32"
    head: str = "multi_head"

    def __post_init__(self):
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size}")
        if not 0 <= self.head_dropout_rate < 1:
            raise ValueError(f"head_dropout_rate must be in [0, 1), got {self.head_dropout_rate}")
        heads = ("cls", *registry.names("pool"))
        if self.head not in heads:
            raise ValueError(f"head must be one of {', '.join(heads)}, got {self.head!r}")
        self.encoder(1)

    def encoder(self, max_length: int) -> EncoderConfig:
        """The part that is the encoder's.

        Raises:
          ValueError: a value is impossible; the message begins with the field's name.
        """
        names = {field.name for field in dataclasses.fields(EncoderConfig)}
        names &= {field.name for field in dataclasses.fields(self)}
        return EncoderConfig(max_length=max_length, **{name: getattr(self, name) for name in names})


MODEL_CONFIGS = {"vit": ViTConfig, "convnet": ConvNetConfig, "resnet": ResNetClassifierConfig}


def patches(images: Array, size: int) -> Array:
    """Cuts images into squares, row by row.

    Args:
      images: [B, Y, X, C].
      size: pixels a side of a patch.

    Returns:
      [B, P, size² C] with P = (Y / size) (X / size); in a patch, rows, columns, channels.

    Raises:
      ValueError: the size does not divide Y and X.
    """
    sizes: dict[str, int] = {}
    shapes.expect("images", images, "B Y X C", sizes)
    B, Y, X, C = sizes.values()
    if Y % size or X % size:
        raise ValueError(f"patch_size must divide the picture's {Y} x {X} pixels, got {size}")
    cut = images.reshape(B, Y // size, size, X // size, size, C)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


class VisionTransformer(nnx.Module):
    """logits = dropout(head(Encoder(patches(image) W + b))) W_c + b_c.

    Args:
      config: see `ViTConfig`.
      image_shape: (Y, X, C).
      classes: number of them.

    Raises:
      ValueError: the patches do not fit the picture.
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
        self,
        images: Array,
        *,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Classifies a batch.

        Args:
          images: [B, Y, X, C].
          dropout_key: None for evaluation.
          return_weights: also return the attention weights.

        Returns:
          logits float32 [B, classes], or those and the weights: "encoder" [B, L, N, T, T], and
          "head" [B, heads, P], what the head takes of each patch. For "cls" that is what its token
          looks at in the last layer, which may sum to less than 1: the rest is the token itself.
          For "mean", which takes all alike, it is the mean of what the patches look at there.
        """
        keys = [None] * 2 if dropout_key is None else list(jax.random.split(dropout_key))
        x = self.embed(patches(images, self.config.patch_size))
        if self.first is not None:
            first = jnp.broadcast_to(self.first[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
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
        if keys[1] is not None:
            pooled = dropout(pooled, self.config.head_dropout_rate, keys[1])
        logits = self.classify(pooled).astype(jnp.float32)
        return (logits, weights) if return_weights else logits
