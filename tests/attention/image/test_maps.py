"""Properties of all attention over feature maps by declared capability, and invalid calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import registry
from tests.attention import subjects
from tests.attention.map_subjects import C, G, MapSubject
from tests.attention.subjects import B, normal
from tests.attention.test_wrong_calls import told

MAPS = [subject for subject in subjects.subjects() if isinstance(subject, MapSubject)]
NAMES = registry.names("map_attention")
X = jnp.asarray(normal(0, B, 5, 3, 8))


def each(*capabilities, training=None):
    able = [
        subject
        for subject in MAPS
        if subject.capabilities.issuperset(capabilities) and training in (None, subject.training)
    ]
    seen = set()
    cases = []
    for subject in able:
        # Variants besides the first of a mechanism are slow tests.
        kind = subject.entry.name, subject.training
        marks = [pytest.mark.slow] * (kind in seen)
        cases.append(pytest.param(subject, id=subject.label, marks=marks))
        seen.add(kind)
    return pytest.mark.parametrize("subject", cases)


def make(name, channels=8, **options):
    return registry.load("map_attention", name)(channels, **options, rngs=nnx.Rngs(0))


@each("gate")
def test_a_gate_multiplies_the_map_and_nothing_else(subject):
    out, gate = subject.forward()
    np.testing.assert_allclose(out, subject.inputs["x"] * gate, atol=1e-6)
    assert (gate > 0).all()
    # That is not the map times itself: a gate has its own sizes, and no sign.
    assert all(size in (1, full) for size, full in zip(gate.shape, out.shape, strict=True))


@each(training=False)
def test_examples_do_not_see_one_another(subject):
    out, weights = subject.forward()
    changed = {
        name: leaf if name == "params" else np.stack([leaf[0], 100 + 3 * leaf[1]])
        for name, leaf in subject.inputs.items()
    }
    other, other_weights = subject.forward(changed)
    np.testing.assert_array_equal(other[0], out[0])
    np.testing.assert_array_equal(other_weights[0], weights[0])
    assert np.abs(other[1] - out[1]).max() > 1e-2


@each("batch_statistics", training=True)
def test_training_moves_the_running_statistics(subject):
    before = subject.constants["buffers"]()
    after = subject.moved(subject.inputs, np.ones(B, bool))
    evaluating = next(s for s in MAPS if s.label == subject.label.removesuffix("-training"))
    kept = evaluating.moved(evaluating.inputs, np.ones(B, bool))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), kept, before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.isfinite(new).all()
        assert (np.abs(new - old) > 1e-6).any()


@each("batch_statistics", training=True)
def test_examples_that_are_not_valid_count_for_nothing(subject):
    """The result of the first example does not depend on the second example of the batch."""
    first = np.array([True, False])
    arrays = [name for name in subject.inputs if name != "params"]
    alone = subject.inputs | {name: subject.inputs[name][:1] for name in arrays}
    spoilt = subject.inputs | {
        name: np.stack([subject.inputs[name][0], np.full_like(subject.inputs[name][1], np.inf)])
        for name in arrays
    }
    expected, _ = subject.forward(alone, np.ones((1, 1), bool))
    out, _ = subject.forward(spoilt, first[:, None])
    np.testing.assert_allclose(out[:1], expected, atol=1e-5)
    moved = subject.moved(alone, first[:1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        subject.moved(spoilt, first),
        moved,
    )
    # None at all: the statistics stay, and nothing is NaN.
    none = subject.moved(subject.inputs, np.zeros(B, bool))
    for old, new in zip(
        jax.tree.leaves(subject.constants["buffers"]()), jax.tree.leaves(none), strict=True
    ):
        np.testing.assert_allclose(new, old, rtol=1e-6)


def test_who_keeps_batch_statistics():
    keeping = {s.entry.name for s in MAPS if "buffers" in s.constants}
    assert keeping == {"cbam", "cbam_spatial", "coordinate", "non_local"}
    assert keeping == {s.entry.name for s in MAPS if "batch_statistics" in s.entry.capabilities}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "size", [(1, 1), pytest.param((3, 5), marks=pytest.mark.slow)], ids=["1x1", "3x5"]
)
def test_one_channel_and_one_place(name, size):
    """Handled, with finite gradients, in training as well; or refused in one line."""
    if name in ("axial", "shifted_window"):
        told(r"num_heads: got 4, expected a positive divisor of model_size=1", make, name, 1)
    options = {"num_heads": 1} if name in ("axial", "shifted_window") else {}
    module = make(name, 1, **options)
    x = jnp.asarray(normal(1, 1, *size, 1))
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(params, x):
        out = nnx.merge(graphdef, params, rest, copy=True)(x, training=True)
        return jnp.sum(jnp.square(out))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)):
        assert np.isfinite(leaf).all()
    assert jax.eval_shape(module, x).shape == x.shape


REDUCING = ("se", "cbam", "cbam_channel", "scse", "coordinate")


@pytest.mark.parametrize("name", REDUCING)
def test_a_reduction_by_more_than_there_is_leaves_one(name):
    options = {"least": 1} if name == "coordinate" else {}
    module = make(name, reduction=100, **options)
    reduce = getattr(module, "channel", module).reduce
    assert reduce.kernel[...].shape == (8, 1)
    assert jax.eval_shape(module, X).shape == X.shape
    told("reduction: got 0, expected at least 1", make, name, reduction=0)


@pytest.mark.parametrize("name", NAMES)
def test_maps_that_do_not_fit_are_refused(name):
    module = make(name)
    told(r"x: got shape \[2, 5, 3, 7\], expected \[B, Y, X, C\] with C=8", module, X[..., :7])
    told(r"x: got shape \[5, 3, 8\], expected \[B, Y, X, C\]", module, X[0])
    told(r"x: got shape \[2, 0, 3, 8\], expected at least one position", module, X[:, :0])
    told(r"x: got dtype int32, expected a floating", module, jnp.ones(X.shape, jnp.int32))
    told(r"valid: got dtype float32, expected bool", module, X, valid=jnp.ones(B))
    told(r"valid: got shape \[3\], expected \[B\] with .*B=2", module, X, valid=jnp.ones(3, bool))
    told("channels: got 0|num_heads: got|model_size: got", make, name, 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eca", {"kernel_size": 4}, "kernel_size: got 4, expected an odd number"),
        ("eca", {"kernel_size": -1}, "kernel_size: got -1, expected an odd number"),
        ("cbam", {"kernel_size": 2}, "kernel_size: got 2, expected an odd number"),
        ("cbam_spatial", {"momentum": 0.0}, r"momentum: got 0.0, expected a number in \(0, 1\]"),
        ("scse", {"join": "mul"}, "join: got 'mul', expected 'add' or 'max'"),
        ("coordinate", {"least": 0}, "least: got 0, expected at least 1"),
        ("non_local", {"similarity": "cosine"}, "similarity: got 'cosine', expected one of"),
        ("non_local", {"num_heads": 0}, "num_heads: got 0, expected at least 1"),
        ("non_local", {"head_size": 0}, "head_size: got 0, expected at least 1"),
        ("axial", {"num_heads": 3}, "num_heads: got 3, expected a positive divisor of"),
        ("axial", {"positions": "rpe"}, "positions: got 'rpe', expected one of"),
        ("shifted_window", {"window": 0}, "window: got 0, expected at least 1"),
        ("shifted_window", {"shift": 4}, r"shift: got 4, expected an int in \[0, window=4\)"),
        ("shifted_window", {"num_heads": 3}, "num_heads: got 3, expected a positive divisor"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    told(message, make, name, **options)


def test_options_by_spec():
    module = registry.build("map_attention", "se(reduction=4)", 8, rngs=nnx.Rngs(0))
    assert module.reduce.kernel[...].shape == (8, 2)
    for spec, message in (
        ("se(channels=4)", "got option 'channels' in .*, expected one of \\['reduction'\\]"),
        ("se(reduction=2.5)", "got reduction=2.5 in .*, expected int"),
        ("cbm", "got 'cbm', expected one of .*; did you mean 'cbam'"),
    ):
        told(f"map_attention: {message}", registry.build, "map_attention", spec, 8, rngs=None)


def test_the_gate_refuses_a_signal_that_does_not_fit():
    gate = registry.load("gate", "attention_gate")(C, G, rngs=nnx.Rngs(0))
    x, signal = jnp.ones((B, 4, 6, C)), jnp.ones((B, 2, 3, G))
    assert gate(x, signal).shape == x.shape
    told(
        r"gating_signal: got shape \[2, 5, 3, 3\], expected 1 x 1 to 4 x 6",
        gate,
        x,
        jnp.ones((B, 5, 3, G)),
    )
    told(r"gating_signal: got shape \[2, 0, 3, 3\], expected 1 x 1 to", gate, x, signal[:, :0])
    told(r"gating_signal: got shape \[1, 2, 3, 3\], expected .* with B=2, G=3", gate, x, signal[:1])
    told(r"gating_signal: got shape \[2, 2, 3, 2\], expected", gate, x, signal[..., :2])
    told(r"x: got shape \[2, 4, 6, 3\], expected \[B, Y, X, C\] with C=4", gate, x[..., :3], signal)
    build = registry.load("gate", "attention_gate")
    told("stride: got 0, expected at least 1", build, C, G, stride=0, rngs=nnx.Rngs(0))
    told("signal_channels: got 0, expected", build, C, 0, rngs=nnx.Rngs(0))
    told("hidden_size: got 0, expected", build, C, G, hidden_size=0, rngs=nnx.Rngs(0))
