"""Output heads of forecasters: a point forecast or a distribution for each value.

A model computes P raw numbers for each step and channel. `place` converts them to parameters in the
units of the window. From the parameters, a head computes its loss, point forecast, quantiles and
continuous ranked probability score.

In shapes, B is the number of windows, F the horizon, C the number of channels, P the number of
parameters of a head, and Q the number of quantile levels. In equations, y is a future value.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tasks.common.configs import one_of

Array = jax.Array

LEVELS = tuple(round(0.1 * number, 1) for number in range(1, 10))
"""Levels of the quantile head."""
_SCORES = tuple(map(statistics.NormalDist().inv_cdf, LEVELS))
_LARGEST_SCORE = 6.0


class Head:
    """Base class of the output heads, which have no trained parameters.

    Attributes:
      name: name in configs.
      size: P, number of parameters per forecast value.
      probabilistic: whether the parameters define a distribution.
      point_column: index of the parameter that is the point forecast.
    """

    name: str
    size: int
    probabilistic = True
    point_column = 0

    def column(self, level: float) -> int | None:
        """Returns the index of the parameter that is the quantile at `level`, or None."""
        return None

    def place(self, raw: Array, level: Array, scale: Array) -> Array:
        """Converts raw numbers [B, F, C, P] to parameters [B, F, C, P].

        Args:
          raw: unconstrained network outputs.
          level, scale: level and scale of each window, [B, 1, C], scale above 0. The raw numbers
            describe the distribution of (y - level) / scale.
        """
        raise NotImplementedError

    def around(self, point: Array, raw: Array, scale: Array) -> Array:
        """Returns the parameters [B, F, C, P] of a distribution with the given point forecast.

        Args:
          point: point forecast, [B, F, C].
          raw: network outputs, broadcast to [B, F, C, P]; the first of the P numbers is not used.
          scale: as for `place`.
        """
        raw = jnp.broadcast_to(raw, (*point.shape, self.size))
        return self._spread(point, raw, scale)

    def _spread(self, point: Array, raw: Array, scale: Array) -> Array:
        raise NotImplementedError

    def losses(self, parameters: Array, future: Array) -> Array:
        """Computes the training loss [B, F, C] of parameters [B, F, C, P]."""
        raise NotImplementedError

    def loss(self, parameters: Array, future: Array, valid: Array) -> Array:
        """Computes the mean of `losses` over valid cells, a scalar; 0 if there are none.

        Args:
          parameters: parameters of the forecast, [B, F, C, P].
          future: true values, [B, F, C]; missing values may be anything, NaN included.
          valid: bool [B, F, C], or float weights of the mean.
        """
        weight = valid.astype(jnp.float32)
        losses = self.losses(parameters, jnp.where(weight > 0, future, 0))
        return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1e-6)

    def point(self, parameters: Array) -> Array:
        """Returns the point forecast [B, F, C].

        It is the median for the heads `Median` and `Quantile`, and the mean for other heads.
        """
        return parameters[..., self.point_column]

    def quantiles(self, parameters: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        """Computes quantiles in NumPy.

        Args:
          parameters: parameters of the forecast, [..., P].
          levels: Q quantile levels.

        Returns:
          Quantiles, [..., Q].

        Raises:
          ValueError: a level is not supported.
        """
        raise ValueError(
            f"levels: got {list(levels)}, expected no levels, because "
            f"head={self.name!r} has no quantiles"
        )

    def width(self, parameters: Array) -> Array:
        """Returns the scale [...] of the distribution, proportional to its standard deviation."""
        raise NotImplementedError

    def at_scores(self, parameters: Array, scores: Array) -> Array:
        """Computes the quantiles [...] at the levels Φ(z) for normal scores z [...].

        Φ is the distribution function of the standard normal distribution.
        """
        raise NotImplementedError

    def crps(self, parameters: Array, future: Array) -> Array:
        """Computes the continuous ranked probability score, [B, F, C], in the units of y.

            CRPS(G, y) = ∫ (G(x) - 1[x >= y])² dx          (Gneiting & Raftery 2007)

        with the cumulative distribution function G of the forecast.
        """
        raise NotImplementedError


class Point(Head):
    """Point forecast of the mean, trained with squared error."""

    name, size, probabilistic = "point", 1, False

    def place(self, raw: Array, level: Array, scale: Array) -> Array:
        return raw * scale[..., None] + level[..., None]

    def _spread(self, point: Array, raw: Array, scale: Array) -> Array:
        return point[..., None]

    def losses(self, parameters: Array, future: Array) -> Array:
        return jnp.square(parameters[..., 0] - future)

    def crps(self, parameters: Array, future: Array) -> Array:
        """Computes the absolute error, which is the score of a point forecast."""
        return jnp.abs(self.point(parameters) - future)


class Median(Point):
    """Point forecast of the median, trained with absolute error."""

    name = "median"

    def losses(self, parameters: Array, future: Array) -> Array:
        return jnp.abs(parameters[..., 0] - future)


class Quantile(Head):
    """Quantiles at .1, .2, ... .9 that do not cross, with pinball loss (Koenker & Bassett 1978).

    The first raw number is the median. The others are mapped to the positive distances between
    adjacent quantiles.
    """

    name, size = "quantile", len(LEVELS)
    middle = point_column = len(LEVELS) // 2

    def place(self, raw: Array, level: Array, scale: Array) -> Array:
        return self._spread(raw[..., 0] * scale + level, raw, scale)

    def _spread(self, point: Array, raw: Array, scale: Array) -> Array:
        steps = jax.nn.softplus(raw[..., 1:] - 1) * scale[..., None]
        below = jnp.cumsum(steps[..., : self.middle], axis=-1)[..., ::-1]
        above = jnp.cumsum(steps[..., self.middle :], axis=-1)
        point = point[..., None]
        return jnp.concatenate([point - below, point, point + above], axis=-1)

    def losses(self, parameters: Array, future: Array) -> Array:
        """Computes the mean over levels q of (y - ŷ_q)(q - 1[y < ŷ_q]) for quantiles ŷ_q."""
        over = future[..., None] - parameters
        levels = jnp.array(LEVELS, jnp.float32)
        return jnp.mean(jnp.maximum(levels * over, (levels - 1) * over), axis=-1)

    def column(self, level: float) -> int:
        return LEVELS.index(level)

    def quantiles(self, parameters: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        """Interpolates linearly between the nine levels."""
        levels = np.asarray(levels, np.float64)
        if np.any((levels < LEVELS[0]) | (levels > LEVELS[-1])):
            expected = f"levels from {LEVELS[0]} to {LEVELS[-1]} for head='quantile'"
            raise ValueError(f"levels: got {levels.tolist()}, expected {expected}")
        positions = np.interp(levels, LEVELS, np.arange(self.size))
        lower = np.minimum(positions.astype(int), self.size - 2)
        upper = positions - lower
        parameters = np.asarray(parameters)
        return parameters[..., lower] * (1 - upper) + parameters[..., lower + 1] * upper

    def width(self, parameters: Array) -> Array:
        """Returns the standard deviation of a normal distribution with the same outer quantiles."""
        return (parameters[..., -1] - parameters[..., 0]) / (2 * _SCORES[-1])

    def at_scores(self, parameters: Array, scores: Array) -> Array:
        """Interpolates and extrapolates linearly in z, which is exact for a normal distribution."""
        knots = jnp.array(_SCORES, jnp.float32)
        lower = jnp.clip(jnp.searchsorted(knots, scores) - 1, 0, self.size - 2)

        def at(indices: Array) -> Array:
            return jnp.take_along_axis(parameters, indices[..., None], axis=-1)[..., 0]

        upper = (scores - knots[lower]) / (knots[lower + 1] - knots[lower])
        return at(lower) * (1 - upper) + at(lower + 1) * upper

    def crps(self, parameters: Array, future: Array) -> Array:
        """Computes twice the mean pinball loss over levels, which approximates the CRPS."""
        return 2 * self.losses(parameters, future)


class StudentT(Head):
    """Student's t distribution with location, scale and degrees of freedom; log-likelihood loss."""

    name, size = "student_t", 3
    least = 1e-4
    """Minimum scale, in units of the standardized data, for constant series."""
    fewest = 2.1
    """Minimum degrees of freedom; the variance is infinite up to 2."""

    def place(self, raw: Array, level: Array, scale: Array) -> Array:
        return self._spread(raw[..., 0] * scale + level, raw, scale)

    def _spread(self, point: Array, raw: Array, scale: Array) -> Array:
        width = jax.nn.softplus(raw[..., 1]) * scale + self.least
        freedom = self.fewest + jax.nn.softplus(raw[..., 2] + 3)
        return jnp.stack([point, width, freedom], axis=-1)

    def losses(self, parameters: Array, future: Array) -> Array:
        location, scale, freedom = jnp.moveaxis(parameters, -1, 0)
        return -jax.scipy.stats.t.logpdf(future, freedom, location, scale)

    def quantiles(self, parameters: np.ndarray, levels: Sequence[float]) -> np.ndarray:
        """Computes quantiles at levels between 0 and 1, exclusive."""
        from scipy import stats

        levels = np.asarray(levels, np.float64)
        if np.any((levels <= 0) | (levels >= 1)):
            raise ValueError(f"levels: got {levels.tolist()}, expected numbers between 0 and 1")
        location, scale, freedom = np.moveaxis(np.asarray(parameters)[..., None], -2, 0)
        return stats.t.ppf(levels, freedom, location, scale)

    def width(self, parameters: Array) -> Array:
        """Returns the scale parameter."""
        return parameters[..., 1]

    def at_scores(self, parameters: Array, scores: Array) -> Array:
        """Computes quantiles from a table for |z| up to 6, with an error below 0.1 %."""
        location, scale, freedom = jnp.moveaxis(parameters, -1, 0)
        table = jnp.asarray(_stretches())
        rows, columns = (size - 1 for size in table.shape)
        size = jnp.minimum(jnp.abs(scores) / _LARGEST_SCORE, 1) * columns
        positions = jnp.stack([self.fewest / freedom * rows, size])
        stretch = jax.scipy.ndimage.map_coordinates(table, list(positions), order=1, mode="nearest")
        return location + scale * scores * jnp.exp(stretch)

    def crps(self, parameters: Array, future: Array) -> Array:
        """Computes the continuous ranked probability score in closed form.

            CRPS = σ (z (2 F(z) - 1) + 2 f(z) (ν + z²) / (ν - 1) - c),   z = (y - μ) / σ

            c = 2 sqrt(ν) B(1/2, ν - 1/2) / ((ν - 1) B(1/2, ν/2)²)

        for location μ, scale σ and ν degrees of freedom, with density f and distribution function F
        of the standard t distribution and the beta function B (Jordan et al. 2019, "Evaluating
        Probabilistic Forecasts with scoringRules", appendix A).
        """
        location, scale, freedom = jnp.moveaxis(parameters, -1, 0)
        z = (future - location) / scale
        square = jnp.square(z)
        # Probabilities of both tails, from the incomplete beta function.
        tails = jax.scipy.special.betainc(freedom / 2, 0.5, freedom / (freedom + square))
        density = jnp.exp(jax.scipy.stats.t.logpdf(z, freedom))
        beta = jax.scipy.special.betaln
        constant = jnp.exp(beta(0.5, freedom - 0.5) - 2 * beta(0.5, freedom / 2))
        constant = constant * 2 * jnp.sqrt(freedom) / (freedom - 1)
        spread = 2 * density * (freedom + square) / (freedom - 1)
        return scale * (jnp.abs(z) * (1 - tails) + spread - constant)


@functools.cache
def _stretches() -> np.ndarray:
    """Tabulates log(t / z) for quantiles t of Student's t and z of the normal at the same level.

    t and z have the same level if F_ν(t) = Φ(z), with the distribution functions F_ν and Φ.

    Returns:
      float32 [rows, columns]. Rows are `StudentT.fewest` / ν from 0 to 1, columns are z from 0 to
      `_LARGEST_SCORE`.
    """
    from scipy import stats

    # 1e-3 and 1e-9 replace 0, at which the value exists only as a limit.
    z = np.maximum(np.linspace(0, _LARGEST_SCORE, 241), 1e-3)
    freedom = StudentT.fewest / np.maximum(np.linspace(0, 1, 65), 1e-9)
    t = stats.t.isf(stats.norm.sf(z), freedom[:, None])
    return np.log(t / z).astype(np.float32)


HEADS: dict[str, Head] = {head.name: head for head in (Point(), Median(), Quantile(), StudentT())}
"""Heads by name; see `config.head`."""


HeadName = one_of(*HEADS)
