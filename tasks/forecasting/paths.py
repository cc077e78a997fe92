"""Forecasts beyond the horizon: autoregressive point forecasts, and intervals from sample paths.

In shapes, B is the number of windows, L the look-back, F the horizon, C the number of channels, K
the number of calendar features, P the number of parameters of an output head, S the number of
forecast steps (a multiple of F), n the number of paths, and Q the number of quantile levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from tasks.forecasting.models.base import Forecaster
from tasks.forecasting.models.heads import Head

Array = jax.Array
Batch = Mapping[str, Array]

PATHS = 1024
"""Number of paths per window.

The Monte Carlo error of the half-width of an 80 % interval is about 3 %.
"""
_SEED = 0
# Maximum number of look-back values in a batch of paths, which bounds the memory.
_VALUES = 1 << 20


def forecast_autoregressively(model: Forecaster, batch: Batch) -> Array:
    """Forecasts all S steps for which the batch has calendar features.

    The model forecasts F steps at a time. Point forecasts are then appended to the past, from which
    the next F steps are forecast.

    Args:
      model: forecaster with horizon F.
      batch: "past" and "past_valid" [B, L, C], "calendar" [B, L + S, K].

    Returns:
      Parameters [B, S, C, P]. Beyond the horizon only the point forecasts are meaningful, because
      the width of the distributions ignores the uncertainty of previous forecasts; use
      `quantiles_beyond` for quantiles.
    """
    F = model.sizes.horizon
    calendar = batch["calendar"]
    blocks = _blocks(model, calendar)

    def block(past: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], Array]:
        parameters = model(*past, _window(model, calendar, first))
        return _append(past, model.head.point(parameters)), parameters

    past = (batch["past"], batch["past_valid"])
    parameters = jax.lax.scan(block, past, F * jnp.arange(blocks))[1]
    return jnp.moveaxis(parameters, 0, 1).reshape(
        calendar.shape[0], blocks * F, *parameters.shape[3:]
    )


def quantiles_beyond(
    model: Forecaster,
    batch: Batch,
    levels: Sequence[float],
    *,
    count: int = PATHS,
    seed: int = _SEED,
) -> Array:
    """Estimates quantiles beyond the horizon from sample paths.

    The first F steps of a path are drawn from the forecast distribution and appended to the past;
    the next F steps are drawn from the forecast for this past, and so on. All windows have the same
    random numbers, so that results do not depend on the batch.

    Args:
      model: forecaster whose head is a distribution.
      batch: as for `forecast_autoregressively`; and optionally "weight" [B]. Rows with a weight of
        0 are skipped.
      levels: quantile levels, [Q].
      count: n, number of paths.
      seed: seed of the paths.

    Returns:
      Quantiles [B, S - F, C, Q]; 0 for skipped rows.
    """
    F, C = model.sizes.horizon, model.sizes.channels
    blocks = _blocks(model, batch["calendar"])
    shape = ((blocks - 1) * F, C, len(levels))
    keys = jax.random.split(jax.random.key(seed), blocks)

    def of_row(row: Mapping[str, Array]) -> Array:
        past = tuple(
            jnp.broadcast_to(row[name], (count, *row[name].shape))
            for name in ("past", "past_valid")
        )

        def block(
            past: tuple[Array, Array], step: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], Array]:
            first, key = step
            now = _window(model, row["calendar"][None], first)
            now = jnp.broadcast_to(now, (count, *now.shape[1:]))
            parameters = _in_batches(model, *past, now)
            drawn = draw_paths(model.head, parameters, key)
            found = jnp.quantile(drawn, jnp.array(levels, jnp.float32), axis=0)
            return _append(past, drawn), jnp.moveaxis(found, 0, -1)

        found = jax.lax.scan(block, past, (F * jnp.arange(blocks), keys))[1]
        return found[1:].reshape(shape)

    def of_real_row(row: Mapping[str, Array]) -> Array:
        return jax.lax.cond(row["weight"] > 0, of_row, lambda _: jnp.zeros(shape), row)

    rows = {name: batch[name] for name in ("past", "past_valid", "calendar")}
    rows["weight"] = batch.get("weight", jnp.ones(batch["past"].shape[0]))
    return jax.lax.map(of_real_row, rows)


def draw_paths(head: Head, parameters: Array, key: Array) -> Array:
    """Draws one path of F steps from each of n forecast distributions.

    The parameters are [n, F, C, P], and the paths are [n, F, C].

    The head gives only the marginal distribution of each step. The dependence between steps is
    inferred from the growth of the variance v_h, on the assumption that the errors e_h follow a
    linear process:

        e_h = Σ_{k<h} ψ_k ε_{h-k},   ψ_k² = v_{k+1} - v_k,   ε normal

    for step h. Hence the errors of a random walk (v_h = h v_1) accumulate, and those of white noise
    (v_h = v_1) are independent. If the variance decreases from step k to the next, ψ_k is 0. v_h is
    averaged over the n paths. At each step, the ranks of the n errors select quantiles of the
    head's distribution. Channels are independent.
    """
    n, F, C = parameters.shape[:3]
    variance = jnp.mean(jnp.square(head.width(parameters)), axis=0)
    variance = jax.lax.cummax(variance, axis=0)
    growth = jnp.sqrt(jnp.diff(variance, axis=0, prepend=0))
    noise = jax.random.normal(key, (n, F, C))
    spectrum = jnp.fft.rfft(noise, 2 * F, axis=1) * jnp.fft.rfft(growth, 2 * F, axis=0)
    errors = jnp.fft.irfft(spectrum, 2 * F, axis=1)[:, :F]
    ranks = jnp.argsort(jnp.argsort(errors, axis=0), axis=0)
    return head.at_scores(parameters, jax.scipy.special.ndtri((ranks + 0.5) / n))


def _in_batches(model: Forecaster, past: Array, valid: Array, calendar: Array) -> Array:
    """Computes the parameters of n windows in batches that fit into memory."""
    n, L, C = past.shape
    size = n
    while size > 1 and size % 2 == 0 and size * L * C > _VALUES:
        size //= 2
    if size == n:
        return model(past, valid, calendar)
    parts = [array.reshape(n // size, size, *array.shape[1:]) for array in (past, valid, calendar)]
    found = jax.lax.map(lambda part: model(*part), tuple(parts))
    return found.reshape(n, *found.shape[2:])


def _blocks(model: Forecaster, calendar: Array) -> int:
    """Returns the number of horizons S / F that a calendar covers."""
    return (calendar.shape[1] - model.sizes.lookback) // model.sizes.horizon


def _window(model: Forecaster, calendar: Array, first: Array) -> Array:
    """Returns the calendar features of the F steps from `first` on, and of their look-back.

    Returns:
      [B, L + F, K].
    """
    times = model.sizes.lookback + model.sizes.horizon
    return jax.lax.dynamic_slice_in_dim(calendar, first, times, axis=1)


def _append(past: tuple[Array, Array], values: Array) -> tuple[Array, Array]:
    """Shifts the past (values, validity) by F steps, and appends `values` [B, F, C]."""
    pairs = zip(past, (values, jnp.ones(values.shape, bool)), strict=True)
    F = values.shape[1]
    return tuple(jnp.concatenate(pair, axis=1)[:, F:] for pair in pairs)
