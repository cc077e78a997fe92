"""Online softmax over blocks, forward and backward, for all kernels of this folder.

The forward pass keeps a running maximum and sum (Milakov & Gimelshein 2018, Rabe & Staats 2021).
The backward pass recomputes the weights (Dao et al. 2022, "FlashAttention"). Memory is O(T + S) in
addition to the inputs and the gradient of a bias. In the equations, l are the logits and w the
weights of `attention.attend`, and dx is the gradient with respect to x. Dimension letters are
defined in `attention.shapes`.

A shard is a slice of the examples, heads, queries and keys. Masks and dropout use global positions.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from attention.dropout import keep_block, keep_probability
from attention.masks import Mask
from attention.masks.block_mask import BlockMask, make_block_mask
from attention.masks.terms import Span, slice_span
from attention.numerics import accumulator

Array = jax.Array


class BlockOffset(NamedTuple):
    """Position of a shard in the global attention; traced if it differs between devices.

    Attributes:
      example, head: index of the first example and of the first query head. The mask of a shard
        contains only the examples and heads of the shard.
      rows, columns: int32 [blocks], global indices of the shard's query and key blocks; None for
        all blocks in order.
    """

    example: int | Array = 0
    head: int | Array = 0
    rows: Array | None = None
    columns: Array | None = None


NO_OFFSET = BlockOffset()


@dataclasses.dataclass(frozen=True)
class BlockwiseSpec:
    """Static settings, the same for all shards.

    Attributes:
      whole: global sizes B, N, T, S.
      scale, logit_cap, dropout_rate: as for `attend`.
      query_block, key_block: numbers of positions in a block. They divide the lengths of a shard,
        unless the shard is the complete sequence.
      needs_bias_grad: whether to compute the gradient of the bias, an array [T, S] for each head.
    """

    whole: tuple[int, int, int, int]
    scale: float
    logit_cap: float | None
    dropout_rate: float
    query_block: int
    key_block: int
    needs_bias_grad: bool = True


def forward(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Mask | None,
    bias: Array | None,
    key_data: Array | None,
    spec: BlockwiseSpec,
    offset: BlockOffset = NO_OFFSET,
) -> tuple[Array, Array]:
    """Computes the attention of a shard and its log-sum-exp (Rabe & Staats 2021).

        o_t = Σ_s exp(l_ts - z_t) v_s,   z_t = log Σ_s exp(l_ts)

    With z, the results of several shards can be merged.

    Args:
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V] of the shard.
      mask: mask for the shard's examples and heads, and for all global positions.
      bias: [B or 1, N or 1, T, S], with the queries of the shard and all global keys.
      key_data: uint32 [2], data of the dropout key; required if the dropout rate is above 0.
      spec, offset: settings, and the position of the shard in the global attention.

    Returns:
      o, [B, T, N, V] in at least float32, and z, [B, T, N]. Rows that may attend to nothing return
      0 and -inf.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    B, T, N, _ = query.shape
    S, K, V = value.shape[1:]
    blocks = _Blocks(mask, bias, key_data, spec, offset, (B, N, K, T, S))
    block_mask = blocks.block_mask()
    dtype = accumulator(query)
    queries, keys, values = blocks.rows(query), blocks.columns(key), blocks.columns(value)
    R = queries.shape[2]

    def item(number: Array, query: Array, key: Array, value: Array):
        b, heads = blocks.example_and_heads(number)
        pick = functools.partial(_pick, b)

        def row(i: Array):
            def step(n: Array, carry):
                row_max, row_sum, acc = carry
                j = pick(block_mask.indices, i)[n]
                partial = n >= pick(block_mask.num_full, i) if block_mask.has_partial else None
                logits = blocks.logits(query[i], key[j], partial, b, heads, i, j)[0]
                new_max = jnp.maximum(row_max, logits.max(-1))
                level = jnp.where(new_max == -jnp.inf, 0.0, new_max)
                weights = jnp.exp(logits - level[:, None])
                shrink = jnp.exp(row_max - level)
                row_sum = row_sum * shrink + weights.sum(-1)
                if spec.dropout_rate:
                    weights = jnp.where(blocks.keep_mask(b, heads, i, j), weights, 0.0)
                more = _dot(weights.astype(value.dtype), value[j], (1, 0), dtype)
                return new_max, row_sum, acc * shrink[:, None] + more

            start = jnp.full(R, -jnp.inf, dtype), jnp.zeros(R, dtype), jnp.zeros((R, V), dtype)
            count = pick(block_mask.num_visible, i)
            row_max, row_sum, acc = jax.lax.fori_loop(0, count, step, start)
            visible = row_sum > 0
            row_sum = jnp.where(visible, row_sum, 1.0)
            acc = acc / (row_sum * keep_probability(spec.dropout_rate))[:, None]
            return acc, jnp.where(visible, row_max + jnp.log(row_sum), -jnp.inf)

        return jax.lax.map(row, jnp.arange(query.shape[0]))

    out, lse = jax.lax.map(lambda x: item(*x), (jnp.arange(B * K), queries, keys, values))
    return blocks.from_rows(out), blocks.from_rows(lse[..., None])[..., 0]


def backward(
    query: Array,
    key: Array,
    value: Array,
    cotangent: Array,
    lse: Array,
    delta: Array,
    *,
    mask: Mask | None,
    bias: Array | None,
    key_data: Array | None,
    spec: BlockwiseSpec,
    offset: BlockOffset = NO_OFFSET,
    bias_grad: Array | None = None,
) -> tuple[Array, Array, Array, Array | None]:
    """Computes the gradients of a shard (Dao et al. 2022, algorithm 4).

        dl_ts = w_ts (do_t·v_s - δ_t),   w_ts = exp(l_ts - z_t),   δ_t = do_t·o_t

    Args:
      query, key, value, mask, bias, key_data, spec, offset: as for `forward`.
      cotangent: do, [B, T, N, V].
      lse, delta: z and δ, [B, T, N]. Here z is the log-sum-exp over all keys and the sink. It is
        inf for a row that may attend to nothing.
      bias_grad: array to which the gradient of the bias is added, shaped like the bias padded to
        complete blocks.

    Returns:
      Gradients of query, key, value and bias, shaped like them, in at least float32. The
      gradient of the bias is None without a bias, or if it is not needed.

    Raises:
      ValueError: the mask was made for other sizes.
    """
    B, T, N, _ = query.shape
    S, K, _ = value.shape[1:]
    blocks = _Blocks(mask, bias, key_data, spec, offset, (B, N, K, T, S))
    block_mask = blocks.block_mask(by_key=True)
    dtype = accumulator(query)
    keep_rate = keep_probability(spec.dropout_rate)

    def item(bias_grad: Array | None, given):
        number, query, key, value, cotangent, lse, delta = given
        b, heads = blocks.example_and_heads(number)
        pick = functools.partial(_pick, b)

        # Logits are [keys, queries] here, so that three of four products need no transposition.
        def column(carry, j: Array):
            def step(n: Array, carry):
                query_grad, bias_grad, key_grad, value_grad = carry
                i = pick(block_mask.indices, j)[n]
                partial = n >= pick(block_mask.num_full, j) if block_mask.has_partial else None
                logits, tanh_logits = blocks.logits(
                    query[i], key[j], partial, b, heads, i, j, transposed=True
                )
                weights = jnp.exp(logits - lse[i, None, :])
                logits_grad = _dot(value[j], cotangent[i], (1, 1), dtype)
                dropped = weights
                if spec.dropout_rate:
                    keep = blocks.keep_mask(b, heads, i, j, transposed=True)
                    dropped = jnp.where(keep, weights / keep_rate, 0.0)
                    logits_grad = jnp.where(keep, logits_grad / keep_rate, 0.0)
                value_grad += _dot(dropped.astype(value.dtype), cotangent[i], (1, 0), dtype)
                logits_grad = weights * (logits_grad - delta[i, None, :])
                if tanh_logits is not None:
                    logits_grad = logits_grad * (1 - tanh_logits**2)
                if bias_grad is not None:
                    bias_grad = blocks.add_to_bias(bias_grad, logits_grad, b, heads, i, j)
                logits_grad = (logits_grad * spec.scale).astype(query.dtype)
                key_grad += _dot(logits_grad, query[i], (1, 0), dtype)
                query_grad = query_grad.at[i].add(_dot(logits_grad, key[j], (0, 0), dtype))
                return query_grad, bias_grad, key_grad, value_grad

            zeros = [jnp.zeros(x.shape[1:], dtype) for x in (key, value)]
            count = pick(block_mask.num_visible, j)
            *carry, key_grad, value_grad = jax.lax.fori_loop(0, count, step, (*carry, *zeros))
            return tuple(carry), (key_grad, value_grad)

        start = jnp.zeros(query.shape, dtype), bias_grad
        numbers = jnp.arange(key.shape[0])
        (query_grad, bias_grad), (key_grad, value_grad) = jax.lax.scan(column, start, numbers)
        return bias_grad, (query_grad, key_grad, value_grad)

    bias_grad = blocks.zero_bias_grad(dtype) if bias_grad is None else bias_grad
    given = (
        *(jnp.arange(B * K), blocks.rows(query), blocks.columns(key), blocks.columns(value)),
        *(blocks.rows(cotangent), blocks.rows(lse[..., None])[..., 0]),
        blocks.rows(delta[..., None])[..., 0],
    )
    bias_grad, (query_grad, *others) = jax.lax.scan(item, bias_grad, given)
    if bias_grad is not None and bias is not None:
        bias_grad = bias_grad[:, :, :T, : bias.shape[3]]
    key_grad, value_grad = map(blocks.from_columns, others)
    return blocks.from_rows(query_grad), key_grad, value_grad, bias_grad


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """A shard split into blocks.

    The rows of a block are the queries of all heads that share a key head. In the methods, b is an
    example, i a query block and j a key block.

    Attributes:
      mask, bias, key_data, spec, offset: as for `forward`.
      sizes: B, N, K, T, S of the shard.
    """

    mask: Mask | None
    bias: Array | None
    key_data: Array | None
    spec: BlockwiseSpec
    offset: BlockOffset
    sizes: tuple[int, int, int, int, int]

    def block_mask(self, by_key: bool = False) -> BlockMask:
        spec, offset = self.spec, self.offset
        sizes = self.sizes[0], *spec.whole[2:], spec.query_block, spec.key_block
        return make_block_mask(
            self.mask, *sizes, rows=offset.rows, columns=offset.columns, by_key=by_key
        )

    def rows(self, x: Array) -> Array:
        """Splits queries [B, T, N, E] into blocks [B·K, blocks, rows, E], for any size E."""
        return self._split(x, self.spec.query_block)

    def columns(self, x: Array) -> Array:
        """Splits keys [B, S, K, E] into blocks [B·K, blocks, key block, E], for any size E."""
        return self._split(x, self.spec.key_block)

    def _split(self, x: Array, block: int) -> Array:
        B, length, heads, E = x.shape
        K = self.sizes[2]
        x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
        x = x.reshape(B, -1, block, K, heads // K, E).transpose(0, 3, 1, 4, 2, 5)
        return x.reshape(B * K, x.shape[2], -1, E)

    def from_rows(self, x: Array) -> Array:
        """Inverts `rows`."""
        B, N, K, T, _ = self.sizes
        x = x.reshape(B, K, x.shape[1], N // K, self.spec.query_block, -1)
        return x.transpose(0, 2, 4, 1, 3, 5).reshape(B, -1, N, x.shape[-1])[:, :T]

    def from_columns(self, x: Array) -> Array:
        """Inverts `columns`."""
        B, _, K, _, S = self.sizes
        x = x.reshape(B, K, -1, x.shape[-1])
        return x.transpose(0, 2, 1, 3)[:, :S]

    def example_and_heads(self, number: Array) -> tuple[Array, Span]:
        """Returns the example and the query heads for an index into the axis B·K."""
        _, N, K, _, _ = self.sizes
        return number // K, Span(number % K * (N // K), N // K)

    def logits(
        self,
        query: Array,
        key: Array,
        partial: Array | None,
        b: Array,
        heads: Span,
        i: Array,
        j: Array,
        transposed: bool = False,
    ) -> tuple[Array, Array | None]:
        """Computes the logits of a query block and a key block.

        Args:
          query, key: vectors of the two blocks.
          partial: whether the pair of blocks is partial. Only then are logits masked with -inf.
          b, heads: example and query heads.
          i, j: indices of the query block and of the key block.
          transposed: whether the results are [keys, rows] instead of [rows, keys].

        Returns:
          The logits; and the value of tanh in the logit cap, or None without a cap.
        """
        cap, tanh_logits = self.spec.logit_cap, None
        first, second = (key, query) if transposed else (query, key)
        logits = _dot(first, second, (1, 1), accumulator(query)) * self.spec.scale
        if self.bias is not None:
            bias = _of_example(b, self.bias)
            bias = bias if bias.shape[0] == 1 else slice_span(bias, 0, heads)
            bias = slice_span(slice_span(bias, 1, self._local_rows(i)), 2, self._span(1, j))
            logits = logits + self._flat(bias, transposed)
        if cap is not None:
            tanh_logits = jnp.tanh(logits / cap)
            logits = cap * tanh_logits
        if partial is None:
            return logits, tanh_logits
        masked = functools.partial(self._masked, b=b, heads=heads, i=i, j=j, transposed=transposed)
        return jax.lax.cond(partial, masked, lambda x: x, logits), tanh_logits

    def _masked(self, logits: Array, b: Array, heads: Span, i: Array, j: Array, transposed: bool):
        _, _, T, S = self.spec.whole
        rows, columns = self._span(0, i), self._span(1, j)
        allowed = jnp.ones((1, 1, 1, 1), bool)
        if self.mask is not None:
            mask = self.mask.select(b, heads)
            allowed = mask.materialize(1, heads.size, T, S, rows, columns)
        if S % columns.size:
            allowed = allowed & (columns.start + jnp.arange(columns.size) < S)
        return jnp.where(self._flat(allowed[0], transposed), logits, -jnp.inf)

    def keep_mask(self, b: Array, heads: Span, i: Array, j: Array, transposed=False) -> Array:
        """Returns the mask of weights that dropout keeps, bool [rows, keys], or [keys, rows]."""
        example = Span(self.offset.example + b, 1)
        heads = Span(self.offset.head + heads.start, heads.size)
        spans = example, heads, self._span(0, i), self._span(1, j)
        key_data = cast(Array, self.key_data)
        keep = keep_block(key_data, self.spec.dropout_rate, self.spec.whole, spans)
        return self._flat(keep[0], transposed)

    def zero_bias_grad(self, dtype: Any) -> Array | None:
        """Returns zeros for the gradient of the bias, padded to complete blocks."""
        if self.bias is None or not self.spec.needs_bias_grad:
            return None
        *outer, T, S = self.bias.shape
        rows, columns = T + -T % self.spec.query_block, S + -S % self.spec.key_block
        return jnp.zeros((*outer, rows, columns), dtype)

    def add_to_bias(
        self, bias_grad: Array, logits_grad: Array, b: Array, heads: Span, i: Array, j: Array
    ) -> Array:
        """Adds the gradient of a block of logits to the gradient of the bias.

        Args:
          bias_grad: gradient of the bias, padded to complete blocks.
          logits_grad: gradient of the logits of a block, [keys, rows]. It is summed over the axes
            along which the bias is broadcast.
          b, heads, i, j: as for `logits`.
        """
        rows, columns = self._local_rows(i), self._span(1, j)
        block = logits_grad.reshape(columns.size, heads.size, rows.size).transpose(1, 2, 0)[None]
        if bias_grad.shape[1] == 1:
            block = block.sum(1, keepdims=True)
        start = (
            b if bias_grad.shape[0] > 1 else 0,
            heads.start if bias_grad.shape[1] > 1 else 0,
            rows.start,
            columns.start,
        )
        # With jax_enable_x64, some indices would be int64, but all indices of a slice must share a
        # dtype.
        start = [jnp.asarray(index, jnp.int32) for index in start]
        before = jax.lax.dynamic_slice(bias_grad, start, block.shape)
        return jax.lax.dynamic_update_slice(bias_grad, before + block, start)

    def _local_rows(self, number: Array) -> Span:
        """Returns the positions of a query block in the shard."""
        return Span(number * self.spec.query_block, self.spec.query_block)

    def _span(self, side: int, number: Array) -> Span:
        """Returns the global positions of a query block (side 0) or key block (side 1)."""
        numbers = (self.offset.rows, self.offset.columns)[side]
        block = (self.spec.query_block, self.spec.key_block)[side]
        if numbers is not None:
            number = jnp.asarray(numbers)[number]
        return Span(number * block, block)

    def _flat(self, x: Array, transposed: bool) -> Array:
        """Reshapes x, [heads or 1, queries or 1, keys or 1], to the shape of a block of logits."""
        _, N, K, _, _ = self.sizes
        shape = N // K, self.spec.query_block, self.spec.key_block
        x = jnp.broadcast_to(x, shape)
        if transposed:
            return x.transpose(2, 0, 1).reshape(shape[2], -1)
        return x.reshape(-1, shape[2])


def _of_example(b: Array, x: Any) -> Array:
    """Returns x[b], or x[0] if all examples share x."""
    x = jnp.asarray(x)
    return x[0] if x.shape[0] == 1 else jax.lax.dynamic_index_in_dim(x, b, keepdims=False)


def _pick(b: Array, x: Any, block: Array) -> Array:
    """Returns x[b, block] for an array x of a `BlockMask`, whose leading axes may have size 1."""
    return _of_example(block, _of_example(b, x))


def _dot(a: Array, b: Array, axes: tuple[int, int], dtype: Any) -> Array:
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=dtype)
