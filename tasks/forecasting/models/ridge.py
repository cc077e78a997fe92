"""A linear forecast in closed form (ridge regression, Hoerl & Kennard 1970), and attention over
what it leaves.

B windows, L look-back, F horizon, C channels, K features of the calendar, M patches of the
look-back, G patches of the horizon, R values in a patch, D model size, P parameters of a head.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention.projection import Projection
from tasks.common.backbones.transformer import Encoder
from tasks.forecasting.models.base import Forecaster, InstanceNorm, Sizes, Weights, level_of
from tasks.forecasting.models.heads import HEADS, expect_head
from tasks.forecasting.models.lag import Spread
from tasks.forecasting.models.layers import encoded
from tasks.forecasting.models.patchtst import PatchTSTConfig
from tasks.forecasting.models.seasonal import SeasonalLag, SeasonalLagConfig

Array = jax.Array


def _expect_ridge_level(level: str) -> None:
    if level not in ("last", "mean"):
        raise ValueError(f"ridge_level: got {level!r}, expected 'last' or 'mean'")


@dataclasses.dataclass(frozen=True)
class RidgeConfig:
    """The linear forecast alone; nothing of it is trained but the spread of a distribution.

    Attributes:
      head: a head of `tasks.forecasting.models.heads`.
      ridge_level: what is taken off the look-back first: its "mean", or its "last" value.
      ridge_individual: whether each channel has a matrix of its own, or all share one.
    """

    name: str = "ridge"
    head: str = "point"
    ridge_level: str = "mean"
    ridge_individual: bool = False

    def __post_init__(self):
        expect_head(self.head)
        _expect_ridge_level(self.ridge_level)


@dataclasses.dataclass(frozen=True)
class RidgeResidualConfig(PatchTSTConfig):
    """Attention between patches, whose result is added to a linear forecast.

    Attributes:
      patch_length: R, of the look-back and of the horizon.
      ridge_level, ridge_individual: see `RidgeConfig`.
      calendar_features: how many features of the calendar are looked at, the quickest ones: of
        slow ones, such as the day of the year, train has seen too few turns to learn from.
      For the others see `PatchTSTConfig`.
    """

    name: str = "ridge_residual"
    calendar_features: int = 2
    patch_length: int = 24
    patch_stride: int = 24
    model_size: int = 32
    num_layers: int = 2
    feedforward_size: int = 64
    dropout_rate: float = 0.2
    ridge_level: str = "mean"
    ridge_individual: bool = False

    def __post_init__(self):
        super().__post_init__()
        _expect_ridge_level(self.ridge_level)
        if self.calendar_features < 0:
            got = self.calendar_features
            raise ValueError(f"calendar_features: got {got}, expected at least 0")


@dataclasses.dataclass(frozen=True)
class RidgeSeasonalConfig(SeasonalLagConfig):
    """A weighted mean of a linear forecast and of attention over whole seasons (Bates & Granger
    1969): forecasts that err in different ways are better together.

    Attributes:
      share: of the attention's forecast in the mean; None: the one that is best within train, see
        `tasks.forecasting.rolling`.
      ridge_level, ridge_individual: see `RidgeConfig`.
      For the others see `SeasonalLagConfig`.
    """

    name: str = "ridge_seasonal"
    share: float | None = None
    ridge_level: str = "mean"
    ridge_individual: bool = False

    def __post_init__(self):
        super().__post_init__()
        _expect_ridge_level(self.ridge_level)
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"share: got {self.share}, expected a share in [0, 1], or None")


class Fitted(nnx.Variable):
    """A variable that was fitted before training and stays as it is."""


class Ridge(nnx.Module):
    """ŷ = c + (x - c) W, with c the level; what is missing is taken for the level.

    Variables: weights [1 or C, L, F] (W).

    Args:
      config: RidgeConfig, or another with its fields.
      sizes: of the data.
      weights: W; 0 if None.

    Raises:
      ValueError: the shape of W does not fit.
    """

    def __init__(
        self,
        config: RidgeConfig | RidgeResidualConfig | RidgeSeasonalConfig,
        sizes: Sizes,
        weights: np.ndarray | None,
    ):
        self.level = config.ridge_level
        groups = sizes.channels if config.ridge_individual else 1
        shape = (groups, sizes.lookback, sizes.horizon)
        if weights is not None and weights.shape != shape:
            raise ValueError(f"ridge: got shape {weights.shape}, expected {shape}")
        self.weights = Fitted(jnp.zeros(shape) if weights is None else jnp.asarray(weights))

    def __call__(self, past: Array, valid: Array) -> Array:
        """[B, L, C], 0 where not valid, and bool [B, L, C] -> [B, F, C]."""
        level = level_of(past, valid, self.level)
        over, weights = jnp.where(valid, past - level, 0), self.weights[...]
        if len(weights) == 1:
            return level + jnp.einsum("BLC,LF->BFC", over, weights[0])
        return level + jnp.einsum("BLC,CLF->BFC", over, weights)


class RidgeForecaster(Forecaster):
    """`Ridge`, with a `Spread`."""

    def __init__(
        self, config: RidgeConfig, sizes: Sizes, ridge: np.ndarray | None, *, rngs: nnx.Rngs
    ):
        super().__init__(sizes, HEADS[config.head])
        self.ridge = Ridge(config, sizes, ridge)
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
        return self.spread(self.ridge(past, past_valid), past, past_valid), {}


class RidgeResidual(Forecaster):
    """ŷ = ridge(x) + σ (z W + b), where z knows the past, the calendar and the channel.

        z = encoder([x_1 W_x + k_1 W_k + e_c, ..., k_(M+1) W_k + e_c, ...])     at the last G

    Patches of the horizon, of which only the calendar is known, attend to those of the look-back,
    x_1 ... x_M of the normalised window, and to each other. Each channel is a sequence of its own,
    told by e_c alone. W and b begin at 0: the first forecast is the ridge's. A patch of which
    nothing is there takes no part.

    Weights of the attention, from the patches of the horizon to all: "patches"
    [B, C, layers, N, G, M + G].
    """

    def __init__(
        self, config: RidgeResidualConfig, sizes: Sizes, ridge: np.ndarray | None, *, rngs: nnx.Rngs
    ):
        super().__init__(sizes, HEADS[config.head])
        R, D = config.patch_length, config.model_size
        K = min(sizes.calendar, config.calendar_features)
        self.ridge = Ridge(config, sizes, ridge)
        self.norm = InstanceNorm(sizes.channels)
        self.past_places = tuple(map(tuple, config.patches(sizes.lookback).tolist()))
        # The last patch of the horizon may go beyond it, where its last time is said again.
        ahead = sizes.lookback + np.arange(-(-sizes.horizon // R) * R).reshape(-1, R)
        last = sizes.lookback + sizes.horizon - 1
        self.future_places = tuple(map(tuple, np.minimum(ahead, last).tolist()))
        self.embedding = Projection((R,), (D,), rngs=rngs)
        self.calendar = Projection((R, K), (D,), use_bias=False, rngs=rngs) if K else None
        self.channel = nnx.Param(jax.random.normal(rngs.params(), (sizes.channels, D)))
        length = len(self.past_places) + len(self.future_places)
        self.encoder = Encoder(config.encoder(length), rngs=rngs)
        self.out = Projection((D,), (R, self.head.size), rngs=rngs)
        self.out.kernel[...] = jnp.zeros_like(self.out.kernel[...])

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
        B, _, C = past.shape
        F, D = self.sizes.horizon, self.embedding.outputs[0]
        M, G = len(self.past_places), len(self.future_places)
        x, _, scale = self.norm(past, past_valid)
        places = np.array(self.past_places)
        x, there = (jnp.moveaxis(array[:, places], -1, 1) for array in (x, past_valid))
        tokens = jnp.pad(self.embedding(x), ((0, 0), (0, 0), (0, G), (0, 0)))
        tokens = tokens + self.channel[...][:, None]
        if self.calendar is not None:
            times = np.array(self.past_places + self.future_places)
            quickest = calendar[..., : self.calendar.inputs[1]]
            tokens = tokens + self.calendar(quickest[:, times])[:, None]
        there = jnp.pad(there.any(axis=-1), ((0, 0), (0, 0), (0, G)), constant_values=True)
        z, weights = encoded(
            self.encoder,
            tokens.reshape(B * C, M + G, D),
            there.reshape(B * C, M + G),
            dropout_key=dropout_key,
            return_weights=return_weights,
        )
        raw = self.out(z[:, M:]).reshape(B, C, -1, self.head.size)[:, :, :F]
        ridge = self.ridge(past, past_valid)
        found = {}
        if weights is not None:
            found["patches"] = weights[..., M:, :].reshape(B, C, *weights.shape[1:3], G, M + G)
        return self.head.place(jnp.swapaxes(raw, 1, 2), ridge, scale), found


class RidgeSeasonal(Forecaster):
    """ŷ = r + λ (s - r), with r the ridge's forecast, s that of `SeasonalLag` and λ its share.

    Both are linear maps of the past, and r is the best of all on train: what s is good for is that
    it has some hundred numbers to learn, not ten thousands.

    Variables: share [] (λ), as given or as fitted.

    Weights of the attention: "lags" [B, C, F, L], first time first.
    """

    def __init__(
        self, config: RidgeSeasonalConfig, sizes: Sizes, ridge: np.ndarray | None, *, rngs: nnx.Rngs
    ):
        super().__init__(sizes, HEADS[config.head])
        # Without one, weights are restored.
        self.share = Fitted(jnp.float32(0 if config.share is None else config.share))
        self.ridge = Ridge(config, sizes, ridge)
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
        ridge = self.ridge(past, past_valid)
        seasonal, weights = self.seasonal(past, past_valid)
        point = ridge + self.share[...] * (seasonal - ridge)
        return self.spread(point, past, past_valid), {"lags": weights}
