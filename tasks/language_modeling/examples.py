"""Sequences of tokens from texts, in the form of `tasks.common.data.pipeline`.

The task adds two tokens to those of the tokenizer: `mask_id` at masked positions, and `end_id`
(END) at the end of a text, or of each segment of a pair, like BERT's [SEP]. The tokenizer's CLS
begins a text.

    causal, running text   w_i ... w_{i+T-1}        predicts  w_{i+1} ... w_{i+T}
    causal, text           CLS w_1 ... w_n          predicts  w_1 ... w_n END
    masked                 CLS w_1 ... w_n END
    masked, two segments   CLS w_1 ... w_k END v_1 ... v_m END
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.text.tokenizer import CLS, PAD, UNKNOWN, Tokenizer

MASK = "[MASK]"
RESERVED = 2
# Value of `words` for tokens that belong to no word.
NO_WORD = -1


def mask_id(tokenizer: Tokenizer) -> int:
    """Returns the id of the mask token, the first id after those of the tokenizer."""
    return tokenizer.size


def end_id(tokenizer: Tokenizer) -> int:
    """Returns the id of the end token, the second id after those of the tokenizer."""
    return tokenizer.size + 1


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the tokens of each text, int32 [t]; a blank text may have no tokens."""
    whole = tokenizer.with_max_length(2**31 - 1)
    return [
        ids[:0] if len(ids) == 1 and ids[0] == UNKNOWN and not text.strip() else ids
        for ids, text in zip(whole.encode_batch(texts), texts, strict=True)
    ]


def beginning(tokenizer: Tokenizer, text: str) -> int:
    """Returns the token for empty prompts: a line end, or else the first token of the text."""
    (ids,) = encode(tokenizer, ["\n"])
    if len(ids) == 1 and ids[0] != UNKNOWN:
        return int(ids[0])
    return int(encode(tokenizer, [text[:1000]])[0][0])


def chunk_texts(texts: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Splits texts into chunks of at most `size` tokens, in order. Empty texts are dropped."""
    return [ids[i : i + size] for ids in texts for i in range(0, len(ids), size)]


class RunningText:
    """Windows of one running text. Every token except the first of the text is a target.

    Attributes:
      texts: list with one array, the tokens of the text.
      lengths: number of tokens of each window; only the last may have fewer than `length`.
    """

    padded: Mapping[str, int] = {"tokens": PAD, "targets": PAD}

    def __init__(self, ids: np.ndarray, length: int, stride: int):
        """Makes windows of `length` tokens.

        Args:
          ids: tokens of the text, [n], at least two.
          length: length of a window.
          stride: distance between windows. A distance of 1 gives all windows of the text; a
            distance of `length` gives windows in which each target occurs once.
        """
        last = max(len(ids) - 1 - length, 0) if stride < length else max(len(ids) - 2, 0)
        self.texts = [ids]
        self._ids, self._length = ids, length
        self._starts = np.arange(0, last + 1, stride)
        self.lengths = np.minimum(length, len(ids) - 1 - self._starts).astype(np.int32)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start, length = int(self._starts[index]), self.lengths[index]
        window = self._ids[start : start + length + 1]
        return {"tokens": window[:-1], "targets": window[1:], "length": length}


class CausalTexts:
    """Separate texts from CLS to the end token, for causal models."""

    padded: Mapping[str, int] = {"tokens": PAD, "targets": PAD}

    def __init__(self, texts: Sequence[np.ndarray], end: int):
        """Makes one example of each text.

        Args:
          texts: tokens of each text or chunk. An example has one token more: its inputs begin
            with CLS, and its targets end with the end token.
          end: id of the end token.
        """
        self.texts, self._end = texts, np.int32(end)
        self.lengths = np.array([len(ids) + 1 for ids in texts], np.int32)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ids = self.texts[index]
        return {
            "tokens": np.concatenate([[np.int32(CLS)], ids]),
            "targets": np.append(ids, self._end),
            "length": self.lengths[index],
        }


class MaskedTexts:
    """Texts between CLS and the end token, for masked models.

    Masked positions are sampled later, on the device; see `tasks.language_modeling.masking`."""

    def __init__(
        self,
        texts: Sequence[np.ndarray],
        end: int,
        *,
        starts: np.ndarray | None = None,
        pair_seed: int | None = None,
    ):
        """Makes the examples.

        Args:
          texts: chunks of texts, without the reserved tokens of an example. With pairs, chunks of
            one token are omitted.
          end: the end token.
          starts: bool [V], whether a token begins a word, for whole-word masking. Examples then
            have `words`, the index of the word of each token. None for examples without `words`.
          pair_seed: random seed of pairs; None for one segment per example. A text is cut in the
            middle into two segments. For half of the texts, chosen at random by (pair_seed, index),
            the second segment is from another text, and `follows` is 0 instead of 1.
        """
        self.texts = texts if pair_seed is None else [ids for ids in texts if len(ids) > 1]
        self._end, self._starts, self._pair_seed = np.int32(end), starts, pair_seed
        self.padded: dict[str, int] = {"tokens": PAD}
        if starts is not None:
            self.padded["words"] = NO_WORD
        if pair_seed is not None:
            self.padded["segments"] = 0
            # The second segment may be from a longer text, so every example has the maximum length.
            longest = max(map(len, self.texts), default=2) + 3
            self.lengths = np.full(len(self.texts), longest, np.int32)
        else:
            self.lengths = np.array([len(ids) + 2 for ids in self.texts], np.int32)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        ids, follows = self.texts[index], 1
        parts = [ids]
        if self._pair_seed is not None:
            random = np.random.default_rng((self._pair_seed, index))
            other = ids
            if len(self.texts) > 1 and random.random() < 0.5:
                follows = 0
                # A random text other than this one.
                number = int(random.integers(len(self.texts) - 1))
                other = self.texts[number + (number >= index)]
            parts = [ids[: len(ids) // 2], other[len(other) // 2 :]]
        closed = [np.append(part, self._end) for part in parts]
        tokens = np.concatenate([[np.int32(CLS)], *closed])
        # `blank` is the position that `predict` reads. Examples of splits have no mask, so it is 0.
        example = {"tokens": tokens, "length": np.int32(len(tokens)), "blank": np.int32(0)}
        if self._starts is not None:
            example["words"] = self._words(parts)
        if self._pair_seed is not None:
            example["segments"] = (np.arange(len(tokens)) > len(closed[0])).astype(np.int32)
            example["follows"] = np.int32(follows)
        return example

    def _words(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the index of the word of each token; NO_WORD for CLS and END."""
        words, count = [np.array([NO_WORD], np.int32)], 0
        for part in parts:
            begins = self._starts[part]
            begins[:1] = True
            numbers = count + np.cumsum(begins) - 1
            count += int(begins.sum())
            words += [numbers.astype(np.int32), words[0]]
        return np.concatenate(words)


class TextRows:
    """Sequence of given examples, whose arrays have equal shapes."""

    padded: Mapping[str, int] = {}

    def __init__(self, rows: Sequence[dict[str, np.ndarray]]):
        self._rows = rows
        # Lengths only select the bucket of an example. The rows are not padded, so any value works.
        self.lengths = np.ones(len(rows), np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._rows[index]


def padded_to(ids: np.ndarray, width: int) -> np.ndarray:
    """Pads ids at the end to int32 [width]."""
    return np.pad(ids, (0, width - len(ids)), constant_values=PAD).astype(np.int32)


def prompts(texts: Sequence[np.ndarray], begin: int | None, empty: int, width: int) -> TextRows:
    """Returns examples with the last `width` tokens of each prompt.

    Args:
      texts: tokens of the prompts.
      begin: token that is prepended to every prompt; None for no token.
      empty: token that replaces a prompt without tokens.
      width: largest number of tokens.
    """
    rows = []
    for ids in texts:
        ids = ids if begin is None else np.concatenate([[np.int32(begin)], ids])
        kept = (ids if len(ids) else np.array([empty], np.int32))[-width:]
        rows.append({"tokens": padded_to(kept, width), "length": np.int32(len(kept))})
    return TextRows(rows)


def masked_rows(
    parts: Sequence[Sequence[np.ndarray]], mask: int, end: int, width: int
) -> list[dict[str, np.ndarray]]:
    """Returns one example for each mask of each text: a window around the mask.

    Args:
      parts: for each text, the arrays of tokens before, between and after its masks. A text with
        m masks has m + 1 arrays.
      mask, end: ids of the mask token and of the end token.
      width: length of an example, with CLS and the end token.

    Returns:
      Examples with `tokens` [width], `length`, and `blank`, the position of the mask.
    """
    rows = []
    for lists in parts:
        joined = [lists[0]]
        for ids in lists[1:]:
            joined += [np.array([mask], np.int32), ids]
        ids = np.concatenate(joined)
        positions = np.cumsum([len(ids) + 1 for ids in lists[:-1]]) - 1
        room = width - 2
        for position in positions:
            first = int(np.clip(position - room // 2, 0, max(len(ids) - room, 0)))
            kept = ids[first : first + room]
            tokens = np.concatenate([[np.int32(CLS)], kept, [np.int32(end)]])
            rows.append(
                {
                    "tokens": padded_to(tokens, width),
                    "length": np.int32(len(tokens)),
                    "blank": np.int32(position - first + 1),
                }
            )
    return rows
