"""Sharding rules: the placement of arrays."""

import pytest
from jax.sharding import PartitionSpec as P

from launch.engine.sharding import MeshConfig, leaf_spec, make_mesh
from tasks.common.backbones.transformer import SHARDING_RULES
from tasks.common.errors import UserError

SIZES = {"data": 2, "fsdp": 2, "tensor": 4, "sequence": 1}


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("encoder/layers/0/attention/query/kernel", (64, 4, 16), P("fsdp", "tensor", None)),
        ("optimizer/1/mu/encoder/layers/0/attention/out/kernel", (4, 16, 64),
         P("tensor", None, "fsdp")),
        # Two heads cannot be split over four devices: they are replicated.
        ("encoder/layers/0/attention/query/kernel", (64, 2, 32), P("fsdp", None, None)),
        ("encoder/layers/0/feedforward/up/kernel", (64, 256), P("fsdp", "tensor")),
        ("tokens/embedding", (100, 64), P(None, ("fsdp", "tensor"))),
        ("tokens/embedding", (100, 12), P(None, None)),
        ("classify/kernel", (64, 2), P()),
        # The rule has another number of dimensions: the array is replicated.
        ("optimizer/0/up/kernel", (64,), P()),
    ],
)  # fmt: skip
def test_leaf_spec(path, shape, expected):
    assert leaf_spec(path, shape, SHARDING_RULES, SIZES) == expected


def test_mesh_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"tensor 3.*needs 3 devices.*there are 1"):
        make_mesh(MeshConfig(tensor=3))


@pytest.mark.parametrize(
    "wrong", [{"tensor": 0}, {"data": 0}, {"data": -2}, {"sequence": 0}, {"cpu_devices": -1}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MeshConfig(**wrong)
