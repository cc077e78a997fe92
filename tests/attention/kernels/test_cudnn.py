"""The kernel "cudnn": what it refuses, and that what it says to `jax.nn` means the same.

The same call runs by XLA here; on a machine with an NVIDIA GPU the last test runs it by cuDNN.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attend, kernels, masks
from attention.kernels.gpu import cudnn
from attention.masks import patterns
from tests.attention.kernels import cases
from tests.attention.kernels.cases import B, N
from tests.attention.subjects import normal

T = 12


def by_xla(query, key, value, *, mask, bias, scale, **others):
    assert others == {
        "logit_cap": None,
        "sinks": None,
        "dropout_rate": 0.0,
        "dropout_key": None,
    }
    found = cudnn.arguments(mask, query.shape[1], key.shape[1])
    return cudnn.compute(query, key, value, found, bias=bias, scale=scale, implementation="xla")


def lengths(query=None, key=None):
    return masks.lengths(*(None if n is None else jnp.array(n) for n in (query, key)))


MASKS = {
    "none": None,
    "causal": masks.causal(),
    "window": masks.window(3, 0),
    "two_windows": masks.window(5, 0, 0) & masks.window(2, 0) & masks.causal(0),
    "key_lengths": lengths(key=[7, 0]),
    "query_lengths": lengths(query=[0, 9]),
    "both_lengths": lengths([12, 5], [3, 12]) & lengths([7, 99], [99, -1]),
    "causal_lengths": masks.causal() & lengths([12, 5], [3, 12]),
    # Late queries see no real key.
    "window_lengths": masks.window(2, 0) & lengths(key=[4, 0]),
    "window_both_lengths": masks.window(2, 0) & lengths([12, 8], [6, 11]),
}


BIASES = (None, (1, 1), (B, 1), (1, N), (B, N))


@pytest.mark.parametrize(
    ("bias", "name"),
    [
        # Each mask with one shape of bias; the other pairs are slow tests.
        pytest.param(
            bias,
            name,
            id=f"bias{column}-{name}",
            marks=[pytest.mark.slow] * (row % len(BIASES) != column),
        )
        for row, name in enumerate(MASKS)
        for column, bias in enumerate(BIASES)
    ],
)
def test_masks_and_biases_mean_the_same(name, bias):
    inputs = cases.inputs(T, T, H=8, V=8)
    if bias is not None:
        inputs["bias"] = jnp.asarray(normal(10, *bias, T, T))
    out, _ = cases.assert_equals_reference(by_xla, inputs, mask=MASKS[name])
    if name in ("key_lengths", "window_lengths"):
        assert (out[1] == 0).all()


@pytest.mark.parametrize(
    ("S", "K", "name"), [(12, 1, "causal"), (7, 4, "none"), (20, 2, "lengths")]
)
def test_shared_heads_and_other_lengths_mean_the_same(S, K, name):
    mask = lengths([12, 5], [0, 17]) if name == "lengths" else MASKS[name]
    cases.assert_equals_reference(by_xla, cases.inputs(T, S, K=K, H=8, V=8), mask=mask)


def test_padding_lets_nothing_through():
    """Gradients of padding queries and keys are 0, even if cuDNN returns other values."""
    inputs = cases.inputs(T, T, H=8, V=8)
    mask = lengths([12, 5], [3, 12])
    spoilt = dict(inputs)
    spoilt["query"] = inputs["query"].at[1, 5:].set(jnp.nan)
    for name in ("key", "value"):
        spoilt[name] = inputs[name].at[0, 3:].set(jnp.nan)
    out, slopes = cases.run(by_xla, inputs, mask=mask)
    other, other_slopes = cases.run(by_xla, spoilt, mask=mask)
    np.testing.assert_array_equal(other, out)
    for name, slope in slopes.items():
        np.testing.assert_array_equal(other_slopes[name], slope)


@pytest.fixture
def calls(monkeypatch):
    """Returns the arguments with which `jax.nn.dot_product_attention` is called."""
    found = []

    def fake(query, key, value, bias, **options):
        found.append({"bias": bias, **options})
        return jnp.full(query.shape, jnp.nan, query.dtype)

    monkeypatch.setattr(jax.nn, "dot_product_attention", fake)
    return found


def half(*shape):
    return jnp.asarray(normal(0, *shape), jnp.bfloat16)


def on_a_gpu(query=None, key=None, value=None, **options):
    query = half(B, T, N, 8) if query is None else query
    key = half(B, T, 2, 8) if key is None else key
    with kernels.lowering_for("cuda"):
        return attend(
            query, key, key if value is None else value, implementation="cudnn", **options
        )


def test_arguments_of_the_call(calls):
    out = on_a_gpu(mask=masks.window(2, 0) & lengths(key=[4, 0]), scale=0.3)
    (call,) = calls
    assert call["implementation"] == "cudnn"
    assert call["is_causal"]
    assert call["local_window_size"] == (2, 0)
    assert call["scale"] == 0.3
    assert call["bias"] is None
    # No length is 0, which cuDNN may not survive; and no row that is left is empty.
    np.testing.assert_array_equal(call["query_seq_lengths"], [6, 1])
    np.testing.assert_array_equal(call["key_value_seq_lengths"], [4, 1])
    assert call["query_seq_lengths"].dtype == jnp.int32
    # The values of cuDNN in rows that may attend to nothing are not used.
    assert jnp.isnan(out[0, :6]).all()
    assert (out[0, 6:] == 0).all()
    assert (out[1] == 0).all()


def test_odd_numbers_of_keys_come_with_their_length(calls):
    on_a_gpu()
    np.testing.assert_array_equal(calls[0]["key_value_seq_lengths"], [T, T])
    on_a_gpu(half(B, 128, N, 8), half(B, 128, N, 8), bias=half(1, 1, 128, 128))
    assert calls[1]["key_value_seq_lengths"] is None
    assert calls[1]["bias"].shape == (1, N, 128, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_cap": 2.0}, "logit_cap: not supported"),
        ({"sinks": half(N)}, "sinks: not supported"),
        ({"dropout_rate": 0.5, "dropout_key": jax.random.key(0)}, "dropout_rate: not supported"),
        ({"value": half(B, T, 2, 16)}, "value: got head size 16, expected the query's 8"),
        (
            {"query": half(B, T, N, 12), "key": half(B, T, N, 12)},
            "head size: got 12, exp",
        ),
        ({"query": half(1, 1, 1, 136), "key": half(1, 1, 1, 136)}, "head size: got 136, .* 128"),
        ({"bias": normal(0, 1, 1, T, T)}, "bias: got dtype float32, expected the query's bfloat16"),
        ({"bias": half(1, 1, T, T)}, "bias: got 12 queries and 12 keys, expected multiples of 128"),
        ({"mask": masks.window(3, 3)}, "mask: got a window to the right, expected"),
        ({"mask": masks.window(3, None)}, "mask: got a window to the right, expected"),
        (
            {"mask": masks.causal(1)},
            "mask: got a query_offset that is not the integer 0, expected T == S",
        ),
        (
            {"mask": masks.causal(jnp.array(0))},
            "mask: got a query_offset that is not the integer 0, expected T == S",
        ),
        (
            {"query": half(B, 3, N, 8), "mask": masks.causal(0)},
            "mask: got T=3 and S=12, expected T == S",
        ),
        ({"mask": masks.prefix(3)}, r"mask: got prefix\(\)"),
        ({"mask": masks.valid(key=cases.marks(0, T))}, r"mask: got valid\(\)"),
        ({"mask": masks.segments(cases.ids(0, T), cases.ids(1, T))}, r"mask: got segments\(\)"),
        ({"mask": masks.dense(jnp.ones((1, 1, T, T), bool))}, r"mask: got dense\(\)"),
        ({"mask": patterns.strided(3)}, r"mask: got strided\(\)"),
        ({"mask": masks.causal() | masks.window(1, 1)}, r"mask: got a mask joined with"),
    ],
)
def test_what_it_cannot_is_refused(options, message):
    with pytest.raises(
        NotImplementedError, match=f"^cudnn: {message}.*; supported by: .*reference$"
    ):
        on_a_gpu(**options)


def test_float32_is_refused():
    with pytest.raises(NotImplementedError, match="dtype: got float32, expected bfloat16"):
        on_a_gpu(jnp.ones((1, 2, 1, 8)), jnp.ones((1, 2, 1, 8)))


def test_without_cudnn_it_refuses(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", missing)
    with pytest.raises(NotImplementedError, match="cudnn: cuDNN is not detected; supported by"):
        on_a_gpu()


@cases.ON["cuda"]
def test_on_the_device():
    for dtype, atol in ((jnp.bfloat16, 0.02), (jnp.float16, 0.003)):
        inputs = cases.inputs(T, T, H=64, V=64, dtype=dtype)
        wide = cases.inputs(128, 128, H=64, V=64, dtype=dtype)
        wide["bias"] = jnp.asarray(normal(10, 1, 1, 128, 128), dtype)
        for mask in MASKS.values():
            for given in (inputs, wide):
                cases.assert_equals_reference(
                    cudnn.attend, given, atol=atol, slope_atol=2 * atol, mask=mask
                )
