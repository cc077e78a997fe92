"""Instance normalization, window sizes, and the base class of forecasters.

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, K
the number of calendar features, and P the number of parameters of an output head.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from tasks.forecasting.models.heads import Head

Array = jax.Array
Weights = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class WindowSizes:
    """Sizes of windows.

    Attributes:
      channels: C, number of channels.
      lookback: L, number of steps of the look-back.
      horizon: F, number of forecast steps.
      calendar: K, number of calendar features; 0 without time stamps.
      period: number of steps in a season.
    """

    channels: int
    lookback: int
    horizon: int
    calendar: int = 0
    period: int = 1

    def __post_init__(self):
        for name, least in (("channels", 1), ("lookback", 1), ("horizon", 1), ("calendar", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")


class Mode(NamedTuple):
    """Options of a forward pass; see `Forecaster.__call__`."""

    training: bool
    dropout_key: Array | None
    return_weights: bool
    valid: Array | None = None


class Forecaster(nnx.Module):
    """Base class of forecasting models.

        parameters = model(past, past_valid, calendar)          # [B, F, C, P] of `model.head`

    A subclass implements `forecast`, which receives a past with missing values replaced by 0.

    Attributes:
      sizes: sizes of windows.
      head: output head, which defines the parameters.
    """

    def __init__(self, sizes: WindowSizes, head: Head):
        self.sizes, self.head = sizes, head

    def __call__(
        self,
        past: Array,
        past_valid: Array,
        calendar: Array,
        *,
        valid: Array | None = None,
        training: bool = False,
        dropout_key: Array | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Weights]:
        """Forecasts the distribution of each channel at each step ahead.

        Args:
          past: standardized past values, [B, L, C]. Missing values may be anything, NaN included.
          past_valid: bool [B, L, C], False where missing.
          calendar: calendar features of look-back and horizon, [B, L + F, K].
          valid: bool [B], windows to include in batch statistics; all if None.
          training: whether normalization uses and updates batch statistics.
          dropout_key: random key of dropout; None for evaluation.
          return_weights: whether to return the attention weights by name, with leading dimension B.

        Returns:
          Parameters float32 [B, F, C, P]; with `return_weights` also the attention weights, an
          empty dictionary for a model without attention.

        Raises:
          ValueError: shapes do not fit.
        """
        sizes = {"L": self.sizes.lookback, "C": self.sizes.channels, "K": self.sizes.calendar}
        shapes.expect("past", past, "B L C", sizes)
        shapes.expect_boolean("past_valid", past_valid, true_means="a value that is valid")
        shapes.expect("past_valid", past_valid, "B L C", sizes)
        times = {"T": self.sizes.lookback + self.sizes.horizon}
        shapes.expect("calendar", calendar, "B T K", sizes | times)
        past = jnp.where(past_valid, past, 0).astype(jnp.float32)
        mode = Mode(training, dropout_key, return_weights, valid)
        parameters, weights = self.forecast(past, past_valid, calendar, mode)
        return (parameters, weights) if return_weights else parameters

    def forecast(
        self, past: Array, past_valid: Array, calendar: Array, mode: Mode
    ) -> tuple[Array, Weights]:
        """Computes parameters and weights of `__call__`; weights are ignored unless requested."""
        raise NotImplementedError


def level_and_scale(past: Array, valid: Array, *, epsilon: float = 1e-5) -> tuple[Array, Array]:
    """Computes mean and standard deviation of each window and channel over valid times.

        μ = mean_t x_t,   σ = sqrt(mean_t (x_t - μ)² + ε)

    Kim et al. 2022, "Reversible Instance Normalization".

    Args:
      past: values x of the look-back, [B, L, C].
      valid: bool [B, L, C], False where missing.
      epsilon: ε, added to the variance.

    Returns:
      μ and σ, [B, 1, C]; 0 and sqrt(ε) without valid times.
    """
    count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    level = jnp.sum(jnp.where(valid, past, 0), axis=1, keepdims=True) / count
    over = jnp.where(valid, past - level, 0)
    variance = jnp.sum(jnp.square(over), axis=1, keepdims=True) / count
    return level, jnp.sqrt(variance + epsilon)


def level_of(past: Array, valid: Array, level: str) -> Array:
    """Computes the mean or the last valid value of each window and channel.

    Args:
      past: values of the look-back, [B, L, C], 0 where not valid.
      valid: bool [B, L, C], False where missing.
      level: "mean" or "last".

    Returns:
      The level, [B, 1, C]; 0 without valid values.
    """
    if level == "mean":
        count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
        return jnp.sum(past, axis=1, keepdims=True) / count
    later = jnp.cumsum(valid[:, ::-1], axis=1)[:, ::-1]
    return jnp.sum(past * (valid & (later == 1)), axis=1, keepdims=True)


class InstanceNorm(nnx.Module):
    """Reversible instance normalization (Kim et al. 2022).

    The input z of the network has mean 0 and standard deviation 1 in each window and channel. The
    output ẑ of the network is scaled back.

        z = (x - μ) / σ · γ + β,      ŷ = σ (ẑ - β) / γ + μ

    Parameters: if learned, scale [C] (γ) and bias [C] (β).

    Args:
      channels: C, number of channels.
      learned: whether to learn γ and β.
    """

    def __init__(self, channels: int, *, learned: bool = False):
        self.scale = nnx.Param(jnp.ones((channels,))) if learned else None
        self.bias = nnx.Param(jnp.zeros((channels,))) if learned else None

    def __call__(self, past: Array, valid: Array) -> tuple[Array, Array, Array]:
        """Normalizes the past.

        Args:
          past: values x of the look-back, [B, L, C].
          valid: bool [B, L, C], False where missing.

        Returns:
          z [B, L, C], 0 where not valid; and `level` and `scale`, [B, 1, C] each. A normalized
          forecast ẑ is converted back by ŷ = level + scale · ẑ.
        """
        level, scale = level_and_scale(past, valid)
        normal = (past - level) / scale
        if self.scale is not None:
            # The learned scale is bounded away from 0, because values are divided by it.
            factor = self.scale[...] + jnp.where(self.scale[...] < 0, -1e-5, 1e-5)
            normal = normal * factor + self.bias[...]
            scale = scale / factor
            level = level - scale * self.bias[...]
        return jnp.where(valid, normal, 0), level, scale
