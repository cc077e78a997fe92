"""Devices to compile for, which may be absent: "h100x8", "v5e:4x4", "cpu:8".

The compilers of GPUs and TPUs are packages (requirements-cuda.txt, requirements-tpu.txt) and work
without a device. Each of the two packages needs its own Python environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from attention.kernels import costs, devices
from launch.engine.sharding import MeshConfig, request_devices
from tasks.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Properties of a GPU that XLA needs to compile for it, besides those in `attention.kernels`.

    Attributes:
      model: name in `attention.kernels.costs.SPEEDS` and `devices.CAPABILITIES`.
      kind: device kind as JAX reports it.
      memory: bytes of memory.
      clock: frequency of the multiprocessors in GHz.
      shared_memory: bytes of shared memory of a multiprocessor; a block can use 1 KB less.
      cache: bytes of the L2 cache.
    """

    model: str
    kind: str
    memory: int
    clock: float
    shared_memory: int
    cache: int

    @property
    def target(self) -> str:
        """The GPU as a text-format GpuTargetConfigProto of XLA."""
        major, minor = devices.CAPABILITIES[self.model]
        speed = costs.SPEEDS[self.model]
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared_memory}
  shared_memory_per_block_optin: {self.shared_memory - 1024}
  threads_per_core_limit: 2048
  core_count: {speed.cores}
  fpus_per_core: {128 if major >= 9 else 64}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {speed.bandwidth:.0f}
  l2_cache_size: {self.cache}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{self.kind}"
"""


# NVIDIA A100 (2020), H100 and H200 (2022, 2023) datasheets and CUDA C++ Programming Guide.
GPUS: Mapping[str, Gpu] = {
    gpu.model.lower(): gpu
    for gpu in (
        Gpu("A100", "NVIDIA A100-SXM4-80GB", 85_100_068_864, 1.41, 167_936, 41_943_040),
        Gpu("H100", "NVIDIA H100 80GB HBM3", 84_978_434_048, 1.98, 233_472, 52_428_800),
        Gpu("H200", "NVIDIA H200", 151_397_597_184, 1.98, 233_472, 52_428_800),
    )
}


@dataclasses.dataclass(frozen=True)
class Tpu:
    """Properties of a TPU generation.

    Attributes:
      memory: bytes of memory of a device.
      type_prefix: beginning of the accelerator type; a number of cores or chips follows.
      cores: number by which the count in the accelerator type increases for each chip.
      smallest: shape of the smallest topology.
    """

    memory: int
    type_prefix: str
    cores: int
    smallest: tuple[int, ...]


# Google Cloud TPU documentation, system architecture; a device of v5p is a chip.
TPUS: Mapping[str, Tpu] = {
    "v5e": Tpu(16 * 2**30, "v5litepod-", 1, (2, 2)),
    "v5p": Tpu(95 * 2**30, "v5p-", 2, (2, 2, 1)),
    "v6e": Tpu(32 * 2**30, "v6e-", 1, (2, 2)),
}

_EXPECTED = "h100x8, a100x1, h200x16, v5e:4x4, v5p:2x2x2, v5e:1 or cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: the parsed text.
      platform: "cuda", "tpu" or "cpu".
      kind: device kind.
      devices: the devices, as for a `jax.sharding.Mesh`.
      memory: bytes of memory of a device; None if unknown.
    """

    name: str
    platform: str
    kind: str
    devices: tuple[Any, ...]
    memory: int | None


def topology(name: str) -> Topology:
    """Returns the devices that a name such as "h100x8" describes.

    Args:
      name: kind and number of GPUs, such as "h100x8", with 8 GPUs on each host; kind and shape of a
        TPU slice, such as "v5e:4x4", or "v5e:1" for one device; or "cpu:8" for virtual devices of
        this CPU.

    Raises:
      UserError: the name is invalid, or the compiler is not installed.
    """
    if match := re.fullmatch(r"cpu:([1-9]\d{0,3})", name):
        return _cpu(name, int(match[1]))
    if (match := re.fullmatch(r"([a-z]\w*?)x([1-9]\d{0,4})", name)) and match[1] in GPUS:
        return _gpu(name, match[1], int(match[2]))
    if (match := re.fullmatch(r"(v\w+):([1-9]\d*(?:x[1-9]\d*){0,2})", name)) and match[1] in TPUS:
        return _tpu(name, match[1], tuple(map(int, match[2].split("x"))))
    kind = re.split(r"[:x]", name)[0]
    close = difflib.get_close_matches(kind, [*GPUS, *TPUS, "cpu"], 1)
    hint = f"; did you mean {close[0]}?" if close and close[0] != kind else ""
    raise UserError(
        f"--topology={name}: expected a kind ({', '.join([*GPUS, *TPUS, 'cpu'])}) and the number "
        f"of devices, such as {_EXPECTED}{hint}"
    )


def _cpu(name: str, count: int) -> Topology:
    import jax

    request_devices(MeshConfig(cpu_devices=count))
    found = tuple(jax.devices("cpu")[:count])
    if len(found) < count:
        raise UserError(
            f"--topology={name}: JAX already runs with {len(found)} CPU devices in this process; "
            "use a new process"
        )
    return Topology(name, "cpu", "cpu", found, None)


def _gpu(name: str, kind: str, count: int) -> Topology:
    per_host = min(count, 8)
    if count % per_host:
        raise UserError(f"--topology={name}: expected 1 to 8 GPUs, or a multiple of 8")
    found = _described(
        name,
        "cuda",
        topology_name=kind,
        topology=f"1x{count // per_host}x{per_host}",
        target_config=GPUS[kind].target,
    )
    return Topology(name, "cuda", GPUS[kind].kind, tuple(found.devices), GPUS[kind].memory)


def _tpu(name: str, kind: str, shape: tuple[int, ...]) -> Topology:
    generation = TPUS[kind]
    single = math.prod(shape) == 1
    if not single and len(shape) != len(generation.smallest):
        example = "x".join(map(str, generation.smallest))
        raise UserError(
            f"--topology={name}: got {len(shape)} dimensions, expected {len(generation.smallest)} "
            f"as in {kind}:{example}, or {kind}:1 for one device"
        )
    full = generation.smallest if single else shape
    # libtpu reads these variables instead of asking a metadata server.
    os.environ.update(
        TPU_ACCELERATOR_TYPE=f"{generation.type_prefix}{math.prod(full) * generation.cores}",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_SKIP_MDS_QUERY="1",
        # Several processes may compile at once, as none of them opens a device.
        ALLOW_MULTIPLE_LIBTPU_LOAD="true",
    )
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    found = _described(name, "tpu", topology_name=f"{kind}:{'x'.join(map(str, full))}")
    chosen = tuple(found.devices)[: 1 if single else None]
    return Topology(name, "tpu", chosen[0].device_kind, chosen, generation.memory)


def _described(name: str, platform: str, **options: Any) -> Any:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform=platform, **options)
    except (RuntimeError, NotImplementedError, ValueError, ImportError) as error:
        reason, remedy = (str(error).splitlines() or ["no reason given"])[0], ""
        if not is_installed(platform):
            reason = f"the compiler for {platform} is not installed"
            remedy = f"; pip install -r requirements-{platform}.txt into an environment of its own"
        raise UserError(f"--topology={name}: {reason}{remedy}") from None


_PACKAGES = {
    "cuda": ("jax", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12"),
    "tpu": ("jax", "libtpu"),
    "cpu": ("jax", "jaxlib"),
}


def compiler_versions(platform: str) -> dict[str, str]:
    """Returns the versions of the packages that compile for "cuda", "tpu" or "cpu"."""
    from importlib import metadata

    found = {}
    for name in _PACKAGES[platform]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def is_installed(platform: str) -> bool:
    """Returns whether the compiler for "cuda" or "tpu" is installed."""
    import importlib.util

    if platform == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    try:
        return any(
            importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") is not None
            for version in (12, 13)
        )
    except ModuleNotFoundError:
        return False
