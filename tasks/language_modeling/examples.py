"""Sequences of ids from texts, as `tasks.common.data.pipeline` reads them.

The task has two ids of its own after the tokenizer's: `mask_id` stands where a word is hidden, and
`end_id` ends a text, or one of two segments (BERT's [SEP]). The tokenizer's CLS begins a text.

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
# `words` at ids that stand for no word.
NO_WORD = -1


def mask_id(tokenizer: Tokenizer) -> int:
    """The first id after the tokenizer's."""
    return tokenizer.size


def end_id(tokenizer: Tokenizer) -> int:
    """The second."""
    return tokenizer.size + 1


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text, int32 [t]; of one that holds nothing for the tokenizer, none."""
    whole = tokenizer.with_max_length(2**31 - 1)
    return [
        ids[:0] if len(ids) == 1 and ids[0] == UNKNOWN and not text.strip() else ids
        for ids, text in zip(whole.encode_batch(texts), texts, strict=True)
    ]


def beginning(tokenizer: Tokenizer, text: str) -> int:
    """What a running text may begin with: a line end where there is such an id, for a line begins
    after it; else the first id of the text.
    """
    (ids,) = encode(tokenizer, ["\n"])
    if len(ids) == 1 and ids[0] != UNKNOWN:
        return int(ids[0])
    return int(encode(tokenizer, [text[:1000]])[0][0])


def pieces(texts: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Texts in pieces of at most `size` ids, in order; empty texts are left out."""
    return [ids[i : i + size] for ids in texts for i in range(0, len(ids), size)]


class RunningText:
    """Windows of one text, each id but the first to be predicted from those before it.

    Attributes:
      lengths: ids of each window; only a last one may have fewer than `length`.
    """

    padded: Mapping[str, int] = {"tokens": PAD, "targets": PAD}

    def __init__(self, ids: np.ndarray, length: int, stride: int):
        """Args: ids [n], at least two; of a window; from one window to the next: 1 gives every
        window once, `length` every id once."""
        last = max(len(ids) - 1 - length, 0) if stride < length else max(len(ids) - 2, 0)
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
    """Texts by themselves, from CLS to the end token."""

    padded: Mapping[str, int] = {"tokens": PAD, "targets": PAD}

    def __init__(self, texts: Sequence[np.ndarray], end: int):
        """Args: pieces that fit with one id more; the end token."""
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
    """Texts between CLS and the end token; which ids are hidden is drawn on the device."""

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
          texts: pieces that fit with the signs; those of one id are left out of pairs.
          end: the end token.
          starts: bool [ids], whether an id begins a word, for masking of whole words: then `words`
            numbers them in each example. None: no `words`.
          pair_seed: makes two segments of a text, cut in the middle. For every other text, drawn by
            (pair_seed, index), the second is that of another one, and `follows` 0 in place of 1.
            None: one segment.
        """
        self.texts = texts if pair_seed is None else [ids for ids in texts if len(ids) > 1]
        self._end, self._starts, self._pair_seed = np.int32(end), starts, pair_seed
        self.padded: dict[str, int] = {"tokens": PAD}
        if starts is not None:
            self.padded["words"] = NO_WORD
        if pair_seed is not None:
            self.padded["segments"] = 0
            # Halves may come from texts of other lengths: every example has the longest length.
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
                # Any but itself.
                place = int(random.integers(len(self.texts) - 1))
                other = self.texts[place + (place >= index)]
            parts = [ids[: len(ids) // 2], other[len(other) // 2 :]]
        closed = [np.append(part, self._end) for part in parts]
        tokens = np.concatenate([[np.int32(CLS)], *closed])
        example = {"tokens": tokens, "length": np.int32(len(tokens))}
        if self._starts is not None:
            example["words"] = self._words(parts)
        if self._pair_seed is not None:
            example["segments"] = (np.arange(len(tokens)) > len(closed[0])).astype(np.int32)
            example["follows"] = np.int32(follows)
        return example

    def _words(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Numbers of the words, from 0, in the order of the tokens; NO_WORD for CLS and END."""
        words, count = [np.array([NO_WORD], np.int32)], 0
        for part in parts:
            begins = self._starts[part]
            begins[:1] = True
            numbers = count + np.cumsum(begins) - 1
            count += int(begins.sum())
            words += [numbers.astype(np.int32), words[0]]
        return np.concatenate(words)


class Rows:
    """Examples made beforehand, all fields of one shape each."""

    padded: Mapping[str, int] = {}

    def __init__(self, rows: Sequence[dict[str, np.ndarray]]):
        self._rows = rows
        # Of the shortest bucket: their shapes do not follow from it.
        self.lengths = np.ones(len(rows), np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._rows[index]


def padded_to(ids: np.ndarray, width: int) -> np.ndarray:
    """int32 [width]."""
    return np.pad(ids, (0, width - len(ids)), constant_values=PAD).astype(np.int32)


def prompts(texts: Sequence[np.ndarray], begin: int | None, empty: int, width: int) -> Rows:
    """What is to be completed: the last `width` ids of each.

    Args:
      texts: ids typed.
      begin: id that stands before every text, or None.
      empty: what stands for a prompt without ids.
      width: ids that are kept at most.
    """
    rows = []
    for ids in texts:
        ids = ids if begin is None else np.concatenate([[np.int32(begin)], ids])
        kept = (ids if len(ids) else np.array([empty], np.int32))[-width:]
        rows.append({"prompt": padded_to(kept, width), "length": np.int32(len(kept))})
    return Rows(rows)


def blanks(
    parts: Sequence[Sequence[np.ndarray]], mask: int, end: int, width: int
) -> list[dict[str, np.ndarray]]:
    """An example for each blank of each text, with what is around it.

    Args:
      parts: of each text, the ids between its blanks: one list more than there are blanks.
      mask, end: ids.
      width: of an example, CLS and end token included; what is farther from the blank is cut off.

    Returns:
      Rows of `tokens` [width], `length` and `blank`, the place of the one to be filled.
    """
    rows = []
    for lists in parts:
        joined = [lists[0]]
        for ids in lists[1:]:
            joined += [np.array([mask], np.int32), ids]
        ids = np.concatenate(joined)
        places = np.cumsum([len(ids) + 1 for ids in lists[:-1]]) - 1
        room = width - 2
        for place in places:
            first = int(np.clip(place - room // 2, 0, max(len(ids) - room, 0)))
            kept = ids[first : first + room]
            tokens = np.concatenate([[np.int32(CLS)], kept, [np.int32(end)]])
            rows.append(
                {
                    "tokens": padded_to(tokens, width),
                    "length": np.int32(len(tokens)),
                    "blank": np.int32(place - first + 1),
                }
            )
    return rows
