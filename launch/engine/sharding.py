"""The device mesh, and rules as data for what lies where on it.

A rule is a regular expression on the parameter's path and, for each dimension, one axis name, a
tuple of names, or None. The first rule that matches decides; what matches none, or has another
number of dimensions, is kept whole on every device. An axis that does not divide a dimension is
left out there.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks.common.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
Rule = tuple[str, tuple[str | tuple[str, ...] | None, ...]]


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; their product is the number of devices.

    Attributes:
      data: copies of the model that each take a part of the batch; -1 = what the others leave.
      fsdp: parts into which weights and optimizer state are split; the batch is split as well.
      tensor: parts into which heads and hidden units are split.
      sequence: parts into which attention splits sequences (the kernel "ring"); of what comes
        between, the compiler decides.
      cpu_devices: virtual devices made of one CPU, 0 = as JAX has it; ignored where there is an
        accelerator.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    cpu_devices: int = 0

    def __post_init__(self):
        for name in ("fsdp", "tensor", "sequence"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.cpu_devices < 0:
            raise ValueError(f"cpu_devices must not be negative, got {self.cpu_devices}")
        # Each has threads of its own: with many thousands JAX does not start in minutes.
        if self.cpu_devices > 1024:
            raise ValueError(f"cpu_devices must be at most 1024, got {self.cpu_devices}")
        if self.data < 1 and self.data != -1:
            raise ValueError(f"data must be at least 1, or -1 for the rest, got {self.data}")


def request_devices(config: MeshConfig) -> None:
    """Asks JAX for virtual CPU devices; to be called before anything touches a device."""
    import jax

    if config.cpu_devices > 1:
        try:
            jax.config.update("jax_num_cpu_devices", config.cpu_devices)
        except RuntimeError:
            # The devices exist already: an ablation's second run, or a notebook.
            if jax.local_device_count() < config.cpu_devices:
                raise UserError(
                    f"config.mesh.cpu_devices: {config.cpu_devices} asked for, but this process "
                    f"already runs on {jax.local_device_count()}; start a new one"
                ) from None


def make_mesh(config: MeshConfig):
    """The `jax.sharding.Mesh` with axes data, fsdp, tensor and sequence.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    import jax
    from jax.sharding import AxisType

    devices = jax.devices()
    if devices[0].platform == "cpu":
        devices = devices[: config.cpu_devices or None]
    others = config.fsdp * config.tensor * config.sequence
    data = config.data if config.data > 0 else max(len(devices) // others, 1)
    shape = (data, config.fsdp, config.tensor, config.sequence)
    if math.prod(shape) != len(devices):
        sizes = " x ".join(f"{name} {size}" for name, size in zip(AXES, shape, strict=True))
        raise UserError(
            f"config.mesh: {sizes} needs {math.prod(shape)} devices, but there are {len(devices)} "
            f"({devices[0].device_kind}); change the sizes, or set config.mesh.cpu_devices"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def on_mesh(function: Callable[..., Any], mesh: Any) -> Callable[..., Any]:
    """The function, called with the mesh in context, where attention's kernels look for it."""
    import jax

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*arguments)

    return call


def check_batch(mesh: Any, name: str, size: int) -> None:
    """Refuses a batch that the mesh cannot split evenly.

    Raises:
      UserError: the data and fsdp axes do not divide `size`.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if size % parts:
        raise UserError(
            f"config.training.{name}: {size} examples cannot be split over data x fsdp = {parts} "
            f"devices; take a multiple of {parts}"
        )


def batch_sharding(mesh: Any):
    """Sharding of a batch: its first dimension over data and fsdp."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Any):
    """Sharding of what every device holds whole."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(tree: Any, mesh: Any, rules: Sequence[Rule]) -> Any:
    """`NamedSharding` of every leaf of a tree of shapes, by the rules.

    Optimizer moments repeat the parameters' paths and so follow the same rules.
    """
    import jax
    from jax.sharding import NamedSharding

    from launch.engine.state import path_name

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, leaf_spec(path_name(path), leaf.shape, rules, mesh.shape)
        ),
        tree,
    )


def leaf_spec(
    path: str, shape: tuple[int, ...], rules: Sequence[Rule], sizes: Mapping[str, int]
) -> Any:
    """`PartitionSpec` of one array.

    Args:
      path: '/'-joined path of the parameter.
      shape: its shape.
      rules: see the module.
      sizes: size of each mesh axis.
    """
    from jax.sharding import PartitionSpec

    for pattern, axes in rules:
        if re.search(pattern, path):
            if len(axes) != len(shape):
                break
            return PartitionSpec(
                *(_dividing(axis, size, sizes) for axis, size in zip(axes, shape, strict=True))
            )
    return PartitionSpec()


def _dividing(
    axis: str | tuple[str, ...] | None, size: int, sizes: Mapping[str, int]
) -> str | tuple[str, ...] | None:
    names = (axis,) if isinstance(axis, str) else axis or ()
    return axis if names and size % math.prod(sizes[name] for name in names) == 0 else None
