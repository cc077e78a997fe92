"""Lag attention over whole seasons: what an hour will be is a learned mean of what that hour was.

B windows, L look-back, F horizon, C channels, P times in a season, M seasons of the look-back, J
seasons of the horizon.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention.lag import LagAttention, expect_level
from tasks.forecasting.models.base import Forecaster, Sizes, Weights, level_of
from tasks.forecasting.models.heads import HEADS, expect_head
from tasks.forecasting.models.lag import Spread, attended

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SeasonalLagConfig:
    """Attention over the lags that are whole seasons, with the same weights for all channels and
    all times of a season.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
      level: what seasons are above or below: the "mean" of the look-back, or its "last" value.
      season: times in a season; 0: the data's.
    """

    name: str = "seasonal_lag"
    head: str = "point"
    level: str = "mean"
    season: int = 0

    def __post_init__(self):
        expect_head(self.head)
        expect_level(self.level)
        if self.season < 0:
            raise ValueError(f"season: got {self.season}, expected at least 0")


class SeasonalLag(nnx.Module):
    """A mean of the same time in the seasons that were, and of the level.

        ŷ_(t+f) = c + Σ_k w_jk (x_(t+f-(j+k)P) - c),     j = ⌊(f - 1) / P⌋,   k = 1 ... M

    with w_j one softmax over the seasons and the level c itself, of which x - c is 0: the further
    ahead, the more may go to the level. A forecast stays between the least and the largest of its
    past.

    Weights: attention/logits [1, J, M + 1], the latest season first and the level last.

    Args:
      config: SeasonalLagConfig, or another with its fields.
      sizes: of the data.

    Raises:
      ValueError: the look-back holds no season.
    """

    def __init__(self, config: SeasonalLagConfig, sizes: Sizes, *, rngs: nnx.Rngs):
        self.level, self.season = config.level, config.season or sizes.period
        if self.season > sizes.lookback:
            expected = f"at most lookback={sizes.lookback}"
            raise ValueError(f"season: got {self.season}, expected {expected}")
        self.horizon = sizes.horizon
        seasons = sizes.lookback // self.season
        ahead = -(-sizes.horizon // self.season)
        channels = self.season * sizes.channels
        self.attention = LagAttention(channels, seasons + 1, ahead, rngs=rngs)

    def __call__(self, past: Array, valid: Array) -> tuple[Array, Array]:
        """[B, L, C], 0 where not valid, and bool [B, L, C] -> [B, F, C], and what takes the past to
        it, [B, C, F, L]; rows sum to at most 1, the rest is the level's.
        """
        level = level_of(past, valid, self.level)
        (B, L, C), P, F = past.shape, self.season, self.horizon
        M = L // P

        def by_season(array: Array, first: float | bool) -> Array:
            """[B, 1 + M, P C], what stands for the level before the rest."""
            array = array[:, L - M * P :].reshape(B, M, P * C)
            return jnp.pad(array, ((0, 0), (1, 0), (0, 0)), constant_values=first)

        over = by_season(jnp.where(valid, past - level, 0), 0)
        y, weights = attended(self.attention, over, by_season(valid, True))
        y = level + y.reshape(B, -1, C)[:, :F]
        shares = weights[..., 1:].reshape(B, -1, C, *weights.shape[2:3], M)
        shares = jnp.broadcast_to(shares, (B, P, C, shares.shape[3], M))
        wide = jnp.einsum("BPCJM,PQ->BCJPMQ", shares, jnp.eye(P))
        wide = wide.reshape(B, C, -1, M * P)[:, :, :F]
        return y, jnp.pad(wide, ((0, 0), (0, 0), (0, 0), (L - M * P, 0)))


class SeasonalLagForecaster(Forecaster):
    """`SeasonalLag`, with a `Spread`.

    Weights of the attention: "lags" [B, C, F, L], first time first.
    """

    def __init__(self, config: SeasonalLagConfig, sizes: Sizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, HEADS[config.head])
        self.seasonal = SeasonalLag(config, sizes, rngs=rngs)
        self.spread = Spread(sizes, config.head)

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
        point, weights = self.seasonal(past, past_valid)
        return self.spread(point, past, past_valid), {"lags": weights}
