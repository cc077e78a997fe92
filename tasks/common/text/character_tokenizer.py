"""Characters as ids: one for each Unicode code point that the texts hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.common.text.config import TextConfig
from tasks.common.text.words import SPECIAL, UNKNOWN


class CharacterTokenizer:
    """The characters of the texts as they are: nothing is normalised but case, where that is asked.

    Ids follow the code points, so that they do not depend on the order of the texts.
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
            places = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
            known = self._points[places] == points
            yield np.where(known, places + len(SPECIAL), UNKNOWN).astype(np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The characters; ids are checked by the caller."""
        table = [*SPECIAL, *self._characters]
        return "".join(table[number] for number in ids)

    def pieces_with_spans(self, text: str) -> list[tuple[str, int, int]]:
        """Character, its place and the next, in the order of the ids of `encode`."""
        text = text.lower() if self._lower_case else text
        return [(character, place, place + 1) for place, character in enumerate(text)]

    def to_dict(self) -> dict:
        return {"characters": self._characters}

    @classmethod
    def from_dict(cls, values: dict, config: TextConfig) -> CharacterTokenizer:
        return cls(values["characters"], config.lower_case)


def _points(text: str) -> np.ndarray:
    """Code points, uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
