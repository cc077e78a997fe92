"""Byte-pair encoding (Sennrich 2016), WordPiece (Wu 2016) and unigram models (Kudo 2018).

All three are implemented by the tokenizers library. Its training of unigram models gives different
results in different processes, so unigram models can be imported but not trained.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from tasks.common.errors import UserError
from tasks.common.text.config import TextConfig
from tasks.common.text.words import SPECIAL, UNKNOWN


class SubwordTokenizer:
    """Byte-pair encoding, WordPiece or unigram tokenizer."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    @classmethod
    def fit(cls, texts: Sequence[str], config: TextConfig) -> SubwordTokenizer:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        if config.tokenizer == "unigram":
            raise UserError(
                "config.data.text.tokenizer: got 'unigram', which is for imported models, expected "
                "one of 'word', 'bpe', 'wordpiece', 'character'"
            )
        options = {
            "vocab_size": config.vocabulary_size,
            "min_frequency": config.min_count,
            "show_progress": False,
        }
        tokenizer = cls._dress(Tokenizer(cls._empty(config, models)), config)
        if config.tokenizer == "bpe":
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(
                initial_alphabet=alphabet, special_tokens=list(SPECIAL), **options
            )
        else:
            # The trainer numbers characters in the order of a hash table with a random seed per
            # process, and merges equally frequent pairs by these numbers, so the vocabulary would
            # differ between processes. Special tokens are numbered in the given order, so the known
            # characters are passed as special tokens.
            known, rare = _alphabet(texts, tokenizer.normalizer, config)
            texts = [text.translate(rare) for text in texts] if rare else texts
            trainer = trainers.WordPieceTrainer(special_tokens=[*SPECIAL, *known], **options)
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        return cls(cls._plain(tokenizer.to_str()))

    @staticmethod
    def _empty(config: TextConfig, models):
        if config.tokenizer == "bpe":
            return models.BPE(unk_token=SPECIAL[UNKNOWN])
        return models.WordPiece(unk_token=SPECIAL[UNKNOWN])

    @staticmethod
    def _dress(tokenizer, config: TextConfig):
        from tokenizers import normalizers, pre_tokenizers

        steps = [normalizers.NFKC()]
        if config.lower_case:
            steps.append(normalizers.Lowercase())
        if config.tokenizer == "bpe":
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        else:
            steps.append(
                normalizers.BertNormalizer(
                    clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
                )
            )
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.normalizer = normalizers.Sequence(steps)
        return tokenizer

    @classmethod
    def _plain(cls, text: str):
        """Loads a tokenizer without its added tokens, so that "[CLS]" in a text is plain text."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps(json.loads(text) | {"added_tokens": []}))

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for encoding in self._tokenizer.encode_batch_fast(list(texts)):
            yield np.array(encoding.ids, np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids to text; invalid UTF-8, such as truncated characters, becomes U+FFFD."""
        from tokenizers import decoders

        pieces = [self._tokenizer.id_to_token(number) for number in ids]
        if self._byte_pairs:
            return decoders.ByteLevel().decode(pieces).removeprefix(" ")
        if self._unigram:
            return decoders.Metaspace().decode(pieces)
        return decoders.WordPiece(prefix="##", cleanup=False).decode(pieces)

    def word_starts(self) -> np.ndarray:
        """Returns which pieces begin a word, bool [size].

        These are the pieces that begin with a space or, for WordPiece, do not begin with ##.
        """
        if self._byte_pairs:
            return np.array([piece.startswith("\u0120") for piece in self.pieces()])
        if self._unigram:
            return np.array([piece.startswith("\u2581") for piece in self.pieces()])
        return np.array([not piece.startswith("##") for piece in self.pieces()])

    def pieces(self) -> list[str]:
        """Returns the pieces in the order of the ids."""
        return [self._tokenizer.id_to_token(number) for number in range(self.size)]

    @property
    def _byte_pairs(self) -> bool:
        from tokenizers import models

        return isinstance(self._tokenizer.model, models.BPE)

    @property
    def _unigram(self) -> bool:
        from tokenizers import models

        return isinstance(self._tokenizer.model, models.Unigram)

    def pieces_with_spans(self, text: str) -> list[tuple[str, int, int]]:
        """Returns (piece, index, index + 1) for each id of `encode`.

        As for `WordTokenizer`, the two numbers give the span of words that an id stands for. In a
        subword tokenizer each piece counts as a word, so every span has one element.
        """
        offsets = self._tokenizer.encode(text).offsets
        pieces = [text[start:end].strip() or text[start:end] for start, end in offsets]
        return [(piece, index, index + 1) for index, piece in enumerate(pieces)]

    def copy(self):
        """Returns a copy of the `tokenizers.Tokenizer`."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self._tokenizer.to_str())

    def to_dict(self) -> dict:
        return {"tokenizer": json.loads(self._tokenizer.to_str())}

    @classmethod
    def from_dict(cls, values: dict, config: TextConfig) -> SubwordTokenizer:
        return cls(cls._plain(json.dumps(values["tokenizer"])))


def _alphabet(texts: Sequence[str], normalizer, config: TextConfig) -> tuple[list[str], dict]:
    """Chooses the characters that become pieces of a WordPiece vocabulary.

    At most half of the vocabulary is used for single characters, since Chinese texts contain
    thousands of different characters.

    Returns:
      The pieces of single characters, and a table for `str.translate` that replaces all other
      characters by spaces.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    ranked = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))
    pieces: list[str] = []
    limit = max(1, (config.vocabulary_size - len(SPECIAL)) // 2)
    rare = {}
    for character in ranked:
        alone = unicodedata.category(character).startswith("P") or (
            character.isascii() and not character.isalnum()
        )
        new = [character] if alone else [character, f"##{character}"]
        if rare or len(pieces) + len(new) > limit:
            rare[ord(character)] = " "
        else:
            pieces += new
    return pieces, rare
