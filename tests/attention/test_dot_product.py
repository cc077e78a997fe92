"""attend: its options against NumPy on every kernel, and what "auto" chooses.

What it refuses is in test_wrong_calls.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import attend, attention_weights, explain_choice, masks, registry
from attention.kernels import reference as reference_kernel
from tests.attention import subjects
from tests.attention.references import base as references
from tests.attention.subjects import B, H, N, S, T, V, normal, running, runs_here

# name -> (T, S, key/value heads, value size, options of attend, capability asked for)
OPTIONS = {
    "plain": (T, S, N, H, {}, "cross"),
    "grouped_query": (T, S, 2, H, {}, "grouped_query"),
    "multi_query": (T, S, 1, H, {}, "grouped_query"),
    "value_size": (T, S, N, V, {}, "value_size"),
    "bias": (T, S, N, H, {"bias": normal(10, B, N, T, S)}, "bias"),
    "bias_of_all_heads": (T, S, N, H, {"bias": normal(10, 1, 1, T, S)}, "bias"),
    "scale": (T, S, N, H, {"scale": 0.7}, "cross"),
    "logit_cap": (T, S, N, H, {"scale": 2.0, "logit_cap": 1.5}, "logit_cap"),
    "sinks": (T, S, N, H, {"sinks": normal(11, N)}, "sinks"),
    "one_query": (1, S, N, H, {}, "cross"),
    "one_key": (T, 1, N, H, {}, "cross"),
    "one_of_each": (1, 1, N, H, {}, "cross"),
    "odd": (3, 11, 2, V, {}, "value_size"),
    "all": (
        T,
        S,
        2,
        V,
        {"bias": normal(10, B, 1, T, S), "scale": 2.0, "logit_cap": 3.0, "sinks": normal(11, N)},
        "sinks",
    ),
}
# Of options that not every kernel has.
CAPABILITIES = {"bias", "logit_cap", "sinks"}
# Of other kernels each option is compared with the reference in kernels/.
QUICK = {"plain", "one_of_each", "all"}


def quick_of(line):
    """Returns the quick options of a kernel; an interpreted one takes seconds for each."""
    return {"all"} if line.name == "triton" else QUICK


CASES = [
    pytest.param(
        line.name,
        option,
        id=f"{line.name}-{option}",
        marks=[pytest.mark.slow] * (line.name != "reference" and option not in quick_of(line)),
    )
    for line in map(functools.partial(registry.find, "kernel"), subjects.KERNELS)
    for option, case in OPTIONS.items()
    if runs_here(line)
    and {"mask", case[-1], *(case[-2].keys() & CAPABILITIES)} <= line.capabilities
]


def arrays(t=T, s=S, k=N, v=H):
    return normal(0, B, t, N, H), normal(1, B, s, k, H), normal(2, B, s, k, v)


@pytest.mark.parametrize(("kernel", "option"), CASES)
def test_options_equal_the_equations(kernel, option):
    t, s, k, v, options, _ = OPTIONS[option]
    learned = {name: options[name] for name in ("bias", "sinks") if name in options}
    fixed = {name: value for name, value in options.items() if name not in learned}
    allowed = np.random.default_rng(5).random((B, 1, t, s)) < 0.7
    inputs = dict(zip(("query", "key", "value"), arrays(t, s, k, v), strict=True)) | learned
    cotangent = normal(9, B, t, N, v)

    @jax.jit
    def run(inputs):
        def output(inputs):
            with running(kernel):
                return attend(**inputs, **fixed, mask=masks.dense(allowed), implementation=kernel)

        out, backward = jax.vjp(output, inputs)
        return out, backward(cotangent)[0]

    out, gradient = run(inputs)
    double = {name: np.asarray(array, np.float64) for name, array in inputs.items()}
    meaning = functools.partial(references.attend, allowed=allowed, **fixed)
    expected, expected_weights = meaning(**double)
    np.testing.assert_allclose(out, expected, atol=2e-6, rtol=2e-6)
    slopes = references.gradient(lambda i: meaning(**i)[0], double, cotangent)
    for name, slope in slopes.items():
        np.testing.assert_allclose(gradient[name], slope, atol=2e-5, rtol=2e-5, err_msg=name)
    if kernel == "reference":
        del inputs["value"]
        weights = functools.partial(attention_weights, **fixed, mask=masks.dense(allowed))
        np.testing.assert_allclose(jax.jit(weights)(**inputs), expected_weights, atol=1e-6)


def test_by_hand():
    # Logits 0 and ln 3 at scale 1: weights 1/4 and 3/4, so the output is 1/4 · 4 + 3/4 · 8 = 7.
    query = jnp.ones((1, 1, 1, 1))
    key = jnp.log(jnp.array([1.0, 3.0])).reshape(1, 2, 1, 1)
    value = jnp.array([4.0, 8.0]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(attend(query, key, value, scale=1.0).item(), 7.0, rtol=1e-6)
    # A sink of ln 4 doubles the sum that is divided by.
    sinks = jnp.log(jnp.array([4.0]))
    np.testing.assert_allclose(
        attend(query, key, value, scale=1.0, sinks=sinks).item(), 3.5, rtol=1e-6
    )


def test_empty_rows_with_sinks_and_huge_logits():
    query, key, value = (100.0 * array for array in arrays())
    lengths = jnp.array([0, 3])

    def loss(query, key, value, sinks):
        out = attend(query, key, value, mask=masks.lengths(key=lengths), sinks=sinks)
        return jnp.sum(out), out

    gradients, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(
        query, key, value, jnp.zeros(N)
    )
    np.testing.assert_array_equal(out[0], 0)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.abs(out[1]).max() > 0


def test_second_derivatives_exist_and_are_finite_in_empty_rows():
    query, key, value = arrays(2, 2)
    mask = masks.lengths(key=jnp.array([0, 2]))
    scalar = lambda x: jnp.sum(attend(x * query, key, value, mask=mask) ** 2)  # noqa: E731
    second = jax.jit(jax.grad(jax.grad(scalar)))(1.0)
    step, slope = 1e-2, jax.jit(jax.grad(scalar))
    numeric = (slope(1.0 + step) - slope(1.0 - step)) / (2 * step)
    np.testing.assert_allclose(second, numeric, rtol=1e-2)


def test_numpy_and_float64_inputs():
    with jax.enable_x64(True):
        double = [np.asarray(array, np.float64) for array in arrays()]
        out = attend(*map(jnp.asarray, double))
        assert out.dtype == jnp.float64
        expected, _ = references.attend(*double, np.ones((B, 1, T, S), bool))
        np.testing.assert_allclose(out, expected, atol=1e-13)
    assert attend(*arrays()).dtype == jnp.float32


Q, KEY, VALUE = arrays()


def refusing(query, key, value, **options):
    if options["sinks"] is not None:
        raise NotImplementedError("no sinks")
    return reference_kernel.attend(query, key, value, **options) + 1000.0


@pytest.fixture
def second_kernel(monkeypatch):
    """Registers a kernel before the reference that has no sinks and a recognizable result."""
    line = dataclasses.replace(
        registry.find("kernel", "reference"), name="quick", target=f"{__name__}:refusing"
    )
    monkeypatch.setattr(registry, "TABLE", [line, registry.find("kernel", "reference")])


@pytest.mark.usefixtures("second_kernel")
def test_auto_takes_the_first_that_can_and_can_be_asked():
    assert attend(Q, KEY, VALUE).min() > 900
    assert explain_choice(Q, KEY, VALUE) == attention.dot_product.KernelChoice("quick", {})
    sinks = normal(0, N)
    assert np.abs(attend(Q, KEY, VALUE, sinks=sinks)).max() < 900
    choice = explain_choice(Q, KEY, VALUE, sinks=sinks)
    assert choice == attention.dot_product.KernelChoice("reference", {"quick": "no sinks"})


@pytest.mark.usefixtures("second_kernel")
def test_a_named_kernel_that_cannot_says_who_can():
    with pytest.raises(NotImplementedError, match="quick: no sinks; supported by: reference"):
        attend(Q, KEY, VALUE, sinks=normal(0, N), implementation="quick")


def test_explain_choice_computes_nothing_and_checks():
    structs = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (Q, KEY, VALUE)]
    choice = explain_choice(*structs, mask=masks.causal(2))
    assert choice == explain_choice(Q, KEY, VALUE, mask=masks.causal(2))
    assert choice.name not in choice.unsupported
    assert {choice.name, *choice.unsupported} <= set(registry.names("kernel"))
    with pytest.raises(ValueError, match="expected options of attend"):
        explain_choice(*structs, sink=1)
