"""Attention by blocks against the reference, with many blocks of few positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attend, explain_choice, masks, registry
from attention.dropout import keep_mask
from attention.kernels import dispatch, reference
from attention.kernels.blockwise import attention
from attention.masks import patterns
from tests.attention.subjects import normal

B, T, S, N, K, H, V = 2, 13, 19, 4, 2, 6, 3
BLOCKS = {"query_block": 8, "key_block": 4}  # 4 queries a block, as two heads share keys
PLAIN = {
    "mask": None,
    "bias": None,
    "scale": 0.4,
    "logit_cap": None,
    "sinks": None,
    "dropout_rate": 0.0,
    "dropout_key": None,
}
IDS = np.sort(np.random.default_rng(3).integers(0, 3, (B, S)), axis=1)
MASKS = {
    "none": None,
    "causal": masks.causal(S - T),
    "causal_early": masks.causal(-3),
    "causal_of_each": masks.causal(jnp.array([6, -2])),
    "window": masks.window(2, 1, 3),
    "lengths": masks.lengths(jnp.array([13, 6]), jnp.array([0, 11])),
    "valid": masks.valid(key=np.random.default_rng(1).random((B, S)) < 0.3),
    "segments": masks.segments(IDS[:, :T], IDS) & masks.causal(0),
    "prefix": masks.prefix(jnp.array([5, 9]), 0),
    "dense": masks.dense(np.random.default_rng(2).random((B, N, T, S)) < 0.2),
    "strided": patterns.strided(5, 0) & masks.causal(0),
    "either": (masks.window(1, 1, 0) | patterns.global_tokens(2, 0))
    & masks.lengths(key=jnp.array([19, 7])),
    "big_bird": patterns.big_bird(3, query_offset=0),
    "dilated": patterns.dilated_window(2, 2, 3, query_offset=0),
}
OPTIONS = {
    "bias": {"bias": normal(10, B, N, T, S)},
    "bias_of_all": {"bias": normal(10, 1, 1, T, S), "logit_cap": 1.5},
    "bias_of_heads": {"bias": normal(10, 1, N, T, S), "mask": MASKS["lengths"]},
    "bias_of_examples": {"bias": normal(10, B, 1, T, S), "mask": MASKS["causal"]},
    "sinks": {"sinks": normal(11, N), "mask": MASKS["lengths"]},
    "dropout": {"dropout_rate": 0.3, "dropout_key": jax.random.key(5)},
    "raw_key": {"dropout_rate": 0.3, "dropout_key": jax.random.PRNGKey(5)},
    "all": {
        "bias": normal(10, 1, N, T, S),
        "sinks": normal(11, N),
        "logit_cap": 2.0,
        "mask": MASKS["either"],
        "dropout_rate": 0.5,
        "dropout_key": jax.random.key(6),
    },
}
CASES = {name: {"mask": mask} for name, mask in MASKS.items()} | OPTIONS


def arrays(t=T, s=S, n=N, k=K, dtype=np.float32):
    shapes = (B, t, n, H), (B, s, k, H), (B, s, k, V)
    return {
        name: normal(seed, *shape).astype(dtype)
        for seed, (name, shape) in enumerate(zip(("query", "key", "value"), shapes, strict=True))
    }


def run(kernel, inputs, options, **sizes):
    """Returns output and the gradients of all inputs, bias and sinks, by name."""
    learned = {n: options[n] for n in ("bias", "sinks") if options.get(n) is not None}
    static = {n: options[n] for n in ("scale", "logit_cap", "dropout_rate")}

    @jax.jit
    def both(inputs, mask, dropout_key):
        def output(inputs):
            given = {"mask": mask, "dropout_key": dropout_key, "bias": None, "sinks": None}
            return kernel(**(given | inputs), **static, **sizes)

        out, backward = jax.vjp(output, inputs)
        cotangent = normal(9, *out.shape).astype(out.dtype)
        return {"out": out} | backward(cotangent)[0]

    return jax.tree.map(np.asarray, both(inputs | learned, options["mask"], options["dropout_key"]))


def compare(inputs, options, tolerance=3e-6, **sizes):
    options = PLAIN | options
    found = run(attention.attend, inputs, options, **(sizes or BLOCKS))
    expected = run(reference.attend, inputs, options)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        size = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(
            found[name] / size, array / size, atol=tolerance, rtol=tolerance, err_msg=name
        )
    return found


# One of each way through the code; the others are slow tests.
QUICK = {"none", "causal", "causal_of_each", "segments", "dense"}
QUICK |= {"bias", "bias_of_all", "bias_of_examples", "raw_key", "all"}


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in CASES]
)
def test_equals_the_reference_with_all_gradients(case):
    compare(arrays(), CASES[case])


@pytest.mark.parametrize(
    ("t", "s", "n", "k", "sizes"),
    [
        pytest.param(1, 1, 1, 1, (8, 8), marks=pytest.mark.slow),
        (1, 9, 4, 1, (4, 4)),
        pytest.param(9, 1, 4, 4, (4, 4), marks=pytest.mark.slow),
        (8, 8, 6, 2, (12, 4)),
        pytest.param(7, 5, 4, 4, (1, 1), marks=pytest.mark.slow),
        (5, 17, 4, 2, (256, 512)),
    ],
)
def test_lengths_heads_and_blocks(t, s, n, k, sizes):
    options = {"mask": masks.causal(s - t), "sinks": normal(11, n)}
    compare(arrays(t, s, n, k), options, query_block=sizes[0], key_block=sizes[1])


def test_rows_that_see_nothing_give_zero_and_no_gradient():
    found = compare(arrays(), {"mask": MASKS["lengths"], "bias": normal(10, B, N, T, S)})
    for name, array in found.items():
        assert np.isfinite(array).all(), name
        np.testing.assert_array_equal(array[0], 0, err_msg=name)


def test_float64_and_bfloat16():
    with jax.enable_x64(True):
        inputs = arrays(dtype=np.float64)
        found = compare(inputs, {"mask": masks.causal(6)}, tolerance=1e-13)
        assert found["key"].dtype == np.float64
    inputs = arrays(dtype=jnp.bfloat16)
    compare(inputs, {"mask": masks.causal(6), "bias": normal(10, 1, N, T, S)}, tolerance=0.03)


def test_what_is_dropped_is_what_the_reference_drops():
    # Values of one key alone show the weights; all keys are asked one by one.
    inputs, key = arrays(), jax.random.key(8)
    inputs["value"] = np.broadcast_to(np.eye(S, dtype=np.float32)[None, :, None], (B, S, K, S))
    options = PLAIN | {"dropout_rate": 0.4, "dropout_key": key}
    weights = attention.attend(**inputs, **options, **BLOCKS)
    kept = np.asarray(weights).transpose(0, 2, 1, 3) != 0
    np.testing.assert_array_equal(kept, keep_mask(key, 0.4, (B, N, T, S)))


def test_vmap_equals_a_loop():
    inputs = jax.tree.map(lambda x: np.stack([x, 2 * x, -x]), arrays())
    lengths = jnp.array([[19, 3], [0, 7], [12, 19]])
    keys = jax.random.split(jax.random.key(0), 3)

    def one(inputs, lengths, key):
        options = PLAIN | {"dropout_rate": 0.2, "dropout_key": key}
        options["mask"] = masks.lengths(key=lengths) & masks.causal(6)
        loss = lambda inputs: jnp.sum(jnp.sin(attention.attend(**inputs, **options, **BLOCKS)))  # noqa: E731
        return jax.grad(loss)(inputs)

    many, one = jax.jit(jax.vmap(one))(inputs, lengths, keys), jax.jit(one)
    for index in range(3):
        alone = one(jax.tree.map(lambda x: x[index], inputs), lengths[index], keys[index])  # noqa: B023
        for name in alone:
            size = max(1.0, np.abs(alone[name]).max())
            np.testing.assert_allclose(many[name][index] / size, alone[name] / size, atol=2e-6)


def spoiled(inputs, start):
    """Returns the inputs with NaN in keys and values from a position on."""
    return inputs | {
        name: np.where(np.arange(S)[None, :, None, None] >= start, np.nan, inputs[name])
        for name in ("key", "value")
    }


@pytest.mark.parametrize(
    "mask",
    [
        masks.causal(-1),
        masks.lengths(key=jnp.array([12, 9])),
        masks.valid(key=np.arange(S)[None] < np.array([[12], [3]])),
    ],
    ids=["static", "lengths", "valid"],
)
def test_blocks_that_nobody_sees_are_not_looked_at(mask):
    found = run(attention.attend, spoiled(arrays(), 12), PLAIN | {"mask": mask}, **BLOCKS)
    for name, array in found.items():
        assert np.isfinite(array).all(), name


def operations(size, mask):
    """Products of blocks that are computed, forward and backward, counted while running."""
    inputs = {name: jnp.ones((1, size, 1, 2)) for name in ("query", "key", "value")}
    count = []
    original = attention.online_softmax._dot

    def counting(*given):
        jax.debug.callback(lambda: count.append(1))
        return original(*given)

    options = PLAIN | {"mask": mask}
    try:
        attention.online_softmax._dot = counting
        jax.clear_caches()
        loss = lambda i: jnp.sum(attention.attend(**i, **options, query_block=8, key_block=8))  # noqa: E731
        jax.block_until_ready(jax.grad(loss)(inputs))
        jax.effects_barrier()
    finally:
        attention.online_softmax._dot = original
        jax.clear_caches()
    return len(count)


@pytest.mark.parametrize(
    ("mask", "pairs"),
    [
        (None, 64),
        (masks.causal(), 36),
        (masks.window(8, 0), 15),
        (patterns.big_bird(8, window=0, global_blocks=1, random_blocks=0), 22),
        (masks.lengths(key=jnp.array([20])), 24),
        (masks.segments(*[jnp.arange(64)[None] // 16] * 2), 16),
    ],
    ids=["none", "causal", "window", "big_bird", "lengths", "segments"],
)
def test_cost_is_that_of_the_pairs_of_blocks_that_are_seen(mask, pairs):
    # Two products a pair forward, five backward.
    assert operations(64, mask) == 7 * pairs


def memory(size, mask, bias=None):
    inputs = {
        n: jax.ShapeDtypeStruct((1, size, 2, 16), "float32") for n in ("query", "key", "value")
    }

    def loss(inputs, bias):
        return jnp.sum(attention.attend(**inputs, **(PLAIN | {"mask": mask, "bias": bias})) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(inputs, bias).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_length_alone():
    mask = masks.causal() & masks.lengths(key=jnp.array([900]))
    small, large = memory(1024, mask), memory(8192, mask)
    # 8 times as long; what a pair of blocks takes is shared.
    assert large < 9 * small
    assert large < 8192**2 * 4 / 8


def test_the_gradient_of_a_fixed_bias_is_not_formed():
    bias = jax.ShapeDtypeStruct((1, 2, 2048, 2048), "float32")
    assert memory(2048, None, bias) < 2048**2 * 4


def test_is_traced_once_and_refuses_what_it_cannot_do():
    inputs = arrays()
    calls = []

    @jax.jit
    def output(inputs):
        calls.append(1)
        return attention.attend(**inputs, **PLAIN, **BLOCKS)

    for _ in range(3):
        output(inputs)
    assert len(calls) == 1
    rbg = PLAIN | {"dropout_rate": 0.1, "dropout_key": jax.random.key(0, impl="rbg")}
    with pytest.raises(NotImplementedError, match=r"dropout_key: got rbg, expected a threefry key"):
        attention.attend(**inputs, **rbg)
    with pytest.raises(NotImplementedError, match="scale"):
        jax.jit(lambda scale: attention.attend(**inputs, **(PLAIN | {"scale": scale})))(0.3)
    options = PLAIN | {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}
    with jax.threefry_partitionable(False), pytest.raises(NotImplementedError, match="flag"):
        attention.attend(**inputs, **options)


def test_auto_takes_it_where_sequences_are_long(monkeypatch):
    lines = [registry.find("kernel", name) for name in ("blockwise", "reference")]
    monkeypatch.setattr(registry, "TABLE", lines)
    monkeypatch.setattr(dispatch, "timings", dict)

    def chosen(length, **options):
        structs = [jax.ShapeDtypeStruct((1, length, 2, 4), "float32") for _ in range(3)]
        return explain_choice(*structs, **options)

    assert chosen(512).name == "blockwise"
    short = chosen(256)
    assert short.name == "reference"
    assert "dense attention is faster" in short.unsupported["blockwise"]
    rbg = chosen(512, dropout_rate=0.1, dropout_key=jax.random.key(0, impl="rbg"))
    assert rbg.name == "reference"
    inputs = [normal(seed, 1, 512, 1, 4) for seed in range(3)]
    auto = functools.partial(attend, *inputs, mask=masks.causal())
    np.testing.assert_allclose(auto(), auto(implementation="reference"), atol=2e-6)
