"""Quantization and compression of attention weights for pages of explanations.

A weight is stored as an integer, relative to the largest weight of the same query. If the size is
limited, only the largest weights are stored. The fraction of the weights that is not stored is
measured, so that a page can state how much is missing.

In shapes, T is the number of queries and S the number of keys.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tasks.explanation import AttentionMap

# Largest integers that encode weights: uint8 if all weights of a map are at least 0, else int8.
_UNSIGNED, _SIGNED = 255, 127
# Largest integer of a row's scale; it stands for the largest weight of the head.
_SCALES = 65535
# Gap that stands for 255 zeros and no weight after them.
_SKIP = 255
# Numbers of largest weights that each query keeps if not all fit; they are tried in this order.
_ALWAYS = (8, 4, 2, 1)
# Approximate number of weights that are compressed as a sample, to estimate the total size.
_SAMPLE = 2_000_000
# Base64 has four characters for three bytes.
_BASE64 = 4 / 3
# Largest number of rows and columns of small maps.
_SMALL = 24


@dataclasses.dataclass(frozen=True)
class Kept:
    """Rule that selects the weights a page stores, the same for all maps of an explanation.

    Attributes:
      always: number of largest weights that each query keeps; None if all weights are kept.
      least: weights of at least this absolute value are kept too; 0 if all weights are kept.
    """

    always: int | None = None
    least: float = 0.0


def choose(maps: Sequence[AttentionMap], size: int) -> Kept:
    """Chooses the weights to keep such that their encoding has about a given size.

    All weights are kept if they fit. Otherwise each query keeps its 8 largest weights, or its 4, 2
    or 1 largest if 8 do not fit. In addition, all weights above a common threshold are kept. The
    threshold is chosen such that the kept weights fit.

    Args:
      maps: attention maps of one explanation.
      size: size of the encoded weights in characters, estimated from some of the rows.
    """
    samples = [sample for each in maps if each.weights.size for sample in _samples(each)]

    def fits(kept: Kept) -> bool:
        sizes = (share * len(_packed(head, levels, kept)[0]) for head, levels, share in samples)
        return _BASE64 * sum(sizes) <= size

    if fits(Kept()):
        return Kept()
    always = next((n for n in _ALWAYS if fits(Kept(n, np.inf))), None)
    if always is None:
        return Kept(_ALWAYS[-1], np.inf)
    # Bisection of the logarithm: the sizes of weights differ by orders of magnitude.
    high = np.log(max(float(np.abs(head).max()) for head, *_ in samples) or 1)
    low = high - np.log(1e6)
    for _ in range(8):
        middle = (low + high) / 2
        if fits(Kept(always, float(np.exp(middle)))):
            high = middle
        else:
            low = middle
    return Kept(always, float(np.exp(high)))


def _samples(attention: AttentionMap) -> Iterator[tuple[np.ndarray, int, float]]:
    """Samples rows of each head, to estimate the size of its encoding.

    Yields:
      The sampled rows of a head, the largest integer of the map, and the number of all rows divided
      by the number of sampled rows.
    """
    levels, T = _levels(attention), attention.weights.shape[2]
    step = max(1, min(T, attention.weights.size // _SAMPLE))
    for head in _heads(attention):
        yield head[::step], levels, T / len(head[::step])


def encode(attention: AttentionMap, kept: Kept) -> dict[str, Any]:
    """Encodes the weights of a map as JSON values.

    The data of a head is compressed by zlib and encoded in base64. It consists of

        the scale of each row, uint16 [T]
        the number n of gaps, uint32
        gaps, uint8 [n]: the number of zeros before each kept weight in row-major order; 255 stands
          for 255 zeros and no weight after them
        the integer of each kept weight, uint8, or int8 if weights are negative

    with integers in little-endian order. In a row with the scale s, the integer i stands for the
    weight i · u with u = s / 65535 · max / levels, where "max" and "levels" are described below.
    The error of a kept weight is at most u / 2.

    Args:
      attention: attention map; weights that are not finite become 0.
      kept: weights to keep.

    Returns:
      A dict with the keys

      * "heads": the data of each head, layer by layer
      * "max": the largest absolute weight of each head
      * "levels": the largest integer, 255 or 127
      * "signed": whether there are negative weights
      * "largest_missing": the largest absolute weight that is shown as 0
      * "missing_most" and "missing_mean": the largest and the mean fraction of the weight of a
        query that is shown as 0
      * "always": `kept.always`
      * "nonfinite": the number of weights that are not finite.
    """
    levels = _levels(attention)
    heads, largest, absent, fractions = [], [], [0.0], []
    for head in _heads(attention):
        data, most, missing = _packed(head, levels, kept)
        heads.append(base64.b64encode(data).decode())
        largest.append(float(np.abs(head).max(initial=0)))
        absent.append(most)
        fractions.append(missing)
    missing = np.concatenate(fractions) if fractions else np.zeros(1)
    return {
        "heads": heads,
        "max": largest,
        "levels": levels,
        "signed": levels == _SIGNED,
        "always": kept.always,
        "largest_missing": max(absent),
        "missing_most": float(missing.max(initial=0)),
        "missing_mean": float(missing.mean()) if missing.size else 0.0,
        "nonfinite": int((~np.isfinite(attention.weights)).sum()),
    }


def decode(data: str, shape: tuple[int, int], largest: float, levels: int) -> np.ndarray:
    """Decodes the weights of a head, as the page does.

    Args:
      data: entry of the list "heads" in the result of `encode`.
      shape: numbers of queries and keys, (T, S).
      largest: entry of the list "max" for the same head.
      levels: value of "levels" in the same result.

    Returns:
      float64 [T, S].
    """
    raw = zlib.decompress(base64.b64decode(data))
    T, S = shape
    scales = np.frombuffer(raw, "<u2", T) * (largest / _SCALES)
    count = int(np.frombuffer(raw, "<u4", 1, 2 * T)[0])
    gaps = np.frombuffer(raw, np.uint8, count, 2 * T + 4)
    kind = np.int8 if levels == _SIGNED else np.uint8
    values = np.frombuffer(raw, kind, offset=2 * T + 4 + count)
    ends = np.cumsum(np.where(gaps == _SKIP, _SKIP, gaps.astype(np.int64) + 1)) - 1
    found = np.zeros(T * S)
    found[ends[gaps != _SKIP]] = values
    return found.reshape(T, S) * scales[:, None] / levels


def small_maps(attention: AttentionMap, grid: tuple[int, int] | None) -> dict[str, Any]:
    """Returns small maps of all heads as JSON values.

    Cells of more than 24 rows or columns are merged; a merged cell has the largest absolute weight.

    Args:
      attention: attention map.
      grid: rows and columns of the keys if they are the cells of a grid. The weights of a single
        query are then shown as this grid.

    Returns:
      "rows" and "columns" of each small map, and "data", the cells of all heads relative to the
      largest weight of the head, uint8 in base64.
    """
    cells = []
    for head in _heads(attention):
        found = np.abs(head)
        if grid is not None and len(found) == 1:
            found = found.reshape(grid)
        for axis in (0, 1):
            if found.shape[axis] > _SMALL:
                starts = np.arange(_SMALL) * found.shape[axis] // _SMALL
                found = np.maximum.reduceat(found, starts, axis=axis)
        cells.append(np.rint(_UNSIGNED * found / max(float(found.max(initial=0)), 1e-30)))
    stacked = np.array(cells, np.uint8)
    return {
        "rows": stacked.shape[1],
        "columns": stacked.shape[2],
        "data": base64.b64encode(stacked.tobytes()).decode(),
    }


def finite(values: np.ndarray) -> np.ndarray:
    """Returns values as float32; values that are not finite become 0."""
    values = np.asarray(values, np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


def _heads(attention: AttentionMap) -> Iterator[np.ndarray]:
    """Yields the weights [T, S] of each head, layer by layer."""
    L, N = attention.weights.shape[:2]
    return (finite(attention.weights[i, j]) for i in range(L) for j in range(N))


def _levels(attention: AttentionMap) -> int:
    # `np.fmin` ignores NaN, and makes no copy of the weights.
    return _SIGNED if np.fmin.reduce(attention.weights, axis=None, initial=0) < 0 else _UNSIGNED


def _packed(head: np.ndarray, levels: int, kept: Kept) -> tuple[bytes, float, np.ndarray]:
    """Compresses the weights of a head, and measures how much of them is missing.

    Args:
      head: weights [T, S], all finite.
      levels: largest integer.
      kept: weights to keep.

    Returns:
      The data, see `encode`; the largest absolute weight that is stored as 0; and for each row, the
      sum of the absolute weights that are stored as 0, as a fraction of the sum of all, [T].
    """
    size = np.abs(head)
    rows = size.max(axis=-1, initial=0)
    largest = float(rows.max(initial=0))
    # Rounded up, so that no integer exceeds `levels`.
    scales = np.ceil(rows.astype(np.float64) / (largest or 1) * _SCALES)
    widths = scales * ((largest or 1) / _SCALES) / levels
    with np.errstate(divide="ignore", invalid="ignore"):
        integers = np.rint(head / widths[:, None].astype(np.float32))
    integers = np.where(widths[:, None] > 0, integers, 0).clip(-levels, levels)
    if kept.always is not None and kept.always < head.shape[-1]:
        last = head.shape[-1] - kept.always
        cut = np.minimum(np.partition(size, last, axis=-1)[:, last], kept.least)
        integers[size < cut[:, None]] = 0
    integers = integers.astype(np.int8 if levels == _SIGNED else np.uint8)
    present = integers != 0
    where = np.flatnonzero(present)
    gaps = np.diff(where, prepend=-1) - 1
    skips = gaps // _SKIP
    coded = np.full(len(gaps) + int(skips.sum()), _SKIP, np.uint8)
    coded[np.cumsum(skips + 1) - 1] = gaps % _SKIP
    data = b"".join(
        [
            scales.astype("<u2").tobytes(),
            np.array(len(coded), "<u4").tobytes(),
            coded.tobytes(),
            integers.ravel()[where].tobytes(),
        ]
    )
    hidden = np.where(present, 0, size)
    total = size.sum(axis=-1, dtype=np.float64)
    missing = hidden.sum(axis=-1, dtype=np.float64) / np.where(total == 0, 1, total)
    return zlib.compress(data, 6), float(hidden.max(initial=0)), missing
