"""Baseline of translation: word by word with a learned lexicon."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

Translate = Callable[[Sequence[str]], list[str]]

# Words with hyphens, and single punctuation marks.
_TOKEN = re.compile(r"\w+(?:-\w+)*|[^\w\s]")
_SPACED = re.compile(r"\s+([.,;:!?])")
_EMPTY = ""
# Maximum number of pairs of a source word and a target word that are held in memory.
_MAX_LINKS = 40_000_000


def lexicon(sources: Sequence[str], targets: Sequence[str], iterations: int = 5) -> Translate:
    """Fits word-by-word translation by IBM model 1 (Brown et al. 1993).

        t(f | e) ∝ Σ over pairs, Σ over e in the source, f in the target:
                   t(f | e) / Σ_e' t(f | e')

    for target words f and source words e, where e' runs over the words of the source. The initial
    t is uniform; every source has an additional empty word. Each e is translated by its most
    probable f, and unknown words are copied. Texts are lower-cased. If the training split is too
    large for memory, only its first pairs are used.

    Args:
      sources: source sentences of the training split.
      targets: target sentences of the training split.
      iterations: iterations of expectation-maximization.

    Returns:
      A function from source sentences to translations.
    """
    e_ids: dict[str, int] = {_EMPTY: 0}
    f_ids: dict[str, int] = {}
    pairs, word_of, offset = [], [], 0
    reads = [[0, *(e_ids.setdefault(word, len(e_ids)) for word in split(text))] for text in sources]
    writes = [[f_ids.setdefault(word, len(f_ids)) for word in split(text)] for text in targets]
    size = len(f_ids)
    count = 0
    for e, f in zip(reads, writes, strict=True):
        count += len(e) * len(f)
        if pairs and count > _MAX_LINKS:
            break
        # Pairs of each target word with all source words; `word_of` has the index of the target
        # word of each pair.
        pairs.append((np.array(e)[None, :] * size + np.array(f, np.int64)[:, None]).ravel())
        word_of.append(np.repeat(np.arange(offset, offset + len(f)), len(e)))
        offset += len(f)
    links, link = np.unique(np.concatenate(pairs), return_inverse=True)
    word_of = np.concatenate(word_of)
    word = links // size
    probability = np.ones(len(links))
    for _ in range(iterations):
        posterior = probability[link]
        posterior /= np.bincount(word_of, posterior)[word_of]
        probability = np.bincount(link, posterior)
        probability /= np.bincount(word, probability)[word]
    order = np.lexsort((links, -probability, word))
    first = order[np.unique(word[order], return_index=True)[1]]
    names = list(f_ids)
    best = {e: names[f] for e, f in zip(word[first], links[first] % size, strict=True)}

    def translate(texts: Sequence[str]) -> list[str]:
        rows = ([best.get(e_ids.get(word, -1), word) for word in split(text)] for text in texts)
        return [_SPACED.sub(r"\1", " ".join(row)) for row in rows]

    return translate


def split(text: str) -> list[str]:
    """Splits a text into words and punctuation marks, in lower case."""
    return _TOKEN.findall(text.lower())
