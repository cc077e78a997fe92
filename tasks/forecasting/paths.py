"""Forecasts beyond the horizon: the model is rolled on its own forecasts, by their points and, for
intervals, by sample paths.

B windows, L look-back, F horizon, C channels, K features of the calendar, P parameters of a head,
S steps ahead (a multiple of F), n paths, Q levels.
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
"""Paths of a window: the Monte Carlo error of an 80 % half-width is about 3 %."""
_SEED = 0
# Numbers of windows that are looked back at together: bounds the memory of wide series.
_VALUES = 1 << 20


def rolled(model: Forecaster, batch: Batch) -> Array:
    """Forecasts as far as the calendar goes: where it is longer than the horizon, the point
    forecasts so far are looked back at as if they had come.

    Args:
      model: its horizon is F.
      batch: "past" and "past_valid" [B, L, C], "calendar" [B, L + S, K].

    Returns:
      [B, S, C, P]. Beyond the horizon only the points are meaningful: the spread is that of a
      forecast whose past is certain. See `quantiles_beyond`.
    """
    F = model.sizes.horizon
    calendar = batch["calendar"]
    blocks = _blocks(model, calendar)

    def block(past: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], Array]:
        parameters = model(*past, _window(model, calendar, first))
        return _later(past, model.head.point(parameters)), parameters

    past = (batch["past"], batch["past_valid"])
    parameters = jax.lax.scan(block, past, F * jnp.arange(blocks))[1]
    return jnp.moveaxis(parameters, 0, 1).reshape(len(calendar), blocks * F, *parameters.shape[3:])


def quantiles_beyond(
    model: Forecaster,
    batch: Batch,
    levels: Sequence[float],
    *,
    count: int = PATHS,
    seed: int = _SEED,
) -> Array:
    """Quantiles of the steps after the horizon, over sample paths.

    A path is drawn from the distribution of the first F steps, is looked back at as if it had come,
    goes on with a draw from the distribution that the model then gives, and so on. All windows get
    the same random numbers, so that the answer for one does not depend on the others.

    Args:
      model: its head is a distribution.
      batch: as for `rolled`; rows whose "weight" is 0, if it is there, are skipped.
      levels: Q.
      count: n.
      seed: of the paths.

    Returns:
      [B, S - F, C, Q]; 0 for skipped rows.
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
            parameters = _in_portions(model, *past, now)
            drawn = draw_paths(model.head, parameters, key)
            found = jnp.quantile(drawn, jnp.array(levels, jnp.float32), axis=0)
            return _later(past, drawn), jnp.moveaxis(found, 0, -1)

        found = jax.lax.scan(block, past, (F * jnp.arange(blocks), keys))[1]
        return found[1:].reshape(shape)

    def of_real_row(row: Mapping[str, Array]) -> Array:
        return jax.lax.cond(row["weight"] > 0, of_row, lambda _: jnp.zeros(shape), row)

    rows = {name: batch[name] for name in ("past", "past_valid", "calendar")}
    rows["weight"] = batch.get("weight", jnp.ones(len(batch["past"])))
    return jax.lax.map(of_real_row, rows)


def draw_paths(head: Head, parameters: Array, key: Array) -> Array:
    """Draws one path from each distribution of F steps: [n, F, C, P] -> [n, F, C].

    A head tells the distribution of each step, not how the steps hang together. That follows from
    how the variance v_h of the steps grows, if their errors are those of a linear process:

        e_h = Σ_{k<h} ψ_k ε_{h-k},   ψ_k² = v_{k+1} - v_k,   ε normal

    So the steps of a random walk (v_h = h v_1) add up, and those of white noise (v_h = v_1) are
    independent. Where the variance falls, ψ is 0. The v are means over the paths. Each step's
    errors are brought to normal scores over the paths by their ranks, and these to the head's
    distribution. Channels are independent.
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


def _in_portions(model: Forecaster, past: Array, valid: Array, calendar: Array) -> Array:
    """The parameters of n windows, computed for so many of them at a time as memory allows."""
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
    """How many horizons a calendar goes ahead."""
    return (calendar.shape[1] - model.sizes.lookback) // model.sizes.horizon


def _window(model: Forecaster, calendar: Array, first: Array) -> Array:
    """The calendar of one block, from its look-back on: [B, L + F, K]."""
    times = model.sizes.lookback + model.sizes.horizon
    return jax.lax.dynamic_slice_in_dim(calendar, first, times, axis=1)


def _later(past: tuple[Array, Array], came: Array) -> tuple[Array, Array]:
    """The past and what is valid of it, F steps later, when `came` [B, F, C] has come."""
    pairs = zip(past, (came, jnp.ones(came.shape, bool)), strict=True)
    F = came.shape[1]
    return tuple(jnp.concatenate(pair, axis=1)[:, F:] for pair in pairs)
