"""Tokenizers: words and word n-grams, byte-pair encoding, WordPiece, unigram models, characters.

Tokenizers are fitted on the training split and cached by a hash of its texts. The id 0 is padding,
1 is the unknown token, and 2 is the classification token, which models prepend and `encode` never
produces. The vocabulary has the ids from 3 on.

Byte-pair encoding: Sennrich 2016. WordPiece: Wu 2016.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.common.checksums import sealed, unsealed
from tasks.common.text.character_tokenizer import CharacterTokenizer
from tasks.common.text.config import TextConfig
from tasks.common.text.subword_tokenizer import SubwordTokenizer
from tasks.common.text.word_tokenizer import WordTokenizer
from tasks.common.text.words import CLS, LAST, PAD, SPECIAL, UNKNOWN

__all__ = ["CLS", "LAST", "PAD", "SPECIAL", "UNKNOWN", "TextConfig", "Tokenizer"]

_VERSION = 1


def replace_surrogates(text: str) -> str:
    """Replaces unpaired surrogates, which result from bytes that are not UTF-8, by "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


class _Row(NamedTuple):
    """An encoded text.

    Attributes:
      ids: ids after truncation.
      positions: index of each of these ids in the result of `pieces_with_spans`.
      whole: number of ids before truncation.
    """

    ids: np.ndarray
    positions: np.ndarray
    whole: int


class Tokenizer:
    """Conversion of texts to ids and back. Use `fit` or `from_json`."""

    def __init__(
        self, config: TextConfig, model: WordTokenizer | SubwordTokenizer | CharacterTokenizer
    ):
        self.config = config
        self._model = model

    @classmethod
    def fit(
        cls, texts: Sequence[str], config: TextConfig, cache_dir: Path | None = None
    ) -> Tokenizer:
        """Trains a tokenizer, or reads it from the cache.

        Args:
          texts: texts of the train split.
          config: config of the tokenizer.
          cache_dir: parent of the cache directory tokenizers/; None for no cache.

        Raises:
          ValueError: there are no texts.
        """
        if not len(texts):
            raise ValueError("texts: got none, expected at least one")
        file = None
        if cache_dir is not None:
            file = Path(cache_dir) / "tokenizers" / f"{_content_hash(texts, config)}.json"
            try:
                return cls.from_json(unsealed(json.loads(file.read_text(encoding="utf-8"))))
            except (OSError, ValueError, KeyError, TypeError):
                pass  # the file is missing or damaged, so the tokenizer is fitted below
        model = _model_class(config).fit([replace_surrogates(text) for text in texts], config)
        tokenizer = cls(config, model)
        if file is not None:
            # If the cache cannot be written, the next run fits the tokenizer again.
            with contextlib.suppress(OSError):
                _write(file, json.dumps(sealed(tokenizer.to_json())))
        return tokenizer

    @property
    def size(self) -> int:
        """Number of ids, including the special ids."""
        return self._model.size

    @property
    def libraries(self) -> list[str]:
        """Packages that encoding and decoding import."""
        if self.config.tokenizer == "character":
            return []
        return ["tokenizers"] if self.config.stem is None else ["tokenizers", "snowballstemmer"]

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 [t], at most max_length of them.

        An empty text has one id, that of "[UNK]".
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text. This is much faster than separate calls of `encode`."""
        return [row.ids for row in self._rows(texts)]

    def encode_counted(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns the ids of each text, and the number of its ids before truncation, int [n]."""
        rows = list(self._rows(texts))
        return [row.ids for row in rows], np.array([row.whole for row in rows], np.int64)

    def with_max_length(self, max_length: int) -> Tokenizer:
        """Returns a tokenizer with the same vocabulary and another maximum length."""
        return Tokenizer(replace(self.config, max_length=max_length), self._model)

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids to a text that is as similar to the encoded text as the tokenizer allows.

        Character tokenizers restore the text except for case folding, byte-pair encoding except for
        normalization and one leading space, and unigram models except for normalization and white
        space. Word and WordPiece tokenizers give words separated by spaces; stems are not expanded
        to words. N-grams, padding, the classification token and ids from `size` on (special tokens
        of tasks) are left out. The id of unknown tokens becomes "[UNK]".

        Args:
          ids: [t].

        Raises:
          ValueError: an id is negative.
        """
        numbers = [int(number) for number in ids]
        if numbers and min(numbers) < 0:
            raise ValueError(f"ids: got {min(numbers)}, expected no negative ids")
        size = self.size
        return self._model.decode([n for n in numbers if n < size and n not in (PAD, CLS)])

    def word_starts(self) -> np.ndarray:
        """Returns which ids begin a word, bool [size]; False for pieces that continue a word.

        Raises:
          ValueError: the tokenizer is a character tokenizer.
        """
        if self.config.tokenizer == "character":
            raise ValueError("tokenizer: got 'character', expected one with word boundaries")
        return self._model.word_starts()

    def pieces(self) -> list[str]:
        """Returns the piece of each id, in order.

        Raises:
          ValueError: the tokenizer is not a subword tokenizer.
        """
        return self._subword_model().pieces()

    def subwords(self) -> Any:
        """Returns a new `tokenizers.Tokenizer` with the same vocabulary, without special tokens.

        Raises:
          ValueError: the tokenizer is not a subword tokenizer.
        """
        return self._subword_model().copy()

    def tokens(self, text: str) -> list[str]:
        """Returns the part of the text that each id of `encode(text)` stands for."""
        positions = next(self._rows([text])).positions
        if not len(positions):
            return [SPECIAL[UNKNOWN]]
        spelled = self._model.pieces_with_spans(replace_surrogates(text))
        return [spelled[position][0] for position in positions]

    def weights_per_word(self, text: str, weights: Sequence[float]) -> tuple[list[str], np.ndarray]:
        """Converts weights of ids to weights of words.

        The weight of a word is the sum of the weights of its ids. The weight of an n-gram is
        divided equally among its words. For a subword or character tokenizer, each piece or
        character counts as a word.

        Args:
          text: the text.
          weights: weight of each id of `encode(text)`, [t].

        Returns:
          The words in their order, and the weight of each; the sum of the weights is unchanged.
        """
        positions = next(self._rows([text])).positions
        if not len(positions):
            return [SPECIAL[UNKNOWN]], np.asarray(weights, float)[:1]
        spelled = self._model.pieces_with_spans(replace_surrogates(text))
        words: dict[int, str] = {}
        for string, start, _ in spelled:
            words.setdefault(start, string)
        summed = np.zeros(len(words))
        for position, weight in zip(positions, weights, strict=True):
            _, start, stop = spelled[position]
            summed[start:stop] += weight / (stop - start)
        return list(words.values()), summed

    def to_json(self) -> str:
        """Returns the tokenizer as JSON in one line, for `from_json`."""
        return json.dumps(
            {"version": _VERSION, "config": asdict(self.config), **self._model.to_dict()},
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Returns the tokenizer that `to_json` wrote.

        Raises:
          ValueError: the JSON is not a tokenizer, or has another version.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("version") != _VERSION:
            raise ValueError(f"text: got other JSON, expected a tokenizer of version {_VERSION}")
        fields = values["config"]
        fields["character_ngrams"] = tuple(fields["character_ngrams"])
        config = TextConfig(**fields)
        return cls(config, _model_class(config).from_dict(values, config))

    def _subword_model(self) -> SubwordTokenizer:
        if not isinstance(self._model, SubwordTokenizer):
            raise ValueError(
                f"tokenizer: got {self.config.tokenizer!r}, expected bpe, wordpiece or unigram"
            )
        return self._model

    def _rows(self, texts: Sequence[str]) -> Iterator[_Row]:
        nothing = _Row(np.array([UNKNOWN], np.int32), np.zeros(0, np.int64), 1)
        for ids in self._model.encode([replace_surrogates(text) for text in texts]):
            positions = None
            if self.config.unique:
                _, first = np.unique(ids, return_index=True)
                positions = np.sort(first)
                ids = ids[positions]
            if not len(ids):
                yield nothing
                continue
            if positions is None:
                positions = np.arange(len(ids))
            limit = self.config.max_length
            cut = ids[:limit].astype(np.int32, copy=False)
            yield _Row(cut, positions[:limit], len(ids))


def _model_class(
    config: TextConfig,
) -> type[WordTokenizer] | type[SubwordTokenizer] | type[CharacterTokenizer]:
    return {"word": WordTokenizer, "character": CharacterTokenizer}.get(
        config.tokenizer, SubwordTokenizer
    )


def _content_hash(texts: Sequence[str], config: TextConfig) -> str:
    digest = hashlib.sha256(json.dumps([_VERSION, asdict(config)], sort_keys=True).encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def _write(file: Path, text: str) -> None:
    """Writes a file atomically: it gets its final name only when complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
