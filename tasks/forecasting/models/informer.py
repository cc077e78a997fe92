"""Informer (Zhou et al. 2021, "Informer: Beyond Efficient Transformer for Long Sequence Time-Series
Forecasting"): ProbSparse attention, and an encoder that halves the length from layer to layer.

B windows, T times, D model size, N heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attention import masks
from attention.image.batch_norm import BatchNorm
from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder, EncoderConfig
from tasks.forecasting.models.transformer import Transformer, TransformerConfig

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class InformerConfig(TransformerConfig):
    """Informer; as in `transformers`, the embeddings are normalised too.

    Attributes:
      distil: whether the length is halved between the encoder's layers.
      For the others see `TransformerConfig`.
    """

    name: str = "informer"
    num_heads: int = 4
    positions: str = "sinusoidal(interleaved=False)"
    mixer: str = "prob_sparse"
    distil: bool = True

    def encoder(self, length: int, **changes: Any) -> EncoderConfig:
        """See `LayersConfig.encoder`."""
        return super().encoder(length, **{"input_norm": True} | changes)


class Distil(nnx.Module):
    """Half the length: what is strongest of neighbours (Zhou et al. 2021, equation 5).

        y = maxpool(ELU(norm(x_(t-1) W_1 + x_t W_2 + x_(t+1) W_3 + b)))

    around the ends, as if they met; batch norm, and of three neighbours every second triple. Where
    nothing is there, the result is 0.

    Weights: convolution/kernel [3, D, D] and bias [D], and those of the norm.

    Args:
      model_size: D.
    """

    def __init__(self, model_size: int, *, rngs: nnx.Rngs):
        self.convolution = Projection((3, model_size), (model_size,), rngs=rngs)
        self.norm = BatchNorm(model_size)

    def __call__(self, x: Array, there: Array, *, training: bool) -> tuple[Array, Array]:
        """[B, T, D] and bool [B, T] -> [B, ⌈T / 2⌉, D] and bool [B, ⌈T / 2⌉]."""
        x = jnp.where(there[..., None], x, 0)
        near = jnp.stack([jnp.roll(x, 1, axis=1), x, jnp.roll(x, -1, axis=1)], axis=2)
        counted = jnp.any(there, axis=1)
        y = jax.nn.elu(self.norm(self.convolution(near), valid=counted, training=training))
        # ELU is above -1.
        y = _strongest(jnp.where(there[..., None], y, -1.0), -1.0)
        there = _strongest(there, False)
        return jnp.where(there[..., None], y, 0), there


def _strongest(x: Array, least: float | bool) -> Array:
    """The largest of each time and its two neighbours, at every second time: [B, T, ...] ->
    [B, ⌈T / 2⌉, ...].
    """
    T, sides = x.shape[1], ((0, 0), (1, 1), *[(0, 0)] * (x.ndim - 2))
    wide = jnp.pad(x, sides, constant_values=least)
    left, middle, right = (wide[:, start : start + T : 2] for start in range(3))
    return jnp.maximum(jnp.maximum(left, middle), right)


class DistillingEncoder(Encoder):
    """An encoder with a `Distil` between its layers, where asked for."""

    def __init__(self, config: EncoderConfig, *, distil: bool, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        between = range(config.num_layers - 1) if distil else ()
        self.distil = nnx.List([Distil(config.model_size, rngs=rngs) for _ in between])

    def __call__(
        self, x: Array, there: Array, *, training: bool, dropout_key: Array | None
    ) -> tuple[Array, Array]:
        """[B, T, D] and bool [B, T] -> [B, S, D] and bool [B, S], with S = T where nothing is
        distilled."""
        x, keys = self._input(x, None, dropout_key)
        for number, (layer, key) in enumerate(zip(self.layers, keys, strict=True)):
            mask = masks.valid(key=there)
            x, _ = layer(x, mask=mask, dropout_key=key, return_weights=False)
            if number < len(self.distil):
                x, there = self.distil[number](x, there, training=training)
        return jnp.where(there[..., None], self._output(x), 0), there


class Informer(Transformer):
    """`Transformer` with a `DistillingEncoder`.

    The decoder's attention to itself is whole: which queries ProbSparse takes for active depends on
    all of them, those of later times too, and they are few.

    Weights of the attention: "decoder" [B, layers, N, F, S], S the times that distilling left.
    """

    def _encoder(self, config: InformerConfig, rngs: nnx.Rngs) -> nnx.Module:
        length = self.sizes.lookback
        return DistillingEncoder(config.encoder(length), distil=config.distil, rngs=rngs)

    def _memory(
        self,
        x: Array,
        there: Array,
        *,
        training: bool,
        dropout_key: Array | None,
        return_weights: bool,
    ) -> tuple[Array, Array, Array | None]:
        """See `Transformer._memory`."""
        memory, there = self.encoder(x, there, training=training, dropout_key=dropout_key)
        return memory, there, None
