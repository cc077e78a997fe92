"""Transformer forecaster (Vaswani et al. 2017) with an encoder over the look-back.

The decoder computes all steps of the horizon at once, as in Informer (Zhou et al. 2021).

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, K
the number of calendar features, G the number of last times of the look-back that the decoder
receives, D the model size, N the number of attention heads, and P the number of parameters of an
output head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention.projection import Projection
from tasks.common.backbones.transformer import Decoder, Encoder, EncoderConfig
from tasks.common.configs import NonNegativeInt, PositiveInt
from tasks.forecasting.models.base import Forecaster, InstanceNorm, Mode, Weights, WindowSizes
from tasks.forecasting.models.heads import HEADS
from tasks.forecasting.models.layers import LayersConfig, encode

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class TransformerConfig(LayersConfig):
    """Config of an encoder with the given `mixer` and a decoder with dot-product attention.

    For the other attributes see `LayersConfig`.

    Attributes:
      decoder_layers: number of layers of the decoder; `num_layers` is that of the encoder.
      label_length: G, number of last times of the look-back at the start of the decoder input.
      instance_norm: whether each window is normalized (Kim et al. 2022). The papers on Transformer
        and Informer do not normalize windows. Forecasts then do not follow the changing level of
        nonstationary series.
    """

    name: str = "transformer"
    decoder_layers: PositiveInt = 1
    label_length: NonNegativeInt = 48
    instance_norm: bool = False

    def decoder(self, length: int) -> EncoderConfig:
        """Returns the config of a decoder of `length` positions."""
        return self.encoder(length, num_layers=self.decoder_layers, mixer="dot_product")


class Transformer(Forecaster):
    """Transformer whose tokens are times, each with all channels and calendar features.

        memory = encoder([x, k]_(1 ... L) W_e)
        ŷ = decoder([x or 0, k]_(L-G+1 ... L+F) W_d, memory) W + b

    with calendar features k, and x normalized if `instance_norm`. In the decoder, x is 0 at the
    last F positions, which are the future times; ŷ is the output at these positions. Times without
    valid values are masked.

    Attention weights: "encoder" [B, layers, N, L, L] if the mixer has attention weights; and
    "decoder" [B, layers, N, F, S] from the horizon to the S times of the encoder output, here S =
    L.

    Raises:
      ValueError: label_length is more than the look-back.
    """

    def __init__(self, config: TransformerConfig, sizes: WindowSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, HEADS[config.head])
        if config.label_length > sizes.lookback:
            expected = f"at most lookback={sizes.lookback}"
            raise ValueError(f"label_length: got {config.label_length}, expected {expected}")
        D, C, F = config.model_size, sizes.channels, sizes.horizon
        inputs = (C + sizes.calendar,)
        self.label_length = config.label_length
        self.norm = InstanceNorm(C) if config.instance_norm else None
        self.encoder_embedding = Projection(inputs, (D,), use_bias=False, rngs=rngs)
        self.encoder = self._encoder(config, rngs)
        self.decoder_embedding = Projection(inputs, (D,), use_bias=False, rngs=rngs)
        self.decoder = Decoder(config.decoder(config.label_length + F), D, rngs=rngs)
        self.out = Projection((D,), (C, self.head.size), rngs=rngs)

    def _encoder(self, config: TransformerConfig, rngs: nnx.Rngs) -> nnx.Module:
        return Encoder(config.encoder(self.sizes.lookback), rngs=rngs)

    def _memory(self, x: Array, present: Array, mode: Mode) -> tuple[Array, Array, Array | None]:
        """Encodes x [B, L, D] with its mask, bool [B, L].

        Returns:
          Memory [B, S, D], its mask, bool [B, S], and attention weights or None.
        """
        memory, weights = encode(self.encoder, x, present, mode)
        return memory, present, weights

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        B, L, C = past.shape
        F, G = self.sizes.horizon, self.label_length
        key = mode.dropout_key
        keys = (None, None) if key is None else jax.random.split(key)
        x, level, scale = past, jnp.zeros((B, 1, C)), jnp.ones((B, 1, C))
        if self.norm is not None:
            x, level, scale = self.norm(past, past_valid)
        present = jnp.any(past_valid, axis=-1)
        memory, memory_present, weights = self._memory(
            self.encoder_embedding(jnp.concatenate([x, calendar[:, :L]], axis=-1)),
            present,
            mode._replace(dropout_key=keys[0]),
        )
        given = jnp.pad(x[:, L - G :], ((0, 0), (0, F), (0, 0)))
        result = self.decoder(
            self.decoder_embedding(jnp.concatenate([given, calendar[:, L - G :]], axis=-1)),
            memory,
            memory_valid=memory_present,
            valid=jnp.pad(present[:, L - G :], ((0, 0), (0, F)), constant_values=True),
            dropout_key=keys[1],
            return_weights=mode.return_weights,
        )
        z, across = result if mode.return_weights else (result, None)
        found = {} if weights is None else {"encoder": weights}
        if across is not None:
            found["decoder"] = jnp.moveaxis(across["cross"], 1, 0)[..., G:, :]
        return self.head.place(self.out(z[:, G:]), level, scale), found
