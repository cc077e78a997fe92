"""Kernels of one device, run on each device of a mesh, give the numbers of the reference on one.

The 8 virtual devices are in a process of their own, where the kernels are interpreted.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from attention import attend, explain_choice, kernels, masks
from attention.kernels import partition
from tests import virtual_devices
from tests.attention.kernels.test_split import make_mesh
from tests.attention.subjects import normal

MODULE = "tests.attention.kernels.test_partition"
B, T, S, H, V = 4, 20, 28, 8, 4
ALL = {"data": 2, "fsdp": 2, "tensor": 2}
LENGTHS = jnp.array([28, 5, 0, 11])


def ids(seed, length):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 3, (B, length)))


def dense(*leading):
    return masks.dense(jnp.asarray(np.random.default_rng(2).random((*leading, T, S)) < 0.5))


# name -> (kernel, mesh, query heads, key/value heads, options)
CASES = {
    "triton-all": (
        *("triton", ALL, 4, 2),
        {
            "mask": masks.causal(8) & masks.lengths(key=LENGTHS) & dense(1, 4),
            "bias": normal(10, 1, 4, T, S),
            "sinks": normal(11, 4),
            "logit_cap": 2.0,
        },
    ),
    "triton-bias_of_examples": (
        *("triton", ALL, 4, 4),
        {"mask": masks.segments(ids(3, T), ids(4, S)), "bias": normal(10, B, 1, T, S)},
    ),
    "triton-shared_bias": (
        *("triton", ALL, 2, 2),
        {"mask": masks.prefix(jnp.array([9, 0, 3, 1]), 8), "bias": normal(10, 1, 1, T, S)},
    ),
    "triton-full_bias": (
        *("triton", {"data": 4, "tensor": 2}, 2, 2),
        {"mask": dense(B, 2), "bias": normal(10, B, 2, T, S)},
    ),
    # The heads of keys cannot be divided, so only examples are.
    "triton-one_key_head": (*("triton", ALL, 4, 1), {"mask": masks.window(5, 3, 8)}),
    # Nothing can be divided.
    "triton-odd": (
        *("triton", ALL, 3, 3),
        {"examples": 3, "bias": normal(10, 1, 3, T, S), "sinks": normal(11, 3)},
    ),
    "triton-fixed_bias": (
        *("triton", ALL, 2, 2),
        {"bias": normal(10, 1, 2, T, S), "learned": ("sinks",), "sinks": normal(11, 2)},
    ),
    "triton-sequence": (
        *("triton", {"data": 2, "sequence": 4}, 2, 1),
        {"mask": masks.valid(key=ids(5, S) > 0), "sinks": normal(11, 2)},
    ),
    "triton-explicit": (
        *("triton", ALL, 4, 2),
        {"mask": masks.causal(8), "bias": normal(10, 1, 4, T, S), "types": AxisType.Explicit},
    ),
    "splash-all": (
        *("splash", ALL, 4, 2),
        {
            "mask": masks.causal(8) & masks.lengths(key=LENGTHS),
            "sinks": normal(11, 4),
            "logit_cap": 2.0,
        },
    ),
    "splash-segments": (
        *("splash", ALL, 2, 1),
        {"mask": masks.segments(ids(3, T), ids(4, S)) & masks.window(9, 2, 4)},
    ),
    "splash-odd": (*("splash", ALL, 3, 3), {"examples": 6}),
}
SLOW = ("triton-bias_of_examples", "triton-full_bias", "splash-segments", "splash-odd")
SLOW += ("triton-shared_bias",)
QUICK = [name for name in CASES if name not in SLOW]


def compare(name):
    """Prints the largest differences of the output and of each gradient, relative to the largest
    number, and the spec by which the output is sharded."""
    kernel, sizes, N, K, options = CASES[name]
    options = dict(options)
    examples, types = options.pop("examples", B), options.pop("types", AxisType.Auto)
    names = options.pop("learned", ("bias", "sinks"))
    learned = {key: options.pop(key) for key in names if key in options}
    inputs = {"query": normal(0, examples, T, N, H), "key": normal(1, examples, S, K, H)}
    inputs |= {"value": normal(2, examples, S, K, V)} | learned

    def run(implementation):
        # Arrays of the mask are arguments, as they are in training.
        def both(inputs, mask):
            def output(inputs):
                given = inputs | options | {"mask": mask}
                return attend(**given, implementation=implementation)

            out, backward = jax.vjp(output, inputs)
            return {"out": out} | backward(cotangent_like(out))[0]

        return jax.jit(both)(inputs, options.get("mask"))

    expected = run("reference")
    mesh = make_mesh(sizes, types)
    with jax.set_mesh(mesh), kernels.interpreted():
        found = run(kernel)
    spec = [name for part in found["out"].sharding.spec for name in np.atleast_1d(part)]
    print(json.dumps({"name": name, "errors": errors(found, expected), "spec": spec}), flush=True)


def cotangent_like(out):
    cotangent = jnp.asarray(normal(9, *out.shape))
    kinds = jax.sharding.get_abstract_mesh().axis_types
    if AxisType.Explicit not in kinds:
        return cotangent
    return jax.sharding.reshard(cotangent, jax.typeof(out).sharding)


def errors(found, expected):
    assert found.keys() == expected.keys()
    found, expected = jax.tree.map(np.asarray, (found, expected))
    return {
        key: float(np.abs(found[key] - array).max() / max(1.0, np.abs(array).max()))
        for key, array in expected.items()
    }


def within():
    """Prints errors of calls within `jax.vmap`, and within a `jax.shard_map` of the caller."""
    arrays = [normal(0, B, T, 4, H), normal(1, B, S, 2, H), normal(2, B, S, 2, V)]
    lengths = LENGTHS

    def loss(implementation, query, key, value, lengths):
        mask = masks.lengths(key=lengths) & masks.causal(8)
        out = attend(query, key, value, mask=mask, implementation=implementation)
        return (out * normal(9, *out.shape[1:])).sum()

    def slopes(implementation, over=lambda f: f):
        def total(*given):
            return over(lambda *given: loss(implementation, *given)[None])(*given).sum()

        found = jax.jit(jax.grad(total, (0, 1, 2)))(*arrays, lengths)
        return dict(zip(("query", "key", "value"), found, strict=True))

    expected = slopes("reference")

    def mapped(f):
        return lambda *given: jax.vmap(f)(*(x[:, None] for x in given))

    def sharded(*names):
        spec = PartitionSpec(names or None)
        return lambda f: jax.shard_map(
            f, in_specs=spec, out_specs=spec, axis_names=set(names), check_vma=False
        )

    with jax.set_mesh(make_mesh(ALL)), kernels.interpreted():
        found = {
            "vmap": slopes("triton", mapped),
            "some_axes": slopes("triton", sharded("data")),
            "batch_axes": slopes("triton", sharded("data", "fsdp")),
        }
    with jax.set_mesh(make_mesh({"data": 4})), kernels.interpreted():
        found["all_axes"] = slopes("triton", sharded("data"))
    found = {name: errors(each, expected) for name, each in found.items()}
    print(json.dumps(found), flush=True)


def split_of(sizes, B, N, K, manual=()):
    """Returns the axes that shard examples and heads, or None without a split."""
    mesh = make_mesh(sizes).abstract_mesh
    mesh = mesh.update_axis_types(dict.fromkeys(manual, AxisType.Manual))
    with jax.sharding.use_abstract_mesh(mesh):
        split = partition.device_split(B, N, K)
    return None if split is None else [list(split.batch), list(split.heads)]


def choices():
    """Prints splits, and the kernels that "auto" selects."""
    found = {
        "all": split_of(ALL, 8, 4, 2),
        "examples": split_of(ALL, 2, 4, 2),
        "heads": split_of(ALL, 3, 4, 2),
        "one_key_head": split_of(ALL, 8, 4, 1),
        "nothing": split_of(ALL, 3, 3, 3),
        "manual": split_of(ALL, 8, 4, 2, ("data",)),
        "manual_of_one": split_of({"data": 8, "tensor": 1}, 8, 4, 2, ("data",)),
        "all_manual": split_of(ALL, 8, 4, 2, tuple(ALL)),
        "one": split_of({"data": 1, "tensor": 1}, 8, 4, 2),
        "sequence": split_of({"data": 2, "sequence": 4}, 8, 4, 2),
    }
    x = jax.ShapeDtypeStruct((4, 512, 2, 64), "float32")
    with jax.set_mesh(make_mesh({"data": 4})):
        with kernels.lowering_for("tpu"):
            found["tpu"] = explain_choice(x, x, x).name
        with kernels.lowering_for("cuda"):
            found["cuda"] = explain_choice(x, x, x).name
            found["refused"] = explain_choice(x, x, x).unsupported["cudnn"]
    with jax.set_mesh(make_mesh({"sequence": 4})), kernels.lowering_for("tpu"):
        found["ring"] = explain_choice(x, x, x).name
    print(json.dumps(found), flush=True)


@pytest.fixture(scope="session")
def answers(tmp_path_factory, worker_id):
    """Returns the errors of each case, those within other transformations, and the choices."""
    given = tmp_path_factory, worker_id, MODULE
    *found, others, chosen = virtual_devices.on_eight_devices_once(
        *given, *QUICK, "within", "choices"
    )
    return found, others, chosen


def assert_small(found, names):
    assert [case["name"] for case in found] == list(names)
    for case in found:
        *_, options = CASES[case["name"]]
        learned = {"bias", "sinks"} & options.keys() & {*options.get("learned", ("bias", "sinks"))}
        assert case["errors"].keys() == {"out", "query", "key", "value"} | learned
        assert max(case["errors"].values()) < 1e-5, case["name"]


def test_on_a_mesh_equals_one_device_with_gradients(answers):
    assert_small(answers[0], QUICK)


@pytest.mark.slow
def test_other_cases_on_a_mesh():
    assert_small(virtual_devices.on_eight_devices(MODULE, *SLOW), SLOW)


def test_the_output_stays_sharded(answers):
    specs = {case["name"]: case["spec"] for case in answers[0]}
    assert specs["triton-all"] == specs["splash-all"] == ["data", "fsdp", None, "tensor"]
    assert specs["triton-one_key_head"] == ["data", "fsdp"]
    assert specs["triton-sequence"] == ["data"]
    assert specs["triton-odd"] == []


def test_within_other_transformations_equals_one_device(answers):
    found = answers[1]
    assert found.keys() == {"vmap", "some_axes", "batch_axes", "all_axes"}
    for name, each in found.items():
        assert max(each.values()) < 1e-5, name


def test_axes_that_shard_examples_and_heads(answers):
    found = answers[2]
    assert found["all"] == [["data", "fsdp"], ["tensor"]]
    assert found["examples"] == [["data"], ["tensor"]]
    assert found["heads"] == [[], ["tensor"]]
    assert found["one_key_head"] == [["data", "fsdp"], []]
    assert found["nothing"] == [[], []]
    assert found["manual"] == [["fsdp"], ["tensor"]]
    # Compilers refuse a program in which an axis is not manual, even one of size 1.
    assert found["manual_of_one"] == [[], []]
    assert found["all_manual"] is None
    assert found["one"] is None
    assert found["sequence"] == [["data"], []]


def test_auto_selects_them_on_a_mesh(answers):
    found = answers[2]
    assert found["tpu"] == "splash"
    assert found["cuda"] == "triton"
    assert found["refused"] == "dtype: got float32, expected bfloat16 or float16"
    assert found["ring"] == "ring"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument in CASES:
            compare(argument)
        else:
            {"within": within, "choices": choices}[argument]()
