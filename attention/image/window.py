"""Attention in shifted windows of a map (Liu et al. 2021, "Swin Transformer").

W windows of S·S positions each; the other dimension letters are defined in `attention.image.maps`.
A map whose sides are not multiples of S is padded at the bottom and on the right; padding is
hidden.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attention import masks, recording, shapes
from attention.dot_product import attend, attention_weights
from attention.image.maps import MapAttention, expect_positive
from attention.numerics import mix_heads
from attention.projection import Projection

Array = jax.Array


def window_indices(Y: int, X: int, size: int, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Computes the positions of each window (Liu et al. 2021, section 3.2, figure 4).

        rows of window (i, j): (i·S + shift + a) mod Y' for 0 <= a < S, with Y' = ⌈Y / S⌉·S
        columns of window (i, j): (j·S + shift + a) mod X' for 0 <= a < S, with X' = ⌈X / S⌉·S

    This equals rolling the padded map up and to the left by the shift and cutting it into a grid of
    windows. Positions that the roll wraps around form separate regions. A side that has only one
    window is not shifted.

    Args:
      Y, X: the map's sizes.
      size: S, height and width of a window.
      shift: in [0, S).

    Returns:
      For each window, the positions y·X + x, int [W, S·S], Y·X at padding; and their regions,
      int [W, S·S], -1 at padding. A position attends to the positions of its window that have the
      same region.

    Raises:
      ValueError: a size is below 1, or the shift is out of range.
    """
    expect_positive(size=size)
    if not 0 <= shift < size:
        raise ValueError(f"shift: got {shift}, expected an int in [0, {size})")
    sides = []
    for length in (Y, X):
        padded = -(-length // size) * size
        moved = np.arange(padded) + (shift if length > size else 0)
        sides.append((moved % padded, moved >= padded))
    (rows, wrapped_rows), (columns, wrapped_columns) = sides
    inside = (rows[:, None] < Y) & (columns < X)
    indices = np.where(inside, rows[:, None] * X + columns, Y * X)
    regions = np.where(inside, 2 * wrapped_rows[:, None] + wrapped_columns, -1)

    def cut(grid: np.ndarray) -> np.ndarray:
        cut = grid.reshape(len(rows) // size, size, len(columns) // size, size)
        return cut.transpose(0, 2, 1, 3).reshape(-1, size * size)

    return cut(indices), cut(regions)


def relative_bias(table: Array, size: int) -> Array:
    """Computes the bias of each pair of positions in a window (Liu et al. 2021, equation 4).

        b_n,(y,x)(y',x') = table_(y - y' + S - 1)(x - x' + S - 1)n

    Args:
      table: [2S - 1, 2S - 1, N].
      size: S, height and width of a window.

    Returns:
      b, [1, N, S·S, S·S].

    Raises:
      ValueError: the table is not [2S - 1, 2S - 1, N].
    """
    shapes.expect("table", table, "R Q N", {"R": 2 * size - 1, "Q": 2 * size - 1})
    apart = np.arange(size)[:, None] - np.arange(size) + size - 1
    # [S, S, S, S, N] with axes y, y', x, x'.
    pairs = table[apart[:, :, None, None], apart]
    return pairs.transpose(4, 0, 2, 1, 3).reshape(1, -1, size**2, size**2)


def window_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    size: int,
    shift: int = 0,
    bias: Array | None = None,
) -> Array:
    """Computes attention within windows (Liu et al. 2021, section 3.2).

        o_p = Σ_q softmax_q(q_p·k_q / sqrt(H) + b_pq) v_q,   q in the window and region of p

    The weights are recorded in the form of `window_weights`.

    Args:
      query, key: [B, Y, X, N, H].
      value: [B, Y, X, N, V].
      size, shift: size and shift of the windows, as for `window_indices`.
      bias: b, [1, N, S·S, S·S]; no bias if None.

    Returns:
      o, [B, Y, X, N, V] in the query's dtype.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
    """
    B, Y, X = _expect_heads(query, key, value)
    indices, regions = window_indices(Y, X, size, shift)
    mask = _within(regions, B)
    arrays = [_gather(array, indices) for array in (query, key, value)]
    with recording.suppressed():
        attended = attend(*arrays, mask=mask, bias=bias)
    options = {"size": size, "shift": shift, "bias": bias}
    # Each position is in exactly one window. `order` is its index in the concatenated windows.
    order = np.argsort(indices.ravel(), kind="stable")[: Y * X]
    flat = attended.reshape(B, indices.size, *attended.shape[2:])[:, order]
    flat = recording.record_result(
        flat,
        lambda: window_weights(query, key, **options),
        mix=lambda weights: mix_heads(weights, value.reshape(B, Y * X, *value.shape[3:])),
    )
    return flat.reshape(B, Y, X, *attended.shape[2:])


def window_weights(
    query: Array, key: Array, *, size: int, shift: int = 0, bias: Array | None = None
) -> Array:
    """Computes the weights of `window_attention` between all positions (Liu et al. 2021).

        w_pq = softmax_q(q_p·k_q / sqrt(H) + b_pq) for q in the window and region of p, else 0

    Args:
      query, key, size, shift, bias: as for `window_attention`.

    Returns:
      w, [B, N, P, P] with P = Y·X, in at least float32.

    Raises:
      ValueError: shapes, dtypes or values do not fit.
    """
    B, Y, X = _expect_heads(query, key)
    indices, regions = window_indices(Y, X, size, shift)
    arrays = [_gather(array, indices) for array in (query, key)]
    weights = attention_weights(*arrays, mask=_within(regions, B), bias=bias)
    W, N, P = len(indices), query.shape[3], Y * X
    weights = weights.reshape(B, W, N, size**2, size**2).swapaxes(1, 2)
    # Padding is written to an extra row and column, which are then removed.
    dense = jnp.zeros((B, N, P + 1, P + 1), weights.dtype)
    return dense.at[:, :, indices[:, :, None], indices[:, None]].set(weights)[:, :, :P, :P]


def _expect_heads(*arrays: Array) -> tuple[int, int, int]:
    letters = {"query": "B Y X N H", "key": "B Y X N H", "value": "B Y X N V"}
    given = zip(letters.items(), arrays, strict=False)
    sizes = shapes.expect_arrays({name: (array, axes) for (name, axes), array in given})
    return sizes["B"], sizes["Y"], sizes["X"]


def _gather(x: Array, indices: np.ndarray) -> Array:
    """Gathers the positions of each window.

    Args:
      x: [B, Y, X, N, H].
      indices: positions of each window, from `window_indices`.

    Returns:
      [B·W, S·S, N, H], 0 at padding.
    """
    B, Y, X, *heads = x.shape
    flat = x.reshape(B, Y * X, *heads)
    if (indices == Y * X).any():
        flat = jnp.pad(flat, ((0, 0), (0, 1), (0, 0), (0, 0)))
    return flat[:, indices].reshape(-1, indices.shape[1], *heads)


def _within(regions: np.ndarray, B: int) -> masks.Mask | None:
    """Returns the mask of pairs in the same region; None if each window is one region."""
    if (regions == regions[:, :1]).all():
        return None
    ids = jnp.tile(jnp.asarray(regions, jnp.int32), (B, 1))
    return masks.segments(ids, ids)


class ShiftedWindow(MapAttention):
    """Multi-head attention in shifted windows (Liu et al. 2021, "Swin Transformer", equations 3
    and 4).

        y = x + concat_n(softmax_q(q_p·k_q / sqrt(H) + b_pq) v) W_o,   q in the window of p

    with learned biases b by relative position. The caller adds the norm before the attention and
    the feed-forward layer after it. Unlike in the authors' code, padding is hidden.

    Args:
      channels: C, number of channels.
      num_heads: N, number of heads; divides C.
      window: S, height and width of a window.
      shift: shift of the windows down and to the right; S // 2 if None. A Swin stage alternates 0
        and S // 2.
      residual: whether x is added to the result.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: num_heads does not divide channels, or shift is not in [0, window).
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 4,
        window: int = 4,
        shift: int | None = None,
        residual: bool = True,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        expect_positive(channels=channels, window=window)
        shift = window // 2 if shift is None else shift
        if not 0 <= shift < window:
            raise ValueError(f"shift: got {shift}, expected an int in [0, window={window})")
        heads = num_heads, shapes.head_size(channels, num_heads)
        self.channels, self.residual, self.dtype = channels, residual, dtype
        self.window, self.shift = window, shift
        options = {"dtype": dtype, "rngs": rngs}
        self.query = Projection((channels,), heads, **options)
        self.key = Projection((channels,), heads, **options)
        self.value = Projection((channels,), heads, **options)
        self.out = Projection(heads, (channels,), **options)
        side = 2 * window - 1
        table = 0.02 * jax.random.normal(rngs.params(), (side, side, num_heads))
        self.bias_table = nnx.Param(table)

    def _apply(self, x, *, valid, training):
        query, key, value = self.query(x), self.key(x), self.value(x)
        bias = relative_bias(self.bias_table[...], self.window)
        options = {"size": self.window, "shift": self.shift, "bias": bias}
        y = self.out(window_attention(query, key, value, **options))
        y = x + y if self.residual else y
        return y, functools.partial(window_weights, query, key, **options)
