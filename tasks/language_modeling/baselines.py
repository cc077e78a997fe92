"""N-gram baselines: unigrams, and Kneser-Ney smoothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Order:
    """Counts of the n-grams of one order, sorted by code, and statistics of their contexts.

    A code is the number that `KneserNey` assigns to an n-gram.

    Attributes:
      codes, counts: code and count of each n-gram.
      contexts: code of each context.
      totals: sum of the counts of the n-grams that begin with each context.
      kinds: number of distinct tokens after each context.
      discount: d_n of `KneserNey`."""

    codes: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray
    discount: float


class KneserNey:
    """Interpolated Kneser-Ney smoothing, one discount per order (Chen & Goodman 1999, section 2.7).

        p_n(w | h) = max(c(hw) - d_n, 0) / c(h) + d_n · kinds(h) / c(h) · p_{n-1}(w | h')

    is the probability of token w after context h at order n. At the highest order, c(hw) is the
    count of hw; at lower orders it is the number of distinct tokens before hw. c(h) = Σ_w c(hw),
    and kinds(h) is the number of distinct tokens after h. d_n = n_1 / (n_1 + 2·n_2), where n_i is
    the number of n-grams with c = i. h' is h without its first token, and p_0 is uniform. Orders
    whose context does not occur are skipped.
    """

    def __init__(self, texts: Sequence[np.ndarray], vocabulary: int, order: int):
        """Counts n-grams.

        Args:
          texts: tokens of each text, in [0, vocabulary).
          vocabulary: V, number of tokens.
          order: n, order of the longest n-grams, at least 1.

        Raises:
          ValueError: codes of the n-grams do not fit into 63 bits.
        """
        if order < 1 or order > highest_order(vocabulary):
            expected = f"1 to {highest_order(vocabulary)} with {vocabulary} tokens"
            raise ValueError(f"order: got {order}, expected {expected}")
        # The additional token stands for the positions before a text.
        self._base, self._vocabulary, self._order = vocabulary + 1, vocabulary, order
        events = self._codes(texts)[order - 1]
        codes, counts = np.unique(events, return_counts=True)
        self._orders: list[_Order] = []
        for n in range(order, 0, -1):
            self._orders.insert(0, self._table(codes, counts))
            codes, counts = np.unique(codes % self._base ** (n - 1), return_counts=True)

    def _codes(self, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the code of the n-gram that ends at each token, for orders 1 to n.

        A code is a number to the base V + 1, whose lowest digit is the last token."""
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
        # The codes are sorted, so those of one context are adjacent and begin at `first`.
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
        """Returns the probability of every token given the previous tokens, float64 [tokens]."""
        codes = self._codes(texts)
        result = np.full(len(codes[0]), 1 / self._vocabulary)
        for table, code in zip(self._orders, codes, strict=True):
            count = _look_up(table.codes, table.counts, code)
            total = _look_up(table.contexts, table.totals, code // self._base)
            kinds = _look_up(table.contexts, table.kinds, code // self._base)
            seen = total > 0
            divisor = np.maximum(total, 1)
            mixed = np.maximum(count - table.discount, 0) / divisor
            mixed += table.discount * kinds / divisor * result
            result = np.where(seen, mixed, result)
        return result


def highest_order(vocabulary: int) -> int:
    """Returns the largest order for which codes of n-grams fit into 63 bits."""
    return int(63 / math.log2(vocabulary + 1))


def unigram(texts: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
    """Returns token frequencies with add-one smoothing, float64 [vocabulary]."""
    counts = np.bincount(np.concatenate(texts), minlength=vocabulary) + 1
    return counts / counts.sum()


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the value of each wanted key, or 0 if it is not in the sorted `keys`."""
    indices = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[indices] == wanted, values[indices], 0)
