"""Attention in C++ against the reference, in sizes of several blocks of 64 queries and 256 keys."""

import functools
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attend, explain_choice, masks, patterns
from attention.kernels import compiled, native, reference
from tests.attention.subjects import normal

B, T, S, N, K, H, V = 2, 150, 530, 4, 2, 6, 3
PLAIN = {
    "mask": None,
    "bias": None,
    "scale": 0.4,
    "logit_cap": None,
    "sinks": None,
    "dropout_rate": 0.0,
    "dropout_key": None,
}
RANDOM = np.random.default_rng(3)
IDS = np.sort(RANDOM.integers(0, 5, (B, S)), axis=1)
MASKS = {
    "none": None,
    "causal": masks.causal(S - T),
    "causal_early": masks.causal(-70),
    "causal_of_each": masks.causal(jnp.array([300, -2])),
    "window": masks.window(90, 10, 200),
    "lengths": masks.lengths(jnp.array([T, 60]), jnp.array([0, 300])),
    "valid": masks.valid(np.arange(T) % 3 > np.zeros((B, 1)), RANDOM.random((B, S)) < 0.3),
    "segments": masks.segments(IDS[:, 100 : 100 + T], IDS) & masks.causal(100),
    "prefix": masks.prefix(jnp.array([5, 290]), 0),
    "dense": masks.dense(RANDOM.random((B, N, T, S)) < 0.2),
    "dense_of_all": masks.dense(RANDOM.random((1, 1, T, S)) < 0.2) & masks.window(40, 40, 100),
    "strided": patterns.strided(5, 0) & masks.causal(0),
    "either": (masks.window(60, 1, 0) | patterns.global_tokens(2, 0))
    & masks.lengths(key=jnp.array([S, 70])),
    "big_bird": patterns.big_bird(16, query_offset=0),
    "dilated": patterns.dilated_window(20, 20, 3, query_offset=100),
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
# One of each way through the code; the others are slow tests.
QUICK = ("causal", "lengths", "segments", "big_bird", "bias_of_examples", "all")


def each_case():
    marks = {name: [] if name in QUICK else [pytest.mark.slow] for name in CASES}
    return pytest.mark.parametrize("case", [pytest.param(n, marks=m) for n, m in marks.items()])


def arrays(t=T, s=S, n=N, k=K, h=H, v=V, dtype=np.float32, b=B):
    shapes = (b, t, n, h), (b, s, k, h), (b, s, k, v)
    return {
        name: normal(seed, *shape).astype(dtype)
        for seed, (name, shape) in enumerate(zip(("query", "key", "value"), shapes, strict=True))
    }


def run(kernel, inputs, options):
    """Output and the gradients of all inputs, bias and sinks, by name."""
    learned = {n: options[n] for n in ("bias", "sinks") if options.get(n) is not None}
    static = {n: options[n] for n in ("scale", "logit_cap", "dropout_rate")}

    @jax.jit
    def both(inputs, mask, dropout_key):
        def output(inputs):
            given = {"mask": mask, "dropout_key": dropout_key, "bias": None, "sinks": None}
            return kernel(**(given | inputs), **static)

        out, backward = jax.vjp(output, inputs)
        cotangent = normal(9, *out.shape).astype(out.dtype)
        return {"out": out} | backward(cotangent)[0]

    return jax.tree.map(np.asarray, both(inputs | learned, options["mask"], options["dropout_key"]))


def compare(inputs, options, tolerance=3e-6):
    options = PLAIN | options
    found = run(native.attend, inputs, options)
    expected = run(reference.attend, inputs, options)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        size = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(
            found[name] / size, array / size, atol=tolerance, rtol=tolerance, err_msg=name
        )
    return found


@each_case()
def test_equals_the_reference_with_all_gradients(case):
    compare(arrays(), CASES[case])


@pytest.mark.parametrize(
    ("t", "s", "n", "k", "h", "v"),
    [
        (1, 1, 1, 1, 1, 1),
        (1, 1000, 8, 2, 64, 64),
        (3, 531, 4, 1, 17, 33),
        (64, 256, 2, 2, 16, 80),
        (65, 257, 1, 1, 200, 5),
        (700, 300, 1, 1, 8, 8),
    ],
)
def test_lengths_heads_and_sizes(t, s, n, k, h, v):
    options = {"mask": masks.causal(s - t), "sinks": normal(11, n)}
    compare(arrays(t, s, n, k, h, v), options)


def test_rows_that_see_nothing_give_zero_and_no_gradient():
    found = compare(arrays(), {"mask": MASKS["lengths"], "bias": normal(10, B, N, T, S)})
    for name, array in found.items():
        assert np.isfinite(array).all(), name
        np.testing.assert_array_equal(array[0], 0, err_msg=name)


def test_bfloat16():
    found = compare(arrays(dtype=jnp.bfloat16), {"mask": masks.causal(6)}, tolerance=0.02)
    assert found["out"].dtype == jnp.bfloat16
    few = arrays(t=2, dtype=jnp.bfloat16)
    compare(few, {"mask": masks.causal(6)}, tolerance=0.02)


def test_large_logits_and_nan_are_kept():
    inputs = arrays()
    # Logits of thousands are known to some 1e-4.
    compare(inputs | {"query": 1e3 * inputs["query"]}, {}, tolerance=1e-3)
    inputs["value"][0, 3, 1] = np.nan
    out = attend(**inputs, implementation="native")
    np.testing.assert_array_equal(np.isnan(out[0, :, 2:]).all(), True)
    assert np.isfinite(out[1]).all()
    assert np.isfinite(out[0, :, :2]).all()


@pytest.mark.parametrize("mapped", ["query", "all", "bias", "key"])
def test_vmap(mapped):
    inputs = arrays(t=5, s=9) | {"bias": normal(10, 1, N, 5, 9), "sinks": normal(11, N)}
    several = inputs.keys() if mapped == "all" else [mapped]
    axes = {name: 0 if name in several else None for name in inputs}
    stacked = {
        name: np.stack([x, x - 1, 2 * x]) if name in several else x for name, x in inputs.items()
    }

    def gradient(inputs, key, implementation):
        def loss(inputs):
            out = attend(
                **inputs,
                mask=masks.causal(0) & masks.lengths(key=jnp.array([9, 3])),
                dropout_rate=0.2,
                dropout_key=key,
                implementation=implementation,
            )
            return jnp.sin(out).sum()

        return jax.grad(loss)(inputs)

    keys = jax.random.split(jax.random.key(0), 3)
    found, expected = (
        jax.jit(jax.vmap(functools.partial(gradient, implementation=name), (axes, 0)))(
            stacked, keys
        )
        for name in ("native", "reference")
    )
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=3e-6, err_msg=name)


def test_second_derivatives():
    inputs = arrays(t=5, s=9) | {"bias": normal(10, 1, N, 5, 9), "sinks": normal(11, N)}

    def norm(inputs, implementation):
        def loss(inputs):
            out = attend(**inputs, mask=masks.causal(2), implementation=implementation)
            return jnp.sin(out).sum()

        return sum((leaf**2).sum() for leaf in jax.tree.leaves(jax.grad(loss)(inputs)))

    found, expected = (
        jax.jit(jax.grad(functools.partial(norm, implementation=name)))(inputs)
        for name in ("native", "reference")
    )
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5, rtol=1e-5, err_msg=name)


def test_a_bias_that_is_no_variable_takes_no_gradient():
    """Its T x S gradient would be most of the memory."""
    inputs, bias = arrays(), normal(10, 1, 1, T, S)

    def sizes(learned):
        def loss(inputs, bias):
            return attend(**inputs, bias=bias, implementation="native").sum()

        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1) if learned else 0))(inputs, bias))
        backward = text[text.index("AttentionBackward") - 2000 :]
        return backward.count(f"f32[1,1,{T},{S}]")

    assert sizes(learned=False) < sizes(learned=True)


def test_memory_grows_with_the_length():
    def temporaries(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.float32)

        def loss(query, key, value):
            out = attend(query, key, value, mask=masks.causal(), implementation="native")
            return (out**2).sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 5 * temporaries(1024)


def test_what_it_cannot_is_refused():
    inputs = arrays()
    for options, words in (
        ({"mask": patterns.global_marks(np.ones((B, T), bool), np.ones((B, S), bool))}, "data"),
        ({"dropout_rate": 0.5, "dropout_key": jax.random.key(0, impl="rbg")}, "threefry"),
    ):
        with pytest.raises(NotImplementedError, match=f"^native: .*{words}.*these can: .*refer"):
            attend(**inputs, **options, implementation="native")
    half = {name: x.astype(np.float16) for name, x in inputs.items()}
    with pytest.raises(NotImplementedError, match="native: query: float16"):
        attend(**half, implementation="native")


def test_without_a_compiler_auto_goes_on():
    """In a process of its own: what is compiled once stays."""
    code = """
        import numpy as np
        from attention import attend, explain_choice
        x = np.ones((1, 600, 1, 2), np.float32)
        print(explain_choice(x, x, x).name, attend(x, x, x).sum())
        try:
            attend(x, x, x, implementation="native")
        except NotImplementedError as error:
            print(error)
    """
    environment = os.environ | {"CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    chosen, refused = done.stdout.splitlines()
    assert chosen.split()[0] != "native"
    assert float(chosen.split()[1]) == 1200
    assert refused.startswith("native: needs a C++ compiler")


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    (tmp_path / "wrong.cc").write_text("int main( {", encoding="utf-8")
    monkeypatch.setenv("ATTENTION_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(NotImplementedError, match=r"failed: .*wrong\.cc.*error"):
        compiled.library(tmp_path, "wrong.cc", ())
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_auto_takes_it_where_sequences_are_long():
    x = jax.ShapeDtypeStruct((1, 1024, 8, 64), jnp.float32)
    assert explain_choice(x, x, x, mask=masks.causal()).name == "native"
