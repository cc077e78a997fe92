"""Settings of the tokenizers."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.common.text.words import SPECIAL, stemmer

_TOKENIZERS = ("word", "bpe", "wordpiece", "character")


@dataclass(frozen=True)
class TextConfig:
    """How text becomes ids.

    Attributes:
      tokenizer: "word", "bpe" (byte-level, so any script), "wordpiece" or "character".
      lower_case: fold case.
      stem: language of the Snowball stemmer, as "english"; None: no stemming. Words only.
      ngrams: word n-grams of orders 1 to this one; each is an id of its own, those that begin at a
        word following that word. Words only.
      character_ngrams: (shortest, longest) character n-grams within words, which follow their
        word; empty: none. Words only.
      unique: keep only the first occurrence of an id in a text.
      vocabulary_size: cap, the three special ids included.
      character_vocabulary_size: cap of the character n-grams, which come on top.
      min_count: texts that must hold a gram (for bpe and wordpiece: occurrences of a merged pair;
        for character: occurrences of one).
      max_length: ids of a text; the rest is cut off.
    """

    tokenizer: str = "word"
    lower_case: bool = True
    stem: str | None = None
    ngrams: int = 1
    character_ngrams: tuple[int, ...] = ()
    unique: bool = False
    vocabulary_size: int = 30_000
    character_vocabulary_size: int = 30_000
    min_count: int = 2
    max_length: int = 512

    def __post_init__(self):
        if self.tokenizer not in _TOKENIZERS:
            raise ValueError(
                f"tokenizer must be one of {', '.join(_TOKENIZERS)}, got {self.tokenizer!r}"
            )
        for name in ("ngrams", "min_count", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("vocabulary_size", "character_vocabulary_size"):
            if getattr(self, name) < len(SPECIAL) + 1:
                raise ValueError(f"{name} must be at least 4, got {getattr(self, name)}")
        grams = self.character_ngrams
        if grams and not (len(grams) == 2 and 1 <= grams[0] <= grams[1]):
            raise ValueError(f"character_ngrams must be (shortest, longest), got {grams}")
        if self.tokenizer == "word":
            stemmer(self.stem)
            return
        for name, default in (("stem", None), ("ngrams", 1), ("character_ngrams", ())):
            if getattr(self, name) != default:
                raise ValueError(f"{name} needs tokenizer 'word', got {self.tokenizer!r}")
        if self.tokenizer == "bpe" and self.vocabulary_size < 256 + len(SPECIAL):
            raise ValueError(
                f"vocabulary_size must be at least 259 (all bytes and the special ids) for bpe, "
                f"got {self.vocabulary_size}"
            )
