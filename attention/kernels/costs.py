"""Estimates of run times of kernels, from operations, memory traffic and launches.

"auto" uses the estimates on kinds of GPUs and TPUs that `benchmarks.tune` has not measured. A
kernel's module defines `cost(call)`, which returns its `Cost`. Roofline model (Williams et al.
2009):

    seconds = max(operations / (peak · efficiency), bytes / bandwidth) + launches · latency

B batch, N query heads, K key/value heads, T queries, S keys, H head size, V value head size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

LANES, SUBLANES = 128, 8


@dataclasses.dataclass(frozen=True)
class DeviceSpeed:
    """Speed of a device, from its datasheet.

    Attributes:
      half: operations per second in matrix products of 16-bit numbers.
      single: operations per second in matrix products of float32 numbers at JAX's default precision
        (TF32, or bfloat16 on a TPU).
      bandwidth: bytes per second of the memory.
      cores: number of multiprocessors, or of cores of a TPU.
      memory: bytes of memory.
    """

    half: float
    single: float
    bandwidth: float
    cores: int
    memory: float


# A key applies to the device kinds whose name contains the key; the first such key is used. Rates
# are without sparsity.
SPEEDS: Mapping[str, DeviceSpeed] = {
    "B200": DeviceSpeed(2250e12, 1100e12, 8.0e12, 148, 180e9),
    "H200": DeviceSpeed(989e12, 494e12, 4.8e12, 132, 141e9),
    "H100": DeviceSpeed(989e12, 494e12, 3.35232e12, 132, 80e9),
    "A100": DeviceSpeed(312e12, 156e12, 2.03904e12, 108, 80e9),
    "L40S": DeviceSpeed(362e12, 183e12, 0.864e12, 142, 48e9),
    "L4": DeviceSpeed(121e12, 60e12, 0.3e12, 58, 24e9),
    "A10": DeviceSpeed(125e12, 62e12, 0.6e12, 72, 24e9),
    "V100": DeviceSpeed(125e12, 15.7e12, 0.9e12, 80, 32e9),
    "T4": DeviceSpeed(65e12, 8.1e12, 0.32e12, 40, 16e9),
    "TPU v6 lite": DeviceSpeed(918e12, 918e12, 1.64e12, 1, 32e9),
    "TPU v5 lite": DeviceSpeed(197e12, 197e12, 0.819e12, 1, 16e9),
    "TPU v5": DeviceSpeed(459e12, 459e12, 2.765e12, 2, 95e9),
    "TPU v4": DeviceSpeed(275e12, 275e12, 1.228e12, 2, 32e9),
}
# Speeds that are assumed for devices without an entry. This is sufficient, because the estimates
# only rank kernels.
_OTHERS = {"cuda": SPEEDS["A100"], "tpu": SPEEDS["TPU v5 lite"]}

# Seconds per kernel launch (on a TPU, per operation), and seconds per grid step on a TPU.
LAUNCH = {"cuda": 4e-6, "tpu": 1e-6}
GRID_STEP = 0.4e-6


@dataclasses.dataclass(frozen=True)
class Call:
    """The part of a call of `attend` that one device computes.

    Attributes:
      platform: "cuda" or "tpu".
      batch, heads, kv_heads, queries, keys, size, value_size: B, N, K, T, S, H, V on the device.
      itemsize: bytes per element of the query.
      visible: fraction of the pairs of queries and keys that static windows leave visible.
      array: bytes of bias and dense mask for each pair of query and key.
      backward: whether the backward pass is included.
      speed: speed of the device.
    """

    platform: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    size: int
    value_size: int
    itemsize: int
    visible: float
    array: float
    backward: bool
    speed: DeviceSpeed

    def operations(self, products: int, block: int = 1, width: int = 1) -> int:
        """Returns the number of operations of matrix products over all pairs of queries and keys.

        Args:
          products: number of products, half of them over vectors of size H and half of size V.
          block: T and S are padded to multiples of this number.
          width: H and V are padded to multiples of this number.
        """
        sizes = padded(self.size, width) + padded(self.value_size, width)
        pairs = padded(self.queries, block) * padded(self.keys, block)
        return self.batch * self.heads * pairs * products * sizes

    def vectors(self, width: int = 1, block: int = 1) -> int:
        """Returns the total bytes of queries, keys, values and results, with padding.

        Args:
          width, block: as for `operations`.
        """
        rows = padded(self.queries, block) * self.batch
        columns = padded(self.keys, block) * self.batch
        both = padded(self.size, width) + padded(self.value_size, width)
        return (rows * self.heads + columns * self.kv_heads) * both * self.itemsize

    def pairs(self) -> int:
        """Returns the number of elements of an array [B, N, T, S] in memory, padded on a TPU."""
        rows, columns = self.queries, self.keys
        if self.platform == "tpu":
            rows, columns = padded(rows, SUBLANES), padded(columns, LANES)
        return self.batch * self.heads * rows * columns

    def occupancy(self, blocks: int) -> float:
        """Returns the mean fraction of cores in use while `blocks` equal programs run."""
        cores = self.speed.cores
        return blocks / (math.ceil(blocks / cores) * cores) if blocks else 1.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a call of a kernel.

    Attributes:
      operations: floating-point operations, including padding and recomputation.
      traffic: bytes read and written.
      efficiency: fraction of the peak rate that the matrix products reach.
      launches: number of kernel launches.
      grid_steps: steps of a sequential grid on a TPU.
      memory: bytes of the matrices [B, N, T, S] that the kernel keeps in memory; 0 if it keeps
        none.
    """

    operations: float
    traffic: float
    efficiency: float
    launches: int
    grid_steps: int = 0
    memory: float = 0.0


def seconds(call: Call, cost: Cost) -> float:
    """Returns the estimated seconds of a call.

    The estimate is infinite if matrices [B, N, T, S] take more than half of the device's memory.
    """
    speed = call.speed
    if cost.memory > speed.memory / 2:
        return math.inf
    peak = speed.half if call.itemsize <= 2 else speed.single
    bound = max(cost.operations / (peak * cost.efficiency), cost.traffic / speed.bandwidth)
    return bound + cost.launches * LAUNCH[call.platform] + cost.grid_steps * GRID_STEP


def speed_of(platform: str, kind: str | None) -> DeviceSpeed:
    """Returns the speed of a kind of device, or that of a common device if the kind is unknown."""
    return next(
        (speed for part, speed in SPEEDS.items() if part in (kind or "")), _OTHERS[platform]
    )


def padded(size: int, multiple: int) -> int:
    """Returns the size rounded up to a multiple."""
    return -(-size // multiple) * multiple
