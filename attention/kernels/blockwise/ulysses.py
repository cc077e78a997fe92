"""The kernel "ulysses": attention of sharded sequences, resharded by heads with all-to-alls.

Jacobs et al. 2023, "DeepSpeed Ulysses". Between two all-to-alls, each device has all positions of
some heads, and any single-device kernel computes their attention.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
from typing import Unpack

import chex
import jax

from attention import registry
from attention.kernels.blockwise import attention, gradient, mesh, online_softmax
from attention.kernels.options import KernelOptions, validate_arrays

Array = jax.Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    kernel: str = "blockwise",
    **options: Unpack[KernelOptions],
) -> Array:
    """Computes attention over the axis "sequence" (Jacobs et al. 2023); see `attention.attend`.

        o = heads_to_positions(attend(positions_to_heads(q), positions_to_heads(k), ...))

    The mesh is set by `jax.set_mesh`; examples and heads are sharded as well.

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V].
      kernel: name of the kernel for the heads of each device. Only "blockwise" supports dropout.
      options: those that the kernel with this name supports.

    Returns:
      [B, T, N, V] in the query's dtype.

    Raises:
      NotImplementedError: the mesh has no axis "sequence"; the axis size does not divide T, S and
        the number of heads; or `kernel` does not support an argument.
      ValueError: the mask was made for other sizes.
    """
    B, T, N, _ = query.shape
    S, K, V = value.shape[1:]
    split = mesh.expect_sequence_split(B, N, K, T, S)
    shared = split.num_shards
    for axis in split.heads:
        shared *= split.mesh.shape[axis]
    for name, heads in (("N", N), ("K", K)):
        if heads % shared:
            raise NotImplementedError(
                f"mesh: got {name}={heads} heads, expected a multiple of {shared}, the product of "
                "the mesh axes 'tensor' and 'sequence'; use the kernel 'ring'"
            )
    if options["dropout_rate"] and kernel != "blockwise":
        raise NotImplementedError(
            f"kernel: got {kernel!r} with dropout, expected 'blockwise', because only this kernel "
            "draws the dropout mask by global positions"
        )
    sizes = dict(zip("BTNSK", (B, T, N, S, K), strict=True))
    # Between the all-to-alls, heads are also sharded along the sequence axis.
    inner = dataclasses.replace(split, heads=(*split.heads, split.sequence), sequence=None)
    spec = attention.make_spec((B, N, T, S), N // K, options)

    def local(query, key, value, given):
        def exchange(x: Array, taken: int, joined: int) -> Array:
            return jax.lax.all_to_all(x, split.sequence, taken, joined, tiled=True)

        arrays = [exchange(x, 2, 1) for x in (query, key, value)]
        if kernel == "blockwise":
            examples, heads = arrays[0].shape[0], arrays[0].shape[2]
            starts = inner.index(inner.batch) * examples, inner.index(inner.heads) * heads
            out = gradient.attention(
                gradient.LocalMethod(),
                spec,
                *arrays,
                **given,
                offset=online_softmax.BlockOffset(*starts),
            )
        else:
            own = {name: x for name, x in given.items() if name != "key_data"}
            out = registry.load("kernel", kernel)(*arrays, **options | own)
        return exchange(out, 1, 2)

    given = validate_arrays(options)
    rows = split.specs(query, "BTN", sizes)
    columns = split.specs(value, "BSK", sizes)
    specs = {
        "mask": inner.mask_specs(given["mask"], B, N),
        "bias": inner.specs(given["bias"], "BN", sizes),
        "sinks": inner.specs(given["sinks"], "N", sizes),
        "key_data": inner.specs(given["key_data"], "", {}),
    }
    run = split.shard_map(local, (rows, columns, columns, specs), rows)
    out = jax.jit(run)(query, key, value, given)
    chex.assert_shape(out, (B, T, N, V))
    return out


def slower_reason(query: Array, key: Array) -> str:
    """Returns why "auto" does not select this kernel: "ring" supports any number of heads.

    Args:
      query, key: [B, T, N, H], [B, S, K, H].
    """
    return "is selected only by name, because 'ring' supports any number of heads"
