"""The kernel "ring": attention of sharded sequences, with keys and values passed around a ring.

Liu et al. 2023, "Ring Attention with Blockwise Transformers". With a mask, each device computes an
early and a late part of the sequence, which balances the work of causal attention. In "Striped
Attention" (Brandon et al. 2023), single positions are assigned to the devices in turn. Here, key
blocks are contiguous.

Dimension letters are defined in `attention.shapes`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Unpack

import chex
import jax
import jax.numpy as jnp

from attention.kernels import partition
from attention.kernels.blockwise import gradient, mesh, online_softmax
from attention.kernels.blockwise.attention import KEY_BLOCK, QUERY_BLOCK
from attention.kernels.options import KernelOptions, validate_arrays, validate_numbers
from attention.numerics import accumulator

Array = jax.Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    query_block: int = QUERY_BLOCK,
    key_block: int = KEY_BLOCK,
    **options: Unpack[KernelOptions],
) -> Array:
    """Computes attention over the mesh axis "sequence" (Liu et al. 2023); see `attention.attend`.

        o_t = Σ_r exp(z_tr - z_t) o_tr,   z_t = log Σ_r exp(z_tr),   r over devices

    o_tr and z_tr are the output and log-sum-exp of a query over the keys of device r. The mesh is
    set by `jax.set_mesh`; examples and heads are sharded as well.

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V].
      query_block, key_block: upper bounds of the block sizes, as for the kernel "blockwise".
      options: all are supported.

    Returns:
      [B, T, N, V] in the query's dtype. It has first derivatives in reverse mode only.

    Raises:
      NotImplementedError: the mesh has no axis "sequence", the axis size does not divide T and S,
        or the kernel "blockwise" does not support an argument.
      ValueError: the mask was made for other sizes.
    """
    B, T, N, _ = query.shape
    S, K, V = value.shape[1:]
    split = mesh.expect_sequence_split(B, N, K, T, S)
    # Without a mask all devices have equal work with one part each.
    divisible = T % (2 * split.num_shards) == S % (2 * split.num_shards) == 0
    parts = 2 if options["mask"] is not None and divisible else 1
    spec = online_softmax.BlockwiseSpec(
        (B, N, T, S),
        *validate_numbers(options),
        _divisor(T // split.num_shards // parts, max(query_block * K // N, 1)),
        _divisor(S // split.num_shards // parts, key_block),
    )
    method = mesh.ShardedMethod(split, Ring(partition.SEQUENCE, split.num_shards, parts))
    out = gradient.attention(method, spec, query, key, value, **validate_arrays(options))
    chex.assert_shape(out, (B, T, N, V))
    return out


def _divisor(length: int, most: int) -> int:
    """Returns the largest divisor of the length that does not exceed `most`."""
    return next(size for size in range(min(length, most), 0, -1) if length % size == 0)


@dataclasses.dataclass(frozen=True)
class Ring:
    """A `BlockwiseMethod` for a device that holds one shard of a sequence, inside `jax.shard_map`.

    Attributes:
      axis: mesh axis that shards the sequence.
      devices: number of devices along the axis.
      parts: 2 if each device computes an early and a late part of the sequence, 1 if it computes
        its own shard.
    """

    axis: str
    devices: int
    parts: int

    def forward(self, query, key, value, options):
        device = jax.lax.axis_index(self.axis)
        query, bias, options = self._rows(query, options, device)
        moving = self._deal(key, 1), self._deal(value, 1)
        B, T, N, _ = query.shape
        dtype = accumulator(query)
        out = jnp.zeros((B, T, N, value.shape[3]), dtype), jnp.full((B, T, N), -jnp.inf, dtype)

        def step(carry, n):
            (key, value), out, lse = carry
            # The shard is sent before it is used, so that communication and computation overlap.
            following = self._pass_on((key, value))
            here = self._of_columns(options, device - n, key.shape[1])
            more = online_softmax.forward(query, key, value, bias=bias, **here)
            return (following, *_joined(out, lse, *more)), None

        (_, out, lse), _ = jax.lax.scan(step, (moving, *out), jnp.arange(self.devices))
        return self._collect(out, 1), self._collect(lse, 1)

    def backward(self, arrays, options):
        query, key, value, cotangent, lse, delta = arrays
        device = jax.lax.axis_index(self.axis)
        dtype = accumulator(query)
        query, bias, options = self._rows(query, options, device)
        cotangent, lse, delta = (self._deal(x, 1) for x in (cotangent, lse, delta))
        moving = self._deal(key, 1), self._deal(value, 1)
        bias_grad = None
        if bias is not None and options["spec"].needs_bias_grad:
            bias_grad = jnp.zeros(bias.shape, dtype)
        zeros = tuple(jnp.zeros(x.shape, dtype) for x in moving)
        start = moving, zeros, jnp.zeros(query.shape, dtype), bias_grad

        def step(carry, n):
            (key, value), grads, query_grad, bias_grad = carry
            following = self._pass_on((key, value))
            here = self._of_columns(options, device - n, key.shape[1])
            given = query, key, value, cotangent, lse, delta
            more, *others, bias_grad = online_softmax.backward(
                *given, bias=bias, bias_grad=bias_grad, **here
            )
            # Gradients are passed on with their keys and values, and return to their device in the
            # last step.
            grads = self._pass_on(tuple(a + b for a, b in zip(grads, others, strict=True)))
            return (following, grads, query_grad + more, bias_grad), None

        carry, _ = jax.lax.scan(step, start, jnp.arange(self.devices))
        _, grads, query_grad, bias_grad = carry
        if bias_grad is not None:
            bias_grad = self._collect(bias_grad, 2)
        return *(self._collect(x, 1) for x in (query_grad, *grads)), bias_grad

    def _rows(self, query: Array, options: dict, device: Array) -> tuple[Array, Any, dict]:
        """Redistributes queries and bias between the devices.

        Returns:
          The queries and the bias of this device, and the options with their block indices.
        """
        options = dict(options)
        bias, spec = options.pop("bias"), options["spec"]
        rows = self._numbers(device, query.shape[1], spec.query_block)
        options["offset"] = options["offset"]._replace(rows=rows)
        return self._deal(query, 1), None if bias is None else self._deal(bias, 2), options

    def _of_columns(self, options: dict, device: Array, length: int) -> dict:
        """Returns the options for the keys that came from a given device."""
        columns = self._numbers(device % self.devices, length, options["spec"].key_block)
        return options | {"offset": options["offset"]._replace(columns=columns)}

    def _numbers(self, device: Array, length: int, block: int) -> Array:
        """Returns the global indices of the blocks in the parts of a device."""
        count = length // self.parts // block
        first = [device, 2 * self.devices - 1 - device][: self.parts]
        return jnp.concatenate([part * count + jnp.arange(count, dtype="int32") for part in first])

    def _pass_on(self, arrays: Any) -> Any:
        pairs = [(r, (r + 1) % self.devices) for r in range(self.devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), arrays)

    # The sequence has 2·devices parts. Device r holds parts 2r and 2r + 1, and computes parts r and
    # 2·devices - 1 - r. Even and odd parts are exchanged separately; in each exchange, a device
    # sends one part and receives one.

    def _routes(self, odd: int) -> list[tuple[int, int]]:
        parts = [2 * r + odd for r in range(self.devices)]
        last = 2 * self.devices - 1
        return [(r, min(part, last - part)) for r, part in enumerate(parts)]

    def _deal(self, x: Array, axis: int) -> Array:
        """Redistributes an axis so that each device has an early and a late part."""
        if self.parts == 1:
            return x
        even, odd = (
            jax.lax.ppermute(part, self.axis, self._routes(number))
            for number, part in enumerate(jnp.split(x, 2, axis))
        )
        return self._ordered(even, odd, axis)

    def _collect(self, x: Array, axis: int) -> Array:
        """Inverts `_deal`."""
        if self.parts == 1:
            return x
        early, late = jnp.split(x, 2, axis)
        pair = jnp.split(self._ordered(early, late, axis), 2, axis)
        return jnp.concatenate(
            [
                jax.lax.ppermute(part, self.axis, [(b, a) for a, b in self._routes(number)])
                for number, part in enumerate(pair)
            ],
            axis,
        )

    def _ordered(self, first: Array, second: Array, axis: int) -> Array:
        """Concatenates two parts along an axis, in reverse order on devices of odd index."""
        odd = jax.lax.axis_index(self.axis) % 2 == 1
        pair = jnp.where(odd, second, first), jnp.where(odd, first, second)
        return jnp.concatenate(pair, axis)


def _joined(out: Array, lse: Array, more: Array, others: Array) -> tuple[Array, Array]:
    """Merges the results of attention over two sets of keys.

    Args:
      out, lse: output and log-sum-exp over the first set.
      more, others: output and log-sum-exp over the second set.
    """
    total = jnp.logaddexp(lse, others)
    level = jnp.where(total == -jnp.inf, 0.0, total)
    out = out * jnp.exp(lse - level)[..., None] + more * jnp.exp(others - level)[..., None]
    return out, total
