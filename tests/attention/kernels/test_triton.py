"""The kernel "triton" in the interpreter: several blocks an axis, every kind of mask, every option.

On a machine with an NVIDIA GPU the last test runs the programs themselves.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attend, kernels, masks
from attention.kernels.gpu import triton, triton_kernels
from attention.masks import pallas, pattern_terms, patterns, terms
from attention.masks.block_mask import make_block_mask
from tests.attention.kernels import cases
from tests.attention.kernels.cases import B, N
from tests.attention.subjects import normal

T, S = 37, 53
MASKS = cases.every_mask(T, S)
ALL = {"logit_cap": 2.0}
BOTH = ("triton", "reference")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(triton, "block_sizes", lambda *_: (16, 16))


def everything(**sizes):
    return cases.inputs(T, S, **sizes, bias=normal(10, 1, N, T, S), sinks=normal(11, N))


QUICK = {"segments", "dense", "big_bird"}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in MASKS]
)
def test_masks_and_all_options_equal_the_reference(name):
    cases.assert_equals_reference(
        triton.attend, everything(), kernels.interpreted, mask=MASKS[name], **ALL
    )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["causal_by_example", "lengths", "global_tokens"])
def test_masks_equal_the_reference_forward(name):
    """The backward pass reads a block of the mask by the same function."""
    inputs = cases.inputs(T, S)

    @jax.jit
    def outputs(inputs):
        with kernels.interpreted():
            return [attend(**inputs, mask=MASKS[name], implementation=k) for k in BOTH]

    np.testing.assert_allclose(*outputs(inputs), atol=2e-6)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        pytest.param({}, {}, marks=pytest.mark.slow),
        ({"K": 1, "V": 20}, {"logit_cap": 1.0}),
        pytest.param({"K": 4, "H": 33}, {}, marks=pytest.mark.slow),
        pytest.param({"bias": normal(10, B, 1, T, S)}, {}, marks=pytest.mark.slow),
        pytest.param({"bias": normal(10, B, N, T, S)}, {"logit_cap": 1.0}, marks=pytest.mark.slow),
        pytest.param({"sinks": normal(11, N)}, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_options_equal_the_reference(sizes, options):
    cases.assert_equals_reference(
        triton.attend, cases.inputs(T, S, **sizes), kernels.interpreted, **options
    )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("dtype", "atol"),
    [("bfloat16", 0.02), pytest.param("float16", 0.003, marks=pytest.mark.slow)],
)
def test_short_floats_are_close_and_stay(dtype, atol):
    inputs = cases.inputs(T, S, dtype=jnp.dtype(dtype), sinks=normal(11, N))
    tolerance = {"atol": atol, "slope_atol": 2 * atol}
    cases.assert_equals_reference(
        triton.attend, inputs, kernels.interpreted, mask=MASKS["causal"], **tolerance
    )


@pytest.mark.usefixtures("small_blocks")
def test_empty_rows_are_zero_even_of_huge_logits():
    inputs = {name: 100.0 * array for name, array in cases.inputs(T, S).items()}
    mask = masks.lengths(jnp.array([T, 20]), jnp.array([0, 30])) & masks.causal(-5)
    out, slopes = cases.run(triton.attend, inputs, kernels.interpreted, mask=mask)
    assert (out[0] == 0).all()
    assert (out[1, :5] == 0).all()
    assert (out[1, 20:] == 0).all()
    assert (np.abs(out[1, 5:20]) > 0).all()
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    for name, first in (("query", 20), ("key", 30), ("value", 30)):
        assert (slopes[name][0] == 0).all()
        assert (slopes[name][1, first:] == 0).all()


@pytest.mark.usefixtures("small_blocks")
def test_a_sink_of_minus_infinity_takes_nothing():
    inputs = cases.inputs(T, S, sinks=jnp.array([-jnp.inf, 0.0, -jnp.inf, 1.0]))
    mask = masks.lengths(key=jnp.array([0, 30]))
    cases.assert_equals_reference(triton.attend, inputs, kernels.interpreted, mask=mask)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_that_nobody_sees_are_never_read():
    mask = masks.causal(0) & masks.window(20, 0, 0) & masks.lengths(key=jnp.array([S, 16]))
    inputs = cases.inputs(T, S)
    out, slopes = cases.run(triton.attend, inputs, kernels.interpreted, mask=mask)
    # Of 37 queries none sees the fourth block of keys; in the second example, only the first.
    spoilt = dict(inputs)
    for name in ("key", "value"):
        spoilt[name] = inputs[name].at[:, 48:].set(jnp.nan).at[1, 16:].set(jnp.nan)
    other, other_slopes = cases.run(triton.attend, spoilt, kernels.interpreted, mask=mask)
    np.testing.assert_array_equal(other, out)
    np.testing.assert_array_equal(other_slopes["query"], slopes["query"])
    np.testing.assert_array_equal(other_slopes["key"], slopes["key"])


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", [*MASKS, "none"])
def test_block_masks_list_full_then_partial_then_hidden_blocks(name, by_key, hidden):
    mask = MASKS.get(name)
    indices, *counts = make_block_mask(mask, B, T, S, 16, 8, by_key=by_key, hidden=hidden)
    allowed = np.ones((1, 1, T, S), bool) if mask is None else mask.materialize(B, N, T, S)
    allowed = np.broadcast_to(allowed, (B, N, T, S)).transpose(0, 2, 3, 1)
    seen = np.pad(allowed, ((0, 0), (0, 48 - T), (0, 56 - S), (0, 0))).reshape(B, 3, 16, 7, 8, N)
    # Padding of queries counts as what it likes: its rows are thrown away.
    visible, full = seen.any((2, 4, 5)), seen[:, :2].all((2, 4, 5))
    full = np.concatenate([full, np.ones((B, 1, 7), bool)], axis=1)
    full[:, 2] = seen[:, 2, : T - 32].all((1, 3, 4))
    if by_key:
        visible, full = visible.swapaxes(1, 2), full.swapaxes(1, 2)
    rows, columns = visible.shape[1:]
    indices = np.broadcast_to(indices, (B, rows, indices.shape[-1]))
    num_full, num_visible = (np.broadcast_to(count, (B, rows)) for count in counts)
    for b, row in np.ndindex(B, rows):
        visited = indices[b, row, : num_visible[b, row]]
        assert set(np.flatnonzero(visible[b, row])) <= set(visited.tolist())
        assert full[b, row, indices[b, row, : num_full[b, row]]].all()
        assert len(set(visited.tolist())) == num_visible[b, row]
        if hidden or name in ("none", "causal_by_example"):
            assert sorted(indices[b, row]) == list(range(columns))


def test_every_condition_has_its_tile():
    found = [
        term
        for module in (terms, pattern_terms)
        for _, term in inspect.getmembers(module, inspect.isclass)
        if issubclass(term, terms.MaskTerm) and term is not terms.MaskTerm
    ]
    assert len(found) >= 12
    for function in (pallas.prepare_for_kernel, pallas.evaluate_block):
        for term in found:
            if term is not pattern_terms.BigBird or function is pallas.prepare_for_kernel:
                assert function.dispatch(term) is not function.dispatch(object), term


Q, K, V = (cases.inputs(T, S)[name] for name in ("query", "key", "value"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_rate": 0.5, "dropout_key": jax.random.key(0)}, "dropout_rate: not supported"),
        ({"mask": cases.UNKNOWN}, r"mask: got unknown\(\), expected a term"),
        ({"mask": cases.UNKNOWN | MASKS["causal"]}, r"mask: got unknown\(\), expected"),
    ],
)
def test_what_it_cannot_is_refused(options, message):
    with (
        kernels.interpreted(),
        pytest.raises(
            NotImplementedError, match=f"^triton: {message}.*; supported by: .*reference$"
        ),
    ):
        attend(Q, K, V, implementation="triton", **options)


def test_wide_heads_and_float64_are_refused():
    wide = jnp.zeros((1, 2, 1, 257))
    with (
        kernels.interpreted(),
        pytest.raises(NotImplementedError, match="head size: got 257, exp"),
    ):
        attend(wide, wide, wide, implementation="triton")
    with jax.enable_x64(True), kernels.interpreted():
        double = jnp.zeros((1, 2, 1, 4), jnp.float64)
        with pytest.raises(NotImplementedError, match="dtype: got float64, expected bfloat16"):
            attend(double, double, double, implementation="triton")


def test_the_gradient_of_a_bias_is_no_work_where_nobody_asks():
    def program(by):
        def loss(query, bias):
            return attend(query, K, V, bias=bias, implementation="triton").sum()

        with kernels.lowering_for("cuda"):
            return str(jax.make_jaxpr(jax.grad(loss, by))(Q, jnp.asarray(normal(10, 1, N, T, S))))

    full = f"f32[{B},{N},64,64]"
    assert full in program(1)
    assert full not in program(0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.slow
def test_vmap_equals_a_loop():
    def one(query, key, value, length):
        mask = masks.lengths(key=length[None])
        with kernels.interpreted():
            return attend(query[None], key[None], value[None], mask=mask, implementation="triton")

    lengths = jnp.array([30, 0])
    mapped = jax.jit(jax.vmap(one))(Q, K, V, lengths)[:, 0]
    mask = masks.lengths(key=lengths)
    np.testing.assert_allclose(mapped, attend(Q, K, V, mask=mask), atol=2e-6)


def lower(dtype, mask):
    inputs = cases.inputs(200, 300, H=64, V=64, dtype=dtype)
    inputs |= {"bias": jnp.ones((1, N, 200, 300)), "sinks": jnp.ones(N)}

    def loss(inputs):
        out = attend(**inputs, mask=mask, logit_cap=3.0, implementation="triton")
        return out.astype(jnp.float32).sum()

    with kernels.lowering_for("cuda"):
        return jax.jit(jax.grad(loss)).trace(inputs).lower(lowering_platforms=("cuda",)).as_text()


LOWERED = cases.every_mask(200, 300)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [("float32", "segments"), pytest.param("float16", "window", marks=pytest.mark.slow)]
    + [pytest.param("bfloat16", n, marks=[pytest.mark.slow] * (n != "big_bird")) for n in LOWERED],
)
def test_the_programs_lower_for_cuda(dtype, name):
    text = lower(jnp.dtype(dtype), LOWERED[name])
    assert text.count("@__gpu$xla.gpu.triton") == 3
    for program in ("attend_forward", "attend_dq", "attend_dkdv"):
        assert program in text


def test_the_programs_lower_where_64_bits_are_enabled():
    with jax.enable_x64(True):
        text = lower(jnp.dtype("float32"), LOWERED["big_bird"])
    assert text.count("@__gpu$xla.gpu.triton") == 3


@cases.ON["cuda"]
def test_on_the_device():
    learned = {"bias": jnp.asarray(normal(10, 1, N, 200, 300)), "sinks": jnp.asarray(normal(11, N))}
    for dtype, atol in (("float32", 1e-5), ("bfloat16", 0.02), ("float16", 0.003)):
        inputs = cases.inputs(200, 300, H=64, V=64, dtype=jnp.dtype(dtype)) | learned
        for mask in LOWERED.values():
            with jax.default_matmul_precision("highest"):
                cases.assert_equals_reference(
                    triton.attend, inputs, atol=atol, slope_atol=2 * atol, mask=mask, **ALL
                )


def test_patterns_skip_most_blocks():
    length = 1024
    mask = patterns.big_bird(64, random_blocks=1) & masks.causal()
    block_mask = make_block_mask(mask, 1, length, length, 64, 64)
    # Itself and the one before, the first block, and one at random.
    assert block_mask.indices.shape == (1, 16, 4)
    assert block_mask.num_visible.max() == 4


@pytest.mark.parametrize(
    ("dtype", "size", "block"),
    [
        ("float32", 32, 64),
        # Of 64 x 64 in float32 a thread would hold more than it has registers for.
        ("float32", 64, 32),
        ("float32", 128, 16),
        ("bfloat16", 64, 64),
        ("bfloat16", 80, (32, 64)),
        ("bfloat16", 128, 64),
        ("bfloat16", 256, 32),
    ],
)
def test_blocks_get_smaller_as_heads_get_wider(dtype, size, block, monkeypatch):
    found = []
    sizes = triton.block_sizes
    monkeypatch.setattr(triton, "block_sizes", lambda *a: found.append(sizes(*a)) or found[0])
    x = jax.ShapeDtypeStruct((1, 512, 1, size), jnp.dtype(dtype))
    with kernels.lowering_for("cuda"):
        jax.eval_shape(lambda x: attend(x, x, x, implementation="triton"), x)
    assert found == [block if isinstance(block, tuple) else (block, block)]


@pytest.mark.parametrize(
    ("dtype", "size", "parts"),
    [
        ("bfloat16", 6, [16]),
        ("bfloat16", 72, [64, 16]),
        ("float16", 80, [64, 16]),
        ("bfloat16", 112, [128]),
        ("bfloat16", 192, [128, 64]),
        ("bfloat16", 256, [128, 128]),
        ("float32", 16, [16]),
        ("float32", 33, [64]),
        ("float32", 80, [64, 32]),
        ("float32", 200, [64, 64, 64, 32]),
    ],
)
def test_parts_of_heads_are_powers_of_two_with_little_padding(dtype, size, parts):
    found = triton_kernels.parts(size, jnp.dtype(dtype).itemsize)
    assert [width for _, width in found] == parts
    assert [start for start, _ in found] == [sum(parts[:n]) for n in range(len(parts))]
    assert triton_kernels.padded_width(size, jnp.dtype(dtype).itemsize) == sum(parts)
    # The padded arrays have the same parts.
    assert triton_kernels.parts(sum(parts), jnp.dtype(dtype).itemsize) == found


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "sizes",
    [{"H": 80, "V": 200}, pytest.param({"H": 136, "V": 33, "K": 1}, marks=pytest.mark.slow)],
    ids=str,
)
def test_heads_of_several_parts_equal_the_reference(sizes):
    inputs = cases.inputs(T, S, **sizes, bias=normal(10, 1, N, T, S))
    cases.assert_equals_reference(
        triton.attend, inputs, kernels.interpreted, mask=MASKS["segments"], scale=0.1
    )


def test_float32_goes_through_tensor_cores_in_three_products():
    x = jnp.zeros((1, 64, 1, 64))
    with kernels.lowering_for("cuda"):
        text = str(jax.make_jaxpr(lambda x: attend(x, x, x, implementation="triton"))(x))
    assert text.count("TF32_TF32_F32_X3") == 4
    assert "HIGHEST" not in text
