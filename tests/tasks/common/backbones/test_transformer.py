"""The backbones that tasks share: what configs refuse, what padding may change, what rules
match.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import masks
from attention.normalization import LayerNorm
from tasks.common.backbones import recurrent, transformer
from tasks.common.backbones.embedding import TokenEmbedding
from tasks.common.backbones.recurrent import GRU, Bidirectional
from tasks.common.backbones.transformer import Decoder, Encoder, EncoderConfig
from tasks.common.backbones.transformer_layers import FeedForward

SMALL = EncoderConfig(model_size=8, num_layers=2, num_heads=2, feedforward_size=12, max_length=9)
LENGTHS = jnp.array([5, 3])
VALID = jnp.arange(5) < LENGTHS[:, None]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def paths(module):
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {"/".join(map(str, path)): leaf[...].shape for path, leaf in flat}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": -1}, r"num_layers: got -1, expected at least 1"),
        ({"num_heads": 3}, r"num_heads: got 3, expected a divisor of model_size=8"),
        ({"feedforward_size": 0}, r"feedforward_size: got 0"),
        ({"dropout_rate": 1.0}, r"dropout_rate: got 1.0, expected a rate in \[0, 1\)"),
        ({"norm": "middle"}, r"norm: got 'middle', expected one of 'pre', 'post'"),
        ({"activation": "swish"}, r"activation: got 'swish'"),
        ({"positions": "alibbi"}, r"positions: got 'alibbi', .*did you mean 'alibi'"),
        ({"activation": "geglu"}, r"activation: got 'geglu', .*'silu', 'swiglu'"),
        ({"normalization": "batch"}, r"normalization: got 'batch', expected one of 'layer', 'rms'"),
        ({"norm_epsilon": 0.0}, r"norm_epsilon: got 0.0, expected a number above 0"),
        ({"positions": "sinusoidal(base=0)"}, r"positions: 'sinusoidal\(base=0\)': base: got 0"),
        ({"positions": "learned(base=2)"}, r"positions: got option 'base' in 'learned"),
        ({"positions": "rope(base=0)"}, r"positions: 'rope\(base=0\)': base: got 0"),
        ({"positions": "rope(base=big)"}, r"positions: got base='big' in .*, expected float"),
        (
            {"mixer": "linformer", "positions": "alibi"},
            r"'alibi', which mixer 'linformer' does not",
        ),
        ({"mixer": "dot_product(gate=yes)"}, r"mixer: 'dot_product\(gate=yes\)': gate: got 'yes'"),
        ({"mixer": "dot_product(qk_norm=1)"}, r"mixer: got qk_norm=1 in .*, expected bool"),
        ({"mixer": "dot_product(qknorm=True)"}, r"option 'qknorm' .*did you mean 'qk_norm'"),
        ({"mixer": "dot_product(memory_size=3)"}, r"option 'memory_size' .*expected one of"),
        ({"mixer": "nothing"}, r"mixer: got 'nothing', expected one of .*'dot_product'"),
        ({"num_heads": 8, "positions": "rope"}, r"positions: 'rope': head_size: got 1, .*even"),
        ({"model_size": 7, "num_heads": 1}, r"model_size: got 7, expected an even size"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_rematerialization_changes_no_number(kind):
    key, x = jax.random.key(1), normal(0, 2, 5, 8)

    def gradients(rematerialize):
        config = dataclasses.replace(SMALL, rematerialize=rematerialize)
        more = (8,) if kind is Decoder else ()
        graphdef, state = nnx.split(kind(config, *more, rngs=nnx.Rngs(0)))

        def loss(state, x):
            model = nnx.merge(graphdef, state)
            memory = (x[:, :3],) if kind is Decoder else ()
            out, weights = model(x, *memory, valid=VALID, dropout_key=key, return_weights=True)
            return jnp.sum(jnp.where(VALID[..., None], out, 0) ** 3), weights

        run = jax.value_and_grad(loss, (0, 1), has_aux=True)
        return jax.jit(run)(state, x), str(jax.make_jaxpr(run)(state, x)).count("remat")

    (kept, none), (recomputed, some) = gradients(False), gradients(True)
    assert not none
    assert some >= SMALL.num_layers
    for a, b in zip(*map(jax.tree.leaves, (kept, recomputed)), strict=True):
        # Sums are rounded at the scale of their terms.
        scale = max(1.0, float(jnp.abs(a).max()))
        np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize(
    ("positions", "norm", "num_layers"),
    [("sinusoidal", "pre", 2), ("learned", "post", 1), ("rope", "post", 1), ("none", "pre", 1)],
)
def test_encoder_padding_changes_nothing(positions, norm, num_layers):
    changes = {"positions": positions, "norm": norm, "num_layers": num_layers}
    encoder = Encoder(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(0))
    x = normal(1, 2, 5, 8)
    run = jax.jit(lambda x, lengths: encoder(x, lengths=lengths))
    states = run(x, LENGTHS)
    changed = run(jnp.where(VALID[..., None], x, 99.0), LENGTHS)
    np.testing.assert_array_equal(states[VALID], changed[VALID])
    shorter = jax.jit(encoder)(x[1:, :3])
    np.testing.assert_allclose(states[1, :3], shorter[0], atol=2e-6)
    by_valid = jax.jit(lambda x, valid: encoder(x, valid=valid))(x, VALID)
    np.testing.assert_array_equal(states, by_valid)


def test_encoder_without_positions_is_permutation_equivariant_and_with_them_is_not():
    x, order = normal(1, 2, 5, 8), jnp.array([3, 0, 4, 1, 2])
    for positions in ("none", "sinusoidal"):
        config = dataclasses.replace(SMALL, positions=positions, num_layers=1)
        run = jax.jit(Encoder(config, rngs=nnx.Rngs(0)))
        difference = np.abs(run(x)[:, order] - run(x[:, order])).max()
        assert (difference < 1e-5) == (positions == "none")


def test_encoder_takes_a_mask():
    encoder = Encoder(SMALL, rngs=nnx.Rngs(0))
    # Not their sum: after a layer norm that is always 0.
    cotangent = normal(2, 8)
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(encoder(x, mask=masks.causal())[:, 2] * cotangent))
    )
    influence = np.abs(gradient(normal(1, 2, 5, 8))).sum(axis=(0, 2))
    assert (influence[:3] > 0).all()
    np.testing.assert_array_equal(influence[3:], 0)


def test_encoder_dropout_follows_the_key():
    config = dataclasses.replace(SMALL, dropout_rate=0.5, attention_dropout_rate=0.5, num_layers=1)
    encoder = Encoder(config, rngs=nnx.Rngs(0))
    run = jax.jit(lambda x, key: encoder(x, dropout_key=key))
    x = normal(1, 2, 5, 8)
    first, again, other = (run(x, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first - run(x, None)).max() > 0.1


def test_encoder_weights():
    encoder = Encoder(SMALL, rngs=nnx.Rngs(0))
    x = normal(1, 2, 5, 8)
    states, weights = encoder(x, lengths=LENGTHS, return_weights=True)
    assert weights.shape == (2, 2, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights[:, 1, :, :, 3:], 0)
    np.testing.assert_array_equal(states, encoder(x, lengths=LENGTHS))


def test_encoder_bfloat16_is_close_and_keeps_its_dtype():
    x = normal(1, 2, 5, 8)
    outputs = [
        jax.jit(Encoder(dataclasses.replace(SMALL, dtype=dtype), rngs=nnx.Rngs(0)))(x)
        for dtype in ("float32", "bfloat16")
    ]
    assert outputs[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(outputs[0], outputs[1].astype(jnp.float32), atol=0.06)


def test_encoder_refuses_what_does_not_fit():
    encoder = Encoder(SMALL, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"length 10, expected at most max_length=9"):
        encoder(jnp.zeros((1, 10, 8)))
    with pytest.raises(ValueError, match=r"x: got shape \[1, 5, 6\], expected .* with D=8"):
        encoder(jnp.zeros((1, 5, 6)))
    with pytest.raises(ValueError, match="one of them"):
        encoder(jnp.zeros((2, 5, 8)), lengths=LENGTHS, valid=VALID)


def test_layer_norm_by_hand():
    # Mean 2, variance 2/3: (1, 2, 3) -> ±sqrt(3/2) and 0.
    norm = LayerNorm(3, epsilon=0.0)
    norm.scale[...] = jnp.array([2.0, 2.0, 2.0])
    norm.bias[...] = jnp.array([1.0, 1.0, 1.0])
    expected = [1 - 2 * 1.5**0.5, 1.0, 1 + 2 * 1.5**0.5]
    np.testing.assert_allclose(norm(jnp.array([1.0, 2.0, 3.0])), expected, rtol=1e-6)


def test_encoder_parameters_of_the_named_size():
    # 4 D² + 4 D a layer of attention, 2 D F + F + D of feed-forward, 4 D of norms; 2 D at the end.
    D, F, L = 8, 12, 2
    expected = L * (4 * D * D + 4 * D + 2 * D * F + F + D + 4 * D) + 2 * D
    sizes = [np.prod(shape) for shape in paths(Encoder(SMALL, rngs=nnx.Rngs(0))).values()]
    assert sum(sizes) == expected == 1080


def test_encoder_options_by_hand():
    # One token with no past: attention gives its value; here 0, so that x + f(norm(x)) is left.
    config = dataclasses.replace(
        SMALL,
        num_layers=1,
        activation="swiglu",
        normalization="rms",
        norm_epsilon=0.5,
        use_bias=False,
        input_norm=True,
        positions="none",
        mixer="dot_product(use_bias=False)",
    )
    encoder = Encoder(config, rngs=nnx.Rngs(0))
    assert not [path for path in paths(encoder) if path.endswith("bias")]
    encoder.layers[0].attention.out.kernel[...] *= 0
    x = np.asarray(normal(1, 1, 1, 8), np.float64)
    normed = lambda a: a / np.sqrt(np.mean(a * a) + 0.5)  # noqa: E731
    feedforward = encoder.layers[0].feedforward
    up, gate, down = (
        np.asarray(projection.kernel[...], np.float64)
        for projection in (feedforward.up, feedforward.gate, feedforward.down)
    )
    start = normed(x)
    gated = normed(start) @ gate
    hidden = gated / (1 + np.exp(-gated)) * (normed(start) @ up)
    expected = normed(start + hidden @ down)
    np.testing.assert_allclose(encoder(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "at_one"),
    [("relu", 1.0), ("silu", 0.7310586), ("gelu", 0.8413447), ("gelu_tanh", 0.8411920)],
)
def test_activations_at_one(activation, at_one):
    config = EncoderConfig(1, 1, 1, 1, positions="none", activation=activation)
    feedforward = FeedForward(config, rngs=nnx.Rngs(0))
    feedforward.up.kernel[...] = feedforward.down.kernel[...] = jnp.ones((1, 1))
    np.testing.assert_allclose(feedforward(jnp.ones((1, 1, 1))), [[[at_one]]], rtol=1e-6)


# Positions that are added, and those inside; a ring; a running sum; a state of another shape.
DECODING = {
    "sinusoidal": {"num_layers": 2},
    "learned": {"positions": "learned", "norm": "post", "input_norm": True},
    "rope": {"positions": "rope"},
    "ring": {"mixer": "sliding_window(left=2, right=0)"},
    "linear": {"mixer": "linear"},
    "gated_delta_net": {"mixer": "gated_delta_net"},
}


@pytest.mark.parametrize("options", DECODING.values(), ids=DECODING)
def test_encoder_decodes_as_it_reads(options):
    config = dataclasses.replace(SMALL, **{"num_layers": 1} | options)
    encoder = Encoder(config, rngs=nnx.Rngs(0))
    x, prompt = normal(1, 2, 7, 8), jnp.array([3, 1])
    full = jax.jit(lambda x: encoder(x, mask=masks.causal()))(x)
    cache = encoder.init_cache(2, 7)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(cache))
    decode = jax.jit(encoder.decode)
    out, cache = decode(x[:, :3], cache, prompt)
    np.testing.assert_allclose(out[0], full[0, :3], atol=3e-6)
    np.testing.assert_allclose(out[1, :1], full[1, :1], atol=3e-6)
    rows = jnp.arange(2)
    for _ in range(4):
        positions = cache.length
        out, cache = decode(x[rows, positions][:, None], cache)
        np.testing.assert_allclose(out[:, 0], full[rows, positions], atol=3e-6)
    np.testing.assert_array_equal(cache.length, [7, 5])


def test_encoder_refuses_to_decode_what_it_cannot():
    encoder = Encoder(dataclasses.replace(SMALL, mixer="fourier"), rngs=nnx.Rngs(0))
    with pytest.raises(
        NotImplementedError, match=r"'fourier', which cannot decode .*'dot_product'"
    ):
        encoder.init_cache(1, 4)
    encoder = Encoder(SMALL, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"max_length: got 10, .*max_length=9"):
        encoder.init_cache(1, 10)
    with pytest.raises(ValueError, match=r"cache: got shape \[2\], expected \[B\] with B=1"):
        encoder.decode(jnp.zeros((1, 1, 8)), encoder.init_cache(2, 4))


MEMORY_VALID = jnp.arange(6) < jnp.array([6, 2])[:, None]


@pytest.mark.parametrize(("norm", "L"), [("pre", 2), ("post", 1)])
def test_decoder_decodes_as_it_is_taught(norm, L):
    config = dataclasses.replace(SMALL, norm=norm, num_layers=L)
    decoder = Decoder(config, memory_size=5, rngs=nnx.Rngs(0))
    x, memory = normal(1, 2, 4, 8), normal(2, 2, 6, 5)
    teach = jax.jit(
        lambda x, memory: decoder(x, memory, memory_valid=MEMORY_VALID, return_weights=True)
    )
    full, weights = teach(x, memory)
    assert weights["self"].shape == (L, 2, 2, 4, 4)
    assert weights["cross"].shape == (L, 2, 2, 4, 6)
    np.testing.assert_array_equal(weights["cross"][:, 1, ..., 2:], 0)
    np.testing.assert_array_equal(np.triu(weights["self"], 1), 0)
    changed, _ = teach(x.at[:, 3].set(9.0), jnp.where(MEMORY_VALID[..., None], memory, 9.0))
    np.testing.assert_array_equal(changed[:, :3], full[:, :3])
    state = decoder.init_cache(memory, MEMORY_VALID, 4)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(state))
    decode = jax.jit(decoder.decode)
    for t in range(4):
        out, state, cross = decode(x[:, t : t + 1], state)
        np.testing.assert_allclose(out[:, 0], full[:, t], atol=3e-6)
        expected = jnp.swapaxes(weights["cross"], 0, 1)[..., t, :]
        np.testing.assert_allclose(cross[..., 0, :], expected, atol=1e-6)


def test_decoder_without_a_memory_to_see_and_with_dropout():
    config = dataclasses.replace(SMALL, dropout_rate=0.5, attention_dropout_rate=0.5, num_layers=1)
    decoder = Decoder(config, memory_size=5, rngs=nnx.Rngs(0))
    x, memory = normal(1, 2, 4, 8), normal(2, 2, 6, 5)
    run = jax.jit(lambda memory, key: decoder(x, memory, dropout_key=key))
    first, again, other = (run(memory, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    nothing = jnp.zeros((2, 6), bool)
    blind = jax.jit(lambda memory: decoder(x, memory, memory_valid=nothing))
    np.testing.assert_array_equal(blind(memory), blind(2 * memory))


def test_decoder_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"mixer: got 'fourier', which cannot be causal"):
        Decoder(dataclasses.replace(SMALL, mixer="fourier"), 5, rngs=nnx.Rngs(0))
    decoder = Decoder(SMALL, memory_size=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"memory: got shape \[2, 6, 8\], expected .* M=5"):
        decoder(jnp.zeros((2, 4, 8)), jnp.zeros((2, 6, 8)))
    with pytest.raises(ValueError, match=r"memory_valid: got dtype int32, expected bool"):
        decoder.init_cache(jnp.zeros((2, 6, 5)), jnp.ones((2, 6), jnp.int32), 4)


def test_token_embedding_by_hand():
    embedding = TokenEmbedding(3, 2, scale=2.0, rngs=nnx.Rngs(0))
    embedding.embedding[...] = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(embedding(jnp.array([[2, 0]])), [[[10, 12], [2, 4]]])
    np.testing.assert_array_equal(embedding.logits(jnp.array([1.0, -1.0])), [-1, -1, -1])
    assert embedding.logits(jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.float32
    assert np.isnan(embedding(jnp.array(3))).all()
    with pytest.raises(ValueError, match="vocabulary: got 0"):
        TokenEmbedding(0, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="tokens: got dtype float32"):
        embedding(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"x: got shape \[3\], expected \[..., D\] with D=2"):
        embedding.logits(jnp.zeros(3))


def test_sharding_rules_match_every_matrix_once_with_its_rank():
    gated = dataclasses.replace(SMALL, activation="swiglu", mixer="dot_product(gate=headwise)")
    modules = [
        (transformer.SHARDING_RULES, Decoder(gated, 8, rngs=nnx.Rngs(0))),
        (transformer.SHARDING_RULES, Encoder(SMALL, rngs=nnx.Rngs(0))),
        (transformer.SHARDING_RULES, TokenEmbedding(9, 8, rngs=nnx.Rngs(0))),
        (recurrent.SHARDING_RULES, Bidirectional(8, 6, cell="gru", rngs=nnx.Rngs(0))),
    ]
    matched = {}
    for rules, module in modules:
        for path, shape in paths(module).items():
            found = [axes for pattern, axes in rules if re.search(pattern, path)]
            assert len(found) <= 1, path
            assert all(len(axes) == len(shape) for axes in found), path
            matched[path] = found
    assert matched["layers/0/attention/query/kernel"] == [("fsdp", "tensor", None)]
    assert matched["layers/1/attention/out/kernel"] == [("tensor", None, "fsdp")]
    assert matched["layers/1/feedforward/up/kernel"] == [("fsdp", "tensor")]
    assert matched["layers/0/feedforward/down/kernel"] == [("tensor", "fsdp")]
    assert matched["layers/0/feedforward/gate/kernel"] == [("fsdp", "tensor")]
    assert matched["layers/0/attention/gate/kernel"] == []
    assert matched["layers/1/cross_attention/key/kernel"] == [("fsdp", "tensor", None)]
    assert matched["embedding"] == [(None, ("fsdp", "tensor"))]
    assert matched["forward/input/kernel"] == [("fsdp", None)]
    assert matched["layers/0/attention_norm/scale"] == []


def gru_by_hand(gru, x, state):
    """Computes one example in float64 NumPy, by the docstring's equations."""
    weights = [
        np.asarray(array[...], np.float64)
        for projection in (gru.input, gru.recurrent)
        for array in (projection.kernel, projection.bias)
    ]
    W, b_w, U, b_u = weights
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    states = []
    for row in np.asarray(x, np.float64):
        x_r, x_z, x_n = np.split(row @ W + b_w, 3)
        h_r, h_z, h_n = np.split(state @ U + b_u, 3)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        state = (1 - z) * np.tanh(x_n + r * h_n) + z * state
        states.append(state)
    return np.array(states)


@pytest.mark.parametrize("unroll", [1, 4])
def test_gru_equals_its_equations_and_holds_its_state_at_padding(unroll):
    gru = GRU(4, 3, unroll=unroll, rngs=nnx.Rngs(0))
    gru.input.bias[...] = normal(2, 9)
    gru.recurrent.bias[...] = normal(3, 9)
    x, initial = normal(1, 2, 5, 4), normal(4, 2, 3)
    states, last = jax.jit(lambda x: gru(x, valid=VALID, initial_state=initial))(x)
    for example, length in enumerate([5, 3]):
        expected = gru_by_hand(gru, x[example, :length], np.asarray(initial[example], np.float64))
        np.testing.assert_allclose(states[example, :length], expected, atol=1e-6)
        np.testing.assert_allclose(last[example], expected[-1], atol=1e-6)
    np.testing.assert_array_equal(states[1, 3:], jnp.stack([last[1], last[1]]))


def test_gru_step_is_the_same_recurrence():
    gru = GRU(4, 3, rngs=nnx.Rngs(0))
    x = normal(1, 2, 5, 4)
    states, _ = gru(x)
    state = gru.initial_state(2)
    for t in range(5):
        state = gru.step(x[:, t], state)
        np.testing.assert_allclose(state, states[:, t], atol=1e-6)


def test_bidirectional_gru_is_one_each_way_whatever_the_padding():
    gru = Bidirectional(4, 3, cell="gru", rngs=nnx.Rngs(0))
    x = normal(1, 2, 5, 4)
    run = jax.jit(gru)
    states, final = run(x, valid=VALID)
    changed, changed_final = run(jnp.where(VALID[..., None], x, 99.0), valid=VALID)
    np.testing.assert_array_equal(final, changed_final)
    np.testing.assert_array_equal(states[VALID], changed[VALID])
    zeros = np.zeros(3)
    for example, length in enumerate([5, 3]):
        row = x[example, :length]
        forward = gru_by_hand(gru.forward, row, zeros)
        backward = gru_by_hand(gru.backward, row[::-1], zeros)[::-1]
        expected = np.concatenate([forward, backward], axis=-1)
        np.testing.assert_allclose(states[example, :length], expected, atol=1e-6)
        expected_final = np.concatenate([forward[-1], backward[0]])
        np.testing.assert_allclose(final[example], expected_final, atol=1e-6)


def test_gru_padding_has_no_gradient():
    gru = GRU(4, 3, rngs=nnx.Rngs(0))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(gru(x, valid=VALID)[0] ** 2)))(normal(1, 2, 5, 4))
    np.testing.assert_array_equal(gradient[~VALID], 0)
    assert (np.abs(gradient[VALID]).sum(-1) > 0).all()


def test_gru_refuses_what_does_not_fit():
    gru = GRU(4, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x: got shape \[5, 4\], expected \[B, T, D\]"):
        gru(jnp.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"valid: got dtype int32, expected bool"):
        gru(jnp.zeros((2, 5, 4)), valid=jnp.ones((2, 5), jnp.int32))
    with pytest.raises(ValueError, match="state_size: got 0"):
        GRU(4, 0, rngs=nnx.Rngs(0))
