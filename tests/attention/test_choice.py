"""The kernel that "auto" selects, tested with an artificial table of times and artificial
kernels."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import pytest

from attention import attend, explain_choice, masks, registry
from attention.kernels import dispatch, reference
from attention.masks import patterns

KERNELS = ("fresh", "quick", "steady", "reference")
ASKED: list[str] = []


def fresh(query, key, value, **options):
    ASKED.append("fresh")
    raise NotImplementedError("fresh does nothing yet")


def quick(query, key, value, **options):
    ASKED.append("quick")
    if options["sinks"] is not None:
        raise NotImplementedError("no sinks")
    return reference.attend(query, key, value, **options) + 100.0


def steady(query, key, value, **options):
    ASKED.append("steady")
    return reference.attend(query, key, value, **options) + 200.0


def entry(queries, options="dense", dtype="single", keys=None, **milliseconds):
    return dispatch.Timing(
        *(2, 4, queries, keys or queries, 8, dtype, options),
        forward={name: numbers[0] for name, numbers in milliseconds.items()},
        both={name: numbers[1] for name, numbers in milliseconds.items()},
    )


TABLE = (
    # Short: dense is best. Long: quick, but with a gradient steady.
    entry(16, quick=(3.0, 9.0), steady=(2.0, 8.0), reference=(1.0, 4.0)),
    entry(512, quick=(3.0, 9.0), steady=(4.0, 7.0), reference=(20.0, 70.0)),
    entry(512, "causal", quick=(2.0, 5.0), steady=(4.0, 7.0), reference=(20.0, 70.0)),
    entry(4096, "causal", quick=(2.0, 5.0), steady=(1.0, 3.0)),
    entry(512, dtype="half", quick=(1.0, 2.0), steady=(4.0, 7.0), reference=(20.0, 70.0)),
    entry(1, "decode", keys=512, quick=(1.0, 9.0), steady=(2.0, 1.0), reference=(3.0, 1.0)),
)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Registers three kernels before the reference; the first one was never measured."""
    line = registry.find("kernel", "reference")
    lines = [
        dataclasses.replace(line, name=name, target=f"{__name__}:{name}") for name in KERNELS[:-1]
    ]
    others = [one for one in registry.TABLE if one.kind != "kernel"]
    monkeypatch.setattr(registry, "TABLE", [*lines, line, *others])
    monkeypatch.setattr(dispatch, "timings", lambda: {"cpu": TABLE})
    monkeypatch.setattr(dispatch, "_found", {})
    ASKED.clear()


def chosen(queries, keys=None, dtype=jnp.float32, batch=2, **options):
    query = jax.ShapeDtypeStruct((batch, queries, 4, 8), dtype)
    key = jax.ShapeDtypeStruct((batch, keys or queries, 4, 8), dtype)
    return explain_choice(query, key, key, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "name"),
    [
        ((16,), {}, "reference"),
        ((20,), {}, "reference"),
        ((400,), {}, "steady"),
        ((9000,), {}, "steady"),
        ((400,), {"mask": masks.lengths(key=jnp.array([3, 4]))}, "steady"),
        ((400,), {"mask": masks.causal()}, "quick"),
        ((4096,), {"mask": masks.causal()}, "steady"),
        ((400, None, jnp.bfloat16), {}, "quick"),
        ((1, 300), {}, "quick"),
        ((1, 300), {"mask": masks.causal(299)}, "quick"),
    ],
)
def test_the_fastest_at_the_nearest_sizes(arguments, options, name):
    found = chosen(*arguments, **options)
    assert found.name == name
    # This kernel was never measured here, so it keeps its rank at the front; it is unsupported.
    assert found.unsupported == {"fresh": "fresh does nothing yet"}


def test_what_is_slower_is_not_asked():
    chosen(400)
    assert ASKED == ["fresh", "steady"]


def test_the_next_fastest_where_one_refuses():
    found = chosen(400, mask=masks.causal(), sinks=jnp.zeros(4))
    assert found.name == "steady"
    assert found.unsupported == {"fresh": "fresh does nothing yet", "quick": "no sinks"}


def test_nothing_like_it_was_measured():
    for options in ({"bias": jnp.zeros((1, 1, 16, 16))}, {"mask": masks.window(3, 3)}):
        found = chosen(16, **options)
        assert found.name == "quick"
        assert found.reason == (
            "no similar call was measured on cpu; first supported kernel of the registry"
        )


def test_what_an_author_says_counts_where_nothing_was_measured():
    x = jnp.ones((2, 400, 4, 8))
    options = dict.fromkeys(["mask", "bias", "sinks"])

    # Measured: the author is not asked.
    def unsupported_reason(name):
        return "no" if name in ("fresh", "quick") else None

    slow = {"steady": "slow"}.get
    assert dispatch.choose((x,) * 3, options, unsupported_reason, slow).name == "steady"
    options["mask"] = masks.window(2, 2)
    said = {"fresh": "no", "quick": "no", "steady": "slow"}
    assert dispatch.choose((x,) * 3, options, unsupported_reason, slow) == dispatch.KernelChoice(
        "reference", said
    )


def test_what_an_entry_lacks_comes_last(monkeypatch):
    table = (entry(4096, "causal", quick=(1.0, 2.0)), *TABLE[:2])
    monkeypatch.setattr(dispatch, "timings", lambda: {"cpu": table})
    found = chosen(4096, mask=masks.causal(), sinks=jnp.zeros(4))
    assert found.name == "steady"
    assert found.reason == (
        "was not measured on cpu at such sizes; selected after the measured kernels"
    )


def test_it_says_why():
    assert chosen(400).reason == (
        "measured 7 ms at (B, N, T, S, H) = (2, 4, 512, 512, 8) on cpu, single dense, "
        "quick 9 ms, reference 70 ms"
    )
    assert "3 ms at (B, N, T, S, H) = (2, 4, 4096" in chosen(5000, mask=masks.causal()).reason


def test_another_device_goes_by_the_registry(monkeypatch):
    monkeypatch.setattr(dispatch, "device_kind", lambda: "abacus")
    found = chosen(16)
    assert found.name == "quick"
    assert "abacus" in found.reason


def test_attend_takes_it_in_eager_mode_and_under_jit():
    x = jnp.ones((2, 400, 4, 8))
    assert attend(x, x, x).min() > 200
    assert jax.jit(lambda x: attend(x, x, x, mask=masks.causal()))(x).max() < 102


def test_the_same_call_is_looked_up_once():
    first = chosen(400, mask=masks.causal(), bias=None)
    asked = len(ASKED)
    again = chosen(400, mask=masks.causal(), bias=None)
    assert (first, first.reason) == (again, again.reason)
    assert len(ASKED) == asked
    # What is given out is the caller's own.
    again.unsupported.clear()
    assert chosen(400, mask=masks.causal()) == first
    assert chosen(400, mask=masks.causal(), sinks=jnp.zeros(4)).name == "steady"


def test_it_costs_less_than_a_millisecond():
    x = jnp.ones((2, 400, 4, 8))
    options = dict.fromkeys(["bias", "sinks", "logit_cap", "dropout_key"])
    options |= {"mask": masks.causal() & masks.lengths(key=jnp.array([3, 4])), "scale": 0.3}
    options["dropout_rate"] = 0.0
    dispatch.choose((x, x, x), options, lambda name: None)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        dispatch.choose((x, x, x), options, lambda name: None)
        times.append(time.perf_counter() - began)
    assert min(times) < 1e-3


def test_a_length_that_is_a_symbol_goes_by_the_registry():
    batch, length = jax.export.symbolic_shape("b, t")
    query = jax.ShapeDtypeStruct((batch, length, 4, 8), jnp.float32)
    options = dict.fromkeys(["mask", "bias", "sinks"])
    found = dispatch.choose((query,) * 3, options, lambda name: None)
    assert found.name == "fresh"


ARRAY = masks.dense(jnp.ones((1, 1, 16, 16), bool))


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (None, "dense"),
        (masks.lengths(key=jnp.array([3])), "dense"),
        (masks.causal(), "causal"),
        (masks.prefix(3), "causal"),
        (masks.causal() & masks.window(3, 0), "sparse"),
        (patterns.strided(4) & masks.causal(), "sparse"),
        (patterns.big_bird(4), "sparse"),
        (ARRAY & masks.window(3, 3), "array"),
        (masks.causal() & masks.segments(jnp.ones((1, 16), int), jnp.ones((1, 16), int)), "array"),
        (masks.window(3, 0) | masks.causal(), "array"),
    ],
)
def test_options_class(mask, name):
    assert dispatch.workload_class(16, 16, mask, None) == name
    assert dispatch.workload_class(16, 16, mask, 1.0) == "bias"
    assert dispatch.workload_class(1, 16, mask, 1.0) == "decode"
    assert dispatch.workload_class(1, 1, None, None) == "dense"


def test_the_table_in_the_project_is_well_formed():
    for entries in dispatch.read(dispatch.TIMINGS).values():
        for one in entries:
            assert one.options in dispatch.WORKLOADS
            assert one.dtype in ("single", "half")
            assert one.milliseconds


def test_a_broken_table_is_named(tmp_path):
    file = tmp_path / "timings.json"
    file.write_text(json.dumps({"cpu": {"entries": [{"batch": 1}]}}))
    with pytest.raises(ValueError, match=r"timings\.json: expected a file written by"):
        dispatch.read(file)
    assert dispatch.read(tmp_path / "none.json") == {}
