"""Unidirectional and bidirectional recurrent networks: GRU (Cho et al. 2014; Chung et al. 2014)
and LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

In shapes, B is the batch size, T the length, D the input size, and H the state size. Padding
positions do not change the state.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attention import shapes
from attention.projection import Projection
from attention.sharding import over_examples

Array = jax.Array

# The input kernel is split over "fsdp". The recurrent kernel is used at every step; it is
# replicated, so that no step waits for other devices.
SHARDING_RULES: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = (
    (r"(^|/)input/kernel$", ("fsdp", None)),
    (r"(^|/)embedding$", (None, ("fsdp", "tensor"))),
)


def gru_step(projected: Array, state: Array, kernel: Array, bias: Array) -> Array:
    """Computes a GRU step, with the reset gate after the product, as in cuDNN and PyTorch:

        r = σ(x_r + h U_r + b_r),   z = σ(x_z + h U_z + b_z)
        n = tanh(x_n + r ⊙ (h U_n + b_n)),   h' = (1 - z) ⊙ n + z ⊙ h

    Args:
      projected: [B, 3H], x W + b for the gates r, z, n.
      state: [B, H], h.
      kernel: [H, 3H], U.
      bias: [3H], b.

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


class LSTMState(NamedTuple):
    """Recurrent state of an LSTM.

    Attributes:
      hidden: output of the LSTM, [B, H].
      cell: cell state, [B, H].
    """

    hidden: Array
    cell: Array


def lstm_step(projected: Array, state: LSTMState, kernel: Array, bias: Array) -> LSTMState:
    """Computes an LSTM step (Gers et al. 2000), with the gates in the order of PyTorch:

        i = σ(x_i + h U_i + b_i),   f = σ(x_f + h U_f + b_f)
        g = tanh(x_g + h U_g + b_g),   o = σ(x_o + h U_o + b_o)
        c' = f ⊙ c + i ⊙ g,   h' = o ⊙ tanh(c')

    Args:
      projected: [B, 4H], x W + b for the gates i, f, g, o.
      state: h and c, [B, H] each.
      kernel: [H, 4H], U.
      bias: [4H], b.

    Returns:
      h' and c'.
    """
    hidden = state.hidden
    sums = jnp.promote_types(hidden.dtype, jnp.float32)
    recurrent = jnp.matmul(hidden, kernel, preferred_element_type=sums).astype(hidden.dtype)
    i, f, g, o = jnp.split(projected + recurrent + bias, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


class Recurrent(nnx.Module):
    """Base class of recurrent networks, which run over padded batches or step by step.

    Parameters: input/kernel [D, GH], input/bias [GH], recurrent/kernel [H, GH], recurrent/bias
    [GH], where G is the number of gates. Kernels are uniform in ±1/sqrt(H), as in PyTorch.

    Args:
      input_size: D.
      state_size: H.
      dtype: dtype of the computation; parameters are float32.
      unroll: number of steps per iteration of the compiled loop.

    Raises:
      ValueError: a size is below 1.
    """

    gates: ClassVar[int]

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
        outputs = (self.gates * state_size,)
        self.input = Projection((input_size,), outputs, dtype=dtype, rngs=rngs)
        self.recurrent = Projection((state_size,), outputs, dtype=dtype, rngs=rngs)
        limit = 1.0 / math.sqrt(state_size)
        for projection in (self.input, self.recurrent):
            shape = projection.kernel[...].shape
            kernel = jax.random.uniform(rngs.params(), shape, minval=-limit, maxval=limit)
            projection.kernel[...] = kernel

    def initial_state(self, batch_size: int) -> Any:
        """Returns the initial state, whose leaves are zeros of shape [B, H]."""
        raise NotImplementedError

    def hidden(self, state: Any) -> Array:
        """Returns the part of a state that is the output of the network, [B, H]."""
        raise NotImplementedError

    def advance(self, projected: Array, state: Any, kernel: Array, bias: Array) -> Any:
        """Computes the next state from a projected input.

        Args:
          projected: x W + b, [B, GH].
          state: state with leaves [B, H].
          kernel: U, [H, GH].
          bias: bias of the recurrent projection, [GH].
        """
        raise NotImplementedError

    def step(self, x: Array, state: Any) -> Any:
        """Computes the next state from an input.

        Args:
          x: [B, D].
          state: state with leaves [B, H].
        """
        return self.advance(self.input(x), state, *self._recurrent_weights())

    def __call__(
        self,
        x: Array,
        *,
        valid: Array | None = None,
        initial_state: Any = None,
        reverse: bool = False,
    ) -> tuple[Array, Any]:
        """Runs the network over a batch of sequences.

        Args:
          x: [B, T, D].
          valid: bool [B, T], True = a real position; all if None.
          initial_state: state with leaves [B, H]; zeros if None.
          reverse: whether to run from the last position to the first.

        Returns:
          The outputs, [B, T, H], and the final state with leaves [B, H]. At padding, the output is
          that of the previous step.

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
        expect_state("initial_state", initial_state, self, sizes)
        graph, weights = nnx.split(self)

        def run(x, valid, initial_state, weights):
            return nnx.merge(graph, weights)._run(x, valid, initial_state, reverse)

        return over_examples(run, x, valid, initial_state, shared=(weights,))

    def _run(self, x: Array, valid: Array | None, state: Any, reverse: bool) -> tuple[Array, Any]:
        """Computes the result of `__call__` for the examples of one device."""
        kernel, bias = self._recurrent_weights()
        # One large product outside the loop replaces T small products inside.
        projected = self.input(jnp.swapaxes(x, 0, 1))
        steps = None if valid is None else jnp.swapaxes(valid, 0, 1)[..., None]

        def step(state, inputs):
            projected_t, valid_t = inputs
            new = self.advance(projected_t, state, kernel, bias)
            if valid_t is not None:
                new = jax.tree.map(lambda new, old: jnp.where(valid_t, new, old), new, state)
            return new, self.hidden(new)

        last, states = jax.lax.scan(
            step,
            jax.tree.map(lambda leaf: leaf.astype(self.dtype), state),
            (projected, steps),
            reverse=reverse,
            unroll=self.unroll,
        )
        return jnp.swapaxes(states, 0, 1), last

    def _recurrent_weights(self) -> tuple[Array, Array]:
        weights = self.recurrent
        return weights.kernel[...].astype(self.dtype), weights.bias[...].astype(self.dtype)


class GRU(Recurrent):
    """Gated recurrent unit, with the gates in the order r, z, n.

    The state is an array [B, H]. Parameters and arguments: see `Recurrent`.
    """

    gates = 3

    def initial_state(self, batch_size: int) -> Array:
        return jnp.zeros((batch_size, self.state_size), self.dtype)

    def hidden(self, state: Array) -> Array:
        return state

    def advance(self, projected: Array, state: Array, kernel: Array, bias: Array) -> Array:
        return gru_step(projected, state, kernel, bias)


class LSTM(Recurrent):
    """Long short-term memory, with the gates in the order i, f, g, o.

    The state is an `LSTMState`. Parameters and arguments: see `Recurrent`. The input/bias of the
    forget gate is initialized to 1 (Gers et al. 2000; Jozefowicz et al. 2015).
    """

    gates = 4

    def __init__(self, input_size: int, state_size: int, *, rngs: nnx.Rngs, **options: Any):
        super().__init__(input_size, state_size, rngs=rngs, **options)
        forget = slice(state_size, 2 * state_size)
        self.input.bias[...] = self.input.bias[...].at[forget].set(1.0)

    def initial_state(self, batch_size: int) -> LSTMState:
        zeros = jnp.zeros((batch_size, self.state_size), self.dtype)
        return LSTMState(zeros, zeros)

    def hidden(self, state: LSTMState) -> Array:
        return state.hidden

    def advance(self, projected: Array, state: LSTMState, kernel: Array, bias: Array) -> LSTMState:
        return lstm_step(projected, state, kernel, bias)


CELLS: dict[str, type[Recurrent]] = {"gru": GRU, "lstm": LSTM}


def find_cell(name: str) -> type[Recurrent]:
    """Returns the class of a recurrent network by its name in `CELLS`.

    Raises:
      ValueError: the name is unknown.
    """
    if name not in CELLS:
        raise ValueError(f"cell: got {name!r}, expected one of {', '.join(map(repr, CELLS))}")
    return CELLS[name]


def expect_state(argument: str, state: Any, network: Recurrent, sizes: dict[str, int]) -> None:
    """Checks that a state has the same structure as the network's state, with leaves [B, H].

    Args:
      argument: name of the argument, for messages.
      state: the state.
      network: the network.
      sizes: B and H, as far as they are known.

    Raises:
      ValueError: the structure or a shape differs.
    """
    kind = jax.eval_shape(lambda: network.initial_state(1))
    if jax.tree.structure(state) != jax.tree.structure(kind):
        got, expected = type(state).__name__, f"the state of {type(network).__name__}"
        raise ValueError(f"{argument}: got {got}, expected {expected}")
    for leaf in jax.tree.leaves(state):
        shapes.expect(argument, leaf, "B H", sizes)


class Bidirectional(nnx.Module):
    """Bidirectional recurrent network (Schuster & Paliwal 1997).

    Args:
      input_size: D.
      state_size: H of each direction.
      cell: one of `CELLS`.
      dtype, unroll: as for `Recurrent`.
    """

    def __init__(
        self,
        input_size: int,
        state_size: int,
        *,
        cell: str = "gru",
        dtype: jnp.dtype = jnp.float32,
        unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        network = find_cell(cell)
        options = {"dtype": dtype, "unroll": unroll, "rngs": rngs}
        self.forward = network(input_size, state_size, **options)
        self.backward = network(input_size, state_size, **options)

    def __call__(self, x: Array, *, valid: Array | None = None) -> tuple[Array, Any]:
        """Runs both networks, and concatenates their results along the last axis.

        Args:
          x, valid: as for `Recurrent.__call__`.

        Returns:
          The outputs, [B, T, 2H], and the final state with leaves [B, 2H]. It contains the forward
          state after the last real position and the backward state after the first position.
        """
        forward, forward_last = self.forward(x, valid=valid)
        backward, backward_last = self.backward(x, valid=valid, reverse=True)

        def joined(left: Array, right: Array) -> Array:
            return jnp.concatenate([left, right], axis=-1)

        return joined(forward, backward), jax.tree.map(joined, forward_last, backward_last)
