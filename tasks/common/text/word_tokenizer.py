"""Word tokenizer with word and character n-grams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.common.text import words as word_parts
from tasks.common.text.config import TextConfig
from tasks.common.text.words import SPECIAL, UNKNOWN, NgramVocabulary


class WordTokenizer:
    """Tokenizer with ids for words, word n-grams and character n-grams."""

    def __init__(self, config: TextConfig, grams: Sequence[str], characters: Sequence[str]):
        self.config = config
        self._grams = NgramVocabulary(grams, config.ngrams)
        self._characters = {
            gram: len(SPECIAL) + len(grams) + index for index, gram in enumerate(characters)
        }
        self._stem = word_parts.stemmer(config.stem)
        self._known: dict[str, int] = {}
        self._spelled: dict[str, np.ndarray] = {}

    @classmethod
    def fit(cls, texts: Sequence[str], config: TextConfig) -> WordTokenizer:
        split = [word_parts.split(text, config.lower_case) for text in texts]
        stem = word_parts.stemmer(config.stem)
        if stem is not None:
            stems = {word: stem(word) for word in {word for words in split for word in words}}
            split_stems = [[stems[word] for word in words] for words in split]
        else:
            split_stems = split
        size = config.vocabulary_size - len(SPECIAL)
        grams = NgramVocabulary.fit(split_stems, config.ngrams, config.min_count, size).grams
        characters = _frequent_characters(split, config) if config.character_ngrams else []
        return cls(config, grams, characters)

    @property
    def size(self) -> int:
        return len(SPECIAL) + len(self._grams.grams) + len(self._characters)

    def encode(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        split = [word_parts.split(text, self.config.lower_case) for text in texts]
        numbers = self._numbers(split)
        owners = np.repeat(np.arange(len(split)), [len(words) for words in split])
        found = self._grams.find(numbers, owners)
        ids = np.where(found >= 0, found + len(SPECIAL), -1)
        ids[:, 0] = np.where(ids[:, 0] >= 0, ids[:, 0], UNKNOWN)
        ends = np.cumsum([len(words) for words in split])
        for words, end in zip(split, ends, strict=True):
            rows = ids[end - len(words) : end]
            if self._characters:
                yield self._with_characters(words, rows)
            else:
                flat = rows.ravel()
                yield flat[flat >= 0]

    def decode(self, ids: Sequence[int]) -> str:
        grams = [*SPECIAL, *self._grams.grams]
        words = [grams[number] for number in ids if number < len(grams)]
        return " ".join(word for word in words if " " not in word)

    def word_starts(self) -> np.ndarray:
        return np.ones(self.size, bool)

    def pieces_with_spans(self, text: str) -> list[tuple[str, int, int]]:
        """Returns the string of each id of `encode`, and the span of words that it stands for.

        Returns:
          (string, index of the first word, index after the last word) for each id.
        """
        words = word_parts.split(text, self.config.lower_case)
        found = self._grams.find(self._numbers([words]), np.zeros(len(words), np.int64))
        spelled = []
        for start, row in enumerate(found):
            spelled.append((words[start], start, start + 1))
            if self._characters:
                grams = word_parts.character_grams(words[start], *self.config.character_ngrams)
                known = [gram for gram in grams if gram in self._characters]
                spelled.extend((gram, start, start + 1) for gram in known)
            stops = [start + order + 1 for order in range(1, len(row)) if row[order] >= 0]
            spelled.extend((" ".join(words[start:stop]), start, stop) for stop in stops)
        return spelled

    def to_dict(self) -> dict:
        return {"grams": self._grams.grams, "characters": list(self._characters)}

    @classmethod
    def from_dict(cls, values: dict, config: TextConfig) -> WordTokenizer:
        return cls(config, values["grams"], values["characters"])

    def _numbers(self, split: list[list[str]]) -> np.ndarray:
        """Returns the index of each word in the table of unigrams; -1 for unknown words."""
        table = self._grams.words
        if self._stem is None:
            return np.array([table.get(word, -1) for words in split for word in words], np.int64)
        known = self._known
        if len(known) > 1_000_000:  # otherwise the cache would grow without limit on a server
            known.clear()
        for words in split:
            for word in words:
                if word not in known:
                    known[word] = table.get(self._stem(word), -1)
        return np.array([known[word] for words in split for word in words], np.int64)

    def _with_characters(self, words: list[str], rows: np.ndarray) -> np.ndarray:
        parts = []
        if len(self._spelled) > 1_000_000:
            self._spelled.clear()
        for word, row in zip(words, rows, strict=True):
            ids = self._spelled.get(word)
            if ids is None:
                grams = word_parts.character_grams(word, *self.config.character_ngrams)
                known = [self._characters[gram] for gram in grams if gram in self._characters]
                ids = self._spelled[word] = np.array(known, np.int64)
            parts += (row[:1], ids, row[1:][row[1:] >= 0])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _frequent_characters(split: list[list[str]], config: TextConfig) -> list[str]:
    """Returns the most frequent character n-grams.

    The count of an n-gram is the sum, over the texts, of the number of different words in the text
    that contain the n-gram.
    """
    texts_with: dict[str, int] = {}
    for words in split:
        for word in dict.fromkeys(words):
            texts_with[word] = texts_with.get(word, 0) + 1
    counts: dict[str, int] = {}
    for word, count in texts_with.items():
        for gram in set(word_parts.character_grams(word, *config.character_ngrams)):
            counts[gram] = counts.get(gram, 0) + count
    kept = [(-count, gram) for gram, count in counts.items() if count >= config.min_count]
    return [gram for _, gram in sorted(kept)[: config.character_vocabulary_size]]
