"""SparseTSF: one linear map from the seasons of the look-back to those of the horizon.

Lin et al. 2024, "SparseTSF: Modeling Long-term Time Series Forecasting with 1k Parameters".

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, P
the number of times in a season, M the number of seasons of the look-back, and J the number of
seasons of the horizon.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from attention.projection import Projection
from tasks.forecasting.models.base import Forecaster, Mode, Weights, WindowSizes, level_of
from tasks.forecasting.models.heads import HEADS
from tasks.forecasting.models.lag import DistributionHead
from tasks.forecasting.models.seasonal import SeasonalLagConfig, season_of

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class SparseTSFConfig(SeasonalLagConfig):
    """Config of SparseTSF, whose parameters are shared by channels and times of a season.

    For the attributes see `SeasonalLagConfig`.
    """

    name: str = "sparse_tsf"


class SparseTSF(Forecaster):
    """Forecaster by a linear map over seasons (Lin et al. 2024, equations 1 to 3).

        z = x - c,      u_t = z_t + Σ_i k_i z_(t+i),      ŷ_(jP+p) = c + Σ_m u_(mP+p) W_mj

    with the level c of the window, |i| ≤ P/2, and zeros outside the window. The M seasons are the
    last complete ones of the look-back.

    Parameters: smooth/kernel [2⌊P/2⌋ + 1, 1] (k), seasons/kernel [M, J] (W), and those of a
    `DistributionHead`. The model has no attention weights.

    Raises:
      ValueError: the look-back is shorter than a season.
    """

    def __init__(self, config: SparseTSFConfig, sizes: WindowSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, HEADS[config.head])
        self.level, self.season = config.level, season_of(config, sizes)
        width = 2 * (self.season // 2) + 1
        seasons, ahead = sizes.lookback // self.season, -(-sizes.horizon // self.season)
        self.smooth = Projection((width,), (1,), use_bias=False, rngs=rngs)
        self.seasons = Projection((seasons,), (ahead,), use_bias=False, rngs=rngs)
        self.spread = DistributionHead(sizes, config.head)

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        (B, L, C), P, F = past.shape, self.season, self.sizes.horizon
        M, half = L // P, P // 2
        level = level_of(past, past_valid, self.level)
        z = jnp.swapaxes(jnp.where(past_valid, past - level, 0), 1, 2)
        kernel = self.smooth.kernel[...].reshape(1, 1, -1)
        smooth = jax.lax.conv_general_dilated(
            z.reshape(B * C, 1, L), kernel, window_strides=(1,), padding=[(half, half)]
        )
        u = (z + smooth.reshape(B, C, L))[..., L - M * P :].reshape(B, C, M, P)
        y = self.seasons(jnp.swapaxes(u, 2, 3))
        y = jnp.swapaxes(y, 2, 3).reshape(B, C, -1)[..., :F]
        return self.spread(level + jnp.swapaxes(y, 1, 2), past, past_valid), {}
