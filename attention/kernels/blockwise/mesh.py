"""Sharding of attention over the mesh of `jax.set_mesh`, for kernels that run on several devices.

Examples are sharded over the mesh axes "data" and "fsdp", heads over "tensor" and sequences over
"sequence". A dimension is sharded only if the size of the mesh axis divides it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from attention.kernels.blockwise import gradient, online_softmax

Array = jax.Array

BATCH, HEADS, SEQUENCE = ("data", "fsdp"), "tensor", "sequence"


@dataclasses.dataclass(frozen=True)
class MeshSplit:
    """Assignment of the dimensions of attention to mesh axes.

    Attributes:
      mesh: the `jax.sharding.AbstractMesh` in context.
      batch: axes that shard the examples.
      heads: axes that shard query and key/value heads.
      sequence: axis that shards queries and keys, or None.
    """

    mesh: Any
    batch: tuple[str, ...]
    heads: tuple[str, ...]
    sequence: str | None

    @property
    def num_shards(self) -> int:
        """Number of shards of a sequence."""
        return self.mesh.shape[self.sequence] if self.sequence else 1

    def specs(self, tree: Any, axes: str, sizes: dict[str, int]) -> Any:
        """Returns the `PartitionSpec` of each array of a tree, given its dimension letters.

        Dimensions of size 1 and letters other than B, T, S, N and K are not sharded.
        """
        names = dict.fromkeys("TS", self.sequence) | dict.fromkeys("NK", self.heads)
        names["B"] = self.batch
        return jax.tree.map(
            lambda x: PartitionSpec(
                *(
                    names.get(letter) or None if size == sizes.get(letter) else None
                    for letter, size in zip(axes, x.shape, strict=False)
                )
            ),
            tree,
        )

    def mask_specs(self, mask: Any, B: int, N: int) -> Any:
        """Returns the specs of a mask: sharded by examples and heads, not by positions."""
        # Only a dense mask has heads, and four dimensions; all other arrays begin with the
        # examples.
        return jax.tree.map(
            lambda x: self.specs(x, "BN" if x.ndim == 4 else "B", {"B": B, "N": N}), mask
        )

    def index(self, axes: tuple[str, ...]) -> Array:
        """Returns the index of the local shard along these axes, inside `jax.shard_map`."""
        return jax.lax.axis_index(axes) if axes else jnp.zeros((), jnp.int32)

    def shard_map(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """Maps a function over the shards of the mesh."""
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


def mesh_split(B: int, N: int, K: int) -> MeshSplit | None:
    """Returns the split over the mesh in context, or None if no dimension is sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or not mesh.axis_names:
        return None
    sizes = {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        # Manual axes belong to a `shard_map` that is being traced and cannot be used again.
        if kind != AxisType.Manual and mesh.shape[name] > 1
    }
    batch: tuple[str, ...] = ()
    for name in BATCH:
        if name in sizes and B % math.prod(sizes[axis] for axis in (*batch, name)) == 0:
            batch = (*batch, name)
    heads = (HEADS,) if HEADS in sizes and N % sizes[HEADS] == K % sizes[HEADS] == 0 else ()
    sequence = SEQUENCE if SEQUENCE in sizes else None
    return MeshSplit(mesh, batch, heads, sequence) if batch or heads or sequence else None


def expect_sequence_split(B: int, N: int, K: int, T: int, S: int) -> MeshSplit:
    """Returns the split over the mesh in context, which must shard the sequence.

    Raises:
      NotImplementedError: the mesh has no sequence axis, or its size does not divide T and S.
    """
    split = mesh_split(B, N, K)
    if split is None or split.sequence is None:
        raise NotImplementedError(
            "mesh: got no axis 'sequence' of size at least 2, expected one in the mesh of "
            "jax.set_mesh"
        )
    for name, length in (("T", T), ("S", S)):
        if length % split.num_shards:
            raise NotImplementedError(
                f"mesh: got {name}={length}, expected a multiple of sequence={split.num_shards}"
            )
    return split


@dataclasses.dataclass(frozen=True)
class ShardedMethod:
    """A `BlockwiseMethod` in which each device applies the method `local` to its shard.

    Attributes:
      split: assignment of the dimensions to mesh axes.
      local: `LocalMethod`, or a method that communicates along the sequence axis.
    """

    split: MeshSplit
    local: gradient.BlockwiseMethod

    def _specs(self, query: Array, value: Array, options: dict) -> tuple[Any, ...]:
        sizes = self._sizes(query, value)
        rows = self.split.specs(query, "BTN", sizes)
        columns = self.split.specs(value, "BSK", sizes)
        given = {
            "mask": self.split.mask_specs(options["mask"], sizes["B"], sizes["N"]),
            "bias": self.split.specs(options["bias"], "BNT", sizes),
            "key_data": self.split.specs(options["key_data"], "", {}),
        }
        return rows, columns, given

    @staticmethod
    def _sizes(query: Array, value: Array) -> dict[str, int]:
        return dict(zip("BTNSK", (*query.shape[:3], *value.shape[1:3]), strict=True))

    def _local_options(self, query: Array, given: dict, spec: online_softmax.BlockwiseSpec) -> dict:
        split, (B, _, N, _) = self.split, query.shape
        offset = online_softmax.BlockOffset(
            split.index(split.batch) * B, split.index(split.heads) * N
        )
        return given | {"spec": spec, "offset": offset}

    def forward(self, query, key, value, options):
        rows, columns, specs = self._specs(query, value, options)
        spec, given = options["spec"], {name: options[name] for name in specs}

        def local(query, key, value, given):
            return self.local.forward(query, key, value, self._local_options(query, given, spec))

        run = self.split.shard_map(local, (rows, columns, columns, specs), (rows, rows))
        return run(query, key, value, given)

    def backward(self, arrays, options):
        query, value = arrays[0], arrays[2]
        rows, columns, specs = self._specs(query, value, options)
        spec, given = options["spec"], {name: options[name] for name in specs}
        bias, split = options["bias"] if spec.needs_bias_grad else None, self.split
        bias_specs = None if bias is None else specs["bias"]

        def local(arrays, given):
            inner = self._local_options(arrays[0], given, spec)
            *grads, bias_grad = self.local.backward(arrays, inner)
            if bias is not None:
                # Devices that share a bias each have a partial sum of its gradient.
                shared = [
                    *(split.batch if bias.shape[0] == 1 else ()),
                    *(split.heads if bias.shape[1] == 1 else ()),
                ]
                bias_grad = jax.lax.psum(bias_grad, tuple(shared)) if shared else bias_grad
            return *grads, bias_grad

        in_specs = (rows, columns, columns, rows, rows, rows), specs
        run = split.shard_map(local, in_specs, (rows, columns, columns, bias_specs))
        return run(arrays, given)
