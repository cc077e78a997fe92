"""Forecasters with lag attention, plain and residual; see `attention.lag`.

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, N
the number of attention heads, and P the number of parameters of an output head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording
from attention.lag import LagAttention, ResidualLagAttention
from tasks.common.configs import Config, PositiveInt, one_of
from tasks.forecasting.models.base import Forecaster, Mode, Weights, WindowSizes, level_and_scale
from tasks.forecasting.models.heads import HEADS, HeadName

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LagConfig(Config):
    """Config of attention over the lags of each channel, with the same weights for all windows.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
      individual: whether each channel has its own weights.
    """

    name: str = "lag"
    head: HeadName = "point"
    individual: bool = False


@dataclasses.dataclass(frozen=True)
class ResidualLagConfig(LagConfig):
    """Config of lag attention over the past minus its level, which can extrapolate a trend.

    For the other attributes see `LagConfig`.

    Attributes:
      num_heads: N, number of attention heads; each has a factor that may be negative.
      level: "last" for the last value, or "mean" for the mean of the look-back.
    """

    name: str = "residual_lag"
    num_heads: PositiveInt = 2
    level: one_of("last", "mean") = "last"


class DistributionHead(nnx.Module):
    """Distribution with a given point forecast, and a learned shape for each step ahead.

    The width of the distribution is proportional to the standard deviation of the window.
    Parameters: raw [F, 1, P] if the head is probabilistic, else none.
    """

    def __init__(self, sizes: WindowSizes, head: str):
        self.head = HEADS[head]
        probabilistic = self.head.probabilistic
        size = (sizes.horizon, 1, self.head.size)
        self.raw = nnx.Param(jnp.zeros(size)) if probabilistic else None

    def __call__(self, point: Array, past: Array, valid: Array) -> Array:
        """Computes the parameters of the head for a given point forecast.

        Args:
          point: point forecast [B, F, C].
          past: look-back [B, L, C], which gives the scale.
          valid: bool [B, L, C], False where missing.

        Returns:
          Parameters of the head, [B, F, C, P].
        """
        if self.raw is None:
            return point[..., None]
        return self.head.around(point, self.raw[...], level_and_scale(past, valid)[1])


def attend(attention: nnx.Module, past: Array, valid: Array) -> tuple[Array, Array]:
    """Applies lag attention to windows.

    If no value is missing, all windows have the same weights, and the forecast takes a tenth of the
    time.

    Args:
      attention: lag attention over T times.
      past: values of the T times, [B, T, C].
      valid: bool [B, T, C], False where missing.

    Returns:
      The forecast [B, F, C], and the weights [B, C, F, T].
    """
    _, weights = attention(past, valid=valid, return_weights=True)
    with recording.suppressed():
        point = jax.lax.cond(
            jnp.all(valid), lambda: attention(past), lambda: attention(past, valid=valid)
        )
    return point, weights


class LagForecaster(Forecaster):
    """Lag attention ŷ_(t+f) = Σ_i w_fi x_(t+1-i), or lag attention over the past minus its level.

    Attention weights: "lags" [B, 1 or C, F, L], in the order of time. For the residual form these
    are the matrix of the linear map from the past to the forecast; its rows sum to 1.
    """

    def __init__(self, config: LagConfig, sizes: WindowSizes, *, rngs: nnx.Rngs):
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
        self.spread = DistributionHead(sizes, config.head)

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        point, weights = attend(self.attention, past, past_valid)
        return self.spread(point, past, past_valid), {"lags": weights}
