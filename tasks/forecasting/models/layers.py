"""The part of a config that says what a forecaster's Transformer layers are made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.forecasting.models.heads import expect_head

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class WindowEncoderConfig(EncoderConfig):
    """Of windows of a series, which are all as long."""

    one_length = True


@dataclasses.dataclass(frozen=True)
class LayersConfig:
    """Base of the configs with Transformer layers.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
      model_size, num_layers, num_heads, feedforward_size, dropout_rate, attention_dropout_rate,
        norm, activation, positions, mixer, normalization: see `EncoderConfig`.
    """

    name: str = ""
    head: str = "point"
    model_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    feedforward_size: int = 128
    dropout_rate: float = 0.2
    attention_dropout_rate: float = 0.0
    norm: str = "post"
    activation: str = "gelu"
    positions: str = "sinusoidal"
    mixer: str = "dot_product"
    normalization: str = "layer"

    def __post_init__(self):
        expect_head(self.head)
        self.encoder(1)

    def encoder(self, length: int, **changes: Any) -> WindowEncoderConfig:
        """What a stack for that many positions is made of."""
        names = [field.name for field in dataclasses.fields(EncoderConfig)]
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return WindowEncoderConfig(**values | {"max_length": length} | changes)


def encoded(
    encoder: Encoder, x: Array, valid: Array, *, dropout_key: Array | None, return_weights: bool
) -> tuple[Array, Array | None]:
    """What an encoder makes of x [B, T, D], 0 where not valid, bool [B, T]; and its weights
    [B, layers, N, T, T], None unless asked for or where the mixer has none.
    """
    weights = None
    if return_weights and "weights" in encoder.config.entry.capabilities:
        x, weights = encoder(x, valid=valid, dropout_key=dropout_key, return_weights=True)
        weights = jnp.moveaxis(weights, 1, 0)
    else:
        x = encoder(x, valid=valid, dropout_key=dropout_key)
    return jnp.where(valid[..., None], x, 0), weights
