"""Sharding of activations over the mesh of `jax.set_mesh`.

Callers name the dimensions of an array by letters, and each letter stands for some mesh axes.
Examples are sharded over the mesh axes "data" and "fsdp", heads and hidden units over "tensor", and
sequences over "sequence". Parameters are sharded by other rules. Without the constraints of this
module, XLA may shard the features of activations over "fsdp", like those of parameters, and every
sum over features would need communication. Without a mesh, or on one device, the functions here do
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

Array = jax.Array

BATCH, HEADS, SEQUENCE = ("data", "fsdp"), "tensor", "sequence"

# Mesh axes of each dimension letter: B examples, N and K heads, F hidden units, V vocabulary, T and
# S positions. Dimensions with other letters are replicated.
RULES: dict[str, tuple[str, ...]] = {
    "B": BATCH,
    "N": (HEADS,),
    "K": (HEADS,),
    "F": (HEADS,),
    "V": (HEADS,),
    "T": (SEQUENCE,),
    "S": (SEQUENCE,),
}


def constrain(x: Array, axes: str) -> Array:
    """Fixes the sharding of an activation, and of its gradient.

        x = constrain(x, "B T D")

    A dimension is sharded over those mesh axes of its letter (`RULES`) whose sizes divide it. XLA
    chooses the sharding of a dimension with the letter "_", and of a dimension "B" that no axis
    divides.

    Args:
      x: [...], with a dimension for each letter.
      axes: letters, separated by spaces.

    Returns:
      x.

    Raises:
      ValueError: the number of letters is not the number of dimensions.
    """
    letters = axes.split()
    if len(letters) != x.ndim:
        raise ValueError(f"axes: got {axes!r}, expected {x.ndim} letters for shape {x.shape}")
    sizes = mesh_axes()
    if not sizes:
        return x
    spec = []
    for letter, size in zip(letters, x.shape, strict=True):
        names = dividing(RULES.get(letter, ()), size, sizes)
        free = letter == "_" or (letter == "B" and not names)
        spec.append(PartitionSpec.UNCONSTRAINED if free else names or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def constrain_examples(x: Array) -> Array:
    """Shards the first dimension by examples and replicates the others; see `constrain`.

    Args:
      x: [B, ...].

    Returns:
      x.
    """
    return constrain(x, " ".join(["B", *["D"] * (x.ndim - 1)])) if x.ndim else x


def over_examples(
    function: Callable[..., Any], *examples: Any, shared: tuple[Any, ...] = ()
) -> Any:
    """Calls a function on each device for the device's own examples, without communication.

    Gradients of `shared` are summed over the devices once. XLA alone would sum them in every
    iteration of a loop, and would gather the examples before an operation that it does not
    partition. The function must not depend on the number of examples that it receives; dropout
    masks, for example, must be drawn outside.

    Args:
      function: function of (*examples, *shared) whose results have leaves [B, ...].
      *examples: trees with leaves [B, ...].
      shared: trees of arrays that all examples share, such as parameters.

    Returns:
      The result of the function for all examples.
    """
    leaves = jax.tree.leaves(examples)
    sizes = {} if not leaves else {k: v for k, v in mesh_axes().items() if k in BATCH}
    names = dividing(BATCH, leaves[0].shape[0], sizes) if sizes else ()
    if not names or any(leaf.shape[:1] != leaves[0].shape[:1] for leaf in leaves):
        return function(*examples, *shared)
    split = PartitionSpec(names)
    run = jax.shard_map(
        lambda examples, shared: function(*examples, *shared),
        in_specs=(split, PartitionSpec()),
        out_specs=split,
        axis_names=set(names),
        check_vma=False,
    )
    return run(examples, shared)


def top_k_by_example(x: Array, k: int) -> tuple[Array, Array]:
    """Computes `jax.lax.top_k` on each device for its own examples.

    XLA does not partition this operation.

    Args:
      x: [B, ..., S].
      k: number of values.

    Returns:
      The largest values, [B, ..., k], and their indices, int32.
    """
    return over_examples(lambda rows: jax.lax.top_k(rows, k), x)


def mesh_axes() -> dict[str, int]:
    """Returns the sizes of the mesh axes over which XLA partitions automatically, by name.

    The mesh is that of `jax.set_mesh`. Axes of size 1 are left out. Manual axes, which belong to a
    `jax.shard_map` that is being traced, and explicit axes, which are part of the types of arrays,
    are left out too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or not mesh.axis_names:
        return {}
    return {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    }


def dividing(names: tuple[str, ...], size: int, sizes: dict[str, int]) -> tuple[str, ...]:
    """Returns mesh axes that can shard a dimension together.

    Axes are chosen greedily in the order of `names`, so that the product of their sizes divides the
    size of the dimension.

    Args:
      names: names of mesh axes.
      size: size of a dimension.
      sizes: sizes of the axes that can be used.
    """
    found: tuple[str, ...] = ()
    for name in names:
        if name in sizes and size % math.prod(sizes[each] for each in (*found, name)) == 0:
            found = (*found, name)
    return found
