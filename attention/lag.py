"""Attention over the past of a series: a forecast is a mean of past values, weighted by lag.

    y = attention(x, valid=valid)           # [B, T, C] -> [B, F, C], F steps ahead

This is an autoregression (Yule 1927) whose coefficients are attention weights. They depend on the
lag of a value, not on the value or the time. Each channel is forecast separately.

B series, T past times, L lags, F forecast steps, C channels, N heads, G groups of weights. The
groups are written "1 or C": 1 if all channels share the weights, C if each channel has its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.numerics import accumulator, softmax

Array = jax.Array


def lag_attention(x: Array, logits: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """Computes a mean of the past, weighted by lag (Yule 1927; softmax: Vaswani et al. 2017).

        ŷ_(t+f) = Σ_i w_fi x_(t+1-i),   w_f = softmax_i(l_f),   i = 1 ... L

    Lag i = 1 is the last given value. For one step ahead (f = 1), the formula is the usual
    autoregression y_t = Σ_i w_i x_(t-i). The weights sum to 1, so a forecast stays in the range of
    its past: min x ≤ ŷ ≤ max x. So it cannot follow a trend; `residual_lag_attention` can.

    Missing values are excluded, and the other weights are renormalized. Only the last L times have
    an effect; times before the start of a shorter series count as missing.

    Args:
      x: [B, T, C]. Missing values may be anything, NaN included.
      logits: l, [1 or C, F, L], in the order of the lags i = 1 ... L.
      valid: bool [B, T], or [B, T, C]; all are present if None.

    Returns:
      ŷ, [B, F, C] in x's dtype, 0 if no value is present; and the weights w of the T times,
      [B, 1 or C, F, T] in at least float32.

    Raises:
      ValueError: shapes or dtypes do not fit.
    """
    past, seen = _past(x, logits, valid, "G F L")
    weights = _lag_weights(logits, seen)
    return _apply(weights, past).astype(x.dtype), _by_time(weights, x)


def residual_lag_attention(
    x: Array,
    logits: Array,
    values: Array,
    valid: Array | None = None,
    *,
    level: str = "last",
) -> tuple[Array, Array]:
    """Computes attention over the past minus its level (level: Zeng et al. 2023, NLinear).

        ŷ_(t+f) = c + Σ_n W_nf Σ_i w_nfi (x_(t+1-i) - c),   w_nf = softmax_i(l_nf)

    The level c is the last value, or the mean of the L values. The value projection W is one number
    of either sign for each head and step, so the forecast can leave the range of the past. It can
    follow a trend: a head on early values with W < 0 and a head on late values with W > 0 estimate
    a slope. With W of both signs, the heads together can represent any linear map of the
    differences.

    The forecast is equivariant to level and scale: ŷ(a x + b) = a ŷ(x) + b. Normalization by the
    standard deviation, as in Kim et al. 2022, would have no effect, as the map is linear. Missing
    values are treated as in `lag_attention`; the last value is the last one that is present.

    Args:
      x: [B, T, C]. Missing values may be anything, NaN included.
      logits: l, [1 or C, N, F, L], in the order of the lags i = 1 ... L.
      values: W, [1 or C, N, F].
      valid: bool [B, T], or [B, T, C]; all are present if None.
      level: "last" or "mean".

    Returns:
      ŷ, [B, F, C] in x's dtype, 0 if no value is present; and the matrix that maps the past to ŷ,
      [B, 1 or C, F, T] in at least float32. The matrix includes the level, so its rows sum to 1.
      Its entries may be negative.

    Raises:
      ValueError: shapes or dtypes do not fit, or the level is unknown.
    """
    expect_level(level)
    past, seen = _past(x, logits, valid, "G N F L")
    G, N, F, L = logits.shape
    shapes.expect("values", values, "G N F", {"G": G, "N": N, "F": F})
    weights = _lag_weights(logits.reshape(G, N * F, L), seen)
    heads = weights.reshape(*weights.shape[:2], N, F, L)
    scale = jnp.broadcast_to(values.astype(heads.dtype), heads.shape[1:4])
    mixed = jnp.einsum("BGNFL,GNF->BGFL", heads, scale)
    at = _level_weights(seen, level)
    base = _apply(at, past)
    over = jnp.where(seen, past - base, 0)
    y = base + _apply(mixed, over)
    rest = 1 - jnp.sum(mixed, axis=-1, keepdims=True)
    return y.astype(x.dtype), _by_time(mixed + rest * at, x)


class LagAttention(nnx.Module):
    """Autoregressive attention with a weight for each lag (Yule 1927; Vaswani et al. 2017).

        ŷ_(t+f) = Σ_i w_fi x_(t+1-i),   w_f = softmax(l_f)

    A forecast stays between the minimum and the maximum of its past, so it cannot follow a trend.
    This is the usual form of attention, and the baseline of `ResidualLagAttention`. The initial
    forecast is the mean of the last L values.

    Parameters: logits [1 or C, F, L] (l). Lag 1, which is the last value, comes first.

    Args:
      channels: C, number of channels.
      lags: L, number of lags.
      horizon: F, number of forecast steps, each with its own weights.
      individual: whether each channel has its own weights.
      dtype: dtype of the result; parameters and sums are float32.

    Raises:
      ValueError: a number is below 1.
    """

    def __init__(
        self,
        channels: int,
        lags: int,
        horizon: int,
        *,
        individual: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shapes.expect_positive(channels=channels, lags=lags, horizon=horizon)
        self.channels, self.dtype = channels, dtype
        groups = channels if individual else 1
        self.logits = nnx.Param(jnp.zeros((groups, horizon, lags)))

    def __call__(
        self, x: Array, *, valid: Array | None = None, return_weights: bool = False
    ) -> Array | tuple[Array, Array]:
        """Forecasts the next F values of each series.

        Args:
          x, valid: as for `lag_attention`.
          return_weights: whether to return the weights too.

        Returns:
          ŷ, [B, F, C] in `dtype`; with `return_weights`, also the weights, [B, 1 or C, F, T].
        """
        expect_series(x, self.channels)
        y, weights = lag_attention(x.astype(self.dtype), self.logits[...], valid)
        y = recording.record_result(
            y, lambda: weights, mix=lambda w: _apply_by_time(w, x, valid).astype(self.dtype)
        )
        return (y, weights) if return_weights else y


class ResidualLagAttention(nnx.Module):
    """Attention over differences from the level of a series, which can follow a trend (level as in
    NLinear, Zeng et al. 2023).

        ŷ_(t+f) = c + Σ_n W_nf Σ_i w_nfi (x_(t+1-i) - c),   w_nf = softmax(l_nf)

    See `residual_lag_attention`. W is initialized to 1, -1, 1, ... and l to 0, so with an even
    number of heads the initial forecast repeats the level c. Repeating the last value is a strong
    baseline for a random walk.

    Parameters: logits [1 or C, N, F, L] (l), in which lag 1, the last value, comes first; values
    [1 or C, N, F] (W).

    Args:
      channels: C, number of channels.
      lags: L, number of lags.
      horizon: F, number of forecast steps, each with its own weights.
      num_heads: N, number of heads.
      level: c, "last" (the last value) or "mean" (of the L values).
      individual: whether each channel has its own weights.
      dtype: dtype of the result; parameters and sums are float32.

    Raises:
      ValueError: a number is below 1, or the level is unknown.
    """

    def __init__(
        self,
        channels: int,
        lags: int,
        horizon: int,
        *,
        num_heads: int = 2,
        level: str = "last",
        individual: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shapes.expect_positive(channels=channels, lags=lags, horizon=horizon, num_heads=num_heads)
        expect_level(level)
        self.channels, self.level, self.dtype = channels, level, dtype
        groups = channels if individual else 1
        self.logits = nnx.Param(jnp.zeros((groups, num_heads, horizon, lags)))
        signs = jnp.where(jnp.arange(num_heads) % 2, -1.0, 1.0)
        self.values = nnx.Param(jnp.broadcast_to(signs[:, None], (groups, num_heads, horizon)))

    def __call__(
        self, x: Array, *, valid: Array | None = None, return_weights: bool = False
    ) -> Array | tuple[Array, Array]:
        """Forecasts the next F values of each series.

        Args:
          x, valid: as for `residual_lag_attention`.
          return_weights: whether to also return the matrix that maps the past to the forecast.

        Returns:
          ŷ, [B, F, C] in `dtype`; with `return_weights`, also the matrix, [B, 1 or C, F, T].
        """
        expect_series(x, self.channels)
        y, weights = residual_lag_attention(
            x.astype(self.dtype), self.logits[...], self.values[...], valid, level=self.level
        )
        y = recording.record_result(
            y, lambda: weights, mix=lambda w: _apply_by_time(w, x, valid).astype(self.dtype)
        )
        return (y, weights) if return_weights else y


def expect_series(x: Array, channels: int) -> None:
    """Raises ValueError unless x is [B, T, channels]."""
    shapes.expect_arrays({"x": (x, "B T C")}, {"C": channels})


def expect_level(level: str) -> None:
    """Raises ValueError for an unknown level."""
    if level not in ("last", "mean"):
        raise ValueError(f"level: got {level!r}, expected 'last' or 'mean'")


def _past(x: Array, logits: Array, valid: Array | None, letters: str) -> tuple[Array, Array]:
    """Returns the last L values in reverse order, and which of them are present.

    The values are [B, L, C] in at least float32, and 0 if missing. The mask of present values is
    bool [B or 1, L, C or 1].
    """
    sizes = shapes.expect_arrays({"x": (x, "B T C"), "logits": (logits, letters)})
    if sizes["G"] not in (1, sizes["C"]):
        expected = f"[{', '.join(letters.split())}] with G=1 or G={sizes['C']}"
        raise ValueError(f"logits: got shape {shapes.show(logits.shape)}, expected {expected}")
    seen = _seen(valid, sizes)
    T, L = sizes["T"], sizes["L"]
    wide = jnp.where(seen, x.astype(accumulator(x)), 0)
    if T < L:
        before = ((0, 0), (L - T, 0), (0, 0))
        wide, seen = jnp.pad(wide, before), jnp.pad(seen, before)
    return wide[:, -L:][:, ::-1], seen[:, -L:][:, ::-1]


def _seen(valid: Array | None, sizes: dict[str, int]) -> Array:
    """Returns the mask of present values, bool [B or 1, T, C or 1]."""
    if valid is None:
        return jnp.ones((1, sizes["T"], 1), bool)
    shapes.expect_boolean("valid", valid, true_means="a value that is present")
    if jnp.ndim(valid) == 3:
        shapes.expect("valid", valid, "B T C", sizes)
        return jnp.asarray(valid)
    hint = "or [B, T, C] if it is different for each channel"
    shapes.expect("valid", valid, "B T", sizes, hint=hint)
    return jnp.asarray(valid)[:, :, None]


def _lag_weights(logits: Array, seen: Array) -> Array:
    """Returns the softmax over the present lags for R rows of logits, [B or 1, 1 or C, R, L].

    If no value is missing, the weights are the same for the complete batch.
    """
    there = jnp.swapaxes(seen, 1, 2)[:, :, None]
    return softmax(jnp.where(there, logits.astype(accumulator(logits)), -jnp.inf))


def _apply(weights: Array, past: Array) -> Array:
    """Computes the weighted sums of the past.

    Args:
      weights: [B or 1, 1 or C, F, L].
      past: the last L values in reverse order, [B, L, C].

    Returns:
      [B, F, C].
    """
    many, groups = weights.shape[:2]
    if groups == 1:
        return jnp.matmul(weights[:, 0], past)
    if many == 1:
        return jnp.einsum("CFL,BLC->BFC", weights[0], past)
    return jnp.einsum("BCFL,BLC->BFC", weights, past)


def _level_weights(seen: Array, level: str) -> Array:
    """Returns the weights with which the L values form the level c, [B or 1, 1 or C, 1, L]."""
    there = jnp.swapaxes(seen, 1, 2)[:, :, None].astype(jnp.float32)
    if level == "last":
        return there * (jnp.cumsum(there, axis=-1) == 1)
    return there / jnp.maximum(jnp.sum(there, axis=-1, keepdims=True), 1)


def _by_time(weights: Array, x: Array) -> Array:
    """Converts weights by lag to weights by time.

    Args:
      weights: [B or 1, G, F, L].
      x: the past, [B, T, C].

    Returns:
      [B, G, F, T].
    """
    B, T, _ = x.shape
    L = weights.shape[-1]
    forward = weights[..., ::-1]
    if T > L:
        forward = jnp.pad(forward, ((0, 0), (0, 0), (0, 0), (T - L, 0)))
    forward = forward[..., forward.shape[-1] - T :]
    return jnp.broadcast_to(forward, (B, *weights.shape[1:3], T))


def _apply_by_time(weights: Array, x: Array, valid: Array | None) -> Array:
    """Computes the weighted sums Σ_t w_ft x_t, [B, F, C].

    Args:
      weights: w, weights by time, [B, 1 or C, F, T].
      x: the past, [B, T, C].
      valid: as for `lag_attention`.
    """
    if valid is not None:
        x = jnp.where(valid if jnp.ndim(valid) == 3 else valid[..., None], x, 0)
    if weights.shape[1] == 1:
        return jnp.einsum("BFT,BTC->BFC", weights[:, 0], x)
    return jnp.einsum("BCFT,BTC->BFC", weights, x)
