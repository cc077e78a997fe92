"""iTransformer: attention between channels.

Liu et al. 2024, "iTransformer: Inverted Transformers Are Effective for Time Series Forecasting".

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, K
the number of calendar features, D the model size, N the number of heads, and P the number of
parameters of an output head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder
from tasks.forecasting.models.base import Forecaster, InstanceNorm, Mode, Weights, WindowSizes
from tasks.forecasting.models.heads import HEADS
from tasks.forecasting.models.layers import LayersConfig, encode

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class ITransformerConfig(LayersConfig):
    """Config of iTransformer; see `LayersConfig` for the attributes."""

    name: str = "itransformer"
    model_size: int = 128
    num_layers: int = 2
    num_heads: int = 8
    positions: str = "none"


class ITransformer(Forecaster):
    """Transformer whose tokens are the look-backs of the channels and of the calendar features.

        z = encoder([x_1 ... x_C, k_1 ... k_K]ᵀ W + b),     ŷ_c = σ_c (z_c W' + b') + μ_c

    x_c is the normalized look-back of channel c, and k_i the look-back of calendar feature i. μ_c
    and σ_c are mean and standard deviation of the look-back of channel c. Channels without valid
    values are masked.

    Attention weights: "channels" [B, layers, N, C + K, C + K].
    """

    def __init__(self, config: ITransformerConfig, sizes: WindowSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, HEADS[config.head])
        D = config.model_size
        self.norm = InstanceNorm(sizes.channels)
        self.embedding = Projection((sizes.lookback,), (D,), rngs=rngs)
        self.encoder = Encoder(config.encoder(sizes.channels + sizes.calendar), rngs=rngs)
        self.out = Projection((D,), (sizes.horizon, self.head.size), rngs=rngs)

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        C, L = self.sizes.channels, self.sizes.lookback
        x, level, scale = self.norm(past, past_valid)
        x = jnp.concatenate([x, calendar[:, :L]], axis=-1)
        present = jnp.any(past_valid, axis=1)
        present = jnp.pad(present, ((0, 0), (0, self.sizes.calendar)), constant_values=True)
        z, weights = encode(self.encoder, self.embedding(jnp.swapaxes(x, 1, 2)), present, mode)
        raw = jnp.swapaxes(self.out(z[:, :C]), 1, 2)
        found = {} if weights is None else {"channels": weights}
        return self.head.place(raw, level, scale), found
