"""Platform checks of kernels: queries to JAX, and effects of the context managers."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from attention import attend, explain_choice, kernels, registry
from attention.kernels import devices
from tests.attention.test_registry import ROOT

X = jnp.ones((2, 3, 2, 8))


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


@pytest.mark.parametrize(("kernel", "backend"), [("triton", "gpu"), ("splash", "tpu")])
def test_several_devices_need_shard_map(machine, kernel, backend):
    def traced(function):
        # A new lambda each time, because earlier traces are cached.
        return jax.eval_shape(lambda x: function(x), X).shape

    def call(x):
        return attend(x, x, x, implementation=kernel)

    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    machine(backend, "cuda", count=1)
    assert traced(call) == X.shape
    machine(backend, "cuda", count=4)
    with pytest.raises(
        NotImplementedError,
        match=r"over the 4 devices automatically; call it within "
        r"jax\.shard_map; ",
    ):
        traced(call)
    spec = PartitionSpec("data")
    within = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    assert traced(within) == X.shape


def test_auto_passes_them_by_and_says_why():
    choice = explain_choice(X, X, X)
    for line in registry.mechanisms("kernel"):
        if "cuda" in line.capabilities:
            assert choice.unsupported[line.name].startswith("needs an NVIDIA GPU, but JAX runs on")
        if "tpu" in line.capabilities:
            assert choice.unsupported[line.name].startswith("needs a TPU, but JAX runs on")


def test_auto_takes_them_where_the_device_is():
    short = X.astype(jnp.bfloat16)
    with kernels.lowering_for("tpu"):
        assert explain_choice(X, X, X).name == "splash"
    with kernels.lowering_for("cuda"):
        assert explain_choice(X, X, X).name == "triton"
        refused = explain_choice(short, short, short, logit_cap=2.0)
        assert refused.name == "triton"
        assert refused.unsupported["cudnn"] == "logit_cap: not supported by cuDNN"


def test_those_that_are_refused_import_nothing():
    code = (
        "import sys, jax.numpy as jnp; from attention import attend; x = jnp.ones((1, 2, 1, 4)); "
        "attend(x, x, x); assert 'jax.experimental.pallas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
