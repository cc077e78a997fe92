"""Character tokenizer: one id per Unicode code point of the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.common.text.config import TextConfig
from tasks.common.text.words import SPECIAL, UNKNOWN


class CharacterTokenizer:
    """Tokenizer with an id for each character.

    Texts are not normalized, except that case may be folded. Ids are in the order of the code
    points, so they do not depend on the order of the texts.
    """

    def __init__(self, characters: Sequence[str], lower_case: bool):
        self._characters, self._lower_case = "".join(sorted(characters)), lower_case
        self._points = _points(self._characters)

    @classmethod
    def fit(cls, texts: Sequence[str], config: TextConfig) -> CharacterTokenizer:
        counts: dict[int, int] = {}
        for text in texts:
            found = np.unique_counts(_points(text.lower() if config.lower_case else text))
            for point, count in zip(found.values.tolist(), found.counts.tolist(), strict=True):
                counts[point] = counts.get(point, 0) + count
        kept = [(-count, point) for point, count in counts.items() if count >= config.min_count]
        chosen = sorted(kept)[: config.vocabulary_size - len(SPECIAL)]
        return cls([chr(point) for _, point in chosen], config.lower_case)

    @property
    def size(self) -> int:
        return len(SPECIAL) + len(self._characters)

    def encode(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for text in texts:
            points = _points(text.lower() if self._lower_case else text)
            if not len(self._points):
                yield np.full(len(points), UNKNOWN, np.int32)
                continue
            index = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
            known = self._points[index] == points
            yield np.where(known, index + len(SPECIAL), UNKNOWN).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of the ids, which must be smaller than `size`."""
        table = [*SPECIAL, *self._characters]
        return "".join(table[number] for number in ids)

    def pieces_with_spans(self, text: str) -> list[tuple[str, int, int]]:
        """Returns, for each id of `encode`, its character and its start and end in the text."""
        text = text.lower() if self._lower_case else text
        return [(character, index, index + 1) for index, character in enumerate(text)]

    def to_dict(self) -> dict:
        return {"characters": self._characters}

    @classmethod
    def from_dict(cls, values: dict, config: TextConfig) -> CharacterTokenizer:
        return cls(values["characters"], config.lower_case)


def _points(text: str) -> np.ndarray:
    """Returns the code point of each character of a text, uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
