"""The kernel "tokamax": what it asks the library for, with a small one in its place."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import attend, kernels, masks
from attention.kernels.gpu import tokamax
from tests.attention.kernels import cases
from tests.attention.kernels.cases import B, N
from tests.attention.subjects import normal

T, S = 6, 9


class Library(types.ModuleType):
    """tokamax as far as it is asked for; some implementations refuse, another is unknown to it."""

    def __init__(self, refusing=(), unknown=()):
        super().__init__("tokamax")
        self.refusing, self.unknown, self.calls = refusing, unknown, []

    def dot_product_attention(
        self,
        query,
        key,
        value,
        bias=None,
        mask=None,
        *,
        scale=None,
        is_causal=False,
        logits_soft_cap=None,
        implementation=None,
    ):
        if implementation in self.unknown:
            raise ValueError(f"Unknown implementation: {implementation}")
        if implementation in self.refusing:
            raise NotImplementedError("not on this device")
        self.calls.append({"implementation": implementation, "causal": is_causal, "mask": mask})
        groups = query.shape[2] // key.shape[2]
        key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
        logits = jnp.einsum("btnh,bsnh->bnts", query, key) * scale
        logits = logits if bias is None else logits + bias
        if logits_soft_cap is not None:
            logits = logits_soft_cap * jnp.tanh(logits / logits_soft_cap)
        if is_causal:
            logits = jnp.where(jnp.tri(*logits.shape[-2:], dtype=bool), logits, -jnp.inf)
        if mask is not None:
            logits = jnp.where(mask, logits, -jnp.inf)
        return jnp.einsum("bnts,bsnv->btnv", jax.nn.softmax(logits), value)


@pytest.fixture
def library(monkeypatch):
    def install(**options):
        found = Library(**options)
        monkeypatch.setitem(sys.modules, "tokamax", found)
        return found

    return install


def on_a_gpu():
    return kernels.lowering_for("cuda")


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        (None, {}),
        (masks.causal(3), {"logit_cap": 2.0}),
        (masks.lengths(jnp.array([4, 6]), jnp.array([9, 0])), {}),
        (masks.dense(jnp.asarray(np.random.default_rng(0).random((B, N, T, S)) < 0.2)), {}),
    ],
)
def test_it_means_the_same(library, mask, options):
    library()
    inputs = cases.inputs(T, S) | {"bias": jnp.asarray(normal(10, B, 1, T, S))}
    cases.assert_equals_reference(tokamax.attend, inputs, on_a_gpu, mask=mask, **options)


def test_causal_is_said_in_a_word_and_all_else_by_an_array(library):
    found = library()
    square = cases.inputs(T, T)
    cases.assert_equals_reference(tokamax.attend, square, on_a_gpu, mask=masks.causal())
    assert found.calls[-1] == {"implementation": "mosaic", "causal": True, "mask": None}
    for mask in (masks.causal(1), masks.causal(jnp.array([0, 1])), masks.window(2, 0)):
        cases.assert_equals_reference(tokamax.attend, square, on_a_gpu, mask=mask)
        assert not found.calls[-1]["causal"]
        assert found.calls[-1]["mask"].shape[2:] == (T, T)


def attempt(**options):
    with kernels.lowering_for("cuda"):
        return attend(**cases.inputs(T, S), implementation="tokamax", **options)


def test_the_next_is_asked_and_never_the_dense_one(library):
    found = library(refusing=("mosaic",))
    attempt()
    assert found.calls[-1]["implementation"] == "triton"
    library(refusing=("mosaic",), unknown=("triton",))
    message = "tokamax: mosaic: not on this device; triton: Unknown .*; supported by: .*reference"
    with pytest.raises(NotImplementedError, match=message):
        attempt()


def test_what_it_cannot_is_refused(library):
    library()
    with pytest.raises(NotImplementedError, match=r"tokamax: sinks: not supported.*; supported by"):
        attempt(sinks=normal(0, N))
    with pytest.raises(NotImplementedError, match="tokamax: dropout_rate: not supported"):
        attempt(dropout_rate=0.5, dropout_key=jax.random.key(0))


def test_without_the_package_it_refuses(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(NotImplementedError, match="needs the package tokamax, which is not inst"):
        attempt()
