"""The Transformer as a forecaster (Vaswani et al. 2017): an encoder over the times of the look-back
and a decoder that fills in all steps of the horizon at once, as in Informer (Zhou et al. 2021).

B windows, L look-back, F horizon, C channels, K features of the calendar, G times given to the
decoder, D model size, N heads, P parameters of a head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention.projection import Projection
from tasks.common.backbones.transformer import Decoder, Encoder, EncoderConfig
from tasks.forecasting.models.base import Forecaster, InstanceNorm, Sizes, Weights
from tasks.forecasting.models.heads import HEADS
from tasks.forecasting.models.layers import LayersConfig, encoded

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class TransformerConfig(LayersConfig):
    """Encoder and decoder; see `LayersConfig`, whose fields are of both but for the mixer, which
    is of the encoder: the decoder's is dot-product attention.

    Attributes:
      decoder_layers: of the decoder; `num_layers` are of the encoder.
      label_length: G, the last times of the look-back, at which the decoder begins.
      instance_norm: whether each window is normalised (Kim et al. 2022); the papers' own models
        have it not, and lose their level where the series wanders.
    """

    name: str = "transformer"
    decoder_layers: int = 1
    label_length: int = 48
    instance_norm: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("decoder_layers", 1), ("label_length", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")

    def decoder(self, length: int) -> EncoderConfig:
        """What the decoder of that many positions is made of."""
        return self.encoder(length, num_layers=self.decoder_layers, mixer="dot_product")


class Transformer(Forecaster):
    """A time is a vector of all channels and of the calendar.

        memory = encoder([x, k]_(1 ... L) W_e)
        ŷ = decoder([x or 0, k]_(L-G+1 ... L+F) W_d, memory) W + b        at the last F

    with x normalised where `instance_norm`. A time of which nothing is there takes no part.

    Weights of the attention: "encoder" [B, layers, N, L, L] where the mixer has any, and "decoder",
    from the horizon to the look-back, [B, layers, N, F, S] with S = L.

    Raises:
      ValueError: label_length is more than the look-back.
    """

    def __init__(self, config: TransformerConfig, sizes: Sizes, *, rngs: nnx.Rngs):
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

    def _memory(
        self,
        x: Array,
        there: Array,
        *,
        training: bool,
        dropout_key: Array | None,
        return_weights: bool,
    ) -> tuple[Array, Array, Array | None]:
        """[B, L, D] and bool [B, L] -> memory [B, S, D], which of it is there, bool [B, S], and
        the weights of the last layers, or None.
        """
        memory, weights = encoded(
            self.encoder, x, there, dropout_key=dropout_key, return_weights=return_weights
        )
        return memory, there, weights

    def forecast(
        self,
        past: Array,
        past_valid: Array,
        calendar: Array,
        *,
        training: bool,
        dropout_key: Array | None,
        return_weights: bool,
    ) -> tuple[Array, Weights]:
        """See `Forecaster`."""
        B, L, C = past.shape
        F, G = self.sizes.horizon, self.label_length
        keys = [None] * 2 if dropout_key is None else list(jax.random.split(dropout_key))
        x, level, scale = past, jnp.zeros((B, 1, C)), jnp.ones((B, 1, C))
        if self.norm is not None:
            x, level, scale = self.norm(past, past_valid)
        there = jnp.any(past_valid, axis=-1)
        memory, memory_there, weights = self._memory(
            self.encoder_embedding(jnp.concatenate([x, calendar[:, :L]], axis=-1)),
            there,
            training=training,
            dropout_key=keys[0],
            return_weights=return_weights,
        )
        given = jnp.pad(x[:, L - G :], ((0, 0), (0, F), (0, 0)))
        result = self.decoder(
            self.decoder_embedding(jnp.concatenate([given, calendar[:, L - G :]], axis=-1)),
            memory,
            memory_valid=memory_there,
            valid=jnp.pad(there[:, L - G :], ((0, 0), (0, F)), constant_values=True),
            dropout_key=keys[1],
            return_weights=return_weights,
        )
        z, across = result if return_weights else (result, None)
        found = {} if weights is None else {"encoder": weights}
        if across is not None:
            found["decoder"] = jnp.moveaxis(across["cross"], 1, 0)[..., G:, :]
        return self.head.place(self.out(z[:, G:]), level, scale), found
