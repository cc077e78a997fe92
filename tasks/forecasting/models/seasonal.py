"""Lag attention over seasons: a learned mean of the values at the same time in earlier seasons.

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, P
the number of times in a season, M the number of seasons of the look-back, and J the number of
seasons of the horizon.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention.lag import LagAttention
from tasks.common.configs import Config, NonNegativeInt, one_of
from tasks.forecasting.models.base import Forecaster, Mode, Weights, WindowSizes, level_of
from tasks.forecasting.models.heads import HEADS, HeadName
from tasks.forecasting.models.lag import DistributionHead, attend

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SeasonalLagConfig(Config):
    """Config of attention over seasonal lags; weights are shared by channels and times of a season.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
      level: value that is subtracted from the past: the "mean" of the look-back, or its "last"
        value.
      season: steps in a season; 0 for the period of the data.
    """

    name: str = "seasonal_lag"
    head: HeadName = "point"
    level: one_of("last", "mean") = "mean"
    season: NonNegativeInt = 0


def season_of(config: SeasonalLagConfig, sizes: WindowSizes) -> int:
    """Returns the steps in a season.

    Raises:
      ValueError: the look-back is shorter than a season.
    """
    season = config.season or sizes.period
    if season > sizes.lookback:
        expected = f"at most lookback={sizes.lookback}"
        raise ValueError(f"season: got {season}, expected {expected}")
    return season


class SeasonalLag(nnx.Module):
    """Weighted mean of the values at the same time in M earlier seasons, and of the level c.

        ŷ_(t+f) = c + Σ_k w_jk (x_(t+f-(j+k)P) - c),     j = ⌊(f - 1) / P⌋,   k = 1 ... M

    ŷ_(t+f) is the forecast f steps ahead, in season j of the horizon. The weights w_j are a softmax
    over M + 1 logits, one for each season and one for the level. The level has no term in the sum,
    because it contributes c - c = 0. A forecast is between the minimum and the maximum of its past.

    Parameters: attention/logits [1, J, M + 1], the latest season first and the level last.

    Args:
      config: SeasonalLagConfig, or another config with its fields.
      sizes: sizes of the windows.

    Raises:
      ValueError: the look-back is shorter than a season.
    """

    def __init__(self, config: SeasonalLagConfig, sizes: WindowSizes, *, rngs: nnx.Rngs):
        self.level, self.season = config.level, season_of(config, sizes)
        self.horizon = sizes.horizon
        seasons = sizes.lookback // self.season
        ahead = -(-sizes.horizon // self.season)
        channels = self.season * sizes.channels
        self.attention = LagAttention(channels, seasons + 1, ahead, rngs=rngs)

    def __call__(self, past: Array, valid: Array) -> tuple[Array, Array]:
        """Forecasts windows.

        Args:
          past: look-backs, [B, L, C].
          valid: bool [B, L, C], False where missing.

        Returns:
          Forecast [B, F, C]; and weights of the past [B, C, F, L], with rows that sum to at most 1.
          One minus the sum is the weight of the level.
        """
        level = level_of(past, valid, self.level)
        (B, L, C), P, F = past.shape, self.season, self.horizon
        M = L // P

        def by_season(array: Array, first: float | bool) -> Array:
            """Stacks `first`, which stands for the level, and the M seasons: [B, 1 + M, P C]."""
            array = array[:, L - M * P :].reshape(B, M, P * C)
            return jnp.pad(array, ((0, 0), (1, 0), (0, 0)), constant_values=first)

        over = by_season(jnp.where(valid, past - level, 0), 0)
        y, weights = attend(self.attention, over, by_season(valid, True))
        y = level + y.reshape(B, -1, C)[:, :F]
        by_lag = weights[..., 1:].reshape(B, -1, C, *weights.shape[2:3], M)
        by_lag = jnp.broadcast_to(by_lag, (B, P, C, by_lag.shape[3], M))
        wide = jnp.einsum("BPCJM,PQ->BCJPMQ", by_lag, jnp.eye(P))
        wide = wide.reshape(B, C, -1, M * P)[:, :, :F]
        return y, jnp.pad(wide, ((0, 0), (0, 0), (0, 0), (L - M * P, 0)))


class SeasonalLagForecaster(Forecaster):
    """`SeasonalLag` with a `DistributionHead`.

    Attention weights: "lags" [B, C, F, L], in the order of time.
    """

    def __init__(self, config: SeasonalLagConfig, sizes: WindowSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, HEADS[config.head])
        self.seasonal = SeasonalLag(config, sizes, rngs=rngs)
        self.spread = DistributionHead(sizes, config.head)

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        point, weights = self.seasonal(past, past_valid)
        return self.spread(point, past, past_valid), {"lags": weights}
