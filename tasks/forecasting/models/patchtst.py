"""PatchTST: attention between patches of one channel.

Nie et al. 2023, "A Time Series is Worth 64 Words".

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, M
the number of patches, R the number of values in a patch, D the model size, N the number of heads,
and P the number of parameters of an output head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder
from tasks.common.configs import PositiveInt
from tasks.forecasting.models.base import Forecaster, InstanceNorm, Mode, Weights, WindowSizes
from tasks.forecasting.models.heads import HEADS
from tasks.forecasting.models.layers import LayersConfig, encode

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class PatchTSTConfig(LayersConfig):
    """Config of PatchTST, with the paper's sizes for small data sets; see `LayersConfig`.

    Unlike the paper, layers have layer norm instead of batch norm.

    Attributes:
      patch_length: R, number of values in a patch.
      patch_stride: distance between the starts of adjacent patches. The last patch ends at the last
        value of the look-back; the oldest values are omitted if they do not fill a patch.
    """

    name: str = "patchtst"
    patch_length: PositiveInt = 16
    patch_stride: PositiveInt = 8
    model_size: int = 16
    num_layers: int = 3
    feedforward_size: int = 128
    dropout_rate: float = 0.3
    positions: str = "learned"

    def patches(self, lookback: int) -> np.ndarray:
        """Returns the indices of the values of each patch in the look-back, int [M, R].

        Raises:
          ValueError: the look-back is shorter than a patch.
        """
        if lookback < self.patch_length:
            expected = f"at most lookback={lookback}"
            raise ValueError(f"patch_length: got {self.patch_length}, expected {expected}")
        starts = np.arange(lookback - self.patch_length, -1, -self.patch_stride)[::-1]
        return starts[:, None] + np.arange(self.patch_length)


class Patches(nnx.Module):
    """Encoder of the patches of each channel.

        z = encoder(x_patch W + b + position)

    Patches without valid values are masked.

    Parameters: embedding [R, D] and bias [D], and the parameters of the encoder.

    Args:
      config: PatchTSTConfig, or another config with its fields.
      lookback: L, number of steps of the look-back.
    """

    def __init__(self, config: PatchTSTConfig, lookback: int, *, rngs: nnx.Rngs):
        self.indices = tuple(map(tuple, config.patches(lookback).tolist()))
        self.size = (len(self.indices), config.model_size)
        self.embedding = Projection((config.patch_length,), (config.model_size,), rngs=rngs)
        self.encoder = Encoder(config.encoder(len(self.indices)), rngs=rngs)

    def __call__(self, x: Array, valid: Array, mode: Mode) -> tuple[Array, Weights]:
        """Encodes x [B, L, C] with its mask, bool [B, L, C].

        Returns:
          z [B, C, M, D], 0 for masked patches; and attention weights "patches" [B, C, layers, N, M,
          M].
        """
        B, _, C = x.shape
        indices = np.array(self.indices)

        def rows(array: Array) -> Array:
            return jnp.swapaxes(array, 1, 2).reshape(B * C, -1)[:, indices]

        present = jnp.any(rows(valid), axis=-1)
        z, weights = encode(self.encoder, self.embedding(rows(x)), present, mode)
        found = {} if weights is None else {"patches": weights.reshape(B, C, *weights.shape[1:])}
        return z.reshape(B, C, *z.shape[1:]), found


class PatchTST(Forecaster):
    """PatchTST: ŷ = σ (flatten(z) W + b) + μ, where `Patches` encodes the normalized window as z.

    μ and σ are mean and standard deviation of the window. All channels share all parameters.
    """

    def __init__(self, config: PatchTSTConfig, sizes: WindowSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, HEADS[config.head])
        self.norm = InstanceNorm(sizes.channels)
        self.patches = Patches(config, sizes.lookback, rngs=rngs)
        self.out = Projection(self.patches.size, (sizes.horizon, self.head.size), rngs=rngs)

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        x, level, scale = self.norm(past, past_valid)
        z, weights = self.patches(x, past_valid, mode)
        return self.head.place(jnp.swapaxes(self.out(z), 1, 2), level, scale), weights
