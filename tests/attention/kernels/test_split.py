"""Kernels that split attention over devices give the numbers of the reference on one.

The 8 virtual devices are in a process of their own.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from attention import attend, explain_choice, masks
from attention.kernels.blockwise import online_softmax, ring
from attention.kernels.cpu import build
from attention.masks import patterns
from tests import virtual_devices
from tests.attention.subjects import normal

MODULE = "tests.attention.kernels.test_split"
B, T, H, V = 4, 16, 6, 3
WIDTHS = {"data": 2, "tensor": 1, "sequence": 4}
LENGTHS = jnp.array([16, 5, 0, 11])

# name -> (kernel, mesh, query heads, key/value heads, options)
CASES = {
    "ring-plain": ("ring", WIDTHS, 2, 2, {}),
    "ring-causal": ("ring", WIDTHS, 2, 1, {"mask": masks.causal()}),
    "ring-window": ("ring", {"sequence": 2}, 2, 2, {"mask": masks.window(3, 1)}),
    "ring-bigbird": ("ring", {"sequence": 2}, 2, 2, {"mask": patterns.big_bird(2)}),
    "ring-one_part": (
        "ring",
        {"sequence": 8},
        3,
        1,
        {"mask": masks.causal(8), "keys": 24},
    ),
    "ring-all": (
        "ring",
        {"data": 2, "tensor": 2, "sequence": 2},
        4,
        2,
        {
            "mask": masks.causal() & masks.lengths(key=LENGTHS),
            "bias": normal(10, 1, 4, T, T),
            "sinks": normal(11, 4),
            "logit_cap": 2.0,
            "dropout_rate": 0.3,
            "dropout_key": jax.random.key(4),
        },
    ),
    "ring-blocks": (
        "ring",
        {"sequence": 2},
        2,
        1,
        {
            "mask": masks.causal() & masks.lengths(key=LENGTHS),
            "bias": normal(10, B, 1, T, T),
            "dropout_rate": 0.3,
            "dropout_key": jax.random.key(4),
            "blocks": {"query_block": 4, "key_block": 2},
        },
    ),
    "ring-fixed_bias": (
        *("ring", {"data": 2, "sequence": 2}, 2, 2),
        {"mask": masks.causal(), "bias": normal(10, 1, 2, T, T), "learned": ()},
    ),
    "ring-bias": (
        "ring",
        WIDTHS,
        2,
        2,
        {
            "mask": masks.dense(np.random.default_rng(2).random((B, 2, T, T)) < 0.4),
            "bias": normal(10, B, 1, T, T),
        },
    ),
    "ulysses-all": (
        "ulysses",
        {"data": 2, "tensor": 2, "sequence": 2},
        8,
        4,
        {
            "mask": masks.dense(np.random.default_rng(2).random((1, 8, T, T)) < 0.6)
            & masks.lengths(key=LENGTHS),
            "bias": normal(10, 1, 8, T, T),
            "sinks": normal(11, 8),
            "logit_cap": 2.0,
            "dropout_rate": 0.3,
            "dropout_key": jax.random.key(4),
        },
    ),
    **{
        # No weight for a sink, and none for the keys of an example.
        f"{kernel}-{what}": (
            kernel,
            {"sequence": 2},
            2,
            2,
            {
                "mask": masks.causal() & masks.lengths(key=LENGTHS),
                "bias": normal(10, 1, 2, T, T),
                "sinks": np.full(2, -np.inf, np.float32),
                "logit_cap": 1e300,
                "double": what == "x64",
            },
        )
        for kernel in ("ring", "ulysses")
        for what in ("no_sink", "x64")
    },
    "ulysses-causal": ("ulysses", {"data": 4, "sequence": 2}, 4, 2, {"mask": masks.causal()}),
    "blockwise-all": (
        "blockwise",
        {"data": 4, "tensor": 2},
        4,
        2,
        {
            "mask": masks.causal() & masks.lengths(key=LENGTHS),
            "bias": normal(10, 1, 4, T, T),
            "sinks": normal(11, 4),
            "dropout_rate": 0.3,
            "dropout_key": jax.random.key(4),
        },
    ),
}


# Covered by "all", "blocks" and "bias" in what they have in common.
SLOW = ("ring-plain", "ring-causal", "ring-window", "ring-bigbird", "ring-x64", "ulysses-no_sink")
SLOW += ("ulysses-causal",)
QUICK = [name for name in CASES if name not in SLOW]


def make_mesh(sizes, types=AxisType.Auto):
    count = int(np.prod(list(sizes.values())))
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(types,) * len(sizes),
        devices=jax.devices()[:count],
    )


def compare(name):
    kernel, sizes, N, K, options = CASES[name]
    options = dict(options)
    with jax.enable_x64(options.pop("double", False)):
        compare_with(name, kernel, sizes, N, K, options)


def compare_with(name, kernel, sizes, N, K, options):
    S, small = options.pop("keys", T), options.pop("blocks", {})
    names = options.pop("learned", ("bias", "sinks"))
    learned = {key: options.pop(key) for key in names if key in options}
    inputs = {"query": normal(0, B, T, N, H), "key": normal(1, B, S, K, H)} | learned
    inputs["value"] = normal(2, B, S, K, V)

    def run(implementation):
        # Arrays of the mask are arguments, as they are in training.
        def both(inputs, mask):
            def output(inputs):
                given = inputs | options | {"mask": mask}
                if small and implementation == "ring":
                    absent = dict.fromkeys(("logit_cap", "sinks"))
                    return ring.attend(**absent | given | small, scale=H**-0.5)
                return attend(**given, implementation=implementation)

            out, backward = jax.vjp(output, inputs)
            return {"out": out} | backward(normal(9, *out.shape))[0]

        return jax.tree.map(np.asarray, jax.jit(both)(inputs, options.get("mask")))

    expected = run("reference")
    with jax.set_mesh(make_mesh(sizes)):
        found = run(kernel)
    assert found.keys() == expected.keys()
    errors = {
        key: float(np.abs(found[key] - array).max() / max(1.0, np.abs(array).max()))
        for key, array in expected.items()
    }
    print(json.dumps({"name": name, "errors": errors}), flush=True)


def refusals():
    """Returns the errors of kernels on an unsupported mesh, and the kernel that "auto" selects."""
    structs = [jax.ShapeDtypeStruct((2, 16, 2, 4), "float32")] * 3
    odd = [jax.ShapeDtypeStruct((2, 15, 2, 4), "float32")] * 3
    arrays = [jnp.zeros(x.shape) for x in structs]
    found = {"single": explain_choice(*structs).name}
    with jax.set_mesh(make_mesh({"sequence": 4})):
        found["auto"] = explain_choice(*structs, mask=masks.causal()).name
        choice = explain_choice(*odd)
        found["odd"], found["why"] = choice.name, choice.unsupported["ring"]
        try:
            attend(*arrays, implementation="ulysses")
        except NotImplementedError as error:
            found["heads"] = str(error)
    with jax.set_mesh(make_mesh({"data": 2, "sequence": 1})):
        found["one"] = explain_choice(*structs).name
    print(json.dumps(found), flush=True)


def balance():
    """Pairs of blocks that each device of a ring computes for a causal mask."""
    counts = []
    original = online_softmax._dot

    def counting(*given):
        jax.debug.callback(lambda r: counts.append(int(r)), jax.lax.axis_index("sequence"))
        return original(*given)

    online_softmax._dot = counting
    mesh = make_mesh({"sequence": 4})
    inputs = [
        jax.device_put(normal(seed, 1, 32, 1, 4), NamedSharding(mesh, PartitionSpec()))
        for seed in range(3)
    ]
    options = dict.fromkeys(("bias", "logit_cap", "sinks", "dropout_key"))
    with jax.set_mesh(mesh):
        out = ring.attend(
            *inputs, mask=masks.causal(), scale=1.0, dropout_rate=0.0, **options, key_block=4
        )
        jax.block_until_ready(out)
        jax.effects_barrier()
    print(json.dumps(np.bincount(counts, minlength=4).tolist()), flush=True)


@pytest.fixture(scope="session")
def answers(tmp_path_factory, worker_id):
    """Returns the errors of each case, the unsupported cases, and the balance of work."""
    given = tmp_path_factory, worker_id, MODULE
    *found, refused, counts = virtual_devices.on_eight_devices_once(
        *given, *QUICK, "refusals", "balance"
    )
    return found, refused, counts


def assert_small(found, names):
    assert [case["name"] for case in found] == list(names)
    for case in found:
        assert {"out", "query", "key", "value"} <= case["errors"].keys()
        assert max(case["errors"].values()) < 1e-5, case["name"]


def test_on_a_mesh_equals_one_device_with_gradients(answers):
    assert_small(answers[0], QUICK)


@pytest.mark.slow
def test_other_cases_on_a_mesh():
    assert_small(virtual_devices.on_eight_devices(MODULE, *SLOW), SLOW)


def test_what_cannot_be_split_is_refused_and_auto_goes_on(answers):
    refused = answers[1]
    alone = "reference" if build.find_compiler() is None else "native"
    assert refused["single"] == refused["one"] == alone
    assert refused["auto"] == "ring"
    assert refused["odd"] == alone
    assert refused["why"] == "mesh: got T=15, expected a multiple of sequence=4"
    assert "N=2 heads, expected a multiple of 4, the product of the mesh axes" in refused["heads"]
    assert "supported by: ring" in refused["heads"]


def test_causal_is_as_much_work_for_each_device(answers):
    assert len(set(answers[2])) == 1
    # 8 parts of 4 positions: 36 of 64 pairs of blocks, two products each.
    assert sum(answers[2]) == 72


def test_without_a_mesh_they_are_refused():
    arrays = [normal(seed, 2, 8, 2, 4) for seed in range(3)]
    for kernel in ("ring", "ulysses"):
        with pytest.raises(NotImplementedError, match=r"no axis 'sequence' of size at least 2"):
            attend(*arrays, implementation=kernel)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument in CASES:
            compare(argument)
        else:
            {"refusals": refusals, "balance": balance}[argument]()
