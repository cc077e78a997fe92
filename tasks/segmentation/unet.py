"""The U-Net (Ronneberger et al. 2015), optionally with attention gates or map attention.

B batch, Y X height and width, C channels, K classes, P side of a patch in pixels. Each stage of the
encoder is two 3 x 3 convolutions and halves the map. Each stage of the decoder upsamples the map
and concatenates the encoder's map of the same size (skip connection). Unlike the paper,
convolutions are zero-padded and followed by batch norm. Map attention is a module of
`attention.registry`, such as CBAM, that is applied to the feature map at the end of each stage.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import registry, shapes
from attention.projection import Projection
from tasks.common.backbones.convolutional import (
    ImageModel,
    Stage,
    StagesConfig,
    map_attention_entry,
    run_stages,
)
from tasks.common.backbones.transformer_layers import maybe_dropout
from tasks.common.configs import PositiveInt, PositiveInts, Rate, spec_of
from tasks.segmentation.losses import LossConfig

Array = jax.Array

GATES = "gates"
_GATE = "attention_gate"


@dataclasses.dataclass(frozen=True)
class UNetConfig(StagesConfig):
    """Config of a U-Net; for the other fields see `StagesConfig`.

    Attributes:
      channels: channels of each stage of the encoder; each stage halves the map.
      patch_size: P. The P x P pixels of a patch are the input and output channels of one cell, so
        the largest map has 1 / P of the image's height and width. 1 gives the U-Net of the paper.
      attention: "none"; "gates", in which the coarser map weights the skip connection (Oktay et al.
        2018), with options such as "gates(hidden_size=8)"; or a map attention of
        `attention.registry` after each stage of encoder and decoder, such as "scse" or
        "cbam(reduction=4)". Map attention over all pairs of positions is feasible for small images
        only.
      dropout_rate: dropout rate of the coarsest map.
      loss: config of the loss.
    """

    name: str = "unet"
    attention: spec_of("none", GATES, *registry.names("map_attention")) = "none"
    channels: PositiveInts = (24, 48, 96, 192)
    patch_size: PositiveInt = 2
    dropout_rate: Rate = 0.1
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.gate is not None:
            for fine, coarse in itertools.pairwise(self.channels):
                self._try_gate(fine, coarse)

    @property
    def gate(self) -> str | None:
        """Spec of the gates for `attention.registry`; None without gates.

        Raises:
          ValueError: `attention` cannot be parsed, or its name is unknown.
        """
        names = ["none", GATES, *registry.names("map_attention")]
        name, _ = registry.parse("attention", self.attention, names)
        return self.attention.strip().replace(GATES, _GATE, 1) if name == GATES else None

    @property
    def map_attention(self) -> str:
        """Spec of the map attention after each stage, or "none"."""
        return "none" if self.gate is not None else self.attention

    @property
    def is_gate(self) -> bool:
        """True if the attention multiplies a map by its weights, as attention gates do."""
        if self.gate is not None:
            return True
        entry = map_attention_entry(self.map_attention)
        return entry is not None and "gate" in entry.capabilities

    def build_gate(self, fine: int, coarse: int, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a gate for maps of `fine` channels with a gating signal of `coarse` channels.

        Raises:
          ValueError: an option is unknown or does not fit.
        """
        options = {"dtype": jnp.dtype(self.dtype), "rngs": rngs}
        return registry.build("gate", self.gate, fine, coarse, **options)

    def _try_gate(self, fine: int, coarse: int) -> None:
        registry.check_spec(
            "attention",
            self.attention,
            lambda x, signal: self.build_gate(fine, coarse, nnx.Rngs(0))(x, signal),
            jax.ShapeDtypeStruct((1, 2, 2, fine), self.dtype),
            jax.ShapeDtypeStruct((1, 1, 1, coarse), self.dtype),
        )

    @property
    def first_stride(self) -> int:
        """Distance in pixels between neighboring cells of the largest map."""
        return self.patch_size


MODEL_CONFIGS = {"unet": UNetConfig}


def match_parameter_count(config: UNetConfig, classes: int, image_channels: int = 3) -> UNetConfig:
    """Reduces the channels so that the parameter count is that of the U-Net without attention.

    All channels are scaled by one factor and rounded.

    Args:
      config: config with attention, and with the channels of the network without attention.
      classes: K, number of classes.
      image_channels: number of channels of the input.

    Returns:
      The config with the nearest parameter count; it is within 2 % for networks of about 100,000
      parameters or more.
    """
    wanted = parameter_count(dataclasses.replace(config, attention="none"), classes, image_channels)
    scale, tried = 1.0, []
    for _ in range(4):
        channels = tuple(max(1, round(size * scale)) for size in config.channels)
        candidate = dataclasses.replace(config, channels=channels)
        got = parameter_count(candidate, classes, image_channels)
        tried.append((abs(got - wanted), channels, candidate))
        # The square root, because the number of parameters is about quadratic in the channels.
        scale *= (wanted / got) ** 0.5
    return min(tried, key=lambda found: found[:2])[2]


def parameter_count(config: UNetConfig, classes: int, image_channels: int = 3) -> int:
    """Returns the number of parameters of a U-Net, without initializing them."""
    model = nnx.eval_shape(lambda: UNet(config, image_channels, classes, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def to_patches(images: Array, P: int) -> Array:
    """Splits zero-padded images into patches.

    Args:
      images: [B, Y, X, C].
      P: side of a patch in pixels.

    Returns:
      [B, ceil(Y / P), ceil(X / P), P² C].
    """
    B, Y, X, C = images.shape
    images = jnp.pad(images, ((0, 0), (0, -Y % P), (0, -X % P), (0, 0)))
    rows, columns = images.shape[1] // P, images.shape[2] // P
    cut = images.reshape(B, rows, P, columns, P, C).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(B, rows, columns, P * P * C)


def from_patches(x: Array, Y: int, X: int) -> Array:
    """Joins patches [B, rows, columns, P, P, C] to maps [B, Y, X, C], cropped to Y x X.

    The forward pass joins the P rows of all patches one by one, and the backward pass takes every
    P-th pixel of the gradient. A single transpose of six axes would have the short last axis C,
    which a TPU pads to 128. With 11 classes, it would need 12 times the memory of the map.
    """
    _, rows, columns, P, _, _ = x.shape

    @jax.custom_vjp
    def join(x: Array) -> Array:
        B, C = x.shape[0], x.shape[-1]
        lines = [x[:, :, :, p].reshape(B, rows, columns * P, C) for p in range(P)]
        return jnp.stack(lines, axis=2).reshape(B, rows * P, columns * P, C)[:, :Y, :X]

    def split(_: None, g: Array) -> tuple[Array]:
        g = jnp.pad(g, ((0, 0), (0, rows * P - Y), (0, columns * P - X), (0, 0)))
        lines = [jnp.stack([g[:, p::P, q::P] for q in range(P)], axis=3) for p in range(P)]
        return (jnp.stack(lines, axis=3),)

    join.defvjp(lambda x: (join(x), None), split)
    return join(x)


class UNet(ImageModel):
    """U-Net that returns logits of each pixel.

        e_1 = stage(patches(image)),   e_i = stage(max_pool(e_(i-1)))
        d_n = e_n,   d_i = stage([α_i · e_i; up(d_(i+1))])
        logits = pixels(d_1 W + b)

    e_i are maps of the encoder, d_i maps of the decoder, and n is the number of stages. up is a 2 x
    2 transposed convolution with stride 2. α_i are the weights of the attention gate for e_i with
    gating signal d_(i+1), or 1 without gates. pixels is the inverse of patches.

    Args:
      config: see `UNetConfig`.
      image_channels: number of channels of the input.
      classes: K, number of classes.
    """

    def __init__(self, config: UNetConfig, image_channels: int, classes: int, *, rngs: nnx.Rngs):
        P, dtype = config.patch_size, jnp.dtype(config.dtype)
        sizes, pairs = config.channels, list(itertools.pairwise(config.channels))
        self.config = config
        options = {"attention": config.map_attention, "momentum": config.momentum, "dtype": dtype}

        def stage(inputs: int, outputs: int) -> Stage:
            return Stage(inputs, outputs, **options, rngs=rngs)

        self.encoder = nnx.List(
            [stage(*pair) for pair in itertools.pairwise((P * P * image_channels, *sizes))]
        )
        self.up = nnx.List(
            [Projection((coarse,), (2, 2, fine), dtype=dtype, rngs=rngs) for fine, coarse in pairs]
        )
        self.gates = nnx.List(
            [config.build_gate(*pair, rngs) for pair in pairs if config.gate is not None]
        )
        self.decoder = nnx.List([stage(2 * fine, fine) for fine, _ in pairs])
        self.classify = Projection((sizes[0],), (P, P, classes), rngs=rngs)
        # All pixels of a patch start with the same parameters, which prevents checkerboard patterns
        # (Aitken et al. 2017, "Checkerboard artifact free sub-pixel convolution").
        kernel = self.classify.kernel
        kernel[...] = jnp.broadcast_to(kernel[...][:, :1, :1], kernel.shape)

    def _apply(
        self, images: Array, dropout_key: Array | None, **flags: Any
    ) -> tuple[Array, dict[str, Array | None]]:
        """Returns logits [B, Y, X, K], and attention weights by name.

        The names are "gate_1", ... for gates, or "encoder_1", ..., "decoder_1", ... for map
        attention. Number 1 belongs to the largest map.
        """
        P, sizes = self.config.patch_size, {}
        shapes.expect("images", images, "B Y X C", sizes)
        skips, found = run_stages(self.encoder, to_patches(images, P), name="encoder", **flags)
        x = maybe_dropout(skips[-1], self.config.dropout_rate, dropout_key)
        for number in range(len(self.decoder), 0, -1):
            skip = skips[number - 1]
            if self.gates:
                skip, found[f"gate_{number}"] = self.gates[number - 1](skip, x, return_weights=True)
            x = from_patches(self.up[number - 1](x), *skip.shape[1:3])
            x = jnp.concatenate([skip, x], axis=-1)
            x, found[f"decoder_{number}"] = self.decoder[number - 1](x, **flags)
        return from_patches(self.classify(x), sizes["Y"], sizes["X"]), found
