"""What counting alone reaches: unigrams, and n-grams by Kneser and Ney."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Order:
    """Counts of the n-grams of one order, sorted by their codes; totals and kinds by context."""

    codes: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    discount: float


class KneserNey:
    """Interpolated Kneser-Ney smoothing (Chen & Goodman 1999, section 2.7), one discount an order.

        p_n(w | h) = max(c(hw) - d_n, 0) / c(h) + d_n · kinds(h) / c(h) · p_{n-1}(w | h')

    with c the counts at the highest order, and below it the number of different ids seen before hw;
    kinds(h) of ids seen after h; d_n = n_1 / (n_1 + 2·n_2), n_i of the n-grams with c = i; h' is h
    without its first id, and p_0 even over the vocabulary. The highest orders whose context was
    never seen are passed over.
    """

    def __init__(self, texts: Sequence[np.ndarray], vocabulary: int, order: int):
        """Counts.

        Args:
          texts: ids of each, in [0, vocabulary).
          vocabulary: V.
          order: n, at least 1.

        Raises:
          ValueError: n-grams of so many ids have no code of 63 bits.
        """
        if order < 1 or order > highest_order(vocabulary):
            expected = f"1 to {highest_order(vocabulary)} with {vocabulary} ids"
            raise ValueError(f"order: got {order}, expected {expected}")
        # One id more, which stands before the beginning of a text.
        self._base, self._vocabulary, self._order = vocabulary + 1, vocabulary, order
        events = self._codes(texts)[order - 1]
        codes, counts = np.unique(events, return_counts=True)
        self._orders: list[_Order] = []
        for n in range(order, 0, -1):
            self._orders.insert(0, self._table(codes, counts))
            codes, counts = np.unique(codes % self._base ** (n - 1), return_counts=True)

    def _codes(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each order the code of every n-gram that ends at an id: its last id is the lowest
        digit to the base V + 1."""
        n = self._order
        begin = np.full(n - 1, self._vocabulary, np.int64)
        stream = np.concatenate([part for text in texts for part in (begin, text)])
        real = np.concatenate([np.arange(n - 1 + len(text)) >= n - 1 for text in texts])
        at = np.flatnonzero(real)
        codes, code = [], np.zeros(len(at), np.int64)
        for back in range(n):
            code = code + stream[at - back].astype(np.int64) * self._base**back
            codes.append(code)
        return codes

    def _table(self, codes: np.ndarray, counts: np.ndarray) -> _Order:
        # Sorted codes: those of one context stand together.
        contexts, first = np.unique(codes // self._base, return_index=True)
        once, twice = int(np.sum(counts == 1)), int(np.sum(counts == 2))
        return _Order(
            codes,
            counts,
            contexts,
            np.add.reduceat(counts, first),
            np.diff(np.append(first, len(codes))),
            once / (once + 2 * twice) if once else 0.5,
        )

    def probabilities(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """float64 [ids]: of every id of the texts, in order, given those before it in its text."""
        codes = self._codes(texts)
        result = np.full(len(codes[0]), 1 / self._vocabulary)
        for table, code in zip(self._orders, codes, strict=True):
            count = _looked_up(table.codes, table.counts, code)
            total = _looked_up(table.contexts, table.totals, code // self._base)
            kinds = _looked_up(table.contexts, table.kinds, code // self._base)
            seen = total > 0
            divisor = np.maximum(total, 1)
            mixed = np.maximum(count - table.discount, 0) / divisor
            mixed += table.discount * kinds / divisor * result
            result = np.where(seen, mixed, result)
        return result


def highest_order(vocabulary: int) -> int:
    """The longest n-grams of ids whose codes fit into 63 bits."""
    return int(63 / math.log2(vocabulary + 1))


def unigram(texts: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
    """float64 [vocabulary]: shares of the ids, with one added to each count."""
    counts = np.bincount(np.concatenate(texts), minlength=vocabulary) + 1
    return counts / counts.sum()


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where it is not among the sorted keys."""
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
