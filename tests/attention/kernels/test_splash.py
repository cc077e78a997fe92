"""The kernel "splash" in the interpreter: several blocks an axis, every structure that it takes.

On a machine with a TPU the last test runs the program itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attend, kernels, masks
from attention.kernels.tpu import splash
from attention.masks import patterns
from tests.attention.kernels import cases
from tests.attention.kernels.cases import B, N
from tests.attention.subjects import normal

# Three blocks of 128 each, the last in part padding.
T, S = 300, 260


def each_mask(T, S):
    half = S // 2
    return {
        "none": None,
        "causal": masks.causal(S - T),
        "nothing_before": masks.causal(-T // 2),
        "window": masks.window(half, 3, 16),
        "two_windows": masks.window(half, None, 5) & masks.window(None, half, -1),
        "left": masks.window(30, None, 5),
        "right": masks.window(None, 30, -half),
        "one_key": masks.window(0, 0, 0),
        "lengths": masks.lengths(jnp.array([T - 9, 20]), jnp.array([half, 0])),
        "valid": masks.causal(S - T) & masks.valid(cases.marks(1, T), cases.marks(2, S)),
        "segments": masks.segments(cases.ids(3, T), cases.ids(4, S)),
        "packed": masks.segments(cases.ids(3, T), cases.ids(4, S))
        & masks.lengths(key=jnp.array([half, S]))
        & masks.causal(0),
    }


MASKS = each_mask(T, S)


@pytest.mark.parametrize("name", MASKS)
def test_structure_means_what_the_mask_does(name):
    rows, columns = 11, 8
    mask = each_mask(rows, columns)[name]
    low, high, query_ids, key_ids = splash.structure(mask, B, rows, columns)
    distance = np.arange(columns) - np.arange(rows)[:, None]
    allowed = np.ones((B, rows, columns), bool)
    allowed &= True if low is None else distance >= low
    allowed &= True if high is None else distance <= high
    if query_ids is not None:
        allowed &= np.asarray(query_ids)[:, :, None] == np.asarray(key_ids)[:, None]
    expected = True if mask is None else mask.materialize(B, N, rows, columns)[:, 0]
    np.testing.assert_array_equal(allowed, np.broadcast_to(expected, allowed.shape))


QUICK = {"window", "packed"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in MASKS]
)
def test_masks_and_all_options_equal_the_reference(name):
    inputs = cases.inputs(T, S, sinks=jnp.asarray(normal(11, N)))
    cases.assert_equals_reference(
        splash.attend, inputs, kernels.interpreted, mask=MASKS[name], logit_cap=2.0
    )


@pytest.mark.parametrize(
    ("sizes", "mask"),
    [
        ({"K": 4, "H": 8, "V": 8}, "lengths"),
        pytest.param({"K": 1, "H": 16, "V": 24}, "causal", marks=pytest.mark.slow),
        pytest.param({"K": 2}, "none", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_heads_equal_the_reference(sizes, mask):
    inputs = cases.inputs(T, S, **sizes)
    cases.assert_equals_reference(splash.attend, inputs, kernels.interpreted, mask=MASKS[mask])


def test_whole_blocks_need_no_ids():
    inputs = cases.inputs(256, 256)
    cases.assert_equals_reference(
        splash.attend, inputs, kernels.interpreted, mask=masks.window(100, 0)
    )


def test_empty_rows_are_zero_even_of_huge_logits():
    inputs = {name: 100.0 * array for name, array in cases.inputs(T, S).items()}
    # For the first rows complete blocks are skipped; for others all remaining keys are hidden.
    mask = masks.causal(-140) & masks.lengths(jnp.array([T, 200]), jnp.array([0, 50]))
    out, slopes = cases.run(splash.attend, inputs, kernels.interpreted, mask=mask)
    assert (out[0] == 0).all()
    assert (out[1, :140] == 0).all()
    assert (out[1, 200:] == 0).all()
    assert (np.abs(out[1, 140:200]) > 0).all()
    assert all(np.isfinite(slope).all() for slope in slopes.values())
    for name in ("query", "key", "value"):
        assert (slopes[name][0] == 0).all()
        assert (slopes[name][1, 200:] == 0).all()
        assert np.abs(slopes[name][1]).max() > 0


def test_a_sink_of_minus_infinity_takes_nothing():
    inputs = cases.inputs(T, S, sinks=jnp.array([-jnp.inf, 0.0, -jnp.inf, 1.0]))
    mask = masks.lengths(key=jnp.array([0, 30]))
    cases.assert_equals_reference(splash.attend, inputs, kernels.interpreted, mask=mask)


@pytest.mark.parametrize(
    "dtype",
    ["float32", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (None, "bfloat16"))],
)
def test_bfloat16_is_close_and_stays(dtype):
    """With sinks of either dtype too."""
    sinks = {} if dtype is None else {"sinks": jnp.asarray(normal(11, N), dtype)}
    cases.assert_equals_reference(
        splash.attend,
        cases.inputs(T, S, dtype=jnp.bfloat16, **sinks),
        kernels.interpreted,
        atol=0.02,
        slope_atol=0.04,
        mask=MASKS["causal"],
    )


Q, K, V = (cases.inputs(T, S)[name] for name in ("query", "key", "value"))
TWICE = masks.segments(cases.ids(3, T), cases.ids(4, S))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": normal(10, 1, N, T, S)}, "bias: not supported"),
        ({"dropout_rate": 0.5, "dropout_key": jax.random.key(0)}, "dropout_rate: not supported"),
        ({"mask": masks.causal(jnp.array([3, 4]))}, "mask: got a traced query_offset"),
        ({"mask": TWICE & TWICE}, r"mask: got segments\(\) twice"),
        (
            {"mask": masks.window(0, 0, 5) & masks.causal(0)},
            "mask: got windows that together hide all",
        ),
        ({"mask": masks.prefix(3, 0)}, r"mask: got prefix\(\), expected windows and ids"),
        ({"mask": patterns.strided(4, 0)}, r"mask: got strided\(\), expected windows"),
        ({"mask": masks.dense(jnp.ones((1, 1, T, S), bool))}, r"mask: got dense\(\), expected"),
        ({"mask": TWICE | masks.causal(0)}, r"mask: got a mask joined with \|, expected windows"),
    ],
)
def test_what_it_cannot_is_refused(options, message):
    with (
        kernels.interpreted(),
        pytest.raises(
            NotImplementedError, match=f"^splash: {message}.*; supported by: .*reference$"
        ),
    ):
        attend(Q, K, V, implementation="splash", **options)


def test_float16_is_refused():
    with kernels.interpreted(), pytest.raises(NotImplementedError, match="dtype: got float16, exp"):
        attend(*(array.astype(jnp.float16) for array in (Q, K, V)), implementation="splash")


@pytest.mark.parametrize(
    ("sizes", "dtype", "name"),
    [
        ((1024, 1024, 64), "bfloat16", "packed"),
        pytest.param((300, 260, 128), "float32", "window", marks=pytest.mark.slow),
        pytest.param((1024, 512, 80), "bfloat16", "none", marks=pytest.mark.slow),
    ],
)
def test_the_program_lowers_for_tpu(sizes, dtype, name):
    rows, columns, size = sizes
    sinks = jnp.asarray(normal(11, N), dtype)
    inputs = cases.inputs(rows, columns, H=size, V=size, dtype=jnp.dtype(dtype), sinks=sinks)
    mask = each_mask(rows, columns)[name]

    def loss(inputs):
        out = attend(**inputs, mask=mask, logit_cap=3.0, implementation="splash")
        return out.astype(jnp.float32).sum()

    with kernels.lowering_for("tpu"):
        lowered = jax.jit(jax.grad(loss)).trace(inputs).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("@tpu_custom_call") == 3


@cases.ON["tpu"]
def test_on_the_device():
    for dtype, atol in (("bfloat16", 0.02), ("float32", 0.02)):
        inputs = cases.inputs(T, S, H=64, V=64, dtype=jnp.dtype(dtype))
        inputs |= {"sinks": jnp.asarray(normal(11, N))}
        for mask in MASKS.values():
            cases.assert_equals_reference(
                splash.attend, inputs, atol=atol, slope_atol=2 * atol, mask=mask, logit_cap=2.0
            )
