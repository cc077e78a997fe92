"""Every kernel at the limits of what `attend` takes: the reference's result, or a refusal.

A new kernel is tested by its registry line. Those that need a mesh are in test_split.py.
"""

import contextlib
import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import (
    attend,
    attention_weights,
    dot_product,
    explain_choice,
    kernels,
    masks,
    registry,
)
from attention.masks import patterns
from tests.attention.kernels.cases import UNKNOWN
from tests.attention.subjects import KERNELS, normal, running

B, T, S, N, K, H, V = 2, 6, 9, 4, 2, 8, 4
OTHERS = [name for name in KERNELS if name != "reference"]
EVERY = registry.names("kernel")


def arrays(dtype=np.float32, **sizes):
    sizes = {"B": B, "T": T, "S": S, "N": N, "K": K, "H": H, "V": V} | sizes
    return {
        name: np.asarray(normal(seed, *(sizes[letter] for letter in letters)), dtype)
        for seed, (name, letters) in enumerate(
            (("query", "BTNH"), ("key", "BSKH"), ("value", "BSKV"))
        )
    }


def learned(name, dtype=np.float32):
    """Bias and sinks for a kernel that has them."""
    can = registry.find("kernel", name).capabilities
    given = {"bias": normal(10, 1, N, T, S), "sinks": normal(11, N)}
    return {key: np.asarray(array, dtype) for key, array in given.items() if key in can}


def run(name, inputs, **options):
    """Returns output and the gradients of all inputs."""

    def output(inputs):
        with running(name):
            return attend(**inputs, **options, implementation=name)

    @jax.jit
    def both(inputs):
        out, backward = jax.vjp(output, inputs)
        return {"out": out} | backward(normal(9, *out.shape).astype(out.dtype))[0]

    return jax.tree.map(np.asarray, both(inputs))


def refusal(call):
    """Returns the message of a NotImplementedError; None without an error."""
    try:
        call()
    except NotImplementedError as error:
        return str(error)
    return ""


def assert_same(found, expected, atol=3e-6):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.isfinite(array).all(), name
        assert found[name].dtype == array.dtype
        size = max(1.0, np.abs(array).max())
        np.testing.assert_allclose(found[name] / size, array / size, atol=atol, err_msg=name)


# ------------------------------------------------------------------ sinks


WITH_SINKS = [n for n in KERNELS if "sinks" in registry.find("kernel", n).capabilities]


@pytest.mark.parametrize(
    ("name", "queries"),
    [(name, T) for name in WITH_SINKS if name != "reference"]
    + [
        # One query is another program in the native kernel alone.
        pytest.param(name, 1, marks=[pytest.mark.slow] * (name != "native"))
        for name in WITH_SINKS
    ],
)
def test_a_sink_of_minus_infinity_and_rows_that_see_nothing(name, queries):
    """The first example sees nothing. Without a sink it gives 0, and so do its gradients."""
    inputs = arrays(T=queries) | learned(name)
    if "bias" in inputs:
        inputs["bias"] = inputs["bias"][:, :, :queries]
    inputs["sinks"] = np.array([-np.inf, 0.5, -np.inf, -np.inf], np.float32)
    mask = masks.lengths(key=np.array([0, 5]))
    found = run(name, inputs, mask=mask)
    for key, array in found.items():
        assert np.isfinite(array).all(), key
    for key in ("out", "query", "key", "value"):
        np.testing.assert_array_equal(found[key][0], 0)
    np.testing.assert_array_equal(found["sinks"][[0, 2, 3]], 0)
    assert np.abs(found["out"][1, :, 0]).min() > 0
    assert_same(found, run("reference", inputs, mask=mask))


@pytest.mark.parametrize(
    "name", [n for n in OTHERS if registry.find("kernel", n).capabilities >= {"sinks", "bias"}]
)
def test_a_sink_of_minus_infinity_is_less_than_any_logit(name):
    inputs = arrays() | {"sinks": np.full(N, -np.inf, np.float32)}
    inputs["bias"] = np.full((1, 1, T, S), -2e38, np.float32)
    with running(name):
        out = attend(**inputs, implementation=name)
    # All logits are the same: the mean of the values.
    mean = np.repeat(inputs["value"].mean(1), N // K, axis=1)
    np.testing.assert_allclose(out, np.broadcast_to(mean[:, None], out.shape), atol=2e-6)


# ------------------------------------------------------------------ no elements


@pytest.mark.parametrize("empty", ["B", "T", "S", "N", "H", "V", "TS"])
def test_arrays_without_elements(empty):
    sizes = dict.fromkeys(empty, 0)
    inputs = arrays(**sizes)
    b, t, n, _ = inputs["query"].shape
    s, v = inputs["value"].shape[1], inputs["value"].shape[3]
    options = {
        "mask": masks.causal(s - t) & masks.lengths(key=np.full(b, s)),
        "bias": np.ones((1, n, t, s), np.float32),
        "sinks": np.zeros(n, np.float32),
    }
    for name in EVERY:
        out = jax.eval_shape(lambda i, n=name: attend(**i, **options, implementation=n), inputs)
        assert out.shape == (b, t, n, v)

    @jax.jit
    def everything(inputs):
        out, backward = jax.vjp(lambda i: attend(**i, **options), inputs)
        weights = attention_weights(inputs["query"], inputs["key"], **options)
        plain = attend(**inputs, mask=options["mask"], sinks=options["sinks"])
        return out, backward(jnp.ones_like(out))[0], weights, plain

    out, gradients, weights, plain = everything(inputs)
    assert out.shape == (b, t, n, v)
    if empty == "S":
        np.testing.assert_array_equal(out, 0)
    if empty == "H":
        # All logits are 0: of 4 keys at the first position, and with the sink, 1/5 each.
        expected = np.repeat(inputs["value"][:, :4].sum(1) / 5, N // K, axis=1)
        np.testing.assert_allclose(plain[:, 0], expected, atol=1e-6)
    choice = explain_choice(**inputs, **options)
    assert (choice.name, choice.reason) == ("reference", "an array has no elements")
    assert weights.shape == (b, n, t, s)
    for key, gradient in gradients.items():
        assert gradient.shape == inputs[key].shape
        assert np.isfinite(gradient).all()


def test_no_key_heads_are_refused():
    for name in ("auto", *EVERY):
        with pytest.raises(ValueError, match=r"^key: got shape \[2, 9, 0, 8\], that is K=0 heads"):
            attend(**arrays(K=0), implementation=name)


def test_an_unknown_kernel_is_refused_without_elements_too():
    with pytest.raises(ValueError, match=r"^kernel: got 'natif', expected one of"):
        attend(**arrays(B=0), implementation="natif")


# ------------------------------------------------------------------ 64 bits


@pytest.mark.parametrize("name", OTHERS)
def test_with_64_bits_enabled(name):
    if name == "splash":
        with jax.enable_x64(True), pytest.raises(NotImplementedError, match="jax_enable_x64"):
            run(name, arrays())
        return
    with jax.enable_x64(True):
        dtype = np.float64 if name == "blockwise" else np.float32
        inputs = arrays(dtype) | learned(name, dtype)
        mask = masks.causal(S - T) & masks.lengths(key=np.array([0, 5]))
        options = {"mask": mask, "logit_cap": 2.0}
        found = run(name, inputs, **options)
        assert found["out"].dtype == dtype
        tolerance = 1e-12 if dtype == np.float64 else 3e-6
        assert_same(found, run("reference", inputs, **options), tolerance)


def test_auto_with_64_bits_enabled():
    """For long sequences "blockwise" is chosen, which computes the gradient of a bias by blocks."""
    with jax.enable_x64(True):
        x, bias = normal(0, 1, 520, 1, 4).astype(np.float64), np.zeros((1, 1, 520, 520))
        assert explain_choice(x, x, x, bias=bias).name == "blockwise"
        loss = lambda bias, name: (attend(x, x, x, bias=bias, implementation=name) ** 2).sum()  # noqa: E731
        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        found, expected = (gradient(bias, name) for name in ("auto", "reference"))
        np.testing.assert_allclose(found, expected, atol=1e-13)


# ------------------------------------------------------------------ symbols


def symbolic(dimensions):
    b, t = jax.export.symbolic_shape(dimensions)
    return [jax.ShapeDtypeStruct((b, t, heads, H), jnp.float32) for heads in (N, K, K)]


def masked(name, mask_of=None):
    def call(query, key, value):
        mask = None if mask_of is None else mask_of(query, key)
        return attend(query, key, value, mask=mask, implementation=name)

    return jax.jit(call)


def padded(query, key):
    lengths = jnp.arange(query.shape[0]) + 2
    dense = jnp.arange(query.shape[1])[:, None] + jnp.arange(key.shape[1]) != 4
    return (
        masks.causal()
        & masks.window(3, 1)
        & masks.lengths(key=lengths)
        & masks.dense(dense[None, None])
    )


@pytest.mark.parametrize("dimensions", ["b, t", "b, 7", "3, t"])
def test_auto_exports_symbols(dimensions):
    exported = jax.export.export(masked("auto", padded))(*symbolic(dimensions))
    inputs = arrays(B=3, T=7, S=7, V=H).values()
    expected = masked("reference", padded)(*inputs)
    np.testing.assert_allclose(exported.call(*inputs), expected, atol=2e-6)


def test_auto_exports_numbers_for_a_cpu_elsewhere():
    """No machine code of this one."""
    inputs = arrays(S=T, V=H).values()
    with kernels.lowering_for("cpu"):
        exported = jax.export.export(masked("auto", padded), platforms=["cpu"])(*inputs)
    expected = masked("reference", padded)(*inputs)
    np.testing.assert_allclose(exported.call(*inputs), expected, atol=2e-6)


@pytest.mark.parametrize("name", EVERY)
def test_a_kernel_takes_symbols_or_refuses_them(name):
    for dimensions in ("b, t", "b, 7", "3, t"):
        refused = refusal(lambda d=dimensions: jax.export.export(masked(name))(*symbolic(d)))
        assert refused.endswith("reference" if refused else "")
        assert name != "reference" or not refused


@pytest.mark.parametrize("name", ["native", "blockwise"])
def test_what_is_said_of_symbols(name):
    message = rf"^{name}: query: got shape \[b, t, 4, 8\], expected"
    with pytest.raises(NotImplementedError, match=message):
        jax.export.export(masked(name))(*symbolic("b, t"))


def test_what_no_kernel_can_do_with_symbols_is_refused():
    for options, message in (
        ({"dropout_rate": 0.5, "dropout_key": jax.random.key(0)}, "dropout_rate: got 0.5 with a"),
        ({"mask": masks.causal() & patterns.big_bird(2)}, r"mask: got big_bird\(\) with S=t keys"),
    ):
        with pytest.raises((ValueError, NotImplementedError), match=message):
            jax.export.export(jax.jit(lambda q, k, v, o=options: attend(q, k, v, **o)))(
                *symbolic("b, t")
            )


# ------------------------------------------------------------------ selection

CONTEXTS = {
    "here": contextlib.nullcontext,
    "interpreted": kernels.interpreted,
    "cuda": lambda: kernels.lowering_for("cuda"),
    "tpu": lambda: kernels.lowering_for("tpu"),
}
ODD = {
    "symbols": (lambda: symbolic("b, t"), {}),
    "batch": (lambda: symbolic("b, 7"), {}),
    "float16": (lambda: arrays(np.float16).values(), {}),
    "bfloat16": (lambda: arrays(jnp.bfloat16).values(), {"logit_cap": float("inf")}),
    "wide": (lambda: arrays(H=300, V=1).values(), {}),
    "far": (lambda: arrays().values(), {"mask": masks.window(sys.maxsize, 2**31, -(2**31))}),
    "unknown": (lambda: arrays().values(), {"mask": UNKNOWN | masks.causal(0)}),
    "rbg": (
        lambda: arrays().values(),
        {"dropout_rate": 0.5, "dropout_key": jax.random.key(0, impl="rbg")},
    ),
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("case", ODD)
def test_a_kernel_is_asked_without_other_exceptions(case, context):
    """An unsupported argument raises NotImplementedError; other exceptions of a kernel
    propagate."""
    make, options = ODD[case]
    names = ("mask", "bias", "scale", "logit_cap", "sinks", "dropout_rate", "dropout_key")
    defaults = dict.fromkeys(names) | {"dropout_rate": 0.0}
    request = dot_product._checked(*make(), **defaults | options)
    with CONTEXTS[context]():
        for name in EVERY:
            reason = request.unsupported_reason(name)
            assert reason is None or (isinstance(reason, str) and reason), name
            assert name != "reference" or reason is None
            request.slower_reason(name)
        assert explain_choice(*make(), **options).name in EVERY


# ------------------------------------------------------------------ large numbers


@pytest.mark.parametrize("name", KERNELS)
def test_a_cap_of_infinity_is_none(name):
    inputs = arrays()

    def program(cap):
        with running(name):
            out = lambda i: attend(**i, logit_cap=cap, implementation=name)  # noqa: E731
            return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(out)(inputs)))

    for cap in (float("inf"), 1e300, 1e39, np.float32("inf")):
        assert program(cap) == program(None)
    assert program(1e3) != program(None)


def test_weights_under_a_cap_of_infinity():
    inputs = arrays()
    weights = attention_weights(inputs["query"], inputs["key"], logit_cap=float("inf"))
    np.testing.assert_array_equal(weights, attention_weights(inputs["query"], inputs["key"]))


def test_a_cap_that_float32_has_not_is_refused():
    with pytest.raises(ValueError, match=r"^logit_cap: got 1e-46, expected at least 8e-31"):
        attend(**arrays(), logit_cap=1e-46)


LIMIT = 2**31
# name -> mask and, by Python's integers, which keys s query t of example b sees.
FAR = {
    "wide": (masks.window(2**32, 0, 1), lambda b, t, s: s <= t + 1),
    "widest": (masks.window(sys.maxsize, sys.maxsize, 0), lambda b, t, s: True),
    "wider": (masks.window(10**30, 10**30, 0), lambda b, t, s: True),
    "late": (masks.causal(LIMIT - 1), lambda b, t, s: True),
    "later": (masks.causal(10**30), lambda b, t, s: True),
    "before": (masks.causal(-LIMIT), lambda b, t, s: False),
    "both": (masks.window(LIMIT + 2, 0, LIMIT), lambda b, t, s: s >= t - 2),
    "other": (masks.window(3, LIMIT - 3, 1 - LIMIT), lambda b, t, s: s <= t - 2),
    "examples": (
        masks.causal(np.array([LIMIT - 1, 2 - LIMIT], np.int32)),
        lambda b, t, s: b == 0,
    ),
    "numpy": (masks.causal(np.array([2**40, -(2**40)])), lambda b, t, s: b == 0),
    "unsigned": (
        masks.causal(np.array([2**32 - 1, 1], np.uint32)),
        lambda b, t, s: not b or s <= t + 1,
    ),
    "one": (
        masks.window(LIMIT - 3, 2, jnp.array(LIMIT - 1, jnp.int32)),
        lambda b, t, s: s >= t + 2,
    ),
    "beyond": (
        masks.window(2**33, 0, jnp.array([LIMIT - 1, -1], jnp.int32)),
        lambda b, t, s: b == 0 or s <= t - 1,
    ),
    "prefix": (masks.prefix(2**40, -(2**40)), lambda b, t, s: True),
    "prefixes": (
        masks.prefix(np.array([LIMIT - 1, 2]), np.array([-LIMIT, LIMIT - 1])),
        lambda b, t, s: True,
    ),
    "lengths": (masks.lengths(key=np.array([2**40, -(2**40)])), lambda b, t, s: b == 0),
}


def allowed(name):
    mask, sees = FAR[name]
    dense = [[[sees(b, t, s) for s in range(S)] for t in range(T)] for b in range(B)]
    return mask, np.array(dense)[:, None]


@pytest.mark.parametrize("name", FAR)
def test_numbers_beyond_32_bits_mean_what_they_say(name):
    mask, expected = allowed(name)
    for mode in (False, True):
        with jax.enable_x64(mode):
            found = np.broadcast_to(mask.materialize(B, N, T, S), (B, 1, T, S))
            np.testing.assert_array_equal(found, expected)
            visible, full = (
                np.broadcast_to(x, (B, 3, 3)) for x in mask.block_visibility(B, T, S, 2, 3)
            )
            tiles = expected[:, 0].reshape(B, 3, 2, 3, 3)
            assert (visible >= tiles.any((2, 4))).all()
            assert (full <= tiles.all((2, 4))).all()
            assert mask.static_block_mask(T, S, 2, 3).shape == (3, 3)


LARGE = ["wide", "both", "before", "beyond", "prefixes"]


@functools.cache
def large_by_reference():
    def output(inputs, dense):
        return attend(**inputs, mask=masks.dense(dense), implementation="reference")

    output = jax.jit(output)
    return {case: np.asarray(output(arrays(), allowed(case)[1])) for case in LARGE}


@pytest.mark.parametrize("name", OTHERS)
def test_kernels_with_numbers_beyond_32_bits(name):
    inputs, taken = arrays(), []
    for case in LARGE:
        call = functools.partial(attend, **inputs, mask=FAR[case][0], implementation=name)
        with running(name):
            refused = refusal(lambda call=call: jax.eval_shape(call))
        if refused:
            # It takes no mask of that kind, or none that depends on data.
            assert refused.startswith(f"{name}: mask: ")
        else:
            taken.append(case)

    @jax.jit
    def outputs(inputs):
        with running(name):
            return {c: attend(**inputs, mask=FAR[c][0], implementation=name) for c in taken}

    assert {"wide", "both"} <= set(taken)
    for case, out in outputs(inputs).items():
        np.testing.assert_allclose(out, large_by_reference()[case], atol=2e-6, err_msg=case)


def test_ids_that_jax_would_cut_are_refused():
    ids = np.array([[1, 2**40]])
    with pytest.raises(ValueError, match=r"^query_ids: got an id of 1099511627776, expected ids f"):
        masks.segments(ids, ids)


# ------------------------------------------------------------------ derivatives


def total(name):
    keys = arrays(B=1, T=3, S=3)

    def loss(query):
        with running(name):
            options = {"mask": masks.causal(), "implementation": name}
            out = attend(query, keys["key"], keys["value"], **options)
        return jnp.sin(out).sum()

    return loss, jnp.asarray(keys["query"])


def grad_of_grad(loss):
    return jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))


DERIVATIVES = {
    "jvp": lambda loss: lambda x: jax.jvp(loss, (x,), (jnp.cos(x),))[1],
    "jacfwd": jax.jacfwd,
    "hessian": jax.hessian,
    "linearize": lambda loss: lambda x: jax.linearize(loss, x)[1](jnp.cos(x)),
    "grad_of_grad": grad_of_grad,
    "grad_of_jvp": lambda loss: jax.grad(DERIVATIVES["jvp"](loss)),
}


def test_the_reference_has_all_derivatives():
    loss, x = total("reference")
    take = jax.jit(lambda x: {name: of(loss)(x) for name, of in DERIVATIVES.items()})
    for name, found in take(x).items():
        assert np.isfinite(found).all(), name


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize(
    ("name", "compiled"),
    [(name, True) for name in OTHERS]
    # Outside jit another rule of the same primitives raises the error, for all kernels.
    + [
        pytest.param(name, False, marks=[pytest.mark.slow] * (name != "blockwise"))
        for name in OTHERS
    ],
)
def test_other_derivatives_are_the_reference_s_or_name_it(name, derivative, compiled):
    loss, x = total(name)
    take = DERIVATIVES[derivative](loss)
    take = jax.jit(take) if compiled else take
    outputs = []
    refused = refusal(lambda: outputs.append(take(x)))
    if derivative != "grad_of_grad" or name != "native":
        assert refused.startswith(f"implementation: got {name!r} for ")
        assert "expected 'reference'" in refused
        return
    (found,) = outputs
    expected = jax.jit(DERIVATIVES[derivative](total("reference")[0]))(x)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=2e-5)


def of_scan(loss):
    def step(x, _):
        return x + 0.01 * loss(x), None

    return lambda x: jax.lax.scan(step, x, None, length=2)[0].sum()


WRAPS = {
    "checkpoint": jax.checkpoint,
    "scan": of_scan,
    "scan of checkpoint": lambda loss: of_scan(jax.checkpoint(loss)),
}


@functools.cache
def wrapped_gradients(name):
    """Gradients through each of `WRAPS`, from one program."""
    loss, x = total(name)
    take = lambda x: {key: jax.vmap(jax.grad(wrap(loss)))(x) for key, wrap in WRAPS.items()}  # noqa: E731
    return jax.jit(take)(jnp.stack([x, 2 * x]))


@pytest.mark.parametrize("name", ["native", "blockwise"])
def test_first_derivatives_pass_through_transformations(name):
    if name not in KERNELS:
        pytest.skip("needs a C++ compiler")
    for key, expected in wrapped_gradients("reference").items():
        found = wrapped_gradients(name)[key]
        np.testing.assert_allclose(found, expected, atol=3e-6, err_msg=key)
