"""Platform checks of kernels: queries to JAX, and effects of the context managers."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from attention import explain_choice, kernels, registry
from attention.kernels import devices, dispatch
from tests.attention.test_registry import ROOT

X = jnp.ones((2, 3, 2, 8))
LONG = jax.ShapeDtypeStruct((2, 1024, 2, 64), jnp.float32)


@pytest.fixture
def machine(monkeypatch):
    """Makes JAX say that it runs on devices of a kind."""

    def pretend(backend, version="", count=1, capability="8.0"):
        client = types.SimpleNamespace(platform_version=version)
        device = types.SimpleNamespace(
            client=client, device_kind="a device", compute_capability=capability
        )
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(jax, "devices", lambda: [device] * count)
        monkeypatch.setattr(jax, "device_count", lambda: count)

    return pretend


def test_platforms(machine):
    for backend, version, expected in (
        ("gpu", "PJRT C API\ncuda 12080", "cuda"),
        ("gpu", "PJRT C API\nrocm 60300", "rocm"),
        ("tpu", "", "tpu"),
        ("cpu", "", "cpu"),
    ):
        machine(backend, version)
        assert devices.default_platform() == expected
        for platform in devices.PLATFORMS:
            if platform == expected:
                assert not devices.require_platform(platform)
            else:
                with pytest.raises(NotImplementedError, match="but JAX runs on a device"):
                    devices.require_platform(platform)


def test_compute_capability(machine):
    assert devices.compute_capability() is None
    machine("gpu", "cuda 12080", capability="9.0")
    assert devices.compute_capability() == (9, 0)
    with kernels.lowering_for("cuda"):
        assert devices.compute_capability() is None


def test_contexts_nest_and_end():
    with kernels.interpreted():
        assert devices.require_platform("cuda")
        assert devices.require_platform("tpu")
        with kernels.lowering_for("cuda"):
            assert not devices.require_platform("cuda", can_be_interpreted=False)
            with pytest.raises(NotImplementedError, match="needs a TPU"):
                devices.require_platform("tpu", can_be_interpreted=False)
    with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
        devices.require_platform("cuda")
    with pytest.raises(
        ValueError, match=r"platform: got 'rocm', expected one of \['cuda', 'tpu', 'cpu'\]"
    ):
        kernels.lowering_for("rocm").__enter__()


def gpu_mesh(kind="NVIDIA H100 80GB HBM3", platform="gpu"):
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=132, platform=platform)
    return jax.sharding.AbstractMesh((2,), ("data",), (AxisType.Auto,), abstract_device=device)


def test_the_mesh_in_context_tells_the_device():
    with jax.sharding.use_abstract_mesh(gpu_mesh()):
        assert not devices.require_platform("cuda")
        assert devices.expected_kind() == dispatch.device_kind() == "NVIDIA H100 80GB HBM3"
        assert devices.compute_capability() == (9, 0)
        assert explain_choice(X, X, X).name == "triton"
        with pytest.raises(NotImplementedError, match="needs a TPU, but JAX runs on NVIDIA H100"):
            devices.require_platform("tpu")
        with kernels.lowering_for("tpu"):
            assert explain_choice(LONG, LONG, LONG).name == "splash"
    for kind, platform, expected in (
        ("AMD Instinct MI300X", "gpu", "rocm"),
        ("TPU v5 lite", "tpu", "tpu"),
        ("cpu", "cpu", "cpu"),
    ):
        with jax.sharding.use_abstract_mesh(gpu_mesh(kind, platform)):
            assert devices.expected_platform() == expected
            assert devices.compute_capability() is None
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert devices.expected_platform() == "cpu"


def test_measurements_are_those_of_the_device_compiled_for(monkeypatch):
    times = {"reference": 1.0, "triton": 2.0}
    entry = dispatch.Timing(2, 2, 3, 3, 8, "single", "dense", times, times)
    monkeypatch.setattr(dispatch, "timings", lambda: {"NVIDIA H200": (entry,)})
    with kernels.lowering_for("cuda"):
        choice = explain_choice(X, X, X)
        assert (choice.name, "not measured on cuda" in choice.reason) == ("triton", True)
    with kernels.lowering_for("cuda", "NVIDIA H200"):
        choice = explain_choice(X, X, X)
        assert (choice.name, "ms at" in choice.reason) == ("reference", True)
    with jax.sharding.use_abstract_mesh(gpu_mesh("NVIDIA H200")):
        assert explain_choice(X, X, X).name == "reference"


@pytest.mark.parametrize(
    ("device", "capability"),
    [
        (None, None),
        ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA H200", (9, 0)),
        ("NVIDIA B200", None),
        (types.SimpleNamespace(device_kind="NVIDIA B200", compute_capability="10.0"), (10, 0)),
    ],
)
def test_lowering_for_a_device(device, capability):
    with kernels.lowering_for("cuda", device):
        assert devices.compute_capability() == capability
        described = jax.sharding.get_abstract_mesh().abstract_device
        kind = getattr(device, "device_kind", device)
        assert (described.platform, described.device_kind) == ("gpu", kind or "NVIDIA A100")
        wide = jax.ShapeDtypeStruct((4, 2048, 8, 256), jnp.bfloat16)
        refusal = explain_choice(wide, wide, wide).unsupported["cudnn"]
        # Hopper has a backward pass for wide heads.
        assert refusal.startswith("head size") == (capability != (9, 0))


def test_auto_passes_them_by_and_says_why():
    choice = explain_choice(X, X, X)
    for line in registry.mechanisms("kernel"):
        if "cuda" in line.capabilities:
            assert choice.unsupported[line.name].startswith("needs an NVIDIA GPU, but JAX runs on")
        if "tpu" in line.capabilities:
            assert choice.unsupported[line.name].startswith("needs a TPU, but JAX runs on")


def test_auto_takes_them_where_the_device_is():
    half = jax.ShapeDtypeStruct(LONG.shape, jnp.bfloat16)
    with kernels.lowering_for("tpu"):
        assert explain_choice(LONG, LONG, LONG).name == "splash"
    with kernels.lowering_for("cuda"):
        assert explain_choice(LONG, LONG, LONG).name == "triton"
        refused = explain_choice(half, half, half, logit_cap=2.0)
        assert refused.name == "triton"
        assert refused.unsupported["cudnn"] == "logit_cap: not supported by cuDNN"


def test_those_that_are_refused_import_nothing():
    code = (
        "import sys, jax.numpy as jnp; from attention import attend; x = jnp.ones((1, 2, 1, 4)); "
        "attend(x, x, x); assert 'jax.experimental.pallas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
