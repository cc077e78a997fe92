"""From text to ids and back: words and their n-grams, byte-pair encoding, WordPiece, characters.

Trained on the texts that are given - the train split, nothing else - and cached by their content.
Ids: 0 padding, 1 unknown, 2 the classification token (never produced here: a model puts it first),
3 and up the vocabulary. Sennrich 2016 (byte-pair encoding), Wu 2016 (WordPiece).
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

import numpy as np

from tasks.common.text.character_tokenizer import CharacterTokenizer
from tasks.common.text.config import TextConfig
from tasks.common.text.subword_tokenizer import SubwordTokenizer
from tasks.common.text.word_tokenizer import WordTokenizer
from tasks.common.text.words import CLS, PAD, SPECIAL, UNKNOWN

__all__ = ["CLS", "PAD", "SPECIAL", "UNKNOWN", "TextConfig", "Tokenizer"]

_VERSION = 1


def replace_surrogates(text: str) -> str:
    """The text with "?" for each half of a surrogate pair, which is no character: bytes that are
    not UTF-8 give such halves.
    """
    return text.encode("utf-8", "replace").decode("utf-8")


class Tokenizer:
    """Turns texts into ids. Made by `fit` or `from_json`."""

    def __init__(
        self, config: TextConfig, model: WordTokenizer | SubwordTokenizer | CharacterTokenizer
    ):
        self.config = config
        self._model = model

    @classmethod
    def fit(
        cls, texts: Sequence[str], config: TextConfig, cache_dir: Path | None = None
    ) -> Tokenizer:
        """Trains a vocabulary, or takes it from the cache.

        Args:
          texts: those of the train split.
          config: how.
          cache_dir: tokenizers/ under it holds what was trained; None: no cache.

        Raises:
          ValueError: no texts.
        """
        if not len(texts):
            raise ValueError("texts must hold at least one text, got none")
        file = None
        if cache_dir is not None:
            file = Path(cache_dir) / "tokenizers" / f"{_content_hash(texts, config)}.json"
            try:
                return cls.from_json(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, KeyError, TypeError):
                pass  # not there, or damaged: train and write it anew
        model = _model_class(config).fit([replace_surrogates(text) for text in texts], config)
        tokenizer = cls(config, model)
        if file is not None:
            # Without the cache the next run trains it again.
            with contextlib.suppress(OSError):
                _write(file, tokenizer.to_json())
        return tokenizer

    @property
    def size(self) -> int:
        """Number of ids, the special ones included."""
        return self._model.size

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [t], 1 <= t <= max_length; a text without any gives one unknown."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of many texts: as `encode` of each, and much faster."""
        return [ids for ids, _ in self._rows(texts)]

    def with_max_length(self, max_length: int) -> Tokenizer:
        """The same vocabulary with another cut."""
        return Tokenizer(replace(self.config, max_length=max_length), self._model)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, as near to what was encoded as the tokenizer allows.

        Characters give it back whole, byte pairs too, after normalisation and without one leading
        space; words and WordPiece give words with a space between any two; stems stay stems. Word
        n-grams and character n-grams, which repeat what their words say, are left out, and so are
        padding, the classification token and ids from `size` on: a task's own signs. An unknown one
        is "[UNK]".

        Args:
          ids: [t].

        Raises:
          ValueError: a negative id.
        """
        numbers = [int(number) for number in ids]
        if numbers and min(numbers) < 0:
            raise ValueError(f"ids must not be negative, got {min(numbers)}")
        size = self.size
        return self._model.decode([n for n in numbers if n < size and n not in (PAD, CLS)])

    def word_starts(self) -> np.ndarray:
        """bool [size]: whether an id begins a word, False for the pieces that go on with one.

        Raises:
          ValueError: a tokenizer whose ids do not say so.
        """
        if self.config.tokenizer == "character":
            raise ValueError("tokenizer: got 'character', whose ids do not say where words begin")
        return self._model.word_starts()

    def pieces(self) -> list[str]:
        """Spelling of each id, in their order.

        Raises:
          ValueError: a tokenizer that has no such pieces.
        """
        if not isinstance(self._model, SubwordTokenizer):
            raise ValueError(f"tokenizer: got {self.config.tokenizer!r}, expected one of subwords")
        return self._model.pieces()

    def tokens(self, text: str) -> list[str]:
        """What stands at each position of `encode(text)`, as the text has it."""
        _, positions = next(self._rows([text]))
        if not len(positions):
            return [SPECIAL[UNKNOWN]]
        spelled = self._model.pieces_with_spans(replace_surrogates(text))
        return [spelled[position][0] for position in positions]

    def weights_per_word(self, text: str, weights: Sequence[float]) -> tuple[list[str], np.ndarray]:
        """Weights of positions as weights of words, for people to read.

        The pieces of a word count for it, and an n-gram in equal parts for each of its words. What
        the tokenizer cannot tell from a word (byte-pair pieces) stands for itself.

        Args:
          text: any.
          weights: [t], one for each position of `encode(text)`.

        Returns:
          The words in order, and a weight for each; the sum of the weights stays.
        """
        _, positions = next(self._rows([text]))
        if not len(positions):
            return [SPECIAL[UNKNOWN]], np.asarray(weights, float)[:1]
        spelled = self._model.pieces_with_spans(replace_surrogates(text))
        words: dict[int, str] = {}
        for string, start, _ in spelled:
            words.setdefault(start, string)
        shares = np.zeros(len(words))
        for position, weight in zip(positions, weights, strict=True):
            _, start, stop = spelled[position]
            shares[start:stop] += weight / (stop - start)
        return list(words.values()), shares

    def to_json(self) -> str:
        """All that `from_json` needs, in one line."""
        return json.dumps(
            {"version": _VERSION, "config": asdict(self.config), **self._model.to_dict()},
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The encoder that `to_json` wrote.

        Raises:
          ValueError: not the JSON of an encoder, or of another version.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("version") != _VERSION:
            raise ValueError(f"not a text encoder of version {_VERSION}")
        fields = values["config"]
        fields["character_ngrams"] = tuple(fields["character_ngrams"])
        config = TextConfig(**fields)
        return cls(config, _model_class(config).from_dict(values, config))

    def _rows(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids, their places in what `pieces_with_spans` gives) of each text, cut to max_length."""
        nothing = np.array([UNKNOWN], np.int32), np.zeros(0, np.int64)
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
            yield ids[:limit].astype(np.int32, copy=False), positions[:limit]


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
    """Writes a file under its name only once it is whole."""
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
