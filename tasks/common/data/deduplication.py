"""Hashes of texts for splits, and near-duplicates across splits.

Splitting by a hash of the text puts equal texts into the same split and is stable when rows are
added. Near-duplicates (mass mails, quoted news) have different hashes. They must be grouped before
the split.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")
_NOT_WORD = re.compile(r"[\W_]+")
_ROWS = 1000

SIMILARITY = 0.7
"""Minimum cosine of the TF-IDF vectors of near-duplicates."""


def normalize_text(text: str, unicode: bool = False) -> str:
    """Folds the case of a text, and replaces each run of non-alphanumeric characters by one space.

    Spaces at the ends are removed.

    Args:
      text: text to normalize.
      unicode: whether all alphanumeric characters of Unicode are kept. If not, only a-z and 0-9 are
        kept, as for the splits of the built-in English data sets.
    """
    pattern = _NOT_WORD if unicode else _NOT_ALPHANUMERIC
    return pattern.sub(" ", text.lower()).strip()


def text_hash(text: str, unicode: bool = False) -> int:
    """Returns the MD5 of the normalized text as a number, by which texts are assigned to splits.

    With `unicode`, a text without letters and digits, such as emoji, is hashed without
    normalization, except that spaces at its ends are removed. Without `unicode`, all such texts
    have the same hash.

    Args:
      text: the text.
      unicode: see `normalize_text`.
    """
    normal = normalize_text(text, unicode) or (text.strip() if unicode else "")
    data = normal.encode("utf-8", "surrogatepass")
    return int(hashlib.md5(data, usedforsecurity=False).hexdigest(), 16)


def duplicate_group_hashes(
    texts: Sequence[str], similarity: float = SIMILARITY, min_count: int = 1
) -> list[int]:
    """Returns, for each text, the smallest `text_hash` in its group of near-duplicates.

    Two texts are connected if the cosine of their TF-IDF vectors is at least `similarity`. Groups
    are the connected components of this graph. Term frequencies are scaled logarithmically, so that
    a word that is repeated many times does not dominate.

    Args:
      texts: all texts of the data set, before they are split.
      similarity: minimum cosine of near-duplicates.
      min_count: minimum number of texts that contain a word; rarer words are ignored.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    vectors, _ = _vectors(texts, (), sublinear_tf=True, min_df=min_count)
    rows, columns = [], []
    for start, block in _products(vectors, vectors):
        close = block.data >= similarity
        rows.append(block.row[close] + start)
        columns.append(block.col[close])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(row)), (row, column)), shape=(len(texts),) * 2)
    _, component = connected_components(graph, directed=False)
    smallest: dict[int, int] = {}
    hashes = [text_hash(text) for text in texts]
    for group, value in zip(component, hashes, strict=True):
        smallest[group] = min(smallest.get(group, value), value)
    return [smallest[group] for group in component]


def near_duplicates(
    train: Sequence[str], test: Sequence[str], similarity: float = SIMILARITY, ngrams: int = 1
) -> np.ndarray:
    """Returns which test texts have a near-duplicate among the training texts.

    Args:
      train: training texts, from which the inverse document frequencies are computed.
      test: test texts.
      similarity: minimum TF-IDF cosine of near-duplicates.
      ngrams: maximum order of the word n-grams. With 2, long texts that only share a topic do not
        count as near-duplicates.

    Returns:
      bool [len(test)]: True for texts that equal a training text after `normalize_text`, or whose
      TF-IDF cosine with a training text is at least `similarity`.
    """
    others, mine = _vectors(train, test, ngram_range=(1, ngrams))
    known = {normalize_text(text) for text in train}
    found = np.array([normalize_text(text) in known for text in test], bool)
    for start, block in _products(mine, others):
        found[block.row[block.data >= similarity] + start] = True
    return found


def _vectors(fitted: Sequence[str], others: Sequence[str], **settings):
    """Computes TF-IDF vectors of the normalized texts in both lists.

    Vocabulary and document frequencies are those of `fitted`.

    Returns:
      A sparse matrix for each list. The rows are the vectors, which have unit length.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(preprocessor=normalize_text, **settings)
    try:
        return vectorizer.fit_transform(fitted), vectorizer.transform(others) if others else None
    except ValueError:  # no words
        from scipy.sparse import csr_matrix

        return csr_matrix((len(fitted), 1)), csr_matrix((len(others), 1))


def _products(left, right) -> Iterator[tuple[int, object]]:
    """Computes the cosines of the rows of two sparse matrices, for one block of rows at a time.

    Yields:
      The index of the first row of the block in `left`, and the sparse matrix of the cosines of its
      rows with all rows of `right`.
    """
    transposed = right.T.tocsr()
    for start in range(0, left.shape[0], _ROWS):
        yield start, (left[start : start + _ROWS] @ transposed).tocoo()
