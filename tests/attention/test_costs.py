"""The kernel that "auto" selects by estimates, for kinds of devices without measurements."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from attention import explain_choice, kernels, masks, registry
from attention.kernels import costs, dispatch

H100, V5E = ("cuda", "NVIDIA H100 80GB HBM3"), ("tpu", "TPU v5 lite")


def arrays(B, T, N, H, dtype=jnp.bfloat16, S=None):
    query = jax.ShapeDtypeStruct((B, T, N, H), dtype)
    key = jax.ShapeDtypeStruct((B, S or T, N, H), dtype)
    return query, key, key


def chosen(device, *sizes, **options):
    with kernels.lowering_for(*device):
        return explain_choice(*arrays(*sizes), **options)


def milliseconds(device, *sizes, mask=None):
    options = dict.fromkeys(["mask", "bias", "sinks"]) | {"mask": mask}
    with kernels.lowering_for(*device):
        return dispatch.estimates(arrays(*sizes), options, registry.names("kernel"))


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        # Blocks of 128 are mostly padding, and each is a step of a sequential grid.
        ((128, 16, 4, 32), "reference"),
        ((128, 65, 4, 32, jnp.float32), "reference"),
        ((8, 512, 8, 64), "splash"),
        ((1, 512, 1, 64, jnp.float32), "splash"),
        ((2, 8192, 16, 128), "splash"),
    ],
)
def test_choice_for_a_tpu(sizes, name):
    assert chosen(V5E, *sizes).name == name
    assert chosen(V5E, *sizes, mask=masks.causal()).name == name


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("length", [512, 2048])
@pytest.mark.parametrize("device", [H100, ("cuda", "NVIDIA A100-SXM4-80GB"), V5E, ("tpu", "new")])
def test_long_sequences_use_a_fused_kernel(device, length, dtype):
    for sizes in ((1, length, 1, 64), (16, length, 8, 128), (128, length, 4, 32)):
        assert chosen(device, *sizes, dtype).name in ("cudnn", "triton", "splash")


def test_long_sequences_without_a_fused_kernel_use_the_others():
    key = jax.random.key(0)
    for length, name in ((600, "reference"), (8192, "blockwise")):
        found = chosen(V5E, 8, length, 8, 64, dropout_rate=0.1, dropout_key=key)
        assert found.name == name
        assert "dropout" in found.unsupported["splash"]


def test_reason_has_the_estimates():
    found = chosen(V5E, 128, 16, 4, 32)
    assert found.reason.startswith("not measured on TPU v5 lite; estimated ")
    assert ", splash " in found.reason
    found = chosen(V5E, 8, 2048, 8, 64)
    assert "splash" not in found.reason  # the selected kernel is not compared with itself


def test_measurements_replace_estimates(monkeypatch):
    sizes = 128, 4, 16, 16, 32
    entry = dispatch.Timing(*sizes, "half", "dense", {}, {"splash": 1.0, "reference": 2.0})
    monkeypatch.setattr(dispatch, "timings", lambda: {V5E[1]: (entry,)})
    monkeypatch.setattr(dispatch, "_found", {})
    found = chosen(V5E, 128, 16, 4, 32)
    assert found.name == "splash"
    assert found.reason.startswith("measured 1 ms")


def test_estimates_grow_with_sizes():
    for device in (H100, V5E):
        for smaller, larger in [
            ((8, 256, 8, 64), (16, 256, 8, 64)),
            ((8, 256, 8, 64), (8, 510, 8, 64)),
            ((8, 256, 8, 64), (8, 256, 8, 128)),
            ((8, 256, 8, 64), (8, 256, 8, 64, jnp.float32)),
        ]:
            one, other = milliseconds(device, *smaller), milliseconds(device, *larger)
            assert one.keys() == other.keys() != set()
            assert all(one[name] <= other[name] for name in one)
            assert sum(other.values()) > sum(one.values())


def test_windows_are_cheaper_for_kernels_that_skip_blocks():
    full = milliseconds(V5E, 1, 8192, 8, 64)["splash"]
    assert milliseconds(V5E, 1, 8192, 8, 64, mask=masks.causal())["splash"] < 0.6 * full
    assert milliseconds(V5E, 1, 8192, 8, 64, mask=masks.window(256, 0))["splash"] < 0.2 * full


def test_cost_is_that_of_one_device_of_the_mesh():
    mesh = AbstractMesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    whole = milliseconds(V5E, 4, 510, 4, 64)
    with jax.sharding.use_abstract_mesh(mesh):
        assert milliseconds(V5E, 16, 510, 8, 64) == whole
    assert milliseconds(V5E, 16, 510, 8, 64)["reference"] > whole["reference"]


def test_dense_weights_that_do_not_fit_are_not_selected():
    device = costs.speed_of(*V5E)
    call = costs.Call("tpu", 1, 1, 1, 16, 16, 8, 8, 2, 1.0, 0.0, False, device)
    small = costs.Cost(1.0, 1.0, 0.5, 1, memory=device.memory / 4)
    large = costs.Cost(1.0, 1.0, 0.5, 1, memory=device.memory)
    assert costs.seconds(call, small) < math.inf == costs.seconds(call, large)


@pytest.mark.parametrize("offset", [0, 2, -4])
@pytest.mark.parametrize("window", [(None, 0), (3, 0), (2, 4), (None, 1)])
def test_visible_fraction(window, offset):
    mask = masks.window(*window, query_offset=offset)
    for T, S in ((7, 7), (5, 9), (9, 5), (1, 1)):
        for tested in (mask, mask & masks.window(1, 3, query_offset=1)):
            expected = float(np.mean(tested.materialize(1, 1, T, S)))
            assert dispatch.visible_fraction(tested, T, S) == pytest.approx(expected)


def test_no_estimate_for_symbolic_sizes_and_other_platforms():
    (B,) = jax.export.symbolic_shape("b")
    with kernels.lowering_for(*V5E):
        assert "not measured" not in explain_choice(*arrays(B, 16, 4, 8)).reason
    options = dict.fromkeys(["mask", "bias", "sinks"])
    assert dispatch.estimates(arrays(2, 16, 4, 8), options, registry.names("kernel")) == {}
