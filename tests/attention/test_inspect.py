"""capture against the weights that mechanisms return, and the three analyses against SciPy."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
from flax import nnx

from attention import (
    AttentionPool,
    MultiHeadAttention,
    attend,
    attention_weights,
    inspect,
    masks,
    recording,
    registry,
)
from attention.projection import Projection
from tasks.sequence_copy.model import EncoderDecoder, EncoderDecoderConfig
from tasks.text_classification.model import TransformerClassifier, TransformerConfig
from tests.attention import subjects
from tests.attention.subjects import normal
from tests.attention.test_registry import ROOT

X = jnp.asarray(normal(0, 2, 5, 8))
TOKENS = jnp.array([[5, 3, 12, 7, 8, 2], [9, 4, 6, 0, 0, 0]])
LENGTHS = jnp.array([6, 3])
NAMES = ["encoder/layers/0/attention", "encoder/layers/1/attention", "pool"]


def attention(seed=0):
    return MultiHeadAttention(8, 2, rngs=nnx.Rngs(seed))


@functools.cache
def classifier(kernel="auto"):
    config = TransformerConfig(8, 2, 2, 8, pooling="attention", max_length=8)
    model = TransformerClassifier(config, 20, 3, rngs=nnx.Rngs(0))
    for layer in model.encoder.layers:
        layer.attention.implementation = kernel
    return model


@functools.cache
def seen(kernel="auto"):
    return inspect.capture(classifier(kernel), TOKENS, LENGTHS)


def assert_close(actual, expected):
    assert isinstance(actual, np.ndarray)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("kernel", subjects.KERNELS)
def test_a_transformer_with_each_kernel(kernel):
    with subjects.running(kernel):
        _, returned = classifier(kernel)(TOKENS, LENGTHS, return_weights=True)
        assert list(seen(kernel)) == NAMES
    assert_close(seen(kernel)[NAMES[0]], returned["encoder"][:, 0])
    assert_close(seen(kernel)[NAMES[1]], returned["encoder"][:, 1])
    assert_close(seen(kernel)["pool"], returned["pool"])


def shifted(query, key, value, **options):
    return registry.load("kernel", "reference")(query, key, value, **options) + query


def test_the_model_runs_with_its_own_kernel(monkeypatch):
    line = dataclasses.replace(
        registry.find("kernel", "reference"), name="shifted", target=f"{__name__}:shifted"
    )
    monkeypatch.setattr(registry, "TABLE", [line, *registry.mechanisms()])
    _, returned = classifier("shifted")(TOKENS, LENGTHS, return_weights=True)
    weights = seen("shifted")
    assert_close(weights[NAMES[0]], seen("reference")[NAMES[0]])
    assert_close(weights[NAMES[1]], returned["encoder"][:, 1])
    assert np.abs(weights[NAMES[1]] - seen("reference")[NAMES[1]]).max() > 1e-3


WEIGHING = [
    subject
    for subject in subjects.subjects()
    if subject.first and subject.build is not None and "weights" in subject.entry.capabilities
]


@pytest.mark.parametrize(
    "subject", WEIGHING, ids=[f"{subject.entry.kind}-{subject.label}" for subject in WEIGHING]
)
def test_captured_equals_returned(subject):
    module = subject.build(subject.inputs["params"])
    if subject.entry.kind == "alignment":

        def run(query, states):
            return subject.apply(
                {**subject.inputs, "query": query, "states": states}, subject.valid, False, None
            )

        weights = inspect.capture(run, subject.inputs["query"], subject.inputs["states"])
        if subject.inputs["query"].ndim == 3:
            weights = {name: calls.swapaxes(0, 1) for name, calls in weights.items()}
    elif subject.entry.kind == "pool":
        weights = inspect.capture(module, subject.inputs["states"], valid=subject.valid)
    elif subject.entry.kind in ("map_attention", "gate"):
        maps = subject.maps(subject.inputs)
        weights = inspect.capture(module, *maps, training=subject.training)
    elif subject.entry.kind != "mixer":
        run = lambda inputs: subject.apply(inputs, subject.valid, False, None)  # noqa: E731
        weights = inspect.capture(run, subject.inputs)
    else:
        sequences = [subject.inputs[name] for name in ("x", "memory") if name in subject.inputs]
        weights = inspect.capture(module, *sequences, mask=masks.valid(key=subject.valid))
    _, returned = subject.forward()
    assert list(weights) == ["attention"]
    assert_close(weights["attention"], returned)


@pytest.mark.parametrize(
    "alignment",
    [
        # Without a state and with one; the others are slow tests.
        pytest.param(a, marks=[pytest.mark.slow] * (a not in ("general", "location_aware")))
        for a in registry.names("alignment")
    ],
)
def test_a_decoder_in_a_scan(alignment):
    config = EncoderDecoderConfig(embedding_size=5, state_size=8, alignment=alignment)
    model = EncoderDecoder(config, rngs=nnx.Rngs(1))
    target = jnp.array([[7, 12, 3, 5], [4, 9, 1, 0]])
    source, lengths = TOKENS[:, :4], jnp.array([4, 2])
    _, returned = model(source, lengths, target)
    weights = inspect.capture(model, source, lengths, target)
    assert list(weights) == ["decoder/alignment"]
    assert_close(weights["decoder/alignment"], returned.swapaxes(0, 1))
    returned = np.swapaxes(np.asarray(model.generate(source, lengths, 6)[1]), 0, 1)
    looked = inspect.capture(model, source, lengths, 6, method="generate")["decoder/alignment"]
    # After the end of a sequence the model gives 0 in place of the weights, and when all have ended
    # it takes no further step.
    made = len(looked)
    assert_close(looked * returned[:made].any(axis=-1, keepdims=True), returned[:made])
    assert not returned[made:].any()
    again = inspect.capture(model.generate, source, lengths, 6)["decoder/alignment"]
    np.testing.assert_array_equal(again, looked)


def test_layers_heads_and_rows():
    model, full = classifier(), seen()
    capture = functools.partial(inspect.capture, model, TOKENS, LENGTHS)
    assert list(capture(layers=[-1, "layers/0"])) == [NAMES[0], NAMES[2]]
    cut = capture(layers="encoder", heads=[1], rows=[4, 0, -1])
    assert_close(cut[NAMES[0]], full[NAMES[0]][:, [1]][:, :, [4, 0, -1]])
    assert_close(cut[NAMES[1]], full[NAMES[1]][:, [1]][:, :, [4, 0, -1]])
    # A pool has heads and a single query.
    pool = capture(layers="^pool$", heads=0, rows=range(2))
    assert list(pool) == ["pool"]
    assert_close(pool["pool"], full["pool"])


def test_only_what_is_asked_for_leaves_the_device(monkeypatch):
    original, shapes = jax.debug.callback, []

    def spy(function, weights, **options):
        shapes.append(weights.shape)
        return original(function, weights, **options)

    monkeypatch.setattr(jax.debug, "callback", spy)
    weights = inspect.capture(classifier(), TOKENS, LENGTHS, layers=1, heads=[0], rows=[2, 3])
    assert shapes == [(2, 1, 2, 6)]
    assert weights[NAMES[1]].shape == (2, 1, 2, 6)


def test_rows_with_every_option():
    T, S, N = 5, 7, 4
    query, key = normal(0, 2, T, N, 6), normal(1, 2, S, 2, 6)
    options = {
        "mask": masks.causal(2) & masks.lengths(key=jnp.array([6, 3])),
        "bias": normal(2, 2, 1, T, S),
        "scale": 0.7,
        "logit_cap": 2.0,
        "sinks": normal(3, N),
    }
    rows, heads = [4, -5, 2], [3, 1]
    run = functools.partial(attend, **options)
    weights = inspect.capture(run, query, key, key, rows=rows, heads=heads)["attention"]
    expected = attention_weights(query, key, **options)[:, heads][:, :, rows]
    assert_close(weights, expected)


def test_rows_of_a_long_sequence_cost_no_square():
    T = 4096
    query, lengths = jax.ShapeDtypeStruct((1, T, 1, 8), "float32"), jnp.array([T - 9])

    def some(query):
        taken = []
        with recording.recorder(taken.append):
            attend(query, query, query, mask=masks.causal() & masks.lengths(key=lengths))
        return taken[0].of_rows(jnp.array([7, T - 1]))

    memory = jax.jit(some).lower(query).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**20 < 4 * T * T


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "decoder"}, r"layers: got 'decoder', expected names or indices of \['enc"),
        ({"layers": 3}, "layers: got 3, expected names or indices of"),
        ({"heads": [0, 2]}, r"heads: got \[0, 2\], expected indices from -2 to 1 at 'encoder/"),
        ({"heads": [1]}, r"got \[1\], expected indices from -1 to 0 at 'pool' \(set layers"),
        ({"layers": "encoder", "rows": 6}, r"rows: got \[6\], expected indices from -6 to 5"),
        ({"rows": [True]}, r"rows: got \[True\], expected at least one integer"),
        ({"rows": []}, r"rows: got \[\], expected at least one integer index"),
    ],
)
def test_what_is_not_there_is_told(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        inspect.capture(classifier(), TOKENS, LENGTHS, **options)
    assert "\n" not in str(caught.value)


def test_a_model_without_attention_is_told():
    with pytest.raises(ValueError, match="model: got a model without attention"):
        inspect.capture(Projection((8,), (3,), rngs=nnx.Rngs(0)), X)


class Block(nnx.Module):
    """x + attention, mapped and scanned by `Stack`."""

    def __init__(self, rngs):
        self.attention = MultiHeadAttention(8, 2, rngs=rngs)

    def __call__(self, x):
        return x + self.attention(x)


class Stack(nnx.Module):
    """Three blocks whose weights are stacked, run by a scan with rematerialisation."""

    def __init__(self, rngs):
        self.blocks = nnx.vmap(Block)(rngs.split(3))
        self.pool = AttentionPool(8, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def forward(x, block):
            return block(x)

        return self.pool(forward(x, self.blocks))


def test_scanned_layers_with_remat():
    model = Stack(nnx.Rngs(0))
    weights = inspect.capture(model, X)
    assert list(weights) == ["blocks/attention", "pool"]
    graphdef, state = nnx.split(model.blocks)
    x = X
    for layer in range(3):
        block = nnx.merge(graphdef, jax.tree.map(lambda leaf, i=layer: leaf[i], state))
        _, expected = block.attention(x, return_weights=True)
        assert_close(weights["blocks/attention"][layer], expected)
        x = block(x)
    assert_close(weights["pool"], model.pool(x)[1])


class Several(nnx.Module):
    """A model with one attention used twice, and a separate call of attention."""

    def __init__(self):
        self.shared = attention()

    def __call__(self, x):
        for _ in range(2):
            x = self.shared(x)
        heads = x.reshape(*x.shape[:2], 2, 4)
        inner = attend(heads, heads, heads, mask=masks.causal())
        outer = attend(inner, inner[:, :3], inner[:, :3])
        return self.shared(outer.reshape(x.shape))


def test_shared_modules_are_stacked_and_further_places_numbered():
    model = Several()
    weights = inspect.capture(model, X)
    x, stacked = X, []
    for _ in range(2):
        x, w = model.shared(x, return_weights=True)
        stacked.append(w)
    assert list(weights) == ["shared", "attention", "attention_1"]
    assert weights["shared"].shape == (3, 2, 2, 5, 5)
    assert_close(weights["shared"][:2], np.stack(stacked))
    assert weights["attention"].shape == (2, 2, 5, 5)
    assert weights["attention_1"].shape == (2, 2, 5, 3)


HEADS = jnp.asarray(normal(1, 2, 5, 2, 4))


def test_plain_functions():
    modules = [attention(seed) for seed in range(2)]

    def run(x):
        inner = attend(x, x, x)
        y = attend(inner, x, x, mask=masks.causal()).reshape(X.shape)
        for module in modules:
            y = module(y)
        return y

    weights = inspect.capture(run, HEADS)
    inner = attend(HEADS, HEADS, HEADS)
    y = attend(inner, HEADS, HEADS, mask=masks.causal()).reshape(X.shape)
    assert list(weights) == ["attention", "attention_1", "attention_2", "attention_3"]
    assert_close(weights["attention"], attention_weights(HEADS, HEADS))
    expected = attention_weights(inner, HEADS, mask=masks.causal())
    assert_close(weights["attention_1"], expected)
    assert_close(weights["attention_2"], modules[0](y, return_weights=True)[1])
    assert_close(weights["attention_3"], modules[1](modules[0](y), return_weights=True)[1])


class Wrapped(nnx.Module):
    """An attention inside of what a test asks for."""

    def __init__(self, wrap):
        self.attention, self.wrap = attention(), wrap

    def __call__(self, x):
        return self.wrap(self.attention)(x)


def steps_until_done(module):
    def run(x):
        return jax.lax.while_loop(
            lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, module(carry[1])), (0, x)
        )[1]

    return run


def differentiated(module):
    return jax.grad(lambda x: jnp.sum(module(module(x)) ** 2))


def one_branch(module):
    return lambda x: jax.lax.cond(x[0, 0, 0] > 1e3, lambda x: module(module(x)), module, x)


@pytest.mark.parametrize(
    ("wrap", "calls"),
    [
        (jax.jit, 1),
        (jax.checkpoint, 1),
        (lambda module: jax.grad(jax.checkpoint(lambda x: jnp.sum(module(x)))), 1),
        (one_branch, 1),
        (differentiated, 2),
        (steps_until_done, 3),
    ],
    ids=["jit", "remat", "grad_of_remat", "cond", "grad", "while"],
)
def test_inside_of_transformations(wrap, calls):
    model = Wrapped(wrap)
    weights = inspect.capture(model, X)["attention"]
    x, expected = X, []
    for _ in range(calls):
        x, w = model.attention(x, return_weights=True)
        expected.append(w)
    assert_close(weights, np.stack(expected) if calls > 1 else expected[0])


def test_vmap_keeps_its_axis_first():
    model = Wrapped(lambda module: jax.vmap(jax.jit(lambda x: module(module(x)))))
    x = jnp.asarray(normal(2, 3, 1, 5, 8))
    weights = inspect.capture(model, x)["attention"]
    first, expected = jax.vmap(lambda x: model.attention(x, return_weights=True))(x)
    second = jax.vmap(lambda x: model.attention(x, return_weights=True)[1])(first)
    assert_close(weights, np.stack([expected, second]))


HELD = attention()


@jax.jit
def jitted_before(x):
    return HELD(x)


def scanned_before(x, _):
    return jitted_before(x), None


def test_what_was_traced_before_is_seen_and_left_as_it_was():
    expected = HELD(X, return_weights=True)[1]
    scan = lambda x: jax.lax.scan(scanned_before, x, length=2)[0]  # noqa: E731
    for function in (jitted_before, jax.jit(scan)):
        function(X)
        before = str(jax.make_jaxpr(function)(X))
        for _ in range(2):
            weights = inspect.capture(function, X)["attention"]
            assert_close(weights if weights.ndim == 4 else weights[0], expected)
        assert str(jax.make_jaxpr(function)(X)) == before
        assert "callback" not in before


def test_the_model_keeps_no_trace():
    model = Stack(nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    inspect.capture(model, X)
    after, state_after = nnx.split(model)
    assert after == graphdef
    assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(state_after)))
    assert not any(recording.TAG in vars(m) for _, m in nnx.iter_modules(model))


def test_weights_are_before_dropout():
    model = MultiHeadAttention(8, 2, dropout_rate=0.5, rngs=nnx.Rngs(0))
    weights = inspect.capture(model, X, dropout_key=jax.random.key(0), return_weights=True)
    assert_close(weights["attention"], model(X, return_weights=True)[1])


def test_an_error_in_the_model_stays_itself():
    with pytest.raises(ValueError, match=r"x: got shape \[2, 5, 6\]"):
        inspect.capture(attention(), X[..., :6])
    # After the context, recording is off.
    recording.record(lambda: pytest.fail("still recording"))


def test_a_model_spread_over_devices():
    code = """
import jax, numpy as np
from flax import nnx
from attention import MultiHeadAttention, inspect
model = MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (2, 5, 8))
one = inspect.capture(model, x)["attention"]
mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
heads = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "tensor"))
model.query.kernel[...] = jax.device_put(model.query.kernel[...], heads)
assert len(model.query.kernel[...].devices()) == 2
np.testing.assert_allclose(inspect.capture(model, x)["attention"], one, atol=1e-6)
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=120)


LAYERS = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 2, 2, 4)).astype(np.float32)


def test_rollout_by_hand():
    # Two positions, one head; layer 1 swaps them, layer 2 mixes them evenly.
    swap, mix = [[0.0, 1.0], [1.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]]
    weights = jnp.array([swap, mix])[:, None, None]
    np.testing.assert_allclose(inspect.rollout(weights, residual=0.0)[0], mix, atol=1e-7)
    # 0.5 · swap + 0.5 · I is even, and so is all that follows.
    np.testing.assert_allclose(inspect.rollout(weights)[0], mix, atol=1e-7)
    # 0.2 · swap + 0.8 · I, then 0.2 · mix + 0.8 · I: 0.9 · 0.8 + 0.1 · 0.2 = 0.74.
    rolled = inspect.rollout(weights, residual=0.8)[0]
    np.testing.assert_allclose(rolled, [[0.74, 0.26], [0.26, 0.74]], atol=1e-6)
    np.testing.assert_allclose(inspect.rollout(weights, residual=1.0)[0], np.eye(2), atol=1e-7)


def test_rollout_is_the_product_of_the_layers():
    A = 0.5 * LAYERS.mean(axis=2) + 0.5 * np.eye(4)
    expected = np.einsum("bij,bjk,bkl->bil", A[2], A[1], A[0])
    rolled = inspect.rollout(LAYERS)
    np.testing.assert_allclose(rolled, expected, atol=1e-6)
    np.testing.assert_allclose(rolled.sum(-1), 1, atol=1e-6)
    # A position that sees nothing stays with itself.
    empty = LAYERS.copy()
    empty[:, 0, :, 2] = 0
    np.testing.assert_allclose(inspect.rollout(empty)[0, 2], [0, 0, 1, 0], atol=1e-7)


def test_head_entropy_against_scipy():
    weights = LAYERS[0].copy()
    expected = scipy.stats.entropy(weights, axis=-1)
    np.testing.assert_allclose(inspect.head_entropy(weights), expected.mean(-1), atol=1e-6)
    stacked = inspect.head_entropy(LAYERS)
    np.testing.assert_allclose(stacked, scipy.stats.entropy(LAYERS, axis=-1).mean(-1), atol=1e-6)
    # Rows that see nothing, and rows that are padding, do not count; sinks are scaled away.
    weights[0, 1, 2] = 0
    valid = np.array([[True, True, True, False], [True] * 4])
    entropy = inspect.head_entropy(0.5 * weights, valid)
    np.testing.assert_allclose(entropy[0, 0], expected[0, 0, :3].mean(), atol=1e-6)
    np.testing.assert_allclose(entropy[0, 1], expected[0, 1, :2].mean(), atol=1e-6)
    np.testing.assert_allclose(entropy[1], expected[1].mean(-1), atol=1e-6)


def test_head_entropy_by_hand():
    one_key, all_alike = np.eye(4)[[2, 2, 2, 2]], np.full((4, 4), 0.25)
    weights = jnp.array([[one_key, all_alike, np.zeros((4, 4))]])
    entropy = inspect.head_entropy(weights)[0]
    np.testing.assert_allclose(entropy[:2], [0, np.log(4)], atol=1e-6)
    assert np.isnan(entropy[2])


def test_head_similarity_against_scipy():
    weights = np.random.default_rng(1).dirichlet(np.ones(4), size=(2, 3, 4)).astype(np.float32)
    weights[1, 2] = weights[1, 0]
    weights[0, 1, 3] = 0
    similarity = inspect.head_similarity(weights)
    assert similarity.shape == (2, 3, 3)
    for b, i, j in np.ndindex(2, 3, 3):
        rows = [t for t in range(4) if weights[b, i, t].any() and weights[b, j, t].any()]
        distance = scipy.spatial.distance.jensenshannon(
            weights[b, i, rows], weights[b, j, rows], axis=-1
        )
        np.testing.assert_allclose(similarity[b, i, j], np.mean(distance**2), atol=1e-6)
    apart = jnp.array([[np.eye(4)[[0] * 4], np.eye(4)[[1] * 4]]])
    np.testing.assert_allclose(
        inspect.head_similarity(apart)[0], [[0, np.log(2)], [np.log(2), 0]], atol=1e-6
    )
    stacked = inspect.head_similarity(np.stack([weights, weights]))
    np.testing.assert_allclose(stacked[1], similarity, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inspect.rollout(LAYERS[0]), r"weights: got shape .*, expected \[L, B, N, T, T\]"),
        (lambda: inspect.rollout(LAYERS[..., :3]), r"weights: got shape \[3, 2, 2, 4, 3\], exp"),
        (lambda: inspect.rollout(LAYERS, residual=1.5), "residual: got 1.5, expected a number in"),
        (lambda: inspect.rollout(LAYERS[:0]), "weights: got no layer"),
        (lambda: inspect.head_entropy(LAYERS[0, 0]), r"weights: .* expected \[..., B, N, T, S\]"),
        (lambda: inspect.head_entropy(LAYERS > 0), "weights: got dtype bool, expected a floating"),
        (lambda: inspect.head_entropy(LAYERS[0], np.ones((2, 4))), "valid: got dtype float"),
        (
            lambda: inspect.head_similarity(LAYERS[0], np.ones((2, 3), bool)),
            r"valid: got shape \[2, 3\], expected \[B, T\] with B=2, T=4",
        ),
    ],
)
def test_analyses_refuse_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
