"""Platforms of kernels: device checks, interpreter mode, and lowering for other platforms.

A kernel for a GPU or a TPU calls `require_platform` before it imports its library, so that "auto"
rejects it at once on other platforms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from typing import Any

import jax

PLATFORMS = {"cuda": "an NVIDIA GPU", "tpu": "a TPU", "cpu": "a CPU"}

# Platform of `portable`, which no kernel of one platform supports.
_PORTABLE = "every platform"

# Stack of settings of the context managers below, innermost last.
_interpreted: list[bool] = []
_assumed: list[str] = []


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Runs Pallas kernels in the interpreter: on any platform, slowly, for tests.

        with kernels.interpreted():
            attend(query, key, value, implementation="triton")

    A `jax.jit` function that is traced inside stays interpreted when it is called again later.
    """
    _interpreted.append(True)
    try:
        yield
    finally:
        _interpreted.pop()


@contextlib.contextmanager
def lowering_for(platform: str) -> Iterator[None]:
    """Traces as if on another platform, to lower or export a program for it.

        with kernels.lowering_for("cuda"):
            exported = jax.export.export(jax.jit(f), platforms=["cuda"])(x)

    Args:
      platform: "cuda", "tpu" or "cpu".

    Raises:
      ValueError: the platform is unknown.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform: got {platform!r}, expected one of {list(PLATFORMS)}")
    _assumed.append(platform)
    try:
        with _described(platform):
            yield
    finally:
        _assumed.pop()


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Traces with kernels that are lowered by XLA alone, to export a program for all platforms.

    with kernels.portable():
        exported = jax.export.export(jax.jit(f), platforms=["cpu", "cuda", "tpu"])(x)
    """
    _assumed.append(_PORTABLE)
    try:
        yield
    finally:
        _assumed.pop()


def is_portable() -> bool:
    """Returns True within `portable`."""
    return bool(_assumed) and _assumed[-1] == _PORTABLE


# Minimal device of each platform for lowering; JAX 0.12 and later require a device.
_LEAST = {"cuda": ("gpu", "NVIDIA A100")}


def _described(platform: str) -> contextlib.AbstractContextManager[Any]:
    """Returns a context that sets the device of `_LEAST` as the target of lowering."""
    if platform not in _LEAST or default_platform() == platform:
        return contextlib.nullcontext()
    name, kind = _LEAST[platform]
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=name)
    mesh = jax.sharding.get_abstract_mesh().update(abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def require_platform(platform: str, can_be_interpreted: bool = True) -> bool:
    """Raises unless JAX uses the platform or interprets kernels; returns True if it interprets.

    Raises:
      NotImplementedError: JAX uses another platform, and the kernel is not interpreted.
    """
    if _interpreted and can_be_interpreted:
        return True
    if expected_platform() != platform:
        raise NotImplementedError(
            f"needs {PLATFORMS[platform]}, but JAX runs on {device_kind_here()}"
        )
    return False


def expect_one_device() -> None:
    """Raises if the program may be partitioned, which the calling kernel does not support.

    Within a `jax.shard_map` over all axes of a mesh, each device runs a separate program.

    Raises:
      NotImplementedError: there are several devices.
    """
    count = jax.device_count()
    if count == 1 or _assumed:
        return
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.axis_names or set(mesh.manual_axes) != set(mesh.axis_names):
        raise NotImplementedError(
            f"is not partitioned over the {count} devices automatically; call it within "
            f"jax.shard_map"
        )


def expect_device(can: Container[str]) -> None:
    """Checks the platform that capabilities of a kernel require, without loading the kernel.

    Raises:
      NotImplementedError: the kernel needs another platform.
    """
    for platform in PLATFORMS:
        if platform in can:
            require_platform(platform, "interpreted" in can)


def expected_platform() -> str:
    """Returns the platform for which JAX traces: that of `lowering_for`, or the default one."""
    return _assumed[-1] if _assumed else default_platform()


def context() -> tuple[bool, str | None]:
    """Returns whether kernels are interpreted, and the platform of `lowering_for` or None."""
    return bool(_interpreted), _assumed[-1] if _assumed else None


def default_platform() -> str:
    """Returns the default platform of JAX: "cuda", "tpu", "cpu", "rocm", ..."""
    platform = jax.default_backend()
    if platform == "gpu":
        version = jax.devices()[0].client.platform_version
        return "rocm" if "rocm" in version.lower() else "cuda"
    return platform


def device_kind_here() -> str:
    """Returns the kind of the first device, for messages."""
    return jax.devices()[0].device_kind


def compute_capability() -> tuple[int, int] | None:
    """Returns the compute capability of the first NVIDIA GPU, such as (9, 0), or None."""
    if _assumed or default_platform() != "cuda":
        return None
    major, _, minor = str(jax.devices()[0].compute_capability).partition(".")
    return int(major), int(minor or 0)
