"""Metrics of ranked lists: the rank of the next item, coverage and diversity.

All unseen items are ranked, without sampling. Items with equal scores share the mean of their
ranks, so that the order of items has no effect.

In shapes, B is the number of users of a batch, n the number of users of a split, I the number of
items, M the number of events of the longest history, and U the number of users of the training
split.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_matrix

TOP = 10
# Number of item pairs whose similarity is computed at a time.
_PORTION = 200_000


def ranked(
    scores: jax.Array, seen: jax.Array, target: jax.Array | None = None, count: int = TOP
) -> dict[str, jax.Array]:
    """Computes the ranks of the targets and the best unseen items.

        rank = 1 + |{j: s_j > s_target}| + |{j ≠ target: s_j = s_target}| / 2

    for scores s_j of the unseen items j. NaN scores are below all others.

    Args:
      scores: scores of all items, float [B, I].
      seen: int [B, M], items that are not ranked, padded with -1.
      target: int [B], unseen items; None if there are no targets.
      count: length of the lists.

    Returns:
      `top` int32 [B, k], the k = min(count, I) unseen items of the largest scores, and `top_scores`
      [B, k]; padded with -1 and -inf if there are fewer unseen items. With targets also `rank`
      float32 [B].
    """
    num_items = scores.shape[1]
    # Padding becomes an index past the end, which is dropped; -1 would be the last item.
    indices = jnp.where(seen < 0, num_items, seen)
    lowest = jnp.finfo(scores.dtype).min
    scores = jnp.where(jnp.isnan(scores), lowest, jnp.maximum(scores, lowest))
    scores = scores.at[jnp.arange(scores.shape[0])[:, None], indices].set(-jnp.inf, mode="drop")
    best, top = jax.lax.top_k(scores, min(count, num_items))
    found = {"top": jnp.where(best < lowest, -1, top).astype(jnp.int32), "top_scores": best}
    if target is None:
        return found
    own = jnp.take_along_axis(scores, jnp.maximum(target, 0)[:, None], axis=1)
    # The target itself is one of the items with an equal score, so (halves + 1) / 2 is the rank.
    halves = jnp.sum(2 * (scores > own).astype(jnp.int32) + (scores == own), axis=1)
    return {**found, "rank": (halves + 1).astype(jnp.float32) / 2}


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """Computes NDCG@10 with one relevant item (Järvelin & Kekäläinen 2002).

    It is 1 / log2(1 + rank) for ranks up to 10, else 0.

    Args:
      ranks: ranks of the targets, float [n].

    Returns:
      float64 [n].
    """
    ranks = np.asarray(ranks, np.float64)
    return np.where(ranks <= TOP, 1 / np.log2(1 + ranks), 0.0)


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """Computes `ndcg_at_10`, the hit rate `hr_at_10`, and the mean reciprocal rank `mrr`.

    Args:
      ranks: ranks of the targets, float [n].
    """
    ranks = np.asarray(ranks, np.float64)
    return {
        "ndcg_at_10": float(ndcg(ranks).mean()),
        "hr_at_10": float(np.mean(ranks <= TOP)),
        "mrr": float(np.mean(1 / ranks)),
    }


def list_metrics(top: np.ndarray, train: csr_matrix) -> dict[str, float]:
    """Computes coverage and diversity of lists.

    Args:
      top: int [n, k], the items of each list, padded with -1.
      train: sparse [U, I]; an entry that is not 0 is an event.

    Returns:
      `coverage`, the fraction of all items that are in at least one list; and `diversity`, the mean
      of 1 - cosine over the pairs of items in a list. The cosine is that of the binary columns of
      `train`: 1 if two items have the same users, 0 if they have no common user.
    """
    num_items = train.shape[1]
    shown = np.unique(top)
    coverage = float(np.count_nonzero(shown >= 0) / num_items)
    first, second = np.triu_indices(top.shape[1], 1)
    pairs = np.stack([top[:, first].ravel(), top[:, second].ravel()], axis=1).astype(np.int64)
    pairs = np.sort(pairs[(pairs >= 0).all(axis=1)], axis=1)
    if not len(pairs):
        return {"coverage": coverage, "diversity": 0.0}
    codes, counts = np.unique(pairs @ [num_items, 1], return_counts=True)
    users_of = train.T.tocsr()
    users_of.data = np.ones_like(users_of.data, np.float32)
    norms = np.sqrt(np.maximum(np.diff(users_of.indptr), 1))
    similarity = 0.0
    for begin in range(0, len(codes), _PORTION):
        i, j = np.divmod(codes[begin : begin + _PORTION], num_items)
        both = np.asarray(users_of[i].multiply(users_of[j]).sum(axis=1)).ravel()
        similarity += float(np.sum(counts[begin : begin + _PORTION] * both / (norms[i] * norms[j])))
    return {"coverage": coverage, "diversity": 1 - similarity / len(pairs)}
