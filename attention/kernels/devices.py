"""Which device a kernel needs, whether it is here, and how to do without.

A kernel for a GPU or a TPU calls `require_platform` before it imports its library, so that "auto"
rejects it at once on other platforms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from typing import Any

import jax

PLATFORMS = {"cuda": "an NVIDIA GPU", "tpu": "a TPU", "cpu": "a CPU"}

# What the context managers below set, innermost last.
_interpreted: list[bool] = []
_assumed: list[str] = []


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Runs what is written in Pallas in its interpreter: on any machine, slowly, for tests.

        with kernels.interpreted():
            attend(query, key, value, implementation="triton")

    What is traced within stays interpreted: a `jax.jit` that is called again later does not trace
    again.
    """
    _interpreted.append(True)
    try:
        yield
    finally:
        _interpreted.pop()


@contextlib.contextmanager
def lowering_for(platform: str) -> Iterator[None]:
    """Traces as if the device were here: to lower or export a program for a machine that has it.

        with kernels.lowering_for("cuda"):
            exported = jax.export.export(jax.jit(f), platforms=["cuda"])(x)

    Args:
      platform: "cuda", "tpu" or "cpu".

    Raises:
      ValueError: another platform.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform: got {platform!r}, expected one of {list(PLATFORMS)}")
    _assumed.append(platform)
    try:
        with _described(platform):
            yield
    finally:
        _assumed.pop()


# The least device of each platform that a program is lowered for: JAX asks for one from 0.12 on.
_LEAST = {"cuda": ("gpu", "NVIDIA A100")}


def _described(platform: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which JAX lowers for the platform's least device, on the mesh that is set."""
    if platform not in _LEAST or default_platform() == platform:
        return contextlib.nullcontext()
    name, kind = _LEAST[platform]
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=name)
    mesh = jax.sharding.get_abstract_mesh().update(abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def require_platform(platform: str, can_be_interpreted: bool = True) -> bool:
    """Whether to interpret; refuses where that is not asked for and the device is not here.

    Raises:
      NotImplementedError: names the device.
    """
    if _interpreted and can_be_interpreted:
        return True
    if expected_platform() != platform:
        raise NotImplementedError(
            f"needs {PLATFORMS[platform]}, JAX runs on {device_kind_here()} here"
        )
    return False


def expect_one_device() -> None:
    """Refuses where a program may be spread over devices that the caller's kernel cannot be.

    Within a `jax.shard_map` over all axes of a mesh each device runs its own.

    Raises:
      NotImplementedError: there are several devices.
    """
    count = jax.device_count()
    if count == 1 or _assumed:
        return
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.axis_names or set(mesh.manual_axes) != set(mesh.axis_names):
        raise NotImplementedError(
            f"is not spread over devices by itself, and there are {count}: call it within "
            f"jax.shard_map"
        )


def expect_device(can: Container[str]) -> None:
    """Asks `require_platform` for what a kernel's capabilities say, without loading or tracing it.

    Raises:
      NotImplementedError: names the device.
    """
    for platform in PLATFORMS:
        if platform in can:
            require_platform(platform, "interpreted" in can)


def expected_platform() -> str:
    """What is traced for: the platform of `lowering_for`, or that of `default_platform`."""
    return _assumed[-1] if _assumed else default_platform()


def context() -> tuple[bool, str | None]:
    """What the context managers say: whether to interpret, and the platform that is assumed."""
    return bool(_interpreted), _assumed[-1] if _assumed else None


def default_platform() -> str:
    """Where JAX runs what is not placed elsewhere: "cuda", "tpu", "cpu", "rocm", ..."""
    platform = jax.default_backend()
    if platform == "gpu":
        version = jax.devices()[0].client.platform_version
        return "rocm" if "rocm" in version.lower() else "cuda"
    return platform


def device_kind_here() -> str:
    """What a message calls the device that is here."""
    return jax.devices()[0].device_kind


def compute_capability() -> tuple[int, int] | None:
    """Of the first NVIDIA GPU, (9, 0) for Hopper; None where there is none to ask."""
    if _assumed or default_platform() != "cuda":
        return None
    major, _, minor = str(jax.devices()[0].compute_capability).partition(".")
    return int(major), int(minor or 0)
