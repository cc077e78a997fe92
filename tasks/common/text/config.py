"""Config of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.common.configs import Config, PositiveInt, at_least, one_of
from tasks.common.text.words import SPECIAL, stemmer

# With values of these fields other than the defaults, decoding does not restore the encoded text.
LOSSY = ("stem", "ngrams", "character_ngrams", "unique")


@dataclass(frozen=True)
class TextConfig(Config):
    """Config of the conversion of texts to ids.

    Attributes:
      tokenizer: "word", "bpe" (byte-level, for any script), "wordpiece", "character", or "unigram",
        which is for imported models and cannot be fitted.
      lower_case: whether case is folded.
      stem: language of the Snowball stemmer, such as "english"; None for no stemming. Only for
        "word".
      ngrams: maximum order of word n-grams. Each n-gram has its own id, which follows the id of its
        first word. Only for "word".
      character_ngrams: (shortest, longest) length of the character n-grams of a word, whose ids
        follow the id of the word; empty for no character n-grams. Only for "word".
      unique: whether only the first occurrence of each id in a text is kept.
      vocabulary_size: maximum number of ids, including the three special ids.
      character_vocabulary_size: maximum number of additional ids for character n-grams.
      min_count: for "word", the minimum number of texts that contain an n-gram. For "bpe" and
        "wordpiece", the minimum number of occurrences of a merged pair. For "character", the
        minimum number of occurrences of a character.
      max_length: maximum number of ids of a text; longer texts are truncated.
    """

    tokenizer: one_of("word", "bpe", "wordpiece", "character", "unigram") = "word"
    lower_case: bool = True
    stem: str | None = None
    ngrams: PositiveInt = 1
    character_ngrams: tuple[int, ...] = ()
    unique: bool = False
    vocabulary_size: at_least(len(SPECIAL) + 1) = 30_000
    character_vocabulary_size: at_least(len(SPECIAL) + 1) = 30_000
    min_count: PositiveInt = 2
    max_length: PositiveInt = 512

    def expect_defaults(self, names: Sequence[str], reason: str) -> None:
        """Checks that fields have their default values.

        Args:
          names: names of the fields.
          reason: reason why only the defaults are allowed, which ends the message.

        Raises:
          ValueError: a field has another value.
        """
        for name in names:
            value, default = getattr(self, name), getattr(TextConfig, name)
            if value != default:
                raise ValueError(f"text.{name}: got {value!r}, expected {default!r}, {reason}")

    def __post_init__(self):
        super().__post_init__()
        grams = self.character_ngrams
        is_range = not grams or (len(grams) == 2 and 1 <= grams[0] <= grams[1])
        self.expect("character_ngrams", is_range, "(shortest, longest) or ()")
        if self.tokenizer == "word":
            stemmer(self.stem)
            return
        for name, default in (("stem", None), ("ngrams", 1), ("character_ngrams", ())):
            expected = f"{default!r} for tokenizer={self.tokenizer!r}"
            self.expect(name, getattr(self, name) == default, expected)
        if self.tokenizer == "bpe":
            least = 256 + len(SPECIAL)
            expected = f"at least {least} for bpe (all bytes and the special ids)"
            self.expect("vocabulary_size", self.vocabulary_size >= least, expected)
