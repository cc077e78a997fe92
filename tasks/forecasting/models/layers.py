"""Transformer layers of forecasters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.common.configs import Config
from tasks.forecasting.models.base import Mode
from tasks.forecasting.models.heads import HeadName

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class WindowEncoderConfig(EncoderConfig):
    """Encoder config for windows of equal length."""

    one_length = True


@dataclasses.dataclass(frozen=True)
class LayersConfig(Config):
    """Base class of the configs with Transformer layers.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
      model_size, num_layers, num_heads, feedforward_size, dropout_rate, attention_dropout_rate,
        norm, activation, positions, mixer, normalization: see `EncoderConfig`.
    """

    name: str = ""
    head: HeadName = "point"
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
        super().__post_init__()
        self.encoder(1)

    def encoder(self, length: int, **changes: Any) -> WindowEncoderConfig:
        """Returns the config of a stack for a number of positions."""
        names = [field.name for field in dataclasses.fields(EncoderConfig)]
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return WindowEncoderConfig(**values | {"max_length": length} | changes)


def encode(encoder: Encoder, x: Array, valid: Array, mode: Mode) -> tuple[Array, Array | None]:
    """Encodes x [B, T, D], 0 where not valid, bool [B, T].

    Returns:
      [B, T, D], and weights [B, layers, N, T, T]; None unless requested and supported.
    """
    weights, dropout_key = None, mode.dropout_key
    if mode.return_weights and "weights" in encoder.config.entry.capabilities:
        x, weights = encoder(x, valid=valid, dropout_key=dropout_key, return_weights=True)
        weights = jnp.moveaxis(weights, 1, 0)
    else:
        x = encoder(x, valid=valid, dropout_key=dropout_key)
    return jnp.where(valid[..., None], x, 0), weights
