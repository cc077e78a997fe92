"""The contract: what every registered mechanism holds to, by its declared capabilities.

One test for each mechanism and property; `pytest -k mean` or `-k test_mask` picks. A new mechanism
needs its NumPy reference in a file of references/ and nothing here.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attend, attribution, kernels, masks, recording, registry
from tests.attention import subjects
from tests.attention.references import base as references
from tests.attention.subjects import LONGEST, B, D, H, S, T, normal


def each(*capabilities, dtype="float32", variants=True, slow=None):
    """Parametrizes over the mechanisms that declare all capabilities.

    Args:
      capabilities: of the registry.
      dtype: of the computation.
      variants: whether variants besides the first are tested too.
      slow: marks as slow "all", "variants" besides the first, or those that are "not kernels".
    """

    def is_slow(subject):
        kernel = subject.entry.kind == "kernel"
        cases = {"all": True, "variants": not subject.first, "not kernels": not kernel}
        return cases.get(slow, False)

    able = [s for s in subjects.subjects(dtype) if s.capabilities.issuperset(capabilities)]
    able = [
        pytest.param(
            subject,
            id=f"{subject.entry.kind}-{subject.label}",
            marks=[pytest.mark.slow] * is_slow(subject),
        )
        for subject in able
        if variants or subject.first
    ]
    return pytest.mark.parametrize("subject", able)


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        got = actual
        for step in path:
            got = got[step.key]
        np.testing.assert_allclose(got, leaf, **tolerance, err_msg=jax.tree_util.keystr(path))


def assert_weights_close(actual, expected, **tolerance):
    """Asserts that weights are close, or None for mechanisms without weights."""
    assert (actual is None) == (expected is None)
    if expected is not None:
        np.testing.assert_allclose(actual, expected, **tolerance)


def rows(subject, out, positions):
    """Returns the part of an output at the positions marked True."""
    return out[positions] if subject.rows_are_positions else out


@each()
def test_forward_equals_the_equations(subject):
    # The program with gradients serves other tests of the first variant.
    out, weights = subject.run()[:2] if subject.first else subject.forward()
    expected, expected_weights = subject.reference(double(subject.inputs), subject.valid)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=2e-6)
    assert_weights_close(weights, expected_weights, atol=1e-6)


@each(variants=False)
def test_gradient_equals_the_equations_along_directions(subject):
    """Each input and parameter along a random direction; single entries are slow tests."""
    _, _, gradient = subject.run()
    inputs = double(subject.inputs)
    rng, step = np.random.default_rng(0), 1e-5
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        signs = rng.choice([-1.0, 1.0], leaf.shape)

        def moved(distance, path=path, signs=signs):
            changed = jax.tree_util.tree_map_with_path(
                lambda at, x: x + distance * signs if at == path else x, inputs
            )
            return np.sum(subject.reference(changed, subject.valid)[0] * subject.cotangent)

        expected = (moved(step) - moved(-step)) / (2 * step)
        got = gradient
        for key in path:
            got = got[key.key]
        actual, where = np.sum(np.asarray(got, np.float64) * signs), jax.tree_util.keystr(path)
        np.testing.assert_allclose(actual, expected, atol=2e-5, rtol=2e-5, err_msg=where)


@each(slow="all")
def test_gradient_equals_the_equations(subject):
    _, _, gradient = subject.run()
    inputs = double(subject.inputs)
    expected = references.gradient(
        lambda inputs: subject.reference(inputs, subject.valid)[0], inputs, subject.cotangent
    )
    assert_trees_close(gradient, expected, atol=2e-5, rtol=2e-5)


@each(variants=False, slow="not kernels")
def test_jit_equals_eager(subject):
    out, weights, _ = subject.run()
    eager, eager_weights = subject.apply(subject.inputs, subject.valid, False, None)
    np.testing.assert_allclose(eager, out, atol=1e-6, rtol=1e-6)
    assert_weights_close(eager_weights, weights, atol=1e-6)


@each("normalized", slow="variants")
def test_weights_are_shares(subject):
    _, weights, _ = subject.run()
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    hidden = ~np.broadcast_to(
        subject.valid.reshape(B, *[1] * (weights.ndim - 2), -1), weights.shape
    )
    np.testing.assert_array_equal(weights[hidden], 0)


@each("padding", slow="variants")
def test_mask_lets_nothing_through(subject):
    valid = subject.valid
    out, weights, _ = subject.run()

    def spoil(x):
        return np.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 2)), x, 1e4 * x)

    changed = subject.with_keys(spoil)
    other, other_weights, _ = subject.run(changed)
    np.testing.assert_array_equal(rows(subject, other, valid), rows(subject, out, valid))
    if not subject.rows_are_positions and weights is not None:
        np.testing.assert_array_equal(other_weights, weights)
    cotangent = subject.cotangent
    if subject.rows_are_positions:
        cotangent = cotangent * valid[..., None]
    _, _, gradient = subject.run(cotangent=cotangent)
    for name in subject.keys:
        np.testing.assert_array_equal(gradient[name][~valid], 0)
        assert np.abs(gradient[name][valid]).max() > 0


@each("padding", slow="variants")
def test_empty_rows_give_zero_and_finite_gradients(subject):
    valid = subject.valid & np.array([[True], [False]])
    out, weights, gradient = subject.run(valid=valid)
    # Nothing seen is nothing said: all that may remain is the bias of the output projection.
    bias = subject.inputs.get("params", {}).get("out", {}).get("bias", np.zeros(()))
    np.testing.assert_array_equal(out[1], np.broadcast_to(bias, out[1].shape))
    if weights is not None:
        np.testing.assert_array_equal(weights[1], 0)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
    for name in subject.keys:
        np.testing.assert_array_equal(gradient[name][1], 0)
    full, _, _ = subject.run()
    np.testing.assert_array_equal(out[0], full[0])


@each("causal", slow="variants")
def test_causal_by_gradient(subject):
    everything = np.ones_like(subject.valid)
    length = everything.shape[1]
    queries = subject.cotangent.shape[1]
    for t in range(queries):
        cotangent = np.zeros_like(subject.cotangent)
        cotangent[:, t] = subject.cotangent[:, t]
        _, _, gradient = subject.run(valid=everything, causal=True, cotangent=cotangent)
        seen = t + length - queries
        for name in subject.keys:
            influence = np.abs(gradient[name]).reshape(B, length, -1).max(-1)
            if "sparse" not in subject.entry.capabilities:
                assert (influence[:, : seen + 1] > 0).all(), (name, t)
            assert influence[:, seen].min() > 0, (name, t)
            np.testing.assert_array_equal(influence[:, seen + 1 :], 0, err_msg=f"{name} {t}")


@each("causal", slow="variants")
def test_causal_equals_the_equations(subject):
    out, weights, _ = subject.run(causal=True)
    expected, expected_weights = subject.reference(double(subject.inputs), subject.valid, True)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=2e-6)
    assert_weights_close(weights, expected_weights, atol=1e-6)


@each("permutation", slow="variants")
def test_order_of_keys_does_not_matter(subject):
    order = np.random.default_rng(0).permutation(subject.valid.shape[1])
    out, weights, _ = subject.run()
    moved = subject.with_keys(lambda x: x[:, order])
    other, other_weights, _ = subject.run(moved, valid=subject.valid[:, order])
    expected, expected_weights = out, None if weights is None else weights[..., order]
    if subject.rows_are_positions:
        expected = out[:, order]
        if weights is not None:
            expected_weights = expected_weights[..., order, :]
    np.testing.assert_allclose(other, expected, atol=2e-6)
    assert_weights_close(other_weights, expected_weights, atol=1e-6)


@each("dropout", variants=False)
def test_dropout_drops_follows_its_key_and_is_unbiased(subject):
    first, again, other, *_ = draws = subject.draws
    plain, _, _ = subject.run()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2
    assert np.abs(first - plain).max() > 1e-2
    # The mean of 4096 draws is normal about the truth: 6 of its deviations.
    draws = draws[2:]
    deviation = draws.std(axis=0) / 64
    mean = draws.mean(axis=0, dtype=np.float64)
    assert (np.abs(mean - plain) <= 6 * deviation + 1e-5).all()
    np.testing.assert_array_equal(draws.std(axis=0) > 0, True)


@each("dropout", variants=False)
def test_dropout_does_not_depend_on_vmap(subject):
    draw = jax.jit(subject.draw)
    alone = np.stack([draw(key) for key in subject.draw_keys[1:4]])
    # Rounding is relative to the largest output.
    scale = max(1.0, float(np.abs(alone).max()))
    np.testing.assert_allclose(subject.draws[1:4], alone, atol=2e-6 * scale)


@each(dtype="bfloat16", variants=False)
def test_bfloat16_is_close_and_stays(subject):
    out, weights, _ = subject.run()
    assert out.dtype == jnp.bfloat16
    assert weights is None or weights.dtype == jnp.float32
    expected, expected_weights = subject.reference(double(subject.inputs), subject.valid)
    # bfloat16 has 8 bits, so intermediate rounding gives errors of about 2^-7.
    size = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(out, np.float64) / size, expected / size, atol=0.025)
    assert_weights_close(weights, expected_weights, atol=0.025)


@each(dtype="bfloat16", variants=False)
def test_bfloat16_gradients_are_close(subject):
    _, _, gradient = subject.run()
    full = next(
        s for s in subjects.subjects() if s.label == subject.label and s.entry == subject.entry
    )
    _, _, expected = full.run()
    # By the largest of all: the gradient of a key's bias is 0, as a shift leaves softmax alone.
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for (path, low), high in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(expected), strict=True
    ):
        place = jax.tree_util.keystr(path)
        np.testing.assert_allclose(low / size, high / size, atol=0.05, err_msg=place)


def lengths_of(subject):
    """Queries and keys; just one length where there is one sequence."""
    if subject.rows_are_positions or subject.entry.kind not in ("kernel", "mixer"):
        return [(1, 1), (LONGEST, LONGEST)]
    return [(1, 1), (1, 7), (5, 1), (3, LONGEST)]


@pytest.mark.parametrize(
    ("subject", "queries", "keys"),
    [
        pytest.param(
            s,
            *sizes,
            id=f"{s.entry.kind}-{s.label}-{sizes[0]}x{sizes[1]}",
            marks=[pytest.mark.slow] * (sizes[1] != LONGEST),
        )
        for s in subjects.subjects()
        if s.first
        for sizes in lengths_of(s)
    ],
)
def test_short_and_odd_lengths(subject, queries, keys):
    inputs, valid = subject.resized(queries, keys)
    out, weights = subject.forward(inputs, valid)
    expected, expected_weights = subject.reference(double(inputs), valid)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=2e-6)
    assert_weights_close(weights, expected_weights, atol=1e-6)


def emptied(subject):
    """Returns, by name, inputs without elements: no examples, no positions or no queries."""
    inputs = {name: x for name, x in subject.inputs.items() if name != "params"}
    kept = {name: x for name, x in subject.inputs.items() if name == "params"}
    found = {"examples": ({name: x[:0] for name, x in inputs.items()}, subject.valid[:0])}
    if subject.entry.kind in ("map_attention", "gate"):
        for axis, name in ((1, "rows"), (2, "columns")):
            found[name] = {n: np.take(x, [], axis) for n, x in inputs.items()}, subject.valid
    else:
        none = {name: inputs[name][:, :0] for name in subject.keys}
        found["positions"] = inputs | none, subject.valid[:, :0]
    query = inputs.get(subject.inputs_of_queries)
    if query is not None and query.ndim == 3 and subject.inputs_of_queries not in subject.keys:
        found["queries"] = inputs | {subject.inputs_of_queries: query[:, :0]}, subject.valid
    return {name: (kept | given, valid) for name, (given, valid) in found.items()}


@pytest.mark.parametrize(
    "subject",
    [s for s in subjects.subjects() if s.entry.kind == "mixer" and s.first],
    ids=lambda subject: subject.label,
)
def test_symbols_of_an_export_are_taken_or_refused(subject):
    """A batch is always taken; a length by those that need no number for it."""
    for dimensions in ("b, 5", "b, t"):
        b, t = jax.export.symbolic_shape(dimensions)
        widths = {"x": D} | ({"memory": H} if "memory" in subject.inputs else {})
        inputs = [jax.ShapeDtypeStruct((b, t, width), jnp.float32) for width in widths.values()]

        def output(*inputs):
            mask = masks.lengths(key=jnp.full((inputs[0].shape[0],), 3))
            mask = mask & masks.causal() if "causal" in subject.capabilities else mask
            return subject.build(subject.inputs["params"])(*inputs, mask=mask)

        _, refused = result_or_refusal(
            functools.partial(jax.export.export(jax.jit(output)), *inputs)
        )
        assert dimensions == "b, t" or not refused, refused
        assert re.match(r"(\w+: .*, expected a number.*)?$", refused), refused


def result_or_refusal(call):
    """Returns the result and "", or None and the error message."""
    try:
        return call(), ""
    except (ValueError, NotImplementedError) as error:
        return None, str(error)


@each(variants=False)
def test_what_has_no_elements_is_empty_or_refused(subject):
    check_without_elements(subject, causal=False)


@each("causal", variants=False, slow="all")
def test_what_has_no_elements_is_empty_or_refused_if_causal(subject):
    check_without_elements(subject, causal=True)


def check_without_elements(subject, causal):
    """Checks results and gradients of inputs without elements; only traced if the result is
    empty."""
    for name, (inputs, valid) in emptied(subject).items():

        def output(inputs, valid=valid):
            return subject.apply(inputs, valid, causal, None)

        def both(inputs, output=output):
            out, backward, weights = jax.vjp(output, inputs, has_aux=True)
            return out, weights, backward(jnp.ones_like(out))[0]

        found, refused = result_or_refusal(functools.partial(jax.eval_shape, both, inputs))
        if refused:
            # Maps need a position, and one mixer chooses among queries.
            assert re.match(r"\w+: got shape \[.*\b0\b.*\], expected", refused), refused
            assert name not in ("examples", "queries")
            continue
        out, _, gradient = found
        like = jax.eval_shape(output, subject.inputs, subject.valid)[0].shape
        assert len(out.shape) == len(like)
        assert out.shape[0] == (0 if name == "examples" else like[0])
        assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, inputs)
        if name == "positions" and subject.entry.kind in ("kernel", "pool", "alignment"):
            np.testing.assert_array_equal(output(inputs)[0], 0)


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(s, id=s.label, marks=[pytest.mark.slow] * (not s.first))
        for s in subjects.subjects()
        if "cache" in s.entry.capabilities and s.rows_are_positions
    ],
)
def test_cached_equals_uncached(subject):
    """A prompt of two, a step, two more; the second example's prompt is one shorter."""
    module, x = subject.build(subject.inputs["params"]), subject.inputs["x"]
    full, _, _ = subject.run(valid=np.ones_like(subject.valid), causal=True)
    cache = module.init_cache(B, x.shape[1])
    decode = jax.jit(module.decode)
    done = np.zeros(B, int)
    for real in ([2, 1], [1, 1], [2, 2]):
        chunk = np.full((B, max(real), D), 1e3, np.float32)
        for b, count in enumerate(real):
            chunk[b, :count] = x[b, done[b] : done[b] + count]
        out, cache = decode(chunk, cache, lengths=np.array(real))
        for b, count in enumerate(real):
            expected = full[b, done[b] : done[b] + count]
            np.testing.assert_allclose(out[b, :count], expected, atol=5e-6, rtol=5e-6)
            done[b] += count
    assert done.tolist() == [5, 4]


def scored(subject):
    """Returns a scalar function of the inputs."""

    def score(inputs):
        out, _ = subject.apply(inputs, subject.valid, False, None)
        return jnp.sum(out.astype(jnp.float32) * subject.cotangent)

    return score


@each("gradients", slow="variants")
def test_gradients_of_the_weights_are_those_of_perturbed_weights(subject):
    score, seen = scored(subject), []

    def perturbed(added):
        def replace(weights):
            given = weights()
            seen.append(given.shape)
            mixed = weights.mix(given + (0 if added is None else added))
            return mixed.astype(weights.result.dtype)

        with recording.recorder(replace):
            return score(subject.inputs)

    # The result is that of the explicit weights.
    expected = score(subject.inputs)
    np.testing.assert_allclose(jax.jit(perturbed)(None), expected, atol=2e-5, rtol=1e-5)
    added = jnp.zeros(seen[0])
    expected = jax.jit(jax.grad(perturbed))(added)
    found = attribution.attention_gradients(score, subject.inputs, score=lambda total: total)
    (gradients,) = found.gradients.values()
    (weights,) = found.weights.values()
    assert gradients.shape == weights.shape
    # Several calls have an axis of their own.
    gradients = gradients.reshape(-1, *added.shape).sum(0)
    np.testing.assert_allclose(gradients, expected, atol=2e-5, rtol=1e-5)


WITHOUT_GRADIENTS = {
    (s.entry.kind, s.entry.name): s
    for s in reversed(subjects.subjects())
    if s.entry.kind != "kernel" and "gradients" not in s.capabilities
}


@pytest.mark.parametrize(
    "subject", WITHOUT_GRADIENTS.values(), ids=["-".join(key) for key in WITHOUT_GRADIENTS]
)
def test_gradients_of_the_weights_are_refused_where_there_are_none(subject):
    error, message = NotImplementedError, "^attention: got .*the capability 'gradients'"
    if "weights" not in subject.capabilities:
        error, message = ValueError, "^model: got a model without attention"
    with pytest.raises(error, match=message):
        attribution.attention_gradients(scored(subject), subject.inputs, score=lambda total: total)


def refusing(*capabilities):
    """Mixers that do not declare one of these."""
    entries = [
        entry
        for entry in registry.mechanisms("mixer")
        if not entry.capabilities & set(capabilities)
    ]
    named = {subject.entry.name: subject for subject in reversed(subjects.subjects())}
    return pytest.mark.parametrize(
        "subject", [named[entry.name] for entry in entries], ids=[entry.name for entry in entries]
    )


@refusing("mask")
def test_masks_that_cannot_be_honoured_are_refused(subject):
    mixer, x = subject.build(subject.inputs["params"]), subject.inputs["x"]
    for mask in (masks.window(1, 1), masks.dense(np.ones((1, 1, x.shape[1], x.shape[1]), bool))):
        with pytest.raises(NotImplementedError, match=r"^mask: .*'mask'"):
            mixer(x, mask=mask)


@refusing("causal")
def test_causal_is_refused_where_it_cannot_be(subject):
    mixer, x = subject.build(subject.inputs["params"]), subject.inputs["x"]
    with pytest.raises(NotImplementedError, match=r"^mask: "):
        mixer(x, mask=masks.causal())


@refusing("weights")
def test_weights_are_refused_where_there_are_none(subject):
    mixer, x = subject.build(subject.inputs["params"]), subject.inputs["x"]
    with pytest.raises(NotImplementedError, match=r"^return_weights: "):
        mixer(x, return_weights=True)


@each("max_length")
def test_more_than_the_longest_is_refused(subject):
    mixer = subject.build(subject.inputs["params"])
    with pytest.raises(ValueError, match=f"x: got .*max_length={LONGEST}"):
        mixer(normal(0, B, LONGEST + 1, D))


def test_every_mechanism_has_a_subject():
    entries = {entry for entry in registry.mechanisms() if subjects.runs_here(entry)}
    assert {s.entry for s in subjects.subjects()} == entries
    assert S != subjects.T


FOR_DEVICES = [entry for entry in registry.mechanisms() if entry.capabilities & {"cuda", "tpu"}]


@pytest.mark.parametrize("entry", FOR_DEVICES, ids=[entry.name for entry in FOR_DEVICES])
def test_what_needs_a_device_says_so_and_who_needs_none(entry):
    query, key, value = normal(0, B, T, 2, 8), normal(1, B, S, 2, 8), normal(2, B, S, 2, 8)
    device = "an NVIDIA GPU" if "cuda" in entry.capabilities else "a TPU"
    expected = f"^{entry.name}: needs {device}, but JAX runs on .*; supported by: .*reference$"
    with pytest.raises(NotImplementedError, match=expected):
        attend(query, key, value, implementation=entry.name)
    if "interpreted" not in entry.capabilities:
        with kernels.interpreted(), pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
            attend(query, key, value, implementation=entry.name)
