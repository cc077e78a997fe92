"""The gated recurrent unit, one and two ways (Cho et al. 2014; Chung et al. 2014).

B batch, T length, D input size, H state size. Padding changes nothing: the state is held there.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.projection import Projection

Array = jax.Array

# As in the Transformer: gates are split over "tensor", what comes in over "fsdp". The recurrent
# kernel is used at every step; it stays whole, so that no step has to wait for other devices.
SHARDING_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"(^|/)input/kernel$", ("fsdp", None)),
    (r"(^|/)embedding$", (None, ("fsdp", "tensor"))),
)


def gru_step(projected: Array, state: Array, kernel: Array, bias: Array) -> Array:
    """One step, in the form of cuDNN and PyTorch (the reset gate after the product):

        r = σ(x_r + h U_r + b_r),   z = σ(x_z + h U_z + b_z)
        n = tanh(x_n + r ⊙ (h U_n + b_n)),   h' = (1 - z) ⊙ n + z ⊙ h

    Args:
      projected: [B, 3H], x W + b for the gates r, z, n.
      state: [B, H], h.
      kernel: [H, 3H], U.
      bias: [3H].

    Returns:
      h', [B, H].
    """
    sums = jnp.promote_types(state.dtype, jnp.float32)
    recurrent = jnp.matmul(state, kernel, preferred_element_type=sums).astype(state.dtype) + bias
    x_r, x_z, x_n = jnp.split(projected, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(recurrent, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return n + z * (state - n)


class GRU(nnx.Module):
    """A GRU over a padded batch, or a step at a time.

    Weights: input/kernel [D, 3H], input/bias [3H], recurrent/kernel [H, 3H], recurrent/bias [3H],
    with the gates in the order r, z, n. Kernels are uniform in ±1/sqrt(H), as PyTorch's.

    Args:
      input_size: D.
      state_size: H.
      dtype: of the computation; weights are float32.
      unroll: steps that one turn of the compiled loop makes.
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        for name, size in (("input_size", input_size), ("state_size", state_size)):
            if size < 1:
                raise ValueError(f"{name}: got {size}, expected at least 1")
        self.state_size, self.dtype, self.unroll = state_size, dtype, unroll
        self.input = Projection((input_size,), (3 * state_size,), dtype=dtype, rngs=rngs)
        self.recurrent = Projection((state_size,), (3 * state_size,), dtype=dtype, rngs=rngs)
        limit = 1.0 / math.sqrt(state_size)
        for projection in (self.input, self.recurrent):
            shape = projection.kernel[...].shape
            kernel = jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
            projection.kernel[...] = kernel

    def initial_state(self, batch_size: int) -> Array:
        """Zeros [B, H]."""
        return jnp.zeros((batch_size, self.state_size), self.dtype)

    def step(self, x: Array, state: Array) -> Array:
        """x [B, D], state [B, H] -> the next state [B, H]; for decoders."""
        return gru_step(self.input(x), state, *self._recurrent_weights())

    def __call__(
        self,
        x: Array,
        *,
        valid: Array | None = None,
        initial_state: Array | None = None,
        reverse: bool = False,
    ) -> tuple[Array, Array]:
        """Runs along the sequence.

        Args:
          x: [B, T, D].
          valid: bool [B, T], True = a real position; all if None.
          initial_state: [B, H]; zeros if None.
          reverse: from the last position to the first.

        Returns:
          The states [B, T, H] (where the position is padding, the state held there) and the state
          after the last step taken [B, H].

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        sizes = {"D": self.input.inputs[0], "H": self.state_size}
        shapes.expect("x", x, "B T D", sizes)
        if valid is not None:
            shapes.expect_boolean("valid", valid, true_means="a real position")
            shapes.expect("valid", valid, "B T", sizes)
        if initial_state is None:
            initial_state = self.initial_state(sizes["B"])
        shapes.expect("initial_state", initial_state, "B H", sizes)
        kernel, bias = self._recurrent_weights()
        # One large product outside of the loop in place of T small ones inside.
        projected = self.input(jnp.swapaxes(x, 0, 1))
        steps = None if valid is None else jnp.swapaxes(valid, 0, 1)[..., None]

        def step(state, inputs):
            projected_t, valid_t = inputs
            new = gru_step(projected_t, state, kernel, bias)
            new = new if valid_t is None else jnp.where(valid_t, new, state)
            return new, new

        last, states = jax.lax.scan(
            step,
            initial_state.astype(self.dtype),
            (projected, steps),
            reverse=reverse,
            unroll=self.unroll,
        )
        return jnp.swapaxes(states, 0, 1), last

    def _recurrent_weights(self) -> tuple[Array, Array]:
        weights = self.recurrent
        return weights.kernel[...].astype(self.dtype), weights.bias[...].astype(self.dtype)


class BidirectionalGRU(nnx.Module):
    """One GRU each way over the sequence (Schuster & Paliwal 1997); arguments as for `GRU`."""

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "unroll": unroll, "rngs": rngs}
        self.forward = GRU(input_size, state_size, **options)
        self.backward = GRU(input_size, state_size, **options)

    def __call__(self, x: Array, *, valid: Array | None = None) -> tuple[Array, Array]:
        """x [B, T, D], valid bool [B, T] -> states [B, T, 2H] and the final state [B, 2H].

        The final state is that after the last real position forwards, and after the first
        backwards.
        """
        forward, forward_last = self.forward(x, valid=valid)
        backward, backward_last = self.backward(x, valid=valid, reverse=True)
        states = jnp.concatenate([forward, backward], axis=-1)
        return states, jnp.concatenate([forward_last, backward_last], axis=-1)
