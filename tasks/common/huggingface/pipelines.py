"""Tokenizers of imported models, built with the library tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tasks.common.text.tokenizer import LAST, SPECIAL

ROBERTA = ("roberta", "xlm-roberta")
# Character that represents a space in the pieces of a unigram model.
SPACE = "\u2581"


@dataclass(frozen=True)
class Normalization:
    """Options of BERT's WordPiece tokenization.

    Attributes:
      lower_case: whether case is folded.
      strip_accents: whether accents are removed; None for the value of `lower_case`.
      chinese_characters: whether each Chinese character is a word.
      clean_text: whether control characters are removed, and all white-space characters are
        replaced by spaces.
      longest_word: maximum number of characters of a word; a longer word becomes [UNK].
    """

    lower_case: bool = True
    strip_accents: bool | None = None
    chinese_characters: bool = True
    clean_text: bool = True
    longest_word: int = 100

    # Value of `TextConfig.tokenizer`.
    tokenizer: ClassVar[str] = "wordpiece"

    def __post_init__(self):
        if self.strip_accents is None:
            object.__setattr__(self, "strip_accents", self.lower_case)

    def pipeline(self, ids: Mapping[str, int]) -> Any:
        """Builds a WordPiece `tokenizers.Tokenizer` without special tokens.

        Args:
          ids: id of each piece.
        """
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers

        tokenizer = tokenizers.Tokenizer(
            models.WordPiece(
                dict(ids), unk_token="[UNK]", max_input_chars_per_word=self.longest_word
            )
        )
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=self.clean_text,
            handle_chinese_chars=self.chinese_characters,
            strip_accents=self.strip_accents,
            lowercase=self.lower_case,
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer


@dataclass(frozen=True)
class BytePairs:
    """Byte-level byte-pair encoding of GPT-2 (Radford et al. 2019), as in RoBERTa.

    Attributes:
      merges: merged pairs of pieces in the order of their ranks, each as two pieces separated by a
        space.
      add_prefix_space: whether a text that does not begin with a space is encoded as if it did.
    """

    merges: Sequence[str] = ()
    add_prefix_space: bool = False

    tokenizer: ClassVar[str] = "bpe"
    # There is no normalization.
    lower_case: ClassVar[bool] = False
    strip_accents: ClassVar[bool] = False

    def pipeline(self, ids: Mapping[str, int]) -> Any:
        """Builds a `tokenizers.Tokenizer` without special tokens.

        Args:
          ids: id of each piece.
        """
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers

        pairs = [(first, last) for first, last in (merge.split(" ") for merge in self.merges)]
        tokenizer = tokenizers.Tokenizer(models.BPE(dict(ids), pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self.add_prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer


@dataclass(frozen=True)
class Unigram:
    """Unigram language model over pieces (Kudo 2018), as in XLM-RoBERTa.

    Attributes:
      scores: log-probability of each piece.
      normalizer: part "normalizer" of tokenizer.json; None if there is none.
      pre_tokenizer: part "pre_tokenizer" of tokenizer.json, which replaces spaces by `SPACE`.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    normalizer: Mapping[str, Any] | None = None
    pre_tokenizer: Mapping[str, Any] | None = None

    tokenizer: ClassVar[str] = "unigram"
    lower_case: ClassVar[bool] = False
    strip_accents: ClassVar[bool] = False

    def pipeline(self, ids: Mapping[str, int]) -> Any:
        """Builds a `tokenizers.Tokenizer` without special tokens.

        The special tokens are pieces of the model. Here a space is added at the end of their names.
        A text contains no spaces after pre-tokenization, so "<s>" in a text matches no special
        token and is plain text.

        Args:
          ids: id of each piece.
        """
        import tokenizers

        special = special_tokens("xlm-roberta")
        pieces = sorted(ids, key=ids.__getitem__)
        model = {
            "type": "Unigram",
            "unk_id": ids[special[1]],
            "vocab": [[f"{p} " if p in special else p, self.scores.get(p, 0.0)] for p in pieces],
            "byte_fallback": False,
        }
        parts = {"normalizer": self.normalizer, "pre_tokenizer": self.pre_tokenizer}
        decoder = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always"}
        whole = {"version": "1.0", "added_tokens": [], **parts, "decoder": decoder, "model": model}
        return tokenizers.Tokenizer.from_str(json.dumps(whole))


def special_tokens(kind: str) -> tuple[str, ...]:
    """Returns the special tokens of a kind of model.

    They are the padding, unknown, classification, mask and end token, in this order.
    """
    if kind in ROBERTA:
        return ("<pad>", "<unk>", "<s>", "<mask>", "</s>")
    return (*SPECIAL, *LAST)
