"""Lag attention as a forecaster: `attention.lag`, plain and residual, with a head.

B windows, L look-back, F horizon, C channels, N heads, P parameters of a head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording
from attention.lag import LagAttention, ResidualLagAttention, expect_level, expect_numbers
from tasks.forecasting.models.base import Forecaster, Sizes, Weights, level_and_scale
from tasks.forecasting.models.heads import HEADS, expect_head

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LagConfig:
    """Attention over the lags of each channel's own past, with the same weights at every time.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
      individual: whether each channel has weights of its own, or all share them.
    """

    name: str = "lag"
    head: str = "point"
    individual: bool = False

    def __post_init__(self):
        expect_head(self.head)


@dataclasses.dataclass(frozen=True)
class ResidualLagConfig(LagConfig):
    """Lag attention over what the past is above or below its level: it can follow a trend.

    Attributes:
      num_heads: N, of either sign.
      level: "last" (the last value) or "mean" (of the look-back).
      For the others see `LagConfig`.
    """

    name: str = "residual_lag"
    num_heads: int = 2
    level: str = "last"

    def __post_init__(self):
        super().__post_init__()
        expect_numbers(num_heads=self.num_heads)
        expect_level(self.level)


class Spread(nnx.Module):
    """A distribution around a point forecast: its shape is learned for each step ahead, its width
    goes with the deviation of the window.

    Weights: raw [F, 1, P], what a head makes a distribution of; none for a head without one.
    """

    def __init__(self, sizes: Sizes, head: str):
        self.head = HEADS[head]
        probabilistic = self.head.probabilistic
        size = (sizes.horizon, 1, self.head.size)
        self.raw = nnx.Param(jnp.zeros(size)) if probabilistic else None

    def __call__(self, point: Array, past: Array, valid: Array) -> Array:
        """Point forecast [B, F, C] and past [B, L, C] -> parameters [B, F, C, P]."""
        if self.raw is None:
            return point[..., None]
        return self.head.around(point, self.raw[...], level_and_scale(past, valid)[1])


def attended(attention: nnx.Module, past: Array, valid: Array) -> tuple[Array, Array]:
    """What lag attention makes of a past [B, T, C] with valid, bool [B, T, C]; and its weights
    [B, C, F, T].

    Where nothing is missing the weights are one set for the whole batch, at a tenth of the cost.
    """
    _, weights = attention(past, valid=valid, return_weights=True)
    with recording.suppressed():
        point = jax.lax.cond(
            jnp.all(valid), lambda: attention(past), lambda: attention(past, valid=valid)
        )
    return point, weights


class LagForecaster(Forecaster):
    """ŷ_(t+f) = Σ_i w_fi x_(t+1-i), or the same on differences from the level; with a `Spread`.

    Weights of the attention: "lags" [B, 1 or C, F, L], first time first; of the residual kind, the
    matrix that takes the past to the forecast, whose rows sum to 1.
    """

    def __init__(self, config: LagConfig, sizes: Sizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, HEADS[config.head])
        kind, options = LagAttention, {}
        if isinstance(config, ResidualLagConfig):
            kind = ResidualLagAttention
            options = {"num_heads": config.num_heads, "level": config.level}
        self.attention = kind(
            sizes.channels,
            sizes.lookback,
            sizes.horizon,
            individual=config.individual,
            **options,
            rngs=rngs,
        )
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
        point, weights = attended(self.attention, past, past_valid)
        return self.spread(point, past, past_valid), {"lags": weights}
