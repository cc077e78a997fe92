"""Collectives read from programs for CPU, GPU and TPU."""

import pytest

from launch.engine.collectives import Collective, collectives
from tests.launch.conftest import ROOT
from tests.virtual_devices import printed

# Excerpts of what XLA prints, shortened.
GPU, TPU = (
    (ROOT / f"tests/launch/data/collectives_{name}.hlo").read_text(encoding="utf-8")
    for name in ("gpu", "tpu")
)


def test_program_for_gpus():
    dot, line = "jit(f)/while/body/dot_general", "/project/layers.py:16"
    shape = "(bf16[128,128], f32[32])"
    assert collectives(GPU) == [
        Collective("all-gather", shape, 128 * 128 * 2 + 32 * 4, 4, line, dot, 7),
        Collective("all-reduce", "bf16[16,128]", 16 * 128 * 2, 2, line, dot, 7),
        Collective("reduce-scatter", "bf16[32,128]", 128 * 128 * 2, 4, "", "", 1),
        Collective("collective-permute", "bf16[64,32]", 64 * 32 * 2, 3, "", "", 1),
        Collective("all-reduce", "f32[]", 4, 16, "", "", 1),
    ]


def test_groups_of_a_permuted_mesh():
    plain = "mesh['a'=4,'b'=4] {'a'}"
    assert plain in GPU
    permuted = GPU.replace(plain, "mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'a'}")
    assert collectives(permuted) == collectives(GPU)


def test_parts_of_an_asynchronous_collective_on_tpus_count_once():
    gather, scatter = "jit(f)/dot_general", "jit(f)/transpose(jvp())/dot_general"
    line, size = "/project/layers.py:16", 128 * 128 * 2
    assert collectives(TPU) == [
        Collective("all-gather", "bf16[1,128,128]", size, 4, line, gather, 1),
        Collective("reduce-scatter", "bf16[32,128]", size, 4, line, scatter, 1),
        # The counter of its loop goes from 1 to 11 in steps of 2.
        Collective("all-reduce", "bf16[4,8]", 4 * 8 * 2, 2, "", "", 5),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("constant.118 = s32[]{:T(128)} constant(1)", "constant.118 = s32[]{:T(128)} parameter(1)"),
        ("direction=LT", "direction=NE"),
        ("add(%copy.24, %constant.103)", "multiply(%copy.24, %constant.103)"),
    ],
)
def test_loop_with_another_counter_has_no_count(before, after):
    assert before in TPU
    assert collectives(TPU.replace(before, after))[-1].count is None


def test_loop_of_unknown_length_and_unreached_computation():
    unknown = GPU.replace(', backend_config={"known_trip_count":{"n":"2"}}', "")
    assert [each.count for each in collectives(unknown)] == [None, None, 1, 1, 1]
    unreached = "\n".join(line for line in GPU.splitlines() if "while(" not in line)
    assert [each.kind for each in collectives(unreached)] == [
        "reduce-scatter",
        "collective-permute",
        "all-reduce",
    ]


SCRIPT = """
import dataclasses, json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from launch.engine.collectives import collectives

mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)

def layer(x, weights):
    up, down = weights
    return x + jnp.tanh(x @ up) @ down, None

def f(x, weights):
    return jax.lax.scan(layer, x, weights)[0].sum()

def array(shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, P(*axes)))

weights = array((3, 8, 16), None, None, "tensor"), array((3, 16, 8), None, "tensor", None)
compiled = jax.jit(f).lower(array((12, 8), "data"), weights).compile()
print(json.dumps([dataclasses.asdict(each) for each in collectives(compiled.as_text())]))
"""


@pytest.fixture(scope="module")
def compiled():
    return printed("-c", SCRIPT)[-1]


def test_program_of_three_layers_compiled_here(compiled):
    """Tensor parallelism sums one [12 / 4, 8] activation over 2 devices in each of 3 layers."""
    (inside,) = [each for each in compiled if each["count"] == 3]
    assert (inside["kind"], inside["shape"], inside["group_size"]) == ("all-reduce", "f32[3,8]", 2)
    assert inside["bytes"] == 3 * 8 * 4
    assert inside["op_name"].endswith("dot_general")
    assert inside["source"].startswith("<string>:")
    (last,) = [each for each in compiled if each["count"] == 1]
    assert (last["kind"], last["shape"], last["group_size"]) == ("all-reduce", "f32[]", 4)
