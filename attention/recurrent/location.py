"""Location-aware alignment: scores depend on the weights of earlier steps.

Chorowski et al. 2015, "Attention-Based Models for Speech Recognition". `attention.recurrent.memory`
defines the interface of alignments and the dimension letters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention import recording, shapes
from attention.numerics import accumulator, softmax
from attention.projection import Projection
from attention.recurrent.additive import additive_scores, validate_hidden_size
from attention.recurrent.memory import context, validate_query, validate_states

Array = jax.Array


class LocationMemory(NamedTuple):
    """Encoder states with the valid ones first, so that padding does not separate neighbors.

    Attributes:
      keys: [B, S, A], the term of the score that is the same in all steps.
      values: [B, S, D].
      valid: bool [B, S]; the True entries come first.
      places: int [B, S]. For each position in the caller's order, its index in these arrays.
    """

    keys: Array
    values: Array
    valid: Array
    places: Array


class LocationState(NamedTuple):
    """Weights of earlier steps, valid positions first.

    Attributes:
      previous: [B, S], the weights of the previous step.
      cumulative: [B, S], the sum of the weights of all steps.
    """

    previous: Array
    cumulative: Array


def location_features(looked: Array, kernel: Array) -> Array:
    """Computes features of earlier weights by a convolution (Chorowski et al. 2015, equation 8).

        f_s = Σ_j F_j · α_(s + j),   |j| <= W / 2,   α = 0 beyond the ends

    Args:
      looked: α, [B, S, L]: weights of the previous step and, with L = 2, their sum over all steps.
      kernel: F, [W, L, K], W odd.

    Returns:
      f, [B, S, K] in at least float32.

    Raises:
      ValueError: shapes do not fit, or W is even.
    """
    sizes: dict[str, int] = {}
    shapes.expect("looked", looked, "B S L", sizes)
    shapes.expect("kernel", kernel, "W L K", sizes)
    _expect_odd(sizes["W"])
    dtype = accumulator(looked)
    return jax.lax.conv_general_dilated(
        looked.astype(dtype), kernel.astype(dtype), (1,), "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip


def smoothed(scores: Array, valid: Array) -> Array:
    """Normalizes sigmoids of the scores instead of exponentials (Chorowski et al. 2015).

        a_s = σ(e_s) / Σ_s' σ(e_s')

    The weights are broader than those of a softmax. This is the "smoothing" of section 2.3.

    Args:
      scores: e, [B, S].
      valid: bool [B, S].

    Returns:
      a, [B, S]; 0 without valid positions.

    Raises:
      TypeError: shapes do not broadcast.
    """
    # Computed as a softmax of ln σ(e), so that the sum cannot underflow.
    return softmax(jnp.where(valid, jax.nn.log_sigmoid(scores), -jnp.inf))


class LocationAwareAlignment(nnx.Module):
    """The hybrid alignment of Chorowski et al. 2015, by content and by earlier weights.

        f_s = (F * α_{t-1})_s,   e_s = v · tanh(W q + V h_s + U f_s + b)
        α_t = softmax_s(β e_s),   c = Σ_s α_ts h_s

    With `cumulative`, F is also applied to Σ_{t' < t} α_t' (Shen et al. 2018, Tacotron 2). Before
    the first step α_0 = 0.

    Parameters: query/kernel [Q, A] (W), key/kernel [D, A] (V), key/bias [A], filters [width, 1 or
    2, K] (F; the cumulative weights come second), location/kernel [K, A] (U), score [A] (v).

    Args:
      query_size: Q of the decoder's state.
      memory_size: D of the encoder's states.
      hidden_size: A, size of the hidden layer; D if None.
      num_filters: K, number of filters.
      width: width of the filters, odd.
      cumulative: whether to use the sum over all steps in addition to the previous step.
      smooth: whether to use sigmoids instead of exponentials (section 2.3), for broader weights.
      sharpening: β, above 1 for narrower weights; must be 1 with `smooth`.
      dtype: dtype of the computation; parameters, α and f are float32.

    Raises:
      ValueError: a size is below 1, the width is even, or β is not positive or not 1 with `smooth`.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        hidden_size: int | None = None,
        num_filters: int = 8,
        width: int = 7,
        cumulative: bool = False,
        smooth: bool = False,
        sharpening: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        A = validate_hidden_size(hidden_size, memory_size)
        _expect_odd(width)
        if num_filters < 1:
            raise ValueError(f"num_filters: got {num_filters}, expected at least 1")
        if not sharpening > 0 or (smooth and sharpening != 1):
            expected = "1 with smooth=True" if smooth else "a positive number"
            raise ValueError(f"sharpening: got {sharpening}, expected {expected}")
        self.query_size, self.memory_size, self.dtype = query_size, memory_size, dtype
        self.cumulative, self.smooth, self.sharpening = cumulative, smooth, sharpening
        self.query = Projection((query_size,), (A,), use_bias=False, dtype=dtype, rngs=rngs)
        self.key = Projection((memory_size,), (A,), dtype=dtype, rngs=rngs)
        seen = 2 if cumulative else 1
        filters = jax.random.normal(rngs.params(), (width, seen, num_filters))
        self.filters = nnx.Param(filters * (width * seen) ** -0.5)
        self.location = Projection((num_filters,), (A,), use_bias=False, dtype=dtype, rngs=rngs)
        self.score = nnx.Param(jax.random.normal(rngs.params(), (A,)) * A**-0.5)

    def prepare(self, states: Array, *, valid: Array | None = None) -> LocationMemory:
        """Prepares the encoder's states for `step`.

        Args:
          states: [B, S, D].
          valid: bool [B, S], True = a real position; all if None.
        """
        states, valid = validate_states(states, valid, self.memory_size, self.dtype)
        order = jnp.argsort(~valid, axis=1, stable=True)
        places = jnp.argsort(order, axis=1)
        states = jnp.take_along_axis(states, order[..., None], axis=1)
        valid = jnp.take_along_axis(valid, order, axis=1)
        return LocationMemory(self.key(states), states, valid, places)

    def initial_state(self, memory: LocationMemory) -> LocationState:
        """Returns the state before the first step, in which all weights are 0."""
        zeros = jnp.zeros(memory.valid.shape, accumulator(memory.values))
        return LocationState(zeros, zeros)

    def step(
        self, query: Array, memory: LocationMemory, state: LocationState
    ) -> tuple[Array, Array, LocationState]:
        """Computes one step of the decoder.

        Args:
          query: the decoder's state, [B, Q].
          memory: memory returned by `prepare`.
          state: state returned by `initial_state`, or by the previous step.

        Returns:
          The context, [B, D]; the weights, [B, S]; and the new state.
        """
        query = validate_query(query, memory, self.query_size, self.dtype)
        looked = jnp.stack(state if self.cumulative else state[:1], axis=-1)
        features = location_features(looked, self.filters[...])
        keys = memory.keys + self.location(features.astype(self.dtype))
        scores = additive_scores(self.query(query), keys, self.score[...])
        if self.smooth:
            weights = smoothed(scores, memory.valid)
        else:
            weights = softmax(jnp.where(memory.valid, self.sharpening * scores, -jnp.inf))
        state = LocationState(weights, state.cumulative + weights)
        shown = jnp.take_along_axis(weights, memory.places, axis=1)
        values = jnp.take_along_axis(memory.values, memory.places[..., None], axis=1)
        found = recording.record_result(
            context(weights, memory.values), lambda: shown, mix=lambda w: context(w, values)
        )
        return found, shown, state


def _expect_odd(width: int) -> None:
    if width < 1 or width % 2 == 0:
        raise ValueError(f"width: got {width}, expected an odd number, at least 1")
