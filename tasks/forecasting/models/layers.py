"""Transformer layers of forecasters.

In shapes, B is the number of sequences, T the number of positions, D the model size, and N the
number of heads.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.common.backbones.transformer_layers import SmallEncoderConfig
from tasks.forecasting.models.base import Mode
from tasks.forecasting.models.heads import HeadName

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class WindowEncoderConfig(EncoderConfig):
    """Encoder config for windows of equal length."""

    one_length = True


@dataclasses.dataclass(frozen=True)
class LayersConfig(SmallEncoderConfig):
    """Base class of the configs with Transformer layers; see `EncoderConfig`.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
    """

    name: str = ""
    head: HeadName = "point"
    dropout_rate: float = 0.2
    norm: str = "post"
    positions: str = "sinusoidal"
    normalization: str = "layer"

    encoder_type = WindowEncoderConfig


def encode(encoder: Encoder, x: Array, valid: Array, mode: Mode) -> tuple[Array, Array | None]:
    """Encodes sequences, with attention weights if `mode` requests them.

    Args:
      encoder: encoder of sequences.
      x: sequences, [B, T, D].
      valid: bool [B, T], False for masked positions.
      mode: options of the forward pass.

    Returns:
      Outputs [B, T, D], 0 where not valid; and the attention weights [B, layers, N, T, T], or None
      if they are not requested or the mixer has none.
    """
    weights, dropout_key = None, mode.dropout_key
    if mode.return_weights and "weights" in encoder.config.entry.capabilities:
        x, weights = encoder(x, valid=valid, dropout_key=dropout_key, return_weights=True)
        weights = jnp.moveaxis(weights, 1, 0)
    else:
        x = encoder(x, valid=valid, dropout_key=dropout_key)
    return jnp.where(valid[..., None], x, 0), weights
