"""Blockwise attention over the mesh of `jax.set_mesh`: each device computes its own shard."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from attention.kernels.blockwise import gradient, online_softmax
from attention.kernels.partition import MeshSplit, mesh_split

Array = jax.Array


def expect_sequence_split(B: int, N: int, K: int, T: int, S: int) -> MeshSplit:
    """Returns the split of attention over the mesh of `jax.set_mesh`, which must shard sequences.

    Args:
      B, N, K, T, S: number of examples, query heads, key/value heads, queries and keys.

    Raises:
      NotImplementedError: the mesh has no sequence axis, or the axis size does not divide T and S.
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
