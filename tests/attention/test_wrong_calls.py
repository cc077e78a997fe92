"""Invalid calls: the error is one line with the argument, its value and the expectation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attention import (
    AttentionPool,
    GeneralAlignment,
    MultiHeadAttention,
    MultiHeadPool,
    attend,
    attention_pool,
    attention_weights,
    explain_choice,
    masks,
    registry,
)
from attention.dropout import dropout
from tests.attention import subjects
from tests.attention.subjects import B, D, H, N, S, T, normal

QUERY, KEY, VALUE = normal(0, B, T, N, H), normal(1, B, S, N, H), normal(2, B, S, N, H)
HINT = "did you pass [B, N, T, H]? The layout here is [B, T, N, H]"


def told(message, call, *arguments, **options):
    """Asserts that a call fails with a one-line message that begins with `message`."""
    with pytest.raises(ValueError) as caught:
        call(*arguments, **options)
    # JAX appends lines to errors that are raised under jit.
    line = str(caught.value).split("\n-----")[0]
    assert re.match(message, line), line
    assert re.fullmatch(r"[\w .()=]+: got .+, expected .+", line), line
    assert len(line) < 1000
    return line


WRONG = {
    "rank": ({"query": QUERY[0]}, r"query: got shape \[5, 4, 6\], expected \[B, T, N, H\]"),
    "batch": ({"key": KEY[:1]}, r"key: got shape \[1, 7, 4, 6\], expected .* with B=2, H=6"),
    "head_size": ({"key": KEY[..., :5]}, r"key: got shape \[2, 7, 4, 5\], .* \[B, S, K, H\]"),
    "value_length": ({"value": VALUE[:, :3]}, r"value: got shape \[2, 3, 4, 6\], .* S=7, K=4"),
    "value_heads": ({"value": VALUE[:, :, :2]}, r"value: got shape \[2, 7, 2, 6\], .* S=7, K=4"),
    "grouped_heads": (
        {"key": KEY[:, :, :3], "value": VALUE[:, :, :3]},
        r"key: .* K=3 heads, expected a number of heads that divides the query's N=4",
    ),
    "more_key_heads": (
        {"query": QUERY[:, :, :2]},
        r"key: .* K=4 heads, expected a number of heads that divides the query's N=2",
    ),
    "lists": ({"query": QUERY.tolist()}, "query: got list, expected a floating-point array"),
    "mixed_dtypes": (
        {"value": VALUE.astype(np.float16)},
        r"value: got dtype float16, expected float32 like query; cast one of them",
    ),
    "integers": ({"query": np.ones(QUERY.shape, np.int32)}, "query: got dtype int32, expected a f"),
    "complex": ({"key": KEY.astype(np.complex64)}, "key: got dtype complex64, expected a floating"),
    "float_mask": (
        {"mask": np.zeros((B, 1, T, S), np.float32)},
        r"mask: got dtype float32, expected bool \(True = may attend; pass a float mask as bias\)",
    ),
    "integer_mask": ({"mask": np.ones((B, 1, T, S), np.int32)}, "mask: got dtype int32, expected"),
    "padding_mask": (
        {"mask": np.ones((B, S), bool)},
        r"mask: got shape \[2, 7\], .* always rank 4; for padding \[B, S\] use masks.valid\(key=",
    ),
    "mask_rank_3": ({"mask": np.ones((B, T, S), bool)}, r"mask: got shape \[2, 5, 7\], .* rank 4$"),
    "mask_of_one_query": (
        {"mask": np.ones((B, 1, 1, S), bool)},
        r"mask: got shape \[2, 1, 1, 7\], expected \[B=2 or 1, N=4 or 1, T=5, S=7\]$",
    ),
    "mask_transposed": (
        {"mask": np.ones((B, 1, S, T), bool)},
        r"mask: got shape \[2, 1, 7, 5\], expected \[B=2 or 1, N=4 or 1, T=5, S=7\]$",
    ),
    "mask_batch": ({"mask": np.ones((3, 1, T, S), bool)}, r"mask: .* expected \[B=2 or 1, N=4 or"),
    "mask_lengths": (
        {"mask": masks.lengths(key=np.ones(3, int))},
        r"mask lengths\(key=\): got shape \[3\], expected \[B\] with B=2",
    ),
    "mask_valid": (
        {"mask": masks.valid(query=np.ones((B, S), bool))},
        r"mask valid\(query=\): got shape \[2, 7\], expected \[B, T\] with B=2, T=5",
    ),
    "causal_offset": (
        {"mask": masks.causal()},
        r"query_offset: got none with T=5 queries and S=7 keys, expected .*, 2 aligns the last po",
    ),
    "window_offset": ({"mask": masks.window(1, 1)}, "query_offset: got none with T=5 queries"),
    "bias_rank": ({"bias": normal(0, T, S)}, r"bias: got shape \[5, 7\], expected \[B=2 or 1, N"),
    "bias_dtype": ({"bias": np.ones((1, 1, T, S), bool)}, "bias: got dtype bool, expected a float"),
    "sinks": ({"sinks": normal(0, 3)}, r"sinks: got shape \[3\], expected \[N\] with N=4"),
    "logit_cap": ({"logit_cap": 0.0}, "logit_cap: got 0.0, expected a positive number"),
    "rate_below": ({"dropout_rate": -1.0}, r"dropout_rate: got -1.0, expected a rate in \[0, 1\)"),
    "rate_of_1": ({"dropout_rate": 1.0}, r"dropout_rate: got 1.0, expected a rate in \[0, 1\)"),
    "rate_nan": ({"dropout_rate": float("nan")}, "dropout_rate: got nan, expected a rate in"),
    "no_key": (
        {"dropout_rate": 0.1},
        r"dropout_rate: got 0.1 without a key, expected a dropout_key for a rate",
    ),
    "kernel": (
        {"implementation": "referense"},
        r"kernel: got 'referense', expected one of .*; did you mean 'reference'\?$",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_attend(name):
    change, message = WRONG[name]
    arguments = {"query": QUERY, "key": KEY, "value": VALUE} | change
    told(message, attend, **arguments)
    # Under jit the error is raised while tracing.
    static = {k: v for k, v in arguments.items() if isinstance(v, str | float)}
    traced = {k: v for k, v in arguments.items() if k not in static}
    told(message, jax.jit(lambda traced: attend(**traced, **static)), traced)
    if "implementation" not in change:
        told(message, explain_choice, **arguments)
    if not change.keys() & {"value", "dropout_rate", "implementation"}:
        arguments.pop("value")
        told(message, attention_weights, **arguments)


def heads_first(*arrays):
    return [array.swapaxes(1, 2) for array in arrays]


ALL = heads_first(QUERY, KEY, VALUE)
ITSELF = heads_first(QUERY, QUERY, QUERY)
SWAPPED = {
    # Seen by the shapes alone ...
    "query": ([*heads_first(QUERY), KEY, VALUE], {}, False),
    "key_and_value": ([QUERY, *heads_first(KEY, VALUE)], {}, False),
    "all_across": (ALL, {}, True),
    # ... or with what else is given. Self-attention alone could be N positions of T heads.
    "mask": (ITSELF, {"mask": np.ones((B, 1, T, T), bool)}, True),
    "bias": (ITSELF, {"bias": normal(0, B, N, T, T)}, True),
    "valid_keys": (ITSELF, {"mask": masks.valid(key=np.ones((B, T), bool))}, True),
    "valid_queries": (ITSELF, {"mask": masks.valid(query=np.ones((B, T), bool))}, True),
    "segments": (
        ITSELF,
        {"mask": masks.segments(np.ones((B, T), int), np.ones((B, T), int))},
        True,
    ),
    "joined": (
        ITSELF,
        {"mask": masks.causal() & masks.valid(key=np.ones((B, T), bool))},
        True,
    ),
    "sinks": (ITSELF, {"sinks": normal(0, N)}, False),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_heads_first_is_refused(name):
    arrays, options, hinted = SWAPPED[name]
    line = told("", attend, *arrays, **options)
    assert line.endswith(HINT) == hinted, line
    assert told("", attention_weights, *arrays[:2], **options).endswith(HINT) == hinted


X = jnp.asarray(normal(3, B, T, D))
RATES = [
    (-1.0, r"dropout_rate: got -1.0, expected a rate in \[0, 1\)"),
    (1.0, r"dropout_rate: got 1.0, expected a rate in \[0, 1\)"),
]


@pytest.mark.parametrize(("rate", "message"), RATES)
def test_dropout_rates(rate, message):
    rngs = nnx.Rngs(0)
    told(message, dropout, X, rate, jax.random.key(0))
    told(message, attention_pool, X, X[..., 0], dropout_rate=rate)
    for pool in (AttentionPool, MultiHeadPool):
        told(message, pool, D, dropout_rate=rate, rngs=rngs)
    told(message, MultiHeadAttention, D, 2, dropout_rate=rate, rngs=rngs)


def test_dropout_without_a_key():
    message = "dropout_rate: got 0.5 without a key, expected a dropout_key"
    told(message, dropout, X, 0.5, None)
    told(message, attention_pool, X, X[..., 0], dropout_rate=0.5)


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [
        ("kernel", "referense", "reference"),
        ("mixer", "dot_produkt", "dot_product"),
        ("mixer", "dot_produkt(scale=2.0)", "dot_product"),
        ("pool", "multihead", "multi_head"),
        ("alignment", "generel", "general"),
    ],
)
def test_unknown_names(kind, name, nearest):
    for function in (registry.find, registry.load, registry.build):
        line = told(f"{kind}: got '.*', expected one of", function, kind, name)
        assert line.endswith(f"; did you mean {nearest!r}?"), line


def one_of_each(kind):
    """Returns the first subject of each registry entry of a kind."""
    named = {s.entry.name: s for s in reversed(subjects.subjects()) if s.entry.kind == kind}
    return pytest.mark.parametrize(
        "subject", [named[name] for name in registry.names(kind)], ids=registry.names(kind)
    )


# They take num_heads, as all mixers do, but split nothing into heads.
HEADLESS = {"fourier"}


@one_of_each("mixer")
def test_mixers(subject):
    mixer = subject.build(subject.inputs["params"])
    told(r"x: got shape \[2, 5, 7\], expected \[B, T, D\] with D=8", mixer, X[..., :7])
    told(r"x: got shape \[2, 8\], expected \[B, T, D\] with D=8", mixer, X[:, 0])
    told(r"mask: got dtype float32, expected bool", mixer, X, mask=np.zeros((B, 1, T, T), "f"))
    told(r"mask: got shape \[2, 5\], .*, always rank 4", mixer, X, mask=np.ones((B, T), bool))
    lengths = masks.lengths(key=np.ones(3, int))
    told(r"mask lengths\(key=\): got shape \[3\], expected \[B\] with", mixer, X, mask=lengths)
    valid = masks.valid(key=np.ones((B, T + 1), bool))
    told(r"mask valid\(key=\): got shape \[2, 6\], expected \[B, S\] w", mixer, X, mask=valid)
    options = {"max_length": T} if "max_length" in subject.entry.capabilities else {}
    build = registry.load("mixer", subject.entry.name)
    if subject.entry.name not in HEADLESS:
        told("num_heads: got 3, expected", build, D, 3, **options, rngs=nnx.Rngs(0))
    if "dropout" in subject.entry.capabilities:
        for rate, message in RATES:
            options["dropout_rate"] = rate
            told(message, build, D, 2, **options, rngs=nnx.Rngs(0))


@one_of_each("pool")
def test_pools(subject):
    pool = subject.build(subject.inputs["params"])
    told(r"states: got shape \[2, 5, 7\], expected \[B, T, D\] with D=8", pool, X[..., :7])
    told(r"states: got shape \[2, 8\], expected \[B, T, D\] with D=8", pool, X[:, 0])
    told(r"valid: got dtype float32, expected bool", pool, X, valid=np.ones((B, T), "f"))
    told(r"valid: got shape \[2\], expected \[B, T\] with", pool, X, valid=np.ones(B, bool))
    told(r"valid: got shape \[2, 4\], expected \[B, T\]", pool, X, valid=np.ones((B, 4), bool))


@one_of_each("alignment")
def test_alignments(subject):
    alignment = subject.build(subject.inputs["params"])
    told(r"states: got shape \[2, 5, 7\], expected \[B, S, D\]", alignment.prepare, X[..., :7])
    valid = np.ones((B, T), np.float32)
    told("valid: got dtype float32, expected bool", alignment.prepare, X, valid=valid)
    valid = np.ones((B, 4), bool)
    told(r"valid: got shape \[2, 4\], expected \[B, S\]", alignment.prepare, X, valid=valid)
    memory = alignment.prepare(X)
    state = alignment.initial_state(memory)
    told(r"query: got shape \[1, 8\], expected \[B, Q\]", alignment.step, X[:1, 0], memory, state)


def test_mixed_dtypes_in_an_alignment():
    alignment = GeneralAlignment(D, D, rngs=nnx.Rngs(0))
    told(
        r"states: got dtype int32, expected a floating", alignment.prepare, jnp.ones((2, 5, 8), int)
    )


def test_what_is_right_is_not_refused():
    # The table's own arrays are fine, or every test above would pass for the wrong reason.
    assert attend(QUERY, KEY, VALUE).shape == (B, T, N, H)
    assert attend(*ITSELF).shape == (B, N, T, H)
    attend(QUERY, KEY, VALUE, mask=masks.causal(S - T), bias=normal(0, 1, 1, T, S))
