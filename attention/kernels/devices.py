"""Platforms of kernels: device checks, interpreter mode, and lowering for other platforms.

A program is traced for the device of `lowering_for`, otherwise for the devices of the mesh in
context (`jax.set_mesh`), otherwise for the default device. A kernel for a GPU or a TPU calls
`require_platform` before it imports its library, so that "auto" rejects it at once on other
platforms.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Container, Iterator
from typing import Any

import jax

PLATFORMS = {"cuda": "an NVIDIA GPU", "tpu": "a TPU", "cpu": "a CPU"}

# Platform within `portable`. It is no real platform, so kernels for one platform reject it.
_PORTABLE = "every platform"

# Stacks of the settings of active context managers (below), innermost last.
_interpreted: list[bool] = []
_assumed: list[Target] = []


@dataclasses.dataclass(frozen=True)
class Target:
    """The device that a program is traced for.

    Attributes:
      platform: "cuda", "tpu", "cpu", "rocm", ...
      kind: kind of device, such as "NVIDIA H100 80GB HBM3", or None.
      capability: compute capability of an NVIDIA GPU, such as (9, 0), or None.
    """

    platform: str
    kind: str | None = None
    capability: tuple[int, int] | None = None


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
def lowering_for(platform: str, device: Any = None) -> Iterator[None]:
    """Traces as if on another platform, to lower or export a program for it.

        with kernels.lowering_for("cuda"):
            exported = jax.export.export(jax.jit(f), platforms=["cuda"])(x)

    Args:
      platform: "cuda", "tpu" or "cpu".
      device: kind of the device, such as "NVIDIA H100 80GB HBM3", or an object with the attribute
        `device_kind`, such as a device of `jax.experimental.topologies`. If None, no measurements
        are used, and kernels use only features that every device of the platform supports.

    Raises:
      ValueError: the platform is unknown.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform: got {platform!r}, expected one of {list(PLATFORMS)}")
    kind = device if isinstance(device, str) else getattr(device, "device_kind", None)
    _assumed.append(Target(platform, kind, _capability_of(device, kind)))
    try:
        with _described(platform, kind, device):
            yield
    finally:
        _assumed.pop()


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Traces with kernels that are lowered by XLA alone, to export a program for all platforms.

    with kernels.portable():
        exported = jax.export.export(jax.jit(f), platforms=["cpu", "cuda", "tpu"])(x)
    """
    _assumed.append(Target(_PORTABLE))
    try:
        yield
    finally:
        _assumed.pop()


def is_portable() -> bool:
    """Returns True within `portable`."""
    return bool(_assumed) and _assumed[-1].platform == _PORTABLE


# Minimal device of each platform for lowering; JAX 0.12 and later require a device.
_LEAST = {"cuda": ("gpu", "NVIDIA A100")}

# Compute capability by a part of the device kind, for devices that are not present.
CAPABILITIES = {"A100": (8, 0), "H100": (9, 0), "H200": (9, 0)}


def _described(
    platform: str, kind: str | None, device: Any
) -> contextlib.AbstractContextManager[Any]:
    """Returns a context that sets the target device of lowering.

    The target is the given device, or that of `_LEAST` if its kind is None.
    """
    if platform not in _LEAST or (kind is None and default_platform() == platform):
        return contextlib.nullcontext()
    name, least = _LEAST[platform]
    cores = getattr(device, "core_count", None)
    described = jax.sharding.AbstractDevice(
        device_kind=kind or least, num_cores=cores, platform=name
    )
    mesh = jax.sharding.get_abstract_mesh().update(abstract_device=described)
    return jax.sharding.use_abstract_mesh(mesh)


def _capability_of(device: Any, kind: str | None) -> tuple[int, int] | None:
    number = getattr(device, "compute_capability", None)
    if number is not None:
        major, _, minor = str(number).partition(".")
        return int(major), int(minor or 0)
    return next((found for part, found in CAPABILITIES.items() if part in (kind or "")), None)


def require_platform(platform: str, can_be_interpreted: bool = True) -> bool:
    """Checks that JAX uses a platform or interprets kernels.

    Returns:
      True if kernels are interpreted.

    Raises:
      NotImplementedError: JAX uses another platform, and the kernel is not interpreted.
    """
    if _interpreted and can_be_interpreted:
        return True
    if expected_platform() != platform:
        raise NotImplementedError(
            f"needs {PLATFORMS[platform]}, but JAX runs on {expected_kind() or expected_platform()}"
        )
    return False


def expect_device(can: Container[str]) -> None:
    """Checks the platform that a kernel requires, without loading the kernel.

    Args:
      can: capabilities of the kernel.

    Raises:
      NotImplementedError: the kernel needs another platform.
    """
    for platform in PLATFORMS:
        if platform in can:
            require_platform(platform, "interpreted" in can)


def expected_platform() -> str:
    """Returns the platform for which JAX traces: "cuda", "tpu", "cpu", "rocm", ..."""
    found = _target()
    return default_platform() if found is None else found.platform


def expected_kind() -> str | None:
    """Returns the kind of device for which JAX traces; None if only its platform is known."""
    found = _target()
    return device_kind_here() if found is None else found.kind


def _target() -> Target | None:
    """Returns the device of `lowering_for` or of the mesh of `jax.set_mesh`; None without both."""
    if _assumed:
        return _assumed[-1]
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None:
        return None
    platform, kind = device.platform, device.device_kind
    if platform == jax.default_backend():
        platform = default_platform()
    elif platform == "gpu":
        # Kinds of AMD are "AMD Instinct MI300X" or "gfx942".
        platform = "rocm" if kind.lower().startswith(("amd", "gfx")) else "cuda"
    return Target(platform, kind, _capability_of(None, kind))


def context() -> tuple[bool, Target | None]:
    """Returns whether kernels are interpreted, and the device of `lowering_for` or None."""
    return bool(_interpreted), _assumed[-1] if _assumed else None


def default_platform() -> str:
    """Returns the default platform of JAX: "cuda", "tpu", "cpu", "rocm", ..."""
    platform = jax.default_backend()
    if platform == "gpu":
        version = jax.devices()[0].client.platform_version
        return "rocm" if "rocm" in version.lower() else "cuda"
    return platform


def device_kind_here() -> str:
    """Returns the kind of the default device: "cpu", "NVIDIA H100 80GB HBM3", ..."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue] flag
    return getattr(device, "device_kind", None) or jax.devices()[0].device_kind


def compute_capability() -> tuple[int, int] | None:
    """Returns the compute capability of the NVIDIA GPU that JAX traces for, or None.

    An example is (9, 0).
    """
    found = _target()
    if found is not None and (found.capability or found.kind != device_kind_here()):
        return found.capability
    if default_platform() != "cuda":
        return None
    return _capability_of(jax.devices()[0], None)
