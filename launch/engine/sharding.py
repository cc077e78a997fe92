"""Device mesh, and rules for sharding parameters over it; `attention.sharding` shards activations.

A rule has a regular expression for parameter paths and, for each dimension, a mesh axis, a tuple of
axes or None. The first rule that matches applies. Parameters without a matching rule, or with a
different number of dimensions, are replicated. A dimension is replicated if its size is not
divisible by the number of devices along its mesh axes. Stacked layers are sharded like separate
layers; their leading axis is not sharded.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.engine import processes
from launch.engine.memory import return_free_memory, separate_small_blocks
from tasks.common.configs import Config, PositiveInt, within
from tasks.common.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
Rule = tuple[str, tuple[str | tuple[str, ...] | None, ...]]


@dataclasses.dataclass(frozen=True)
class MeshConfig(Config):
    """Sizes of the mesh axes; their product is the number of devices.

    Attributes:
      data: number of model replicas, over which the batch is sharded; -1 uses the remaining
        devices.
      fsdp: number of shards of parameters and optimizer state; the batch is sharded over it too.
      tensor: number of shards into which attention heads and hidden units are divided.
      sequence: number of shards of sequences in attention (the kernel "ring"); in other layers XLA
        chooses the sharding.
      cpu_devices: number of virtual CPU devices of each process; 0 keeps JAX's default. Ignored
        with an accelerator.
    """

    data: int = -1
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1
    sequence: PositiveInt = 1
    # Each device starts its own threads; with thousands of devices JAX takes minutes to start.
    cpu_devices: within("[0, 1024]", "a number from 0 to 1024", int) = 0

    def __post_init__(self):
        super().__post_init__()
        self.expect("data", self.data >= 1 or self.data == -1, "at least 1, or -1")


def request_devices(config: MeshConfig) -> None:
    """Requests virtual CPU devices from JAX. Call it before JAX initializes devices.

    Several devices run at the same time only if programs run asynchronously, so it undoes
    `launch.engine.memory.run_in_calls` for them.
    """
    import jax

    if config.cpu_devices > 1:
        jax.config.update("jax_cpu_enable_async_dispatch", True)
        try:
            jax.config.update("jax_num_cpu_devices", config.cpu_devices)
        except RuntimeError:
            # JAX has already created its devices, as in the second run of an ablation or in a
            # notebook.
            if jax.local_device_count() < config.cpu_devices:
                raise UserError(
                    f"config.mesh.cpu_devices: got {config.cpu_devices}, but this process already "
                    f"has {jax.local_device_count()} devices; start a new process"
                ) from None


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None):
    """Returns a `jax.sharding.Mesh` with the axes data, fsdp, tensor and sequence.

    Args:
      config: sizes of the axes.
      devices: devices of the mesh, which may be absent (`launch.engine.topologies`); None for those
        of all processes.

    Raises:
      UserError: the product of the axis sizes differs from the number of devices.
    """
    import jax
    from jax.sharding import AxisType

    present = devices is None
    devices = list(devices or jax.devices())
    if present and devices[0].platform == "cpu":
        devices = devices[: config.cpu_devices * processes.count() or None]
    others = config.fsdp * config.tensor * config.sequence
    data = config.data if config.data > 0 else max(len(devices) // others, 1)
    shape = (data, config.fsdp, config.tensor, config.sequence)
    if math.prod(shape) != len(devices):
        sizes = " x ".join(f"{name} {size}" for name, size in zip(AXES, shape, strict=True))
        raise UserError(
            f"config.mesh: {sizes} needs {math.prod(shape)} devices, but there are {len(devices)} "
            f"({devices[0].device_kind}); change the sizes"
            f"{', or set config.mesh.cpu_devices' if present else ''}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


class OnMesh:
    """A jitted function that runs under `jax.set_mesh(mesh)`, which attention kernels read.

    After each compilation, freed memory is returned to the system. Otherwise hundreds of megabytes
    would stay in the heap, because of the settings of `keep_large_buffers`. The memory is returned
    after the new program has run once, since during the run its temporaries lie between the freed
    blocks.
    """

    def __init__(self, function: Any, mesh: Any):
        functools.update_wrapper(self, function)
        self._function, self._mesh = function, mesh

    def __call__(self, *arguments: Any) -> Any:
        import jax

        programs = self._function._cache_size()
        with jax.set_mesh(self._mesh):
            results = self._function(*arguments)
        if self._function._cache_size() > programs:
            jax.block_until_ready(results)
            separate_small_blocks()
            return_free_memory()
        return results

    def trace(self, *arguments: Any) -> Any:
        """Returns the `jax.stages.Traced` of arguments, which may be `jax.ShapeDtypeStruct`s."""
        import jax

        with jax.set_mesh(self._mesh):
            return self._function.trace(*arguments)


def batch_shards(mesh: Any) -> int:
    """Returns the number of shards of a batch; the number of rows is a multiple of it.

    Batches get padding rows if their size is not a multiple; see
    `tasks.common.data.pipeline.train_iterator`.
    """
    return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Any):
    """Returns the sharding of a batch, with its first dimension over the axes data and fsdp."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def local_shards(mesh: Any) -> list[int]:
    """Returns the indices of those shards of a batch that are on the devices of this process."""
    here = batch_sharding(mesh).addressable_devices_indices_map((batch_shards(mesh),))
    return sorted({int(index[0].start or 0) for index in here.values() if index})


def place(batch: Mapping[str, np.ndarray], mesh: Any) -> dict[str, Any]:
    """Copies a batch from the host to the mesh, with the sharding `batch_sharding`.

    Args:
      batch: arrays [rows, ...] with the rows of this process, in the order of `local_shards`.
      mesh: the mesh.
    """
    import jax

    target = batch_sharding(mesh)
    if not target.is_fully_addressable:
        shards, total = local_shards(mesh), batch_shards(mesh)

        def global_array(value: np.ndarray) -> Any:
            rows = len(value) // len(shards)

            def shard(index: Any) -> np.ndarray:
                first = shards.index((index[0].start or 0) // rows) * rows
                return value[first : first + rows]

            return jax.make_array_from_callback((rows * total, *value.shape[1:]), target, shard)

        return {name: global_array(np.asarray(value)) for name, value in batch.items()}
    return jax.device_put(dict(batch), target)


def replicated(mesh: Any):
    """Returns the sharding of replicated arrays."""
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(tree: Any, mesh: Any, rules: Sequence[Rule]) -> Any:
    """Returns the `NamedSharding` of every leaf of a pytree of shapes, as a pytree.

    Paths of optimizer moments end with the paths of their parameters, so the same rules apply.
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
    """Returns the `PartitionSpec` of one array, from the first rule that matches its path.

    Args:
      path: '/'-joined path of the parameter.
      shape: shape of the array.
      rules: sharding rules; see the module docstring.
      sizes: size of each mesh axis.
    """
    from jax.sharding import PartitionSpec

    from tasks.common.backbones.stacking import STACKED, layer_paths

    path, depth = layer_paths(path, shape)[0], path.split("/").count(STACKED)
    for pattern, axes in rules:
        if re.search(pattern, path):
            if len(axes) != len(shape) - depth:
                break
            found = [
                _dividing(axis, size, sizes) for axis, size in zip(axes, shape[depth:], strict=True)
            ]
            return PartitionSpec(*[None] * depth, *found)
    return PartitionSpec()


def _dividing(
    axis: str | tuple[str, ...] | None, size: int, sizes: Mapping[str, int]
) -> str | tuple[str, ...] | None:
    names = (axis,) if isinstance(axis, str) else axis or ()
    return axis if names and size % math.prod(sizes[name] for name in names) == 0 else None
