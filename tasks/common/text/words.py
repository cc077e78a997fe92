"""Splitting of texts into words, stemming, and vocabularies of n-grams.

Text is normalized to Unicode NFKC. A word is a run of letters, digits, underscores and combining
marks (otherwise words of Hindi or Thai would be split). Each Chinese character, punctuation mark or
emoji is a word. Scripts without spaces, such as Japanese kana or Thai, give long words; use
byte-pair encoding for them.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np

PAD, UNKNOWN, CLS = 0, 1, 2
SPECIAL = ("[PAD]", "[UNK]", "[CLS]")
# Tokens that models add after the vocabulary of the tokenizer.
LAST = ("[MASK]", "[SEP]")

_PATTERN = r"[\w{marks}]+(?:['\u2019][\w{marks}]+)*|[^\w\s{marks}\x00-\x1f\x7f]"
_ASCII = re.compile(_PATTERN.format(marks=""))


@functools.cache
def _unicode_pattern() -> re.Pattern:
    """Returns the pattern of words that may contain combining marks, which Python's \\w excludes.

    Words may also contain U+200C and U+200D (zero-width characters of Indic and Persian words).
    """
    points = [p for p in range(0x300, 0x20000) if unicodedata.category(chr(p)).startswith("M")]
    points += [*range(0xE0100, 0xE01F0), 0x200C, 0x200D]
    ranges: list[list[int]] = []
    for point in sorted(points):
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    return re.compile(_PATTERN.format(marks=marks))


@functools.cache
def _normalizer():
    from tokenizers import normalizers

    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.BertNormalizer(
                clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
            ),
        ]
    )


def split(text: str, lower_case: bool = True) -> list[str]:
    """Splits a text into its words."""
    if text.isascii():  # same result as the pattern below, but ten times faster
        return _ASCII.findall(text.lower() if lower_case else text)
    text = _normalizer().normalize_str(text)
    return _unicode_pattern().findall(text.lower() if lower_case else text)


def stemmer(language: str | None) -> Callable[[str], str] | None:
    """Returns the Snowball stemmer of a language; None if `language` is None.

    Raises:
      ValueError: the language is not supported; the message lists the supported languages.
    """
    if language is None:
        return None
    import snowballstemmer

    if language not in snowballstemmer.algorithms():
        raise ValueError(
            f"stem: got {language!r}, expected one of "
            f"{', '.join(sorted(snowballstemmer.algorithms()))}"
        )
    return snowballstemmer.stemmer(language).stemWord


def character_grams(word: str, shortest: int, longest: int) -> list[str]:
    """Returns the character n-grams of a word, after an underscore is added at both ends.

    If an n-gram would be as long as the word with its underscores, or longer, that word is returned
    in its place, but only once. This is what the analyzer "char_wb" of scikit-learn does.

    Args:
      word: the word.
      shortest, longest: smallest and largest n.
    """
    padded = f"_{word}_"
    grams = []
    for length in range(shortest, longest + 1):
        if length >= len(padded):
            grams.append(padded)
            break
        grams.extend(padded[i : i + length] for i in range(len(padded) - length + 1))
    return grams


class NgramVocabulary:
    """A vocabulary of word n-grams, which are found in many texts at once.

    The prefix of an n-gram is its first n - 1 words. An n-gram is never more frequent than its
    prefix, so a vocabulary of the most frequent n-grams contains the prefixes of all of them. There
    is one table for each order n. It maps the index of the prefix in the previous table, and the
    index of the last word, to the index of the n-gram.

    Args:
      grams: n-grams as words joined by spaces, including the prefixes of each n-gram.
      longest: maximum order.
    """

    def __init__(self, grams: Sequence[str], longest: int):
        self.grams = list(grams)
        self.longest = longest
        split_grams = [gram.split(" ") for gram in self.grams]
        unigrams = [i for i, words in enumerate(split_grams) if len(words) == 1]
        self.words = {self.grams[i]: index for index, i in enumerate(unigrams)}
        self._positions = [np.array(unigrams, np.int64)]
        self._keys: list[np.ndarray] = []
        local = {(self.grams[i],): index for index, i in enumerate(unigrams)}
        for order in range(2, longest + 1):
            rows = [
                (local[tuple(words[:-1])] * len(unigrams) + self.words[words[-1]], i)
                for i, words in enumerate(split_grams)
                if len(words) == order
            ]
            rows.sort()
            self._keys.append(np.array([key for key, _ in rows], np.int64))
            self._positions.append(np.array([i for _, i in rows], np.int64))
            local = {tuple(split_grams[i]): index for index, (_, i) in enumerate(rows)}

    def find(self, words: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Finds the n-grams that begin at each word.

        Args:
          words: index of each word in `self.words`, [n]; -1 for unknown words.
          texts: index of the text of each word, [n], ascending.

        Returns:
          Indices in `grams`, int [n, longest], for each word and order; -1 for unknown n-grams, and
          for those that would extend beyond the end of the text.
        """
        found = np.full((len(words), self.longest), -1, np.int64)
        local = words.astype(np.int64)
        found[:, 0] = np.where(local >= 0, _take(self._positions[0], local), -1)
        for order in range(2, self.longest + 1):
            n = len(words) - order + 1
            if n <= 0:
                break
            last = words[order - 1 :]
            whole = (local[:n] >= 0) & (last >= 0) & (texts[:n] == texts[order - 1 :])
            keys, positions = self._keys[order - 2], self._positions[order - 1]
            wanted = local[:n] * len(self.words) + last
            index = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
            hit = whole & (_take(keys, index) == wanted)
            local = np.where(hit, index, -1)
            found[:n, order - 1] = np.where(hit, _take(positions, index), -1)
        return found

    @classmethod
    def fit(
        cls, texts: Iterable[Sequence[str]], longest: int, min_count: int, size: int
    ) -> NgramVocabulary:
        """Builds the vocabulary of the most frequent n-grams.

        The frequency of an n-gram is the number of texts that contain it. Among equally frequent
        n-grams, shorter ones come first, then those that are first alphabetically.

        Args:
          texts: words of each text.
          longest: maximum order.
          min_count: minimum frequency.
          size: maximum number of n-grams.
        """
        index: dict[str, int] = {}
        numbers: list[int] = []
        lengths: list[int] = []
        for words in texts:
            lengths.append(len(words))
            numbers.extend([index.setdefault(word, len(index)) for word in words])
        words = np.array(numbers, np.int64)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        names = list(index)
        candidates: list[tuple[int, int, str]] = []
        ids = words
        labels: list[str] = []
        for order in range(1, longest + 1):
            if order > 1:
                n = len(words) - order + 1
                if n <= 0:
                    break
                whole = (ids[:n] >= 0) & (owners[:n] == owners[order - 1 :])
                keys = np.where(whole, ids[:n] * len(names) + words[order - 1 :], -1)
                unique, inverse = np.unique(keys, return_inverse=True)
                offset = int(len(unique) > 0 and unique[0] == -1)
                beginnings, ends = np.divmod(unique[offset:], len(names))
                ids = inverse - offset
            counts = _text_counts(ids, owners[: len(ids)])
            kept = np.flatnonzero(counts >= min_count)
            if order > 1:
                labels = [f"{labels[beginnings[i]]} {names[ends[i]]}" for i in kept]
            else:
                labels = [names[i] for i in kept]
            candidates += [
                (-int(counts[i]), order, label) for i, label in zip(kept, labels, strict=True)
            ]
            # Rare n-grams cannot be prefixes of frequent ones, so the next order excludes them.
            renumber = np.full(len(counts) + 1, -1, np.int64)
            renumber[kept] = np.arange(len(kept))
            ids = renumber[ids]
        candidates.sort()
        return cls([label for _, _, label in candidates[:size]], longest)


def _text_counts(ids: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Counts the texts in which each id occurs.

    Args:
      ids: int [n]; -1 is ignored.
      owners: index of the text of each id, int [n].

    Returns:
      The number of texts for each id, from 0 to the largest one.
    """
    if not len(ids) or ids.max() < 0:
        return np.zeros(0, np.int64)
    size = int(ids.max()) + 1
    present = ids >= 0
    pairs = np.unique(owners[present] * size + ids[present])
    return np.bincount(pairs % size, minlength=size)


def _take(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns table[index], or an array of -1 for an empty table."""
    return table[index] if len(table) else np.full(np.shape(index), -1, np.int64)
