"""The Pallas programs of the kernel "triton": one for the forward pass, two for the backward pass.

Dao 2024, "FlashAttention-2". A program of the forward pass or of dq processes one query block and
loops over key blocks. A program of dk and dv processes one key block and loops over the query
blocks of all heads that share it. All arrays are padded to complete blocks.

Dimension letters are defined in `attention.shapes`; dx is the gradient with respect to x.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pallas_triton

from attention.masks import Mask, pallas
from attention.masks.block_mask import BlockMask

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """Static settings of the programs.

    Attributes:
      scale, logit_cap: as for `attend`.
      queries, keys: number of queries and keys without padding.
      query_block, key_block: number of positions in a block, powers of 2.
      interpret: whether to run in the interpreter.
    """

    scale: float
    logit_cap: float | None
    queries: int
    keys: int
    query_block: int
    key_block: int
    interpret: bool

    @property
    def sizes(self) -> pallas.Sizes:
        """Sizes of the mask for `pallas.prepare_for_kernel`."""
        blocks = (self.query_block, self.key_block)
        lengths = (self.queries, self.keys)
        padded = (-(-n // block) * block for n, block in zip(lengths, blocks, strict=True))
        return pallas.Sizes(*lengths, *padded)


# Largest number of features of a head's vector that a matrix product reads at once, for numbers of
# 2 and of 4 bytes. Longer parts need more registers than a thread has. In tensor cores, a float32
# number is two TF32 numbers.
_PARTS = {2: 128, 4: 64}


def parts(size: int, itemsize: int) -> tuple[tuple[int, int], ...]:
    """Returns the start and the size of each part of a head's vector.

    The sizes are powers of 2, at least 16. In bfloat16, a vector of size 80 has parts of 64 and 16,
    instead of padding to 128. In float32, the second part is at least 32, because warps would share
    the columns of a shorter part and spill registers.

    Args:
      size: number of features of the vector.
      itemsize: bytes of a feature.
    """
    found, start, most = [], 0, _PARTS[itemsize]
    unit = 32 if itemsize == 4 and size > 16 else 16
    while start < size:
        left = -(-(size - start) // unit) * unit
        width = min(most, 1 << (left.bit_length() - 1))
        rest = left - width
        if left < most and rest & (rest - 1):
            # Padding is cheaper than a third part.
            width *= 2
        found.append((start, width))
        start += width
    return tuple(found)


def padded_width(size: int, itemsize: int) -> int:
    """Returns the sum of the sizes of the parts of a head's vector."""
    return sum(parts(size, itemsize)[-1])


def forward(
    settings: Settings,
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    sinks: Array | None,
    mask: Mask | None,
    block_mask: BlockMask,
) -> tuple[Array, Array]:
    """Computes attention with an online softmax (Dao 2024, "FlashAttention-2", algorithm 1).

        o_t = Σ_s exp(l_ts - L_t) v_s,   L_t = log(Σ_s exp(l_ts) + exp(sink))

    Args:
      settings: static settings.
      query, key, value: [B, T, N, H], [B, S, K, H], [B, S, K, V].
      bias: [B or 1, N or 1, T, S], or None.
      sinks: float32 [N], or None.
      mask: mask converted by `pallas.prepare_for_kernel`, or None.
      block_mask: visible key blocks of each query block.

    Returns:
      o [B, T, N, V] in the query's dtype and L, float32 [B, N, T]; 0 in rows that may attend to
      nothing.

    Raises:
      NotImplementedError: the mask was not converted by `pallas.prepare_for_kernel`.
    """
    B, rows, N, _ = query.shape
    *in_specs, out_spec, row_spec = _query_specs(settings, query, value)
    return _call(
        _forward,
        settings,
        "attend_forward",
        (rows // settings.query_block, N, B),
        in_specs,
        [out_spec, row_spec],
        [
            jax.ShapeDtypeStruct((B, rows, N, value.shape[-1]), query.dtype),
            jax.ShapeDtypeStruct((B, N, rows), jnp.float32),
        ],
        (query, key, value),
        (bias, sinks, mask, block_mask),
    )


def query_gradient(
    settings: Settings,
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Mask | None,
    block_mask: BlockMask,
    given: tuple[Array, Array, Array],
    with_bias: bool,
) -> tuple[Array, Array | None]:
    """Computes the gradient of queries and bias (Dao 2024, "FlashAttention-2", algorithm 2).

        dl_ts = p_ts (do_t·v_s - δ_t),   p_ts = exp(l_ts - L_t),   dq_t = scale Σ_s dl_ts k_s

    Args:
      settings, query, key, value, bias, mask, block_mask: as for `forward`; with `with_bias` the
        block mask also lists the hidden blocks.
      given: do, [B, T, N, V]; L, float32 [B, N, T]; and δ = do·o, float32 [B, N, T].
      with_bias: whether to compute the gradient of the bias.

    Returns:
      dq, [B, T, N, H]; and dl, float32 [B, N, T, S], or None without `with_bias`.

    Raises:
      NotImplementedError: the mask was not converted by `pallas.prepare_for_kernel`.
    """
    B, rows, N, H = query.shape
    S, block = value.shape[1], settings.query_block
    *in_specs, row_spec = _query_specs(settings, query, value)
    outputs, shapes = in_specs[:1], [jax.ShapeDtypeStruct((B, rows, N, H), query.dtype)]
    if with_bias:
        outputs.append(pl.BlockSpec((None, None, block, S), lambda i, n, b: (b, n, i, 0)))
        shapes.append(jax.ShapeDtypeStruct((B, N, rows, S), jnp.float32))
    found = _call(
        _query_gradient,
        settings,
        "attend_dq",
        (rows // block, N, B),
        [*in_specs, row_spec, row_spec],
        outputs,
        shapes,
        (query, key, value, *given),
        (bias, mask, block_mask),
    )
    return found[0], found[1] if with_bias else None


def key_gradient(
    settings: Settings,
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None,
    mask: Mask | None,
    block_mask: BlockMask,
    given: tuple[Array, Array, Array],
) -> tuple[Array, Array]:
    """Computes the gradient of keys and values (Dao 2024, "FlashAttention-2", algorithm 2).

        dv_s = Σ_t p_ts do_t,   dk_s = scale Σ_t dl_ts q_t,   over all query heads that share key s

    Args:
      settings, query, key, value, bias, mask: as for `forward`.
      block_mask: visible query blocks of each key block.
      given: do [B, T, N, V]; L and δ, float32 [B, N, T], as for `query_gradient`.

    Returns:
      dk [B, S, K, H] and dv [B, S, K, V].

    Raises:
      NotImplementedError: the mask was not converted by `pallas.prepare_for_kernel`.
    """
    B, T, N, H = query.shape
    columns, K, V = value.shape[1:]
    G, block = N // K, settings.key_block
    row = pl.BlockSpec((None, G, T), lambda j, k, b: (b, k, 0))
    column_specs = [
        pl.BlockSpec((None, block, None, size), lambda j, k, b: (b, j, k, 0)) for size in (H, V)
    ]
    return _call(
        functools.partial(_key_gradient, G),
        settings,
        "attend_dkdv",
        (columns // block, K, B),
        [
            pl.BlockSpec((None, T, G, H), lambda j, k, b: (b, 0, k, 0)),
            *column_specs,
            pl.BlockSpec((None, T, G, V), lambda j, k, b: (b, 0, k, 0)),
            row,
            row,
        ],
        column_specs,
        [
            jax.ShapeDtypeStruct((B, columns, K, H), key.dtype),
            jax.ShapeDtypeStruct((B, columns, K, V), value.dtype),
        ],
        (query, key, value, *given),
        (bias, mask, block_mask),
    )


def _query_specs(settings: Settings, query: Array, value: Array) -> tuple[pl.BlockSpec, ...]:
    """Returns the block specs of a grid with one program for each query block.

    They are those of the query, key, value and output, and of arrays [B, N, T].
    """
    S, K, V = value.shape[1:]
    H, G, block = query.shape[3], query.shape[2] // K, settings.query_block
    return (
        pl.BlockSpec((None, block, None, H), lambda i, n, b: (b, i, n, 0)),
        pl.BlockSpec((None, S, None, H), lambda i, n, b: (b, 0, n // G, 0)),
        pl.BlockSpec((None, S, None, V), lambda i, n, b: (b, 0, n // G, 0)),
        pl.BlockSpec((None, block, None, V), lambda i, n, b: (b, i, n, 0)),
        pl.BlockSpec((None, None, block), lambda i, n, b: (b, n, i)),
    )


def _call(kernel, settings, name, grid, in_specs, out_specs, out_shape, blocked, shared):
    """Runs a kernel on blocks of the arrays `blocked` and on the complete arrays `shared`."""

    def whole(array):
        return pl.BlockSpec(array.shape, lambda *_: (0,) * array.ndim)

    halves = blocked[0].dtype.itemsize == 2
    # Accumulators of long vectors need the registers of more threads. A float32 number counts
    # twice, as a pair of TF32 numbers.
    block_bytes = settings.query_block * blocked[0].shape[-1] * (2 if halves else 8)
    return pl.pallas_call(
        functools.partial(kernel, settings),
        grid=grid,
        in_specs=[*in_specs, *jax.tree.map(whole, shared)],
        out_specs=out_specs,
        out_shape=out_shape,
        interpret=settings.interpret,
        compiler_params=pallas_triton.CompilerParams(
            num_warps=8 if block_bytes > 10240 else 4,
            num_stages=2 if halves else 1,
        ),
        name=name,
    )(*blocked, *shared)


def _forward(
    settings, q_ref, k_ref, v_ref, bias_ref, sinks_ref, mask, block_mask, out_ref, log_sum_ref
):
    i, head, example = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    query = _read(q_ref)

    def step(number, carry, masked):
        row_sum, row_max, acc = carry
        j = _entry(block_mask.indices, example, i, number)
        columns = pl.ds(j * settings.key_block, settings.key_block)
        index = _block_index(settings, example, head, i, j)
        logits = _logits(settings, query, _read(k_ref, columns), bias_ref, index)
        if masked:
            logits = jnp.where(_visible(settings, mask, index), logits, -jnp.inf)
        new_max = jnp.maximum(row_max, logits.max(axis=-1))
        # Avoids inf - inf in a row without a visible key so far.
        base = jnp.where(new_max == -jnp.inf, 0.0, new_max)
        shrink, weights = jnp.exp(row_max - base), jnp.exp(logits - base[:, None])
        acc = [shrink[:, None] * part for part in acc]
        acc = _add_products(settings, acc, weights, _read(v_ref, columns))
        return shrink * row_sum + weights.sum(axis=-1), new_max, acc

    zeros = jnp.zeros((settings.query_block,), jnp.float32)
    carry = (zeros, zeros - jnp.inf, _zeros_of(out_ref))
    row_sum, row_max, acc = _over_blocks(block_mask, example, i, step, carry)
    if sinks_ref is not None:
        sink = sinks_ref[head]
        new_max = jnp.maximum(row_max, sink)
        # Avoids inf - inf in a row that may attend to nothing, with a sink of -inf.
        base = jnp.where(new_max == -jnp.inf, 0.0, new_max)
        shrink = jnp.exp(row_max - base)
        row_sum, acc = shrink * row_sum + jnp.exp(sink - base), [shrink[:, None] * x for x in acc]
        row_max = new_max
    empty = row_sum == 0.0
    row_sum = jnp.where(empty, 1.0, row_sum)
    _write(out_ref, [part / row_sum[:, None] for part in acc])
    log_sum_ref[...] = jnp.where(empty, 0.0, row_max) + jnp.log(row_sum)


def _query_gradient(
    settings,
    q_ref,
    k_ref,
    v_ref,
    do_ref,
    sum_ref,
    di_ref,
    bias,
    mask,
    block_mask,
    dq_ref,
    db_ref=None,
):
    i, head, example = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    query, cotangent = _read(q_ref), _read(do_ref)
    log_sum, delta = sum_ref[...], di_ref[...]

    def step(number, result, masked):
        j = _entry(block_mask.indices, example, i, number)
        columns = pl.ds(j * settings.key_block, settings.key_block)
        index = _block_index(settings, example, head, i, j)
        key = _read(k_ref, columns)
        _, logits_grad = _logits_grad(
            settings, query, key, _read(v_ref, columns), cotangent, log_sum, delta,
            bias, mask, masked, index,
        )  # fmt: skip
        if db_ref is not None:
            db_ref[:, columns] = logits_grad
        return _add_products(settings, result, logits_grad, key)

    result = _over_blocks(block_mask, example, i, step, _zeros_of(dq_ref))
    _write(dq_ref, [settings.scale * part for part in result])
    if db_ref is None:
        return

    def clear(number, _):
        j = _entry(block_mask.indices, example, i, number)
        columns = pl.ds(j * settings.key_block, settings.key_block)
        db_ref[:, columns] = jnp.zeros((settings.query_block, settings.key_block), jnp.float32)

    num_visible = _entry(block_mask.num_visible, example, i)
    jax.lax.fori_loop(num_visible, block_mask.indices.shape[-1], clear, None)


def _key_gradient(
    G, settings, q_ref, k_ref, v_ref, do_ref, sum_ref, di_ref, bias, mask, block_mask,
    dk_ref, dv_ref,
):  # fmt: skip
    j, shared, example = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    key, value = _read(k_ref), _read(v_ref)

    def of_head(g, carry):
        def step(number, carry, masked):
            dk, dv = carry
            i = _entry(block_mask.indices, example, j, number)
            rows = pl.ds(i * settings.query_block, settings.query_block)
            index = _block_index(settings, example, shared * G + g, i, j)
            query, cotangent = _read(q_ref, rows, g), _read(do_ref, rows, g)
            weights, logits_grad = _logits_grad(
                settings, query, key, value, cotangent, sum_ref[g, rows], di_ref[g, rows],
                bias, mask, masked, index, by_key=True,
            )  # fmt: skip
            dv = _add_products(settings, dv, weights, cotangent)
            return _add_products(settings, dk, logits_grad, query), dv

        return _over_blocks(block_mask, example, j, step, carry)

    dk, dv = jax.lax.fori_loop(0, G, of_head, (_zeros_of(dk_ref), _zeros_of(dv_ref)))
    _write(dk_ref, [settings.scale * part for part in dk])
    _write(dv_ref, dv)


def _read(ref: Any, *leading: Any) -> list[Array]:
    """Reads the parts of vectors (see `parts`); each is [rows, size of the part]."""
    leading = leading or (slice(None),)
    return [ref[(*leading, pl.ds(*part))] for part in parts(ref.shape[-1], ref.dtype.itemsize)]


def _write(ref: Any, arrays: list[Array]) -> None:
    for part, array in zip(parts(ref.shape[-1], ref.dtype.itemsize), arrays, strict=True):
        ref[:, pl.ds(*part)] = array.astype(ref.dtype)


def _zeros_of(ref: Any) -> list[Array]:
    sizes = (size for _, size in parts(ref.shape[-1], ref.dtype.itemsize))
    return [jnp.zeros((ref.shape[0], size), jnp.float32) for size in sizes]


def _add_products(
    settings: Settings, sums: list[Array], weights: Array, vectors: list[Array]
) -> list[Array]:
    """Returns the sums plus the products of weights and vectors, part by part.

    Args:
      settings: static settings.
      sums: parts of the sums, [rows, size of the part] each.
      weights: [rows, columns].
      vectors: parts of the vectors, [columns, size of the part] each.
    """
    weights = weights.astype(vectors[0].dtype)
    pairs = zip(sums, vectors, strict=True)
    return [x + _dot(settings, weights, vector) for x, vector in pairs]


def _products(settings: Settings, left: list[Array], right: list[Array]) -> Array:
    """Returns the inner products of vectors, [rows, columns], from the parts of both."""
    each = [_dot(settings, *pair) for pair in zip(left, (x.T for x in right), strict=True)]
    return functools.reduce(jnp.add, each)


def _over_blocks(block_mask: Any, example: Any, block: Any, step: Any, carry: Any) -> Any:
    """Applies a function to the full blocks in a list, then to the partial blocks.

    Args:
      block_mask: references to the arrays of a `BlockMask`.
      example, block: indices of the list.
      step: function of the position in the list, of the carry, and of whether the block is partial;
        returns the new carry.
      carry: initial carry.

    Returns:
      The last carry.
    """
    num_full = _entry(block_mask.num_full, example, block)
    num_visible = _entry(block_mask.num_visible, example, block)
    carry = jax.lax.fori_loop(0, num_full, lambda n, c: step(n, c, False), carry)
    return jax.lax.fori_loop(num_full, num_visible, lambda n, c: step(n, c, True), carry)


def _entry(array: Any, example: Any, block: Any, *number: Any) -> Array:
    """Returns an entry of an array of a `BlockMask`; its first two axes may have size 1."""
    return array[(*pallas.of_shared(array.shape[:2], example, block), *number)]


def _block_index(settings: Settings, example: Any, head: Any, i: Any, j: Any) -> pallas.BlockIndex:
    row, column = i * settings.query_block, j * settings.key_block
    rows = row + jax.lax.broadcasted_iota(jnp.int32, (settings.query_block, 1), 0)
    columns = column + jax.lax.broadcasted_iota(jnp.int32, (1, settings.key_block), 1)
    return pallas.BlockIndex(example, head, row, column, rows, columns)


def _visible(settings: Settings, mask: Mask | None, index: pallas.BlockIndex) -> Array:
    visible = jnp.ones((1, 1), bool) if mask is None else pallas.evaluate_block(mask, index)
    if settings.keys % settings.key_block:
        visible = visible & (index.columns < settings.keys)
    return jnp.broadcast_to(visible, (settings.query_block, settings.key_block))


def _logits(
    settings: Settings,
    query: list[Array],
    key: list[Array],
    bias: Any,
    index: pallas.BlockIndex,
    by_key: bool = False,
) -> Array:
    """Returns the logits of a block, [queries, keys], or with `by_key` [keys, queries]."""
    logits = _products(settings, *((key, query) if by_key else (query, key))) * settings.scale
    if bias is not None:
        shared = pallas.of_shared(bias.shape[:2], index.example, index.head)
        rows = pl.ds(index.row, settings.query_block)
        columns = pl.ds(index.column, settings.key_block)
        block = bias[(*shared, rows, columns)].astype(jnp.float32)
        logits = logits + (block.T if by_key else block)
    if settings.logit_cap is not None:
        logits = settings.logit_cap * jnp.tanh(logits / settings.logit_cap)
    return logits


def _logits_grad(
    settings, query, key, value, cotangent, log_sum, delta, bias, mask, masked, index, by_key=False
) -> tuple[Array, Array]:
    """Returns the weights of a block, and the gradient with respect to scale·q·k + bias.

    Both are [queries, keys], or with `by_key` [keys, queries]. The gradient of keys uses `by_key`,
    so that it needs no transposed block.
    """
    logits = _logits(settings, query, key, bias, index, by_key)
    axis = 0 if by_key else 1
    weights = jnp.exp(logits - jnp.expand_dims(log_sum, axis))
    if masked:
        visible = _visible(settings, mask, index)
        weights = jnp.where(visible.T if by_key else visible, weights, 0.0)
    pair = (value, cotangent) if by_key else (cotangent, value)
    logits_grad = weights * (_products(settings, *pair) - jnp.expand_dims(delta, axis))
    if settings.logit_cap is not None:
        logits_grad = logits_grad * (1.0 - jnp.square(logits / settings.logit_cap))
    return weights, logits_grad


def _dot(settings: Settings, left: Array, right: Array) -> Array:
    """Computes a matrix product with sums in float32.

    For float32 inputs it consists of three TF32 products. A float32 product without tensor cores
    would exceed the registers even at a head size of 64, because each thread would hold complete
    rows and columns of the blocks.
    """
    exact = None
    if left.dtype == jnp.float32:
        exact = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        # The interpreter runs on platforms without this preset.
        exact = jax.lax.Precision.HIGHEST if settings.interpret else exact
    return jnp.dot(left, right, precision=exact, preferred_element_type=jnp.float32)
