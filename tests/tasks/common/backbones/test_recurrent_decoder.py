"""The recurrent decoder: by hand in NumPy, step by step as under teacher forcing, in beams."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import inspect
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.recurrent import SHARDING_RULES, Bidirectional
from tasks.common.backbones.recurrent_decoder import AttentionDecoder
from tasks.common.decoding.generate import DecodingConfig, generate

V, E, D, M, B, S, T = 7, 5, 4, 6, 3, 5, 6
PAD, START, END = 0, 1, 2
VALID = jnp.arange(S) < jnp.array([5, 2, 4])[:, None]
TARGET = jnp.array([[START, 3, 6, 5, 4, 3], [START, 4, 4, 2, 0, 0], [START, 5, 6, 6, 3, 2]])


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# By name: alignment, cell, layers, heads that look back.
DECODERS = {
    "plain": ("additive", "gru", 1, 0),
    "stateful": ("location_aware(width=3, cumulative=True)", "lstm", 1, 0),
    "deep": ("multi_head(num_heads=2)", "lstm", 2, 2),
    "fixed": ("none", "gru", 2, 0),
}


def build(name="plain", *, memory_size=M, **options):
    alignment, cell, layers, heads = DECODERS[name]
    decoder = AttentionDecoder(
        V,
        E,
        D,
        memory_size,
        alignment=alignment,
        cell=cell,
        num_layers=layers,
        temporal_attention=heads,
        rngs=nnx.Rngs(3),
        **options,
    )
    # Sure enough of itself that what it read makes a difference.
    decoder.classify.kernel[...] = 3 * decoder.classify.kernel[...]
    return decoder


make = functools.cache(build)


@functools.cache
def forced(name):
    """Computes teacher forcing, compiled."""
    return jax.jit(make(name))


@functools.cache
def encoded(name="plain", padding=0):
    """Returns memory, valid and last state of a bidirectional encoder."""
    encoder = Bidirectional(3, M // 2, cell=DECODERS[name][1], rngs=nnx.Rngs(0))
    x = jnp.pad(3 * normal(1, B, S, 3), ((0, 0), (0, padding), (0, 0)), constant_values=9)
    valid = jnp.pad(VALID, ((0, 0), (0, padding)))
    memory, last = jax.jit(lambda x, valid: encoder(x, valid=valid))(x, valid)
    return memory, valid, last


def start(decoder, encoded, steps=T):
    return decoder.prepare(*encoded, max_length=steps if decoder.temporal else None)


@functools.cache
def decoding(name, K):
    """Returns a compiled beam search that gives all K."""
    decoder, config = make(name), DecodingConfig("beam", K, n_best=K)
    options = {"batch_size": B, "max_length": T, "start": START, "end": END, "pad": PAD}
    return jax.jit(lambda e: generate(decoder.step, start(decoder, e), config=config, **options))


@pytest.mark.parametrize("name", DECODERS)
def test_step_by_step_as_under_teacher_forcing(name):
    decoder, given = make(name), encoded(name)
    logits, weights = forced(name)(*given, TARGET)
    assert logits.shape == (B, T, V)
    assert weights.shape == ((B, T, 2, S) if name == "deep" else (B, T, S))

    def turn(state, tokens):
        logits, state, looked = decoder.step(tokens, state)
        return state, (logits, looked)

    run = jax.jit(lambda given: jax.lax.scan(turn, start(decoder, given), TARGET.T)[1])
    steps, looked = run(given)
    np.testing.assert_allclose(np.swapaxes(steps, 0, 1), logits, atol=1e-5)
    np.testing.assert_allclose(np.swapaxes(looked["alignment"], 0, 1), weights, atol=1e-5)
    assert ("temporal" in looked) == (DECODERS[name][3] > 0)
    np.testing.assert_array_equal(weights[1, ..., 2:], 0)


@pytest.mark.parametrize("name", DECODERS)
def test_what_a_beam_gives_is_what_teacher_forcing_says_of_it(name):
    """Caches, alignments' states and memories move with their prefixes."""
    given, K = encoded(name), 3
    decoded = jax.device_get(decoding(name, K)(given))
    tokens = decoded.tokens.reshape(B * K, T)
    inputs = np.pad(decoded.tokens, ((0, 0), (0, 0), (1, 0)), constant_values=START)[..., :-1]
    found = [forced(name)(*given, jnp.asarray(inputs[:, k])) for k in range(K)]
    logits, weights = (np.stack(parts, axis=1) for parts in zip(*found, strict=True))
    logits, weights = (leaf.reshape(B * K, *leaf.shape[2:]) for leaf in (logits, weights))
    gained = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), tokens[..., None], axis=-1)
    ends = tokens == END
    written = np.cumsum(ends, axis=1) - ends == 0
    scores = np.sum(gained[..., 0] * written, axis=1) / written.sum(axis=1)
    np.testing.assert_allclose(decoded.scores.reshape(-1), scores, atol=1e-5)
    looked = decoded.extras["alignment"].reshape(weights.shape)
    expected = weights * written.reshape(*written.shape, *[1] * (weights.ndim - 2))
    np.testing.assert_allclose(looked, expected, atol=1e-5)
    assert (np.diff(decoded.scores, axis=1) <= 0).all()
    assert len(np.unique(tokens, axis=0)) > 3


@pytest.mark.parametrize("name", ["stateful", "deep"])
def test_padding_and_the_order_of_the_batch_change_nothing(name):
    decode, order = decoding(name, 3), np.array([2, 0, 1])
    decoded = decode(encoded(name))
    wide = decode(encoded(name, padding=3))
    np.testing.assert_array_equal(wide.tokens, decoded.tokens)
    np.testing.assert_allclose(wide.scores, decoded.scores, atol=1e-5)
    moved = decode(jax.tree.map(lambda leaf: leaf[order], encoded(name)))
    np.testing.assert_array_equal(moved.tokens, decoded.tokens[order])
    np.testing.assert_allclose(moved.scores, decoded.scores[order], atol=1e-5)


def linear(layer, x):
    kernel = np.asarray(layer.kernel[...], np.float64).reshape(x.shape[-1], -1)
    return x @ kernel + (0 if layer.bias is None else np.asarray(layer.bias[...]).reshape(-1))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def lstm(cell, x, state):
    """Computes PyTorch's LSTM equations in NumPy."""
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    i, f, g, o = np.split(linear(cell.input, x) + linear(cell.recurrent, state[0]), 4)
    c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def test_equals_its_equations():
    """Two LSTMs, additive alignment over states of another size, one head that looks back."""
    decoder = AttentionDecoder(
        V, E, D, M, cell="lstm", num_layers=2, temporal_attention=1, rngs=nnx.Rngs(5)
    )
    memory, _, last = encoded("deep")
    logits, weights = jax.jit(decoder)(memory, VALID, last, TARGET)
    align, temporal = decoder.alignment, decoder.temporal
    for b, length in ((0, 5), (1, 2)):
        h = np.asarray(memory[b, :length], np.float64)
        parts = [np.asarray(last.hidden[b]), np.asarray(last.cell[b])]
        made = [np.tanh(linear(p, part)) for p, part in zip(decoder.start, parts * 2, strict=True)]
        states, context, past = [made[:2], made[2:]], np.zeros(M), []
        for t in range(T):
            x = np.concatenate([decoder.embedding.embedding[...][TARGET[b, t]], context])
            for layer, cell in enumerate(decoder.cells):
                states[layer] = lstm(cell, x, states[layer])
                x = states[layer][0]
            hidden = np.tanh(linear(align.query, x) + linear(align.key, h))
            a = softmax(hidden @ np.asarray(align.score[...]))
            context = a @ h
            seen = np.zeros(D)
            if past:
                keys = np.array([linear(temporal.key, s) for s in past])
                values = np.array([linear(temporal.value, s) for s in past])
                seen = softmax(keys @ linear(temporal.query, x) / np.sqrt(D)) @ values
            seen = linear(temporal.out, seen)
            past.append(x)
            features = np.tanh(linear(decoder.combine, np.concatenate([context, x, seen])))
            np.testing.assert_allclose(logits[b, t], linear(decoder.classify, features), atol=1e-5)
            np.testing.assert_allclose(weights[b, t, :length], a, atol=1e-5)


def test_states_of_the_same_size_start_it_as_they_are():
    decoder = make(memory_size=D)
    assert decoder.start is None
    memory, last = normal(1, B, S, D), normal(2, B, D)
    np.testing.assert_array_equal(decoder.prepare(memory, VALID, last).cells[0], last)
    np.testing.assert_array_equal(decoder.prepare(memory, VALID).cells[0], 0)


def test_dropout_needs_a_key():
    def compiled(decoder):
        def run(key):
            return decoder(*encoded("deep"), TARGET, dropout_key=key)[0]

        return jax.jit(run)

    dropped, still = compiled(make("deep", dropout_rate=0.5)), compiled(make("deep"))
    keys = [jax.random.key(n) for n in range(2)]
    np.testing.assert_array_equal(dropped(None), still(None))
    np.testing.assert_array_equal(dropped(keys[0]), dropped(keys[0]))
    assert np.abs(dropped(keys[0]) - dropped(keys[1])).max() > 1e-3
    np.testing.assert_allclose(still(keys[0]), still(None), atol=1e-6)


def test_a_shared_table_is_there_once():
    table = TokenEmbedding(V, E, rngs=nnx.Rngs(0))

    class Both(nnx.Module):
        def __init__(self):
            self.source = table
            self.decoder = build(embedding=table)

    leaves = jax.tree.leaves(nnx.state(Both(), nnx.Param))
    alone = jax.tree.leaves(nnx.state(make(), nnx.Param))
    assert sum(leaf.size for leaf in leaves) == sum(leaf.size for leaf in alone)


def test_sharding_rules_find_the_networks_and_the_table():
    flat = nnx.to_flat_state(nnx.state(make("deep"), nnx.Param))
    matched = {}
    for path, leaf in flat:
        path = "/".join(map(str, path))
        for pattern, axes in SHARDING_RULES:
            if re.search(pattern, path):
                matched[path] = axes
                assert len(axes) == leaf[...].ndim
    assert matched.keys() == {
        "embedding/embedding",
        "cells/0/input/kernel",
        "cells/1/input/kernel",
    }


def test_capture_names_the_alignment_and_the_look_back():
    decoder, given = make("deep"), encoded("deep")
    weights = forced("deep")(*given, TARGET)[1]
    seen = inspect.capture(decoder, *given, TARGET)
    assert list(seen) == ["alignment", "temporal"]
    np.testing.assert_allclose(seen["alignment"], np.swapaxes(weights, 0, 1), atol=1e-6)
    assert seen["temporal"].shape == (B, 2, T, T)
    np.testing.assert_array_equal(np.triu(seen["temporal"][0, 0]), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers: got 0, expected at least 1"),
        ({"cell": "rnn"}, "cell: got 'rnn', expected one of 'gru', 'lstm'"),
        ({"alignment": "dots"}, "alignment: got 'dots', expected one of"),
        (
            {"temporal_attention": 3},
            "num_heads: got 3, expected a positive divisor of model_size=4",
        ),
        ({"dropout_rate": 1.0}, r"dropout_rate: got 1.0, expected a rate in \[0, 1\)"),
        (
            {"embedding": TokenEmbedding(V, 3, rngs=nnx.Rngs(0))},
            "embedding: got one of size 3, expected embedding_size=5",
        ),
    ],
)
def test_decoders_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        AttentionDecoder(V, E, D, M, **options, rngs=nnx.Rngs(0))


def test_calls_that_do_not_fit():
    decoder, (memory, valid, last) = make(), encoded()
    with pytest.raises(ValueError, match=r"initial: got shape \[3, 4\], expected \[B, H\] .*H=6"):
        decoder.prepare(memory, valid, last[:, :4])
    with pytest.raises(ValueError, match="initial: got LSTMState, expected the state of GRU"):
        decoder.prepare(memory, valid, encoded("deep")[2])
    with pytest.raises(ValueError, match="max_length: got 5, expected None without temporal"):
        decoder.prepare(memory, valid, last, max_length=5)
    with pytest.raises(ValueError, match="max_length: got None, expected a number of steps"):
        make("deep").prepare(memory, valid, last)
    with pytest.raises(ValueError, match=r"target_inputs: got shape \[2, 6\], expected \[B, T\]"):
        decoder(memory, valid, last, TARGET[:2])
