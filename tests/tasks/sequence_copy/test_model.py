"""The encoder-decoder against step-by-step loops, and what padding may change: nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import registry
from tasks.sequence_copy.data import END, PAD, START
from tasks.sequence_copy.model import EncoderDecoder, EncoderDecoderConfig

SOURCE = jnp.array([[5, 3, 12, 7], [9, 4, PAD, PAD]], jnp.int32)
LENGTHS = jnp.array([4, 2], jnp.int32)
TARGET = jnp.array([[7, 12, 3, 5, END], [4, 9, END, PAD, PAD]], jnp.int32)


forced = nnx.jit(EncoderDecoder.__call__)
generate = nnx.jit(EncoderDecoder.generate, static_argnums=3)


def make(alignment, seed=1, **fields):
    config = EncoderDecoderConfig(embedding_size=5, state_size=6, alignment=alignment, **fields)
    return EncoderDecoder(config, rngs=nnx.Rngs(seed))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(layer, x):
    return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def gru(cell, x, h):
    """Computes one step of a GRU in NumPy (Cho et al. 2014, in PyTorch's form)."""
    W, b = np.asarray(cell.input.kernel[...]), np.asarray(cell.input.bias[...])
    U, c = np.asarray(cell.recurrent.kernel[...]), np.asarray(cell.recurrent.bias[...])
    x_r, x_z, x_n = np.split(x @ W + b, 3)
    h_r, h_z, h_n = np.split(h @ U + c, 3)
    z = sigmoid(x_z + h_z)
    return (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h


def decode_by_loop(model, source, steps, forced=None):
    """Decodes one string without padding in NumPy: tokens, logits and weights of each step."""
    decoder = model.decoder
    E = np.asarray(decoder.embedding.embedding[...])
    h, states = np.zeros(6), []
    for token in source:
        h = gru(model.encoder, E[token], h)
        states.append(h)
    states, context, token = np.array(states), np.zeros(6), START
    tokens, all_logits, all_weights = [], [], []
    for t in range(steps):
        h = gru(decoder.cells[0], np.concatenate([E[token], context]), h)
        if model.config.alignment == "dot":
            scores = np.exp(states @ h)
            weights = scores / scores.sum()
        else:
            weights = np.eye(len(states))[-1]
        context = weights @ states
        features = np.tanh(linear(decoder.combine, np.concatenate([context, h])))
        logits = linear(decoder.classify, features)
        token = int(np.argmax(logits)) if forced is None else int(forced[t])
        tokens.append(token)
        all_logits.append(logits)
        all_weights.append(weights)
        if token == END:
            break
    return np.array(tokens), np.array(all_logits), np.array(all_weights)


@pytest.mark.parametrize("alignment", ["dot", "none"])
def test_greedy_decoding_equals_a_loop(alignment):
    stopped = 0
    model = make(alignment)
    for bias in (-1.0, 0.2, 0.4):
        # How likely the end token is: some strings are to stop before the last step.
        likely = model.decoder.classify.bias
        likely[...] = likely[...].at[END].set(bias)
        tokens, weights = generate(model, SOURCE, LENGTHS, 5)
        assert tokens.shape == (2, 5)
        assert weights.shape == (2, 5, 4)
        for row in range(2):
            length = int(LENGTHS[row])
            expected, _, looked = decode_by_loop(model, SOURCE[row, :length], 5)
            written = len(expected)
            stopped += written < 5
            np.testing.assert_array_equal(tokens[row, :written], expected)
            np.testing.assert_array_equal(tokens[row, written:], PAD)
            np.testing.assert_allclose(weights[row, :written, :length], looked, atol=1e-5)
            np.testing.assert_array_equal(weights[row, written:], 0)
            np.testing.assert_array_equal(weights[row, :, length:], 0)
    assert 0 < stopped < 6


@pytest.mark.parametrize("alignment", ["dot", "none"])
def test_teacher_forcing_equals_a_loop(alignment):
    model = make(alignment)
    logits, weights = forced(model, SOURCE, LENGTHS, TARGET)
    for row in range(2):
        length = int(LENGTHS[row])
        _, expected, looked = decode_by_loop(model, SOURCE[row, :length], 5, forced=TARGET[row])
        np.testing.assert_allclose(logits[row, : length + 1], expected, atol=1e-5)
        np.testing.assert_allclose(weights[row, : length + 1, :length], looked, atol=1e-5)


@pytest.mark.parametrize("alignment", ["dot", "none"])
def test_padding_changes_nothing(alignment):
    model = make(alignment)
    tokens, weights = generate(model, SOURCE, LENGTHS, 5)
    wide = jnp.pad(SOURCE, ((0, 1), (0, 3)))
    wider, wider_weights = generate(model, wide, jnp.append(LENGTHS, 0), 8)
    np.testing.assert_array_equal(wider[:2, :5], tokens)
    np.testing.assert_allclose(wider_weights[:2, :5, :4], weights, atol=1e-6)
    assert np.isfinite(wider_weights).all()


def test_none_gives_one_fixed_context():
    weights = forced(make("none"), SOURCE, LENGTHS, TARGET)[1]
    for row, last in ((0, 3), (1, 1)):
        np.testing.assert_array_equal(weights[row], np.tile(np.eye(4)[last], (5, 1)))
    moving = forced(make("dot"), SOURCE, LENGTHS, TARGET)[1]
    assert np.abs(moving[0, 0] - moving[0, 4]).max() > 1e-3


def test_dot_and_none_have_equally_many_weights():
    def count(alignment):
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(make(alignment), nnx.Param)))

    # Embedding 13·5; GRUs (5 + 6)·18 + 36 and (11 + 6)·18 + 36; 12·6 + 6; 6·13 + 13.
    assert count("dot") == count("none") == 65 + 234 + 342 + 78 + 91


SPECS = (
    *registry.names("alignment"),
    "location_aware(width=5, cumulative=True)",
    "local_p(window=2, score=dot)",
)


@pytest.mark.parametrize("alignment", SPECS)
@pytest.mark.slow
def test_every_alignment_fits_by_name(alignment):
    heads = (2,) if alignment == "multi_head" else ()
    alignment = "multi_head(num_heads=2)" if heads else alignment
    model = make(alignment)
    logits, weights = forced(model, SOURCE, LENGTHS, TARGET)
    assert logits.shape == (2, 5, 13)
    assert weights.shape == (2, 5, *heads, 4)
    # Of the second source two digits are padding.
    np.testing.assert_array_equal(weights[1, ..., 2:], 0)
    if not alignment.startswith("local_p"):
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    tokens, seen = generate(model, SOURCE, LENGTHS, 6)
    assert seen.shape == (2, 6, *heads, 4)
    ends = np.asarray(tokens == END)
    after = np.cumsum(ends, axis=1) - ends > 0
    np.testing.assert_array_equal((seen.sum(axis=-1) > 0).reshape(2, 6, -1).all(-1), ~after)
    wide = jnp.pad(SOURCE, ((0, 0), (0, 3)))
    np.testing.assert_array_equal(generate(model, wide, LENGTHS, 6)[0], tokens)


def test_what_is_carried_matters():
    """A location-aware decoder's second step depends on where the first one looked."""
    model = make("location_aware")
    weights = forced(model, SOURCE, LENGTHS, TARGET)[1]
    filters = model.decoder.alignment.filters
    filters[...] = 10 * filters[...]
    other = forced(model, SOURCE, LENGTHS, TARGET)[1]
    np.testing.assert_allclose(other[:, 0], weights[:, 0], atol=1e-6)
    assert np.abs(other[:, 1] - weights[:, 1]).max() > 1e-3


def test_dropout_needs_a_key_and_changes_the_logits():
    model = make("dot", dropout_rate=0.5)
    still = forced(model, SOURCE, LENGTHS, TARGET)[0]
    np.testing.assert_array_equal(still, forced(make("dot"), SOURCE, LENGTHS, TARGET)[0])
    dropped = [
        forced(model, SOURCE, LENGTHS, TARGET, dropout_key=jax.random.key(i))[0] for i in (0, 0, 1)
    ]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 1e-3
    assert np.abs(dropped[0] - still).max() > 1e-3


def test_shapes_that_do_not_fit_are_named():
    model = make("dot")
    with pytest.raises(ValueError, match=r"target: got shape \[1, 5\], expected \[B, T\] with B=2"):
        model(SOURCE, LENGTHS, TARGET[:1])
    with pytest.raises(ValueError, match=r"lengths: got shape \[1\], expected \[B\] with B=2"):
        model.generate(SOURCE, LENGTHS[:1], 5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("embedding_size", 0, "embedding_size: got 0, expected at least 1"),
        ("state_size", -1, "state_size: got -1, expected at least 1"),
        ("dropout_rate", 1.0, r"dropout_rate: got 1.0, expected a rate in \[0, 1\)"),
        ("alignment", "dots", r"alignment: got 'dots', expected one of .*; did you mean 'dot'"),
        ("alignment", "local_p(windw=3)", "alignment: got option 'windw' in .*mean 'window'"),
        ("alignment", "local_p(window=0)", r"alignment: 'local_p\(window=0\)': window: got 0"),
        ("alignment", "multi_head(num_heads=5)", r"alignment: .*: num_heads: got 5, expected a p"),
        ("alignment", "location_aware(width=", "alignment: got .*, expected name or name"),
    ],
)
def test_impossible_configs_begin_with_the_field(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        EncoderDecoderConfig(**{field: value})
