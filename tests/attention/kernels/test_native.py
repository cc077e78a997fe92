"""Attention in C++ against the reference, in sizes of several blocks of 64 queries and 256 keys."""

import functools
import os
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attend, explain_choice, masks
from attention.kernels.cpu import attention
from attention.kernels.cpu import build as compiled
from attention.masks import patterns
from tests.attention.kernels import cases
from tests.attention.kernels.cases import B, N
from tests.attention.subjects import normal

pytestmark = pytest.mark.skipif(
    compiled.find_compiler() is None, reason="needs a C++ compiler: apt-get install g++"
)

T, S = 150, 530
MASKS = {name: mask for name, mask in cases.every_mask(T, S).items() if name != "global_marks"}
MASKS |= {
    "none": None,
    "far": masks.window(90, 10, 200),
    "early": masks.causal(-70),
    "widest": masks.window(2**31 - 1, 2**31 - 1, 0) & masks.lengths(key=jnp.array([-3, 2**30])),
    "lengths_or_global": (masks.window(60, 1, 0) | patterns.global_tokens(2, 0))
    & masks.lengths(key=jnp.array([S, 70])),
}
KEY = jax.random.key(5)
OPTIONS = {
    "bias": ((B, N), {}),
    "bias_of_all": ((1, 1), {"logit_cap": 1.5}),
    "bias_of_heads": ((1, N), {"mask": MASKS["lengths"]}),
    "bias_of_examples": ((B, 1), {"mask": MASKS["causal"]}),
    "dropout": (None, {"dropout_rate": 0.3, "dropout_key": KEY}),
    "raw_key": (None, {"dropout_rate": 0.3, "dropout_key": jax.random.PRNGKey(5)}),
    "all": (
        (1, N),
        {
            "mask": MASKS["lengths_or_global"] & masks.causal(S - T),
            "logit_cap": 2.0,
            "dropout_rate": 0.5,
            "dropout_key": KEY,
        },
    ),
}
OPTIONS = {name: (None, {"mask": mask}) for name, mask in MASKS.items()} | OPTIONS
# One of each way through the code; the others are slow tests.
QUICK = ("causal", "widest", "lengths", "segments", "big_bird", "bias_of_examples", "all")


def arrays(t=T, s=S, **sizes):
    return jax.tree.map(np.array, cases.inputs(t, s, **sizes))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in OPTIONS],
)
def test_equals_the_reference_with_all_gradients(name):
    shared, options = OPTIONS[name]
    more = {"sinks": jnp.asarray(normal(11, N))} if name in ("all", "lengths") else {}
    if shared:
        more["bias"] = jnp.asarray(normal(10, *shared, T, S))
    cases.assert_equals_reference(attention.attend, cases.inputs(T, S, **more), **options)


@pytest.mark.parametrize(
    ("t", "s", "k", "h", "v"),
    [
        pytest.param(1, 1, 4, 1, 1, marks=pytest.mark.slow),
        (1, 1000, 2, 64, 64),
        (3, 531, 1, 17, 33),
        pytest.param(64, 256, 4, 16, 80, marks=pytest.mark.slow),
        (65, 257, 2, 200, 5),
        (700, 300, 1, 8, 8),
    ],
)
def test_lengths_heads_and_sizes(t, s, k, h, v):
    inputs = cases.inputs(t, s, K=k, H=h, V=v, sinks=jnp.asarray(normal(11, N)))
    cases.assert_equals_reference(attention.attend, inputs, mask=masks.causal(s - t), scale=h**-0.5)


def test_rows_that_see_nothing_give_zero_and_no_gradient():
    out, slopes = cases.run(
        attention.attend, cases.inputs(T, S), mask=masks.lengths(key=jnp.array([0, S]))
    )
    np.testing.assert_array_equal(out[0], 0)
    for name, slope in slopes.items():
        assert np.isfinite(slope).all(), name
        np.testing.assert_array_equal(slope[0], 0, err_msg=name)


@pytest.mark.parametrize("t", [2, T])
def test_bfloat16(t):
    inputs = cases.inputs(t, S, dtype=jnp.bfloat16)
    cases.assert_equals_reference(
        attention.attend, inputs, atol=0.01, slope_atol=0.02, mask=masks.causal(6)
    )


def test_large_logits_and_nan_are_kept():
    inputs = arrays()
    large = jax.tree.map(jnp.asarray, inputs | {"query": 1e3 * inputs["query"]})
    # Logits of thousands are known to some 1e-4.
    cases.assert_equals_reference(attention.attend, large, atol=1e-3, slope_atol=1e-3)
    inputs["value"][0, 3, 1] = np.nan
    out = attend(**inputs, implementation="native")
    np.testing.assert_array_equal(np.isnan(out[0, :, 2:]).all(), True)
    assert np.isfinite(out[1]).all()
    assert np.isfinite(out[0, :, :2]).all()


@pytest.mark.parametrize(
    "mapped",
    ["all", "bias", *(pytest.param(n, marks=pytest.mark.slow) for n in ("query", "key"))],
)
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
        with pytest.raises(NotImplementedError, match=f"^native: .*{words}.*supported by: .*refer"):
            attend(**inputs, **options, implementation="native")
    half = {name: x.astype(np.float16) for name, x in inputs.items()}
    with pytest.raises(NotImplementedError, match="native: query: got dtype float16"):
        attend(**half, implementation="native")


def test_without_a_compiler_auto_goes_on():
    """Runs in a separate process, because compiled code is cached."""
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


def test_a_compiler_may_have_arguments(tmp_path, monkeypatch):
    """Such as CXX="ccache g++": the words are a command, but for a path that has spaces."""
    (tmp_path / "right.cc").write_text('extern "C" int three() { return NUMBER; }')
    monkeypatch.setenv("ATTENTION_CACHE_DIR", str(tmp_path / "cache"))
    plain, env = compiled.find_compiler(), shutil.which("env")
    monkeypatch.setenv("CXX", f" env -u LANG  {plain[0]} ")
    assert compiled.find_compiler() == [env, "-u", "LANG", plain[0]]
    assert compiled.load_library(tmp_path, "right.cc", (("NUMBER", 3),)).three() == 3
    spaced = tmp_path / "a compiler"
    spaced.symlink_to(plain[0])
    for cxx in (str(spaced), f"'{spaced}' -O1"):
        monkeypatch.setenv("CXX", cxx)
        assert compiled.find_compiler() == [str(spaced), *(["-O1"] if "-O1" in cxx else [])]
    for cxx in ("no-such-compiler -O1", "g++ 'open"):
        monkeypatch.setenv("CXX", cxx)
        assert compiled.find_compiler() is None
    monkeypatch.setenv("CXX", "")
    assert compiled.find_compiler() == plain


@pytest.mark.parametrize(
    ("cxx", "reason"),
    [
        ("false", "false failed: no error message"),
        ("no-such-compiler -O1", "CXX='no-such-compiler -O1' is not found"),
    ],
)
def test_why_there_is_no_compiler_can_be_read(cxx, reason):
    code = """
        import numpy as np
        from attention import explain_choice
        x = np.ones((1, 600, 1, 2), np.float32)
        print(explain_choice(x, x, x).unsupported["native"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"CXX": cxx}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert reason in done.stdout


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    (tmp_path / "wrong.cc").write_text("int main( {", encoding="utf-8")
    monkeypatch.setenv("ATTENTION_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(NotImplementedError, match=r"failed: .*wrong\.cc.*error"):
        compiled.load_library(tmp_path, "wrong.cc", ())
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_auto_takes_it_where_sequences_are_long():
    x = jax.ShapeDtypeStruct((1, 1024, 8, 64), jnp.float32)
    assert explain_choice(x, x, x, mask=masks.causal()).name == "native"
