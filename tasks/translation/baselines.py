"""Cheap baselines of translation: the source as it is, and word by word with a learned lexicon."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

Translate = Callable[[Sequence[str]], list[str]]

# Words with their hyphens, and each other sign.
_TOKEN = re.compile(r"\w+(?:-\w+)*|[^\w\s]")
_SPACED = re.compile(r"\s+([.,;:!?])")
_EMPTY = ""
# Words of a target times words of its source, over all pairs: what is held in memory.
_MOST_LINKS = 40_000_000


def lexicon(sources: Sequence[str], targets: Sequence[str], iterations: int = 5) -> Translate:
    """Word by word, in the order of the source, by IBM model 1 (Brown et al. 1993).

        t(f | e) ∝ Σ over pairs, Σ over e in the source, f in the target:
                   t(f | e) / Σ_e' t(f | e')

    from a uniform start, with an empty word beside every source. Each e becomes its likeliest f; a
    word that train has not stays. On lower case; of a large train split on its first pairs alone.

    Args:
      sources: the train split, nothing else.
      targets: its translations.
      iterations: of expectation-maximisation.

    Returns:
      A function from sources to translations.
    """
    known: dict[str, int] = {_EMPTY: 0}
    written: dict[str, int] = {}
    pair, place, here = [], [], 0
    reads = [[0, *(known.setdefault(word, len(known)) for word in split(text))] for text in sources]
    writes = [[written.setdefault(word, len(written)) for word in split(text)] for text in targets]
    size = len(written)
    count = 0
    for e, f in zip(reads, writes, strict=True):
        count += len(e) * len(f)
        if pair and count > _MOST_LINKS:
            break
        # Each word of the target beside all of the source; `place` is which word of the target.
        pair.append((np.array(e)[None, :] * size + np.array(f, np.int64)[:, None]).ravel())
        place.append(np.repeat(np.arange(here, here + len(f)), len(e)))
        here += len(f)
    links, link = np.unique(np.concatenate(pair), return_inverse=True)
    place = np.concatenate(place)
    word = links // size
    probability = np.ones(len(links))
    for _ in range(iterations):
        share = probability[link]
        share /= np.bincount(place, share)[place]
        probability = np.bincount(link, share)
        probability /= np.bincount(word, probability)[word]
    order = np.lexsort((links, -probability, word))
    first = order[np.unique(word[order], return_index=True)[1]]
    names = list(written)
    best = {e: names[f] for e, f in zip(word[first], links[first] % size, strict=True)}

    def translate(texts: Sequence[str]) -> list[str]:
        rows = ([best.get(known.get(word, -1), word) for word in split(text)] for text in texts)
        return [_SPACED.sub(r"\1", " ".join(row)) for row in rows]

    return translate


def split(text: str) -> list[str]:
    """Words and signs, in lower case."""
    return _TOKEN.findall(text.lower())
