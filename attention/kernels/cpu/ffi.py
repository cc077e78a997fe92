"""Calls of compiled code, partitioned by examples and heads on a mesh and batched under `vmap`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array


class Operand(NamedTuple):
    """An operand of an FFI call: an array with named dimensions.

    Attributes:
      array: the array, or None.
      dims: one letter per dimension: b for examples, n for query heads, k for key/value heads. B
        and N stand for examples and query heads in dimensions that may also have size 1. Other
        letters are never partitioned.
    """

    array: Any
    dims: str


class _Call(NamedTuple):
    """Static arguments of a call."""

    target: str
    dims: tuple[str, ...]  # "" for an operand that is None
    results: tuple[tuple[str, tuple[int, ...], Any], ...]
    attributes: tuple[tuple[str, Any], ...]
    layouts: tuple[tuple[int, tuple[int, ...]], ...]


def call_partitioned(
    target: str,
    operands: Sequence[Operand],
    results: Mapping[str, tuple[tuple[int, ...], Any]],
    attributes: Mapping[str, Any],
    layouts: Mapping[int, tuple[int, ...]],
) -> tuple[Array, ...]:
    """Calls an FFI target, partitioned over a mesh and batched under `vmap`.

    Args:
      target: name of the target.
      operands: operands; an array that is None becomes an array without elements. Axes 0 and 2 of
        the first operand are examples and query heads; axis 2 of the second is key/value heads.
      results: shape and dtype of each result; the keys are the results' dims.
      attributes: attributes of the target.
      layouts: order of an operand's dimensions in memory, by the operand's index.
    """
    batch, heads = operands[0].array.shape[0], operands[0].array.shape[2]
    full = {"B": batch, "N": heads}

    def fit(dims: str, shape: Sequence[int]) -> str:
        """Replaces B and N by b and n, or by 1 for size 1."""
        return "".join(
            d if d not in full else d.lower() if size == full[d] else "1"
            for d, size in zip(dims, shape, strict=True)
        )

    arrays, letters = [], []
    for operand in operands:
        given = operand.array is not None
        arrays.append(jnp.asarray(operand.array) if given else jnp.zeros((0,), jnp.int32))
        letters.append(fit(operand.dims, arrays[-1].shape) if given else "")
    made = tuple(
        (fit(dims, shape) if dims else "", tuple(shape), jnp.dtype(dtype))
        for dims, (shape, dtype) in results.items()
    )
    return _mapped(
        _Call(target, tuple(letters), made, tuple(attributes.items()), tuple(layouts.items()))
    )(*arrays)


def _sized(what: _Call, arrays: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the results of a call with these operands.

    The operands may be local shards.
    """
    (batch, _, heads, _), kv_heads = arrays[0].shape, arrays[1].shape[2]
    sizes = {"b": batch, "n": heads, "k": kv_heads}
    found = []
    for dims, shape, dtype in what.results:
        own = [sizes.get(d, size) for d, size in zip(dims, shape, strict=True)] if dims else shape
        found.append(jax.ShapeDtypeStruct(tuple(own), dtype))
    return found


def _direct(what: _Call, *arrays: Array) -> Sequence[Array]:
    layouts = dict(what.layouts)
    return jax.ffi.ffi_call(
        what.target,
        tuple(_sized(what, arrays)),
        input_layouts=[layouts.get(i, tuple(range(a.ndim))) for i, a in enumerate(arrays)],
        vmap_method="sequential",
    )(*arrays, **dict(what.attributes))


# ------------------------------------------------------------------ vmap


def _mapped(what: _Call):
    run = jax.custom_batching.custom_vmap(lambda *arrays: _partitioned(what, *arrays))

    @run.def_vmap
    def _(size, mapped, *arrays):
        if any(
            on and dims[:1] not in ("b", "1") for on, dims in zip(mapped, what.dims, strict=True)
        ):
            # Operands without an example axis, such as block tables, cannot join the batch.
            return _one_by_one(what, size, mapped, arrays)
        batch = arrays[0].shape[1 if mapped[0] else 0]
        summed = [i for i, (dims, *_) in enumerate(what.results) if dims[:1] == "1"]
        letters, joined = [], []
        for on, dims, array in zip(mapped, what.dims, arrays, strict=True):
            if on or dims[:1] == "b" or (summed and dims[:1] == "1"):
                array = array if on else jnp.broadcast_to(array, (size, *array.shape))
                array = jnp.broadcast_to(array, (size, batch, *array.shape[2:]))
                array = array.reshape(size * batch, *array.shape[2:])
                dims = "b" + dims[1:]
            letters.append(dims)
            joined.append(array)
        made = tuple(
            ("b" + dims[1:] if i in summed else dims, shape, dtype)
            for i, (dims, shape, dtype) in enumerate(what.results)
        )
        found = _mapped(what._replace(dims=tuple(letters), results=made))(*joined)
        found = [
            x.reshape(size, batch, *x.shape[1:]) if dims else jnp.broadcast_to(x, (size, *x.shape))
            for x, (dims, *_) in zip(found, what.results, strict=True)
        ]
        for i in summed:
            found[i] = found[i].sum(1, keepdims=True)
        return tuple(found), (True,) * len(found)

    return run


def _one_by_one(what: _Call, size: int, mapped: Sequence[bool], arrays: Sequence[Array]):
    def one(index):
        return _mapped(what)(*(a[index] if on else a for on, a in zip(mapped, arrays, strict=True)))

    found = jax.lax.map(one, jnp.arange(size))
    return found, (True,) * len(found)


# ------------------------------------------------------------------ meshes


def _partitioned(what: _Call, *arrays: Array) -> tuple[Array, ...]:
    heads, kv_heads = arrays[0].shape[2], arrays[1].shape[2]
    return _partitioner(what, kv_heads, heads // kv_heads)(*arrays)


@functools.lru_cache(maxsize=256)
def _partitioner(what: _Call, kv_heads: int, group: int):
    run = custom_partitioning(lambda *arrays: _direct(what, *arrays))
    results = [dims for dims, *_ in what.results]

    def cuts(mesh, argument_shapes):
        """Returns the mesh axes that shard b, n and k, from the sharding of the queries."""
        spec = (*argument_shapes[0].sharding.spec, *[None] * 4)
        axes = {"b": spec[0], "n": spec[2]}
        names = axes["n"] if isinstance(axes["n"], tuple) else (axes["n"],)
        count = 1
        for name in names:
            count *= mesh.shape[name] if name else 1
        if kv_heads % count:
            axes["n"] = None
        return axes | {"k": axes["n"]}

    def placed(mesh, axes, arrays):
        return tuple(
            NamedSharding(mesh, PartitionSpec(*(axes.get(d) for d in dims))) for dims in arrays
        )

    def partition(mesh, argument_shapes, result_shapes):
        axes = cuts(mesh, argument_shapes)

        def run_part(*arrays):
            # Results that examples or heads share are summed over the shards.
            return tuple(
                _summed(x, [axes[full] for d, full in zip(dims, "bn", strict=False) if d == "1"])
                for x, dims in zip(_direct(what, *arrays), results, strict=True)
            )

        return mesh, run_part, placed(mesh, axes, results), placed(mesh, axes, what.dims)

    def infer(mesh, argument_shapes, result_shapes):
        return placed(mesh, cuts(mesh, argument_shapes), results)

    rule, factors = _sharding_rule(what.dims, results, kv_heads, group)
    run.def_partition(
        partition=partition, infer_sharding_from_operands=infer, sharding_rule=rule, **factors
    )
    return run


def _summed(x: Array, axes: Sequence[Any]) -> Array:
    for axis in axes:
        x = x if axis is None else jax.lax.psum(x, axis)
    return x


def _sharding_rule(
    operands: Sequence[str], results: Sequence[str], kv_heads: int, group: int
) -> tuple[str, dict[str, Any]]:
    """Returns the Shardy sharding rule, which matches dimensions of operands and results."""
    alone = iter(range(10_000))
    # Shardy does not accept a factor of size 1, so "k" is left out if there is one key head.
    alone_heads = kv_heads == 1 and group > 1

    def side(arrays: Sequence[str]) -> str:
        return ", ".join(" ".join(letter(d) for d in dims or "1") for dims in arrays)

    def letter(dim: str) -> str:
        if dim == "b":
            return "b"
        if dim == "n" and alone_heads:
            return "g"
        if (dim == "k" and not alone_heads) or (dim == "n" and group == 1):
            return "k"
        if dim == "n":
            return "(k g)"
        # Other dimensions are not sharded: each gets a unique name.
        return f"z{next(alone)}"

    text = f"{side(operands)} -> {side(results)}"
    return text, {"g": group} if "(k g)" in text else {}
