"""Ridge regression in closed form (Hoerl & Kennard 1970), and attention on its residual.

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, K
the number of calendar features, M the number of patches of the look-back, G the number of patches
of the horizon, R the number of values in a patch, D the model size, N the number of attention
heads, and P the number of parameters of an output head.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder
from tasks.common.configs import Config, NonNegativeInt, one_of, within
from tasks.forecasting.models.base import (
    Forecaster,
    InstanceNorm,
    Mode,
    Weights,
    WindowSizes,
    level_of,
)
from tasks.forecasting.models.heads import HEADS, HeadName
from tasks.forecasting.models.lag import DistributionHead
from tasks.forecasting.models.layers import encode
from tasks.forecasting.models.patchtst import PatchTSTConfig
from tasks.forecasting.models.seasonal import SeasonalLag, SeasonalLagConfig

Array = jax.Array


RidgeLevel = one_of("last", "mean")


@dataclasses.dataclass(frozen=True)
class RidgeConfig(Config):
    """Config of a linear forecast fitted in closed form; training fits only the distribution head.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
      ridge_level: level subtracted from the look-back: its "mean" or "last" value.
      ridge_individual: whether each channel has its own matrix.
    """

    name: str = "ridge"
    head: HeadName = "point"
    ridge_level: RidgeLevel = "mean"
    ridge_individual: bool = False


@dataclasses.dataclass(frozen=True)
class RidgeResidualConfig(PatchTSTConfig):
    """Config of a linear forecast plus attention between patches; see `PatchTSTConfig`.

    Attributes:
      calendar_features: number of calendar features, starting with the one that changes fastest.
        Slow features, such as the day of the year, are omitted because the training split covers
        too few of their periods.
      patch_length: R, patch length in the look-back and in the horizon.
      ridge_level, ridge_individual: see `RidgeConfig`.
    """

    name: str = "ridge_residual"
    calendar_features: NonNegativeInt = 2
    patch_length: int = 24
    patch_stride: int = 24
    model_size: int = 32
    num_layers: int = 2
    feedforward_size: int = 64
    dropout_rate: float = 0.2
    ridge_level: RidgeLevel = "mean"
    ridge_individual: bool = False


@dataclasses.dataclass(frozen=True)
class RidgeSeasonalConfig(SeasonalLagConfig):
    """Config of the weighted mean of a linear forecast and of attention over seasons.

    See `SeasonalLagConfig` for the other attributes, and Bates & Granger 1969 for the weighted
    mean.

    Attributes:
      share: weight of the attention; None to fit it on the training split, see
        `tasks.forecasting.rolling`.
      ridge_level, ridge_individual: see `RidgeConfig`.
    """

    name: str = "ridge_seasonal"
    share: within("[0, 1]", "a number in [0, 1], or None") | None = None
    ridge_level: RidgeLevel = "mean"
    ridge_individual: bool = False


class FixedVariable(nnx.Variable):
    """A variable that is fitted before training and then kept fixed."""


class Ridge(nnx.Module):
    """Linear forecast ŷ = c + (x - c) W of the future from the past x.

    c is the level of the look-back; it also replaces missing values of x.

    Variables: weights [1 or C, L, F] (W).

    Args:
      config: RidgeConfig, or another config with its fields.
      sizes: sizes of the windows.
      weights: W; None to initialize it to 0.

    Raises:
      ValueError: the shape of W does not fit.
    """

    def __init__(
        self,
        config: RidgeConfig | RidgeResidualConfig | RidgeSeasonalConfig,
        sizes: WindowSizes,
        weights: np.ndarray | None,
    ):
        self.level = config.ridge_level
        groups = sizes.channels if config.ridge_individual else 1
        shape = (groups, sizes.lookback, sizes.horizon)
        if weights is not None and weights.shape != shape:
            raise ValueError(f"ridge: got shape {weights.shape}, expected {shape}")
        self.weights = FixedVariable(jnp.zeros(shape) if weights is None else jnp.asarray(weights))

    def __call__(self, past: Array, valid: Array) -> Array:
        """Forecasts windows.

        Args:
          past: look-backs, [B, L, C].
          valid: bool [B, L, C], False where missing.

        Returns:
          Forecasts ŷ, [B, F, C].
        """
        level = level_of(past, valid, self.level)
        over, weights = jnp.where(valid, past - level, 0), self.weights[...]
        if len(weights) == 1:
            return level + jnp.einsum("BLC,LF->BFC", over, weights[0])
        return level + jnp.einsum("BLC,CLF->BFC", over, weights)


class RidgeBased(Forecaster):
    """Base class of forecasters with a `Ridge`; `_build` creates their other modules."""

    def __init__(
        self, config: Any, sizes: WindowSizes, ridge: np.ndarray | None, *, rngs: nnx.Rngs
    ):
        super().__init__(sizes, HEADS[config.head])
        self.ridge = Ridge(config, sizes, ridge)
        self._build(config, sizes, rngs)

    def _build(self, config: Any, sizes: WindowSizes, rngs: nnx.Rngs) -> None:
        self.spread = DistributionHead(sizes, config.head)


class RidgeForecaster(RidgeBased):
    """`Ridge` with a `DistributionHead`."""

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        return self.spread(self.ridge(past, past_valid), past, past_valid), {}


class RidgeResidual(RidgeBased):
    """Attention on the residual: ŷ = ridge(x) + σ (z W + b).

        z = last G outputs of encoder([x_1 W_x + k_1 W_k + e_c, ..., k_(M+1) W_k + e_c, ...])

    x_1 ... x_M are the patches of the normalized look-back, and k_1 ... k_(M+G) the calendar
    features of all patches. The G patches of the horizon have only calendar features; they
    attend to the patches of the look-back and to each other. Channels are separate sequences
    with a channel embedding e_c. σ is the standard deviation of the window. W and b are
    initialized to 0. Patches without valid values are masked.

    Attention weights: "patches" [B, C, layers, N, G, M + G], from the patches of the horizon to
    all patches.
    """

    def _build(self, config: RidgeResidualConfig, sizes: WindowSizes, rngs: nnx.Rngs) -> None:
        R, D = config.patch_length, config.model_size
        K = min(sizes.calendar, config.calendar_features)
        self.norm = InstanceNorm(sizes.channels)
        self.past_indices = tuple(map(tuple, config.patches(sizes.lookback).tolist()))
        # The last patch may extend beyond the horizon; the last time of the horizon is repeated
        # there.
        ahead = sizes.lookback + np.arange(-(-sizes.horizon // R) * R).reshape(-1, R)
        last = sizes.lookback + sizes.horizon - 1
        self.future_indices = tuple(map(tuple, np.minimum(ahead, last).tolist()))
        self.embedding = Projection((R,), (D,), rngs=rngs)
        self.calendar = Projection((R, K), (D,), use_bias=False, rngs=rngs) if K else None
        self.channel = nnx.Param(jax.random.normal(rngs.params(), (sizes.channels, D)))
        length = len(self.past_indices) + len(self.future_indices)
        self.encoder = Encoder(config.encoder(length), rngs=rngs)
        self.out = Projection((D,), (R, self.head.size), rngs=rngs)
        self.out.kernel[...] = jnp.zeros_like(self.out.kernel[...])

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        B, _, C = past.shape
        F, D = self.sizes.horizon, self.embedding.outputs[0]
        M, G = len(self.past_indices), len(self.future_indices)
        x, _, scale = self.norm(past, past_valid)
        indices = np.array(self.past_indices)
        x, present = (jnp.moveaxis(array[:, indices], -1, 1) for array in (x, past_valid))
        tokens = jnp.pad(self.embedding(x), ((0, 0), (0, 0), (0, G), (0, 0)))
        tokens = tokens + self.channel[...][:, None]
        if self.calendar is not None:
            times = np.array(self.past_indices + self.future_indices)
            quickest = calendar[..., : self.calendar.inputs[1]]
            tokens = tokens + self.calendar(quickest[:, times])[:, None]
        present = jnp.pad(present.any(axis=-1), ((0, 0), (0, 0), (0, G)), constant_values=True)
        z, weights = encode(
            self.encoder, tokens.reshape(B * C, M + G, D), present.reshape(B * C, M + G), mode
        )
        raw = self.out(z[:, M:]).reshape(B, C, -1, self.head.size)[:, :, :F]
        ridge = self.ridge(past, past_valid)
        found = {}
        if weights is not None:
            found["patches"] = weights[..., M:, :].reshape(B, C, *weights.shape[1:3], G, M + G)
        return self.head.place(jnp.swapaxes(raw, 1, 2), ridge, scale), found


class RidgeSeasonal(RidgeBased):
    """Weighted mean of two linear forecasts: ŷ = r + λ (s - r).

    r is the forecast of `Ridge`, and s is the forecast of `SeasonalLag`, which has far fewer
    parameters.

    Variables: share [] (λ), from the config, or fitted if `share` is None in the config.

    Attention weights: "lags" [B, C, F, L] of s, in the order of time.
    """

    def _build(self, config: RidgeSeasonalConfig, sizes: WindowSizes, rngs: nnx.Rngs) -> None:
        super()._build(config, sizes, rngs)
        # Without a share in the config, the value is restored from a checkpoint.
        self.share = FixedVariable(jnp.float32(0 if config.share is None else config.share))
        self.seasonal = SeasonalLag(config, sizes, rngs=rngs)

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        ridge = self.ridge(past, past_valid)
        seasonal, weights = self.seasonal(past, past_valid)
        point = ridge + self.share[...] * (seasonal - ridge)
        return self.spread(point, past, past_valid), {"lags": weights}
