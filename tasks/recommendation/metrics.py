"""How good ranked lists are: the place of what was taken next, and what the lists are made of.

All items that a user has not had are ranked; none are sampled. Equal scores count at their mean
rank, so that nothing is gained by the order of items. B users of a batch, n of a split, I items, M
of the longest history, U users of train.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_matrix

TOP = 10
# Pairs of items whose likeness is counted at a time.
_PORTION = 200_000


def ranked(
    scores: jax.Array, seen: jax.Array, target: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Ranks of the targets, and the best unseen items.

        rank = 1 + |{j: s_j > s_target}| + |{j ≠ target: s_j = s_target}| / 2,   j unseen

    A score that is no number is below all others.

    Args:
      scores: float [B, I].
      seen: int [B, M], items to be left out; -1 for none.
      target: int [B], unseen items; None where there are none.

    Returns:
      `top` int32 [B, k], the items of the greatest scores, k = min(10, I), -1 beyond the unseen;
      `top_scores` [B, k], -inf there; and with targets `rank` float32 [B].
    """
    num_items = scores.shape[1]
    # An index behind the last is dropped; -1 would be the last.
    places = jnp.where(seen < 0, num_items, seen)
    lowest = jnp.finfo(scores.dtype).min
    scores = jnp.where(jnp.isnan(scores), lowest, jnp.maximum(scores, lowest))
    scores = scores.at[jnp.arange(len(scores))[:, None], places].set(-jnp.inf, mode="drop")
    best, top = jax.lax.top_k(scores, min(TOP, num_items))
    found = {"top": jnp.where(best < lowest, -1, top).astype(jnp.int32), "top_scores": best}
    if target is None:
        return found
    own = jnp.take_along_axis(scores, jnp.maximum(target, 0)[:, None], axis=1)
    # Itself is among the equal.
    halves = jnp.sum(2 * (scores > own).astype(jnp.int32) + (scores == own), axis=1)
    return {**found, "rank": (halves + 1).astype(jnp.float32) / 2}


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """NDCG@10 of each of n lists with one item to be found: 1 / log2(1 + rank), 0 below the tenth.

    Järvelin & Kekäläinen 2002. ranks float [n] -> float64 [n].
    """
    ranks = np.asarray(ranks, np.float64)
    return np.where(ranks <= TOP, 1 / np.log2(1 + ranks), 0.0)


def ranking_metrics(ranks: np.ndarray) -> dict[str, float]:
    """`ndcg_at_10`; `hr_at_10`, the share of targets at rank 10 or above; `mrr`, the mean of
    1 / rank. ranks float [n].
    """
    ranks = np.asarray(ranks, np.float64)
    return {
        "ndcg_at_10": float(ndcg(ranks).mean()),
        "hr_at_10": float(np.mean(ranks <= TOP)),
        "mrr": float(np.mean(1 / ranks)),
    }


def list_metrics(top: np.ndarray, train: csr_matrix) -> dict[str, float]:
    """What lists are made of.

    Args:
      top: int [n, k], the items of each list, -1 for none.
      train: sparse [U, I]; an entry that is not 0 is an event.

    Returns:
      `coverage`, the share of all items that stand in any list; `diversity`, the mean over all
      pairs of items of a list of 1 - cosine of their columns of `train` with entries of 1: 0 where
      the same users had both, 1 where nobody had.
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
    likeness = 0.0
    for begin in range(0, len(codes), _PORTION):
        i, j = np.divmod(codes[begin : begin + _PORTION], num_items)
        both = np.asarray(users_of[i].multiply(users_of[j]).sum(axis=1)).ravel()
        likeness += float(np.sum(counts[begin : begin + _PORTION] * both / (norms[i] * norms[j])))
    return {"coverage": coverage, "diversity": 1 - likeness / len(pairs)}
