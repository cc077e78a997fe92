"""The LSTM by its equations, effects of padding, and errors; the GRU's are compared with the
Transformer's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tasks.common.backbones.recurrent import CELLS, GRU, LSTM, Bidirectional, LSTMState, find_cell

LENGTHS = jnp.array([5, 3])
VALID = jnp.arange(5) < LENGTHS[:, None]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def make(**options):
    lstm = LSTM(4, 3, rngs=nnx.Rngs(0), **options)
    lstm.input.bias[...] = normal(2, 12)
    lstm.recurrent.bias[...] = normal(3, 12)
    return lstm


def by_hand(lstm, x, hidden, cell):
    """Computes all h and the last c of one example in float64 NumPy, by the docstring's
    equations."""
    W, b_w, U, b_u = (
        np.asarray(array[...], np.float64)
        for projection in (lstm.input, lstm.recurrent)
        for array in (projection.kernel, projection.bias)
    )
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    states = []
    for row in np.asarray(x, np.float64):
        i, f, g, o = np.split(row @ W + b_w + hidden @ U + b_u, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        states.append(hidden)
    return np.array(states), cell


@pytest.mark.parametrize("unroll", [1, 4])
def test_lstm_equals_its_equations_and_holds_its_state_at_padding(unroll):
    lstm = make(unroll=unroll)
    x, initial = normal(1, 2, 5, 4), LSTMState(normal(4, 2, 3), normal(5, 2, 3))
    states, last = jax.jit(lambda x: lstm(x, valid=VALID, initial_state=initial))(x)
    for example, length in enumerate([5, 3]):
        start = (np.asarray(leaf[example], np.float64) for leaf in initial)
        expected, cell = by_hand(lstm, x[example, :length], *start)
        np.testing.assert_allclose(states[example, :length], expected, atol=1e-6)
        np.testing.assert_allclose(last.hidden[example], expected[-1], atol=1e-6)
        np.testing.assert_allclose(last.cell[example], cell, atol=1e-6)
    np.testing.assert_array_equal(states[1, 3:], jnp.stack([last.hidden[1]] * 2))


def test_lstm_step_is_the_same_recurrence_and_forgets_little_at_first():
    lstm = LSTM(4, 3, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(lstm.input.bias[...], [0] * 3 + [1] * 3 + [0] * 6)
    x = normal(1, 2, 5, 4)
    states, _ = lstm(x)
    state = lstm.initial_state(2)
    for t in range(5):
        state = lstm.step(x[:, t], state)
        np.testing.assert_allclose(lstm.hidden(state), states[:, t], atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_both_ways_whatever_the_padding(cell):
    network = Bidirectional(4, 3, cell=cell, rngs=nnx.Rngs(0))
    x, run = normal(1, 2, 5, 4), jax.jit(network)
    states, final = run(x, valid=VALID)
    for example, length in enumerate([5, 3]):
        alone, last = run(x[example : example + 1, :length])
        np.testing.assert_allclose(states[example, :length], alone[0], atol=1e-6)
        for left, right in zip(*map(jax.tree.leaves, (final, last)), strict=True):
            np.testing.assert_allclose(left[example], right[0], atol=1e-6)
    backward, _ = network.backward(x[:1, ::-1])
    np.testing.assert_allclose(states[0, :, 3:], backward[0, ::-1], atol=1e-6)

    def loss(x):
        return jnp.sum(network(x, valid=VALID)[0] ** 2)

    gradient = jax.jit(jax.grad(loss))(x)
    np.testing.assert_array_equal(gradient[~VALID], 0)
    assert (np.abs(gradient[VALID]).sum(-1) > 0).all()


def test_what_does_not_fit_is_refused():
    lstm, x = make(), jnp.zeros((2, 5, 4))
    with pytest.raises(ValueError, match=r"initial_state: got shape \[2, 4\], expected \[B, H\]"):
        lstm(x, initial_state=LSTMState(jnp.zeros((2, 3)), jnp.zeros((2, 4))))
    with pytest.raises(ValueError, match="initial_state: got ArrayImpl, expected the state of LST"):
        lstm(x, initial_state=jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="initial_state: got LSTMState, expected the state of GRU"):
        GRU(4, 3, rngs=nnx.Rngs(0))(x, initial_state=lstm.initial_state(2))
    with pytest.raises(ValueError, match="cell: got 'rnn', expected one of 'gru', 'lstm'"):
        find_cell("rnn")
    with pytest.raises(ValueError, match="input_size: got 0, expected at least 1"):
        LSTM(0, 3, rngs=nnx.Rngs(0))
