"""Sharding of attention over the mesh of `jax.set_mesh`.

Examples are sharded over the mesh axes "data" and "fsdp", heads over "tensor" and sequences over
"sequence". A dimension is sharded only if the size of the mesh axis divides it.

`run_per_device` runs a kernel that supports a single device, such as a Pallas kernel, on each
device's shard of the examples and heads. Other kernels shard their arrays with `MeshSplit`.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from attention.kernels import devices
from attention.sharding import BATCH, HEADS, SEQUENCE, dividing

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MeshSplit:
    """Assignment of the dimensions of attention to mesh axes.

    Attributes:
      mesh: the `jax.sharding.AbstractMesh` of `jax.set_mesh`.
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
        """Returns the `PartitionSpec` of each array of a tree.

        Dimensions of size 1 and letters other than B, T, S, N and K are not sharded.

        Args:
          tree: arrays, all with the same dimension letters.
          axes: letters of the first dimensions.
          sizes: the global size of each letter.
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
        # Only the array of a dense mask, which is 4-dimensional, has a head axis. The first axis of
        # every array is the axis of examples.
        return jax.tree.map(
            lambda x: self.specs(x, "BN" if x.ndim == 4 else "B", {"B": B, "N": N}), mask
        )

    @property
    def used(self) -> tuple[str, ...]:
        """The mesh axes that shard a dimension."""
        return (*self.batch, *self.heads, *((self.sequence,) if self.sequence else ()))

    def index(self, axes: tuple[str, ...]) -> Array:
        """Returns the index of the local shard along these axes, inside `jax.shard_map`."""
        return jax.lax.axis_index(axes) if axes else jnp.zeros((), jnp.int32)

    def shard_map(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """Maps a function over the shards of the mesh."""
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )


def mesh_split(B: int, N: int, K: int) -> MeshSplit | None:
    """Returns the split over the mesh of `jax.set_mesh`, or None if no dimension is sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    split = _assign(mesh, B, N, K)
    return split if split.used else None


def device_split(B: int, N: int, K: int) -> MeshSplit | None:
    """Returns the split for a single-device program, or None if it already runs on one device.

    Sequences are not sharded. On several devices there is always a split, even if no dimension is
    sharded. The program must then run in a `jax.shard_map`, because the compiler cannot partition
    the program.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if math.prod(mesh.axis_sizes) <= 1 or not _free_axes(mesh):
        return None
    return dataclasses.replace(_assign(mesh, B, N, K), sequence=None)


def _free_axes(mesh: Any) -> tuple[str, ...]:
    """Returns the mesh axes that can be used.

    Manual axes belong to a `jax.shard_map` that is being traced and cannot be used again.
    """
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind != AxisType.Manual)


def _assign(mesh: Any, B: int, N: int, K: int) -> MeshSplit:
    sizes = {name: mesh.shape[name] for name in _free_axes(mesh) if mesh.shape[name] > 1}
    batch = dividing(BATCH, B, sizes)
    heads = (HEADS,) if HEADS in sizes and N % sizes[HEADS] == K % sizes[HEADS] == 0 else ()
    return MeshSplit(mesh, batch, heads, SEQUENCE if SEQUENCE in sizes else None)


def run_per_device(
    kernel: Callable[..., Array], arrays: Sequence[Array], options: Mapping[str, Any]
) -> Array:
    """Runs a kernel on each device for the device's examples and heads (Shoeybi et al. 2019).

        o_bn = kernel(q_bn, k_bn, v_bn, ...),   b, n: examples and heads of the device

    The mesh is set by `jax.set_mesh`. The kernel is called directly without a mesh, on a mesh of
    one device, and within a `jax.shard_map` over all axes of the mesh. Queries, keys and values are
    not communicated if they are already sharded by examples and heads. Devices along an axis that
    shards neither examples nor heads, such as "sequence", repeat the computation.

    Args:
      kernel: function with the signature of a kernel, without communication.
      arrays: query [B, T, N, H], key [B, S, K, H], value [B, S, K, V].
      options: the `KernelOptions`.

    Returns:
      o, [B, T, N, V]. It has the kernel's first derivatives in reverse mode. Gradients of arguments
      that devices share, such as a bias for all examples, are summed over these devices in at least
      float32.

    Raises:
      NotImplementedError: the kernel does not support the arguments.
    """
    (B, _, N, _), K = arrays[0].shape, arrays[1].shape[2]
    split = device_split(B, N, K)
    if split is None:
        return kernel(*arrays, **options)
    given = {"arrays": tuple(arrays)}
    given |= {name: x for name, x in options.items() if _is_dynamic(x)}
    numbers = tuple((name, x) for name, x in options.items() if name not in given)
    leaves, tree = jax.tree.flatten(given)
    specs, out = _specs(split, given)
    program = _Program(kernel, split, tree, tuple(specs), out, numbers, devices.context())
    return _run(program, _resharded(split, leaves, specs))


def _is_dynamic(option: Any) -> bool:
    """Returns whether an option contains arrays; otherwise it is a number or None."""
    return any(isinstance(leaf, jax.Array) or jnp.ndim(leaf) for leaf in jax.tree.leaves(option))


def _specs(split: MeshSplit, given: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """Returns the `PartitionSpec` of each leaf of the arguments, and that of the output."""
    query, _, value = given["arrays"]
    sizes = {"B": query.shape[0], "N": query.shape[2], "K": value.shape[2]}
    rows, columns = split.specs(query, "BTN", sizes), split.specs(value, "BSK", sizes)
    found: dict[str, Any] = {"arrays": (rows, columns, columns)}
    for name, option in given.items():
        if name == "mask":
            found[name] = split.mask_specs(option, sizes["B"], sizes["N"])
        elif name != "arrays":
            found[name] = split.specs(option, {"bias": "BN", "sinks": "N"}.get(name, ""), sizes)
    return jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, PartitionSpec)), rows


def _resharded(split: MeshSplit, leaves: list[Any], specs: list[Any]) -> list[Any]:
    """Reshards the arguments to the specs if the mesh has explicit axes."""
    if AxisType.Explicit not in split.mesh.axis_types:
        return leaves
    return [jax.sharding.reshard(x, spec) for x, spec in zip(leaves, specs, strict=True)]


@dataclasses.dataclass(frozen=True)
class _Program:
    """The static part of a call of `run_per_device`.

    Attributes:
      kernel: the kernel.
      split: sharding of examples and heads.
      tree: structure of the arguments, as a dict with the key "arrays" and names of options.
      specs: `PartitionSpec` of each leaf of the arguments.
      out: `PartitionSpec` of the output.
      numbers: names and values of the other options.
      context: result of `devices.context`; part of the key by which `jax.jit` caches traces.
    """

    kernel: Callable[..., Array]
    split: MeshSplit
    tree: Any
    specs: tuple[Any, ...]
    out: Any
    numbers: tuple[tuple[str, Any], ...]
    context: Any

    @property
    def by_device(self) -> Any:
        """The `PartitionSpec` of arrays [devices, ...] with one entry for each device."""
        return PartitionSpec(_free_axes(self.split.mesh))

    def local(self, leaves: list[Any]) -> Array:
        """Runs the kernel on the shard of a device."""
        given = jax.tree.unflatten(self.tree, leaves)
        return self.kernel(*given.pop("arrays"), **given, **dict(self.numbers))

    def summed(self, grad: Array, spec: Any) -> Array:
        """Returns the sum of a gradient over the devices that share its argument."""
        own = {axis for part in spec for axis in ((part,) if isinstance(part, str) else part or ())}
        shared = tuple(axis for axis in self.split.used if axis not in own)
        if not shared:
            return grad
        wide = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
        return jax.lax.psum(wide, shared).astype(grad.dtype)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Pullback:
    """Static part of a pullback: its tree structure and the indices of differentiated arguments."""

    tree: Any
    learned: tuple[int, ...]


# The derivative of `jax.shard_map` would also sum gradients over axes that repeat the computation.
# So each device keeps the pullback of its kernel call and applies it in the backward pass.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _partitioned(program: _Program, leaves: list[Any]) -> Array:
    specs = (list(program.specs),)
    return program.split.shard_map(program.local, specs, program.out)(leaves)


def _partitioned_forward(program: _Program, given: list[Any]) -> tuple[Array, Any]:
    leaves = [leaf.value for leaf in given]
    learned = tuple(number for number, leaf in enumerate(given) if leaf.perturbed)
    trees = []

    def local(leaves: list[Any]) -> tuple[Array, list[Array]]:
        def of_learned(arrays: list[Array]) -> Array:
            replaced = dict(zip(learned, arrays, strict=True))
            return program.local([replaced.get(n, leaf) for n, leaf in enumerate(leaves)])

        out, pull = jax.vjp(of_learned, [leaves[number] for number in learned])
        saved, tree = jax.tree.flatten(pull)
        trees.append(tree)
        return out, [jnp.expand_dims(array, 0) for array in saved]

    specs = (list(program.specs),)
    run = program.split.shard_map(local, specs, (program.out, program.by_device))
    out, saved = run(leaves)
    return out, (saved, _Pullback(trees[-1], learned))


def _partitioned_backward(program: _Program, residuals: Any, cotangent: Any) -> tuple[list[Any]]:
    saved, pullback = residuals
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        outline: Any = cotangent.aval
        cotangent = jnp.zeros(outline.shape, outline.dtype)
    learned_specs = [program.specs[number] for number in pullback.learned]

    def local(saved: list[Array], cotangent: Array) -> list[Array]:
        pull = jax.tree.unflatten(pullback.tree, [jnp.squeeze(array, 0) for array in saved])
        (grads,) = pull(cotangent)
        return [program.summed(*pair) for pair in zip(grads, learned_specs, strict=True)]

    in_specs = (program.by_device, program.out)
    found = program.split.shard_map(local, in_specs, learned_specs)(saved, cotangent)
    grads = dict(zip(pullback.learned, found, strict=True))
    return ([grads.get(number) for number in range(len(program.specs))],)


# Symbolic zeros show which arguments are differentiated; see `kernels.gpu.triton`.
_partitioned.defvjp(_partitioned_forward, _partitioned_backward, symbolic_zeros=True)
# Jitted, so that calls outside jit are traced only once.
_run = jax.jit(_partitioned, static_argnums=0)
