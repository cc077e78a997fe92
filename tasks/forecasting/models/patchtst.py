"""PatchTST: attention between patches of one channel (Nie et al. 2023, "A Time Series is Worth 64
Words").

B windows, L look-back, F horizon, C channels, M patches, R values in a patch, D model size, P
parameters of a head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder
from tasks.forecasting.models.base import Forecaster, InstanceNorm, Sizes, Weights
from tasks.forecasting.models.heads import HEADS
from tasks.forecasting.models.layers import LayersConfig, encoded

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class PatchTSTConfig(LayersConfig):
    """PatchTST, with the sizes of the paper for small data; layer norm in place of batch norm.

    Attributes:
      patch_length: R.
      patch_stride: from one patch to the next. The oldest values that fill no patch are left out.
      For the others see `LayersConfig`.
    """

    name: str = "patchtst"
    patch_length: int = 16
    patch_stride: int = 8
    model_size: int = 16
    num_layers: int = 3
    feedforward_size: int = 128
    dropout_rate: float = 0.3
    positions: str = "learned"

    def __post_init__(self):
        super().__post_init__()
        for name in ("patch_length", "patch_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")

    def patches(self, lookback: int) -> np.ndarray:
        """Which values of the look-back each patch holds, int [M, R].

        Raises:
          ValueError: the look-back is shorter than a patch.
        """
        if lookback < self.patch_length:
            expected = f"at most lookback={lookback}"
            raise ValueError(f"patch_length: got {self.patch_length}, expected {expected}")
        starts = np.arange(lookback - self.patch_length, -1, -self.patch_stride)[::-1]
        return starts[:, None] + np.arange(self.patch_length)


class Patches(nnx.Module):
    """Each channel by itself: its patches as vectors, through an encoder.

        z = encoder(x_patch W + b + position)

    A patch of which nothing is there takes no part.

    Weights: embedding [R, D] and bias [D], and those of the encoder.

    Args:
      config: PatchTSTConfig, or another with its fields.
      lookback: L.
    """

    def __init__(self, config: PatchTSTConfig, lookback: int, *, rngs: nnx.Rngs):
        self.places = tuple(map(tuple, config.patches(lookback).tolist()))
        self.size = (len(self.places), config.model_size)
        self.embedding = Projection((config.patch_length,), (config.model_size,), rngs=rngs)
        self.encoder = Encoder(config.encoder(len(self.places)), rngs=rngs)

    def __call__(
        self, x: Array, valid: Array, *, dropout_key: Array | None, return_weights: bool
    ) -> tuple[Array, Weights]:
        """[B, L, C] and bool [B, L, C] -> [B, C, M, D], 0 for patches of which nothing is there,
        and the weights "patches" [B, C, layers, N, M, M].
        """
        B, _, C = x.shape
        places = np.array(self.places)

        def rows(array: Array) -> Array:
            return jnp.swapaxes(array, 1, 2).reshape(B * C, -1)[:, places]

        there = jnp.any(rows(valid), axis=-1)
        z, weights = encoded(
            self.encoder,
            self.embedding(rows(x)),
            there,
            dropout_key=dropout_key,
            return_weights=return_weights,
        )
        found = {} if weights is None else {"patches": weights.reshape(B, C, *weights.shape[1:])}
        return z.reshape(B, C, *z.shape[1:]), found


class PatchTST(Forecaster):
    """ŷ = σ (flatten(z) W + b) + μ, with z of `Patches` of the normalised window.

    All channels share all weights.
    """

    def __init__(self, config: PatchTSTConfig, sizes: Sizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, HEADS[config.head])
        self.norm = InstanceNorm(sizes.channels)
        self.patches = Patches(config, sizes.lookback, rngs=rngs)
        self.out = Projection(self.patches.size, (sizes.horizon, self.head.size), rngs=rngs)

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
        x, level, scale = self.norm(past, past_valid)
        z, weights = self.patches(
            x, past_valid, dropout_key=dropout_key, return_weights=return_weights
        )
        return self.head.place(jnp.swapaxes(self.out(z), 1, 2), level, scale), weights
