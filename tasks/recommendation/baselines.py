"""Baselines without a network: weighted histories times an item-item matrix.

    scores = H B,   H sparse [users, I], B [I, I]

An entry of H is 1 for an item of the history, and 0 for other items. In baselines with "recency" in
their name, it is γ^p instead of 1 for the item p positions before the end of the history, with a
decay γ. B is one of three matrices: the cosines of items (ItemKNN), the ridge regression of each
item on the others (EASE, Steck 2019), or transition probabilities (Markov). Settings are selected
by NDCG@10 on validation with B fitted on the training split. Test metrics use B fitted on the
training split or, with `with_validation`, on the training and validation splits.

In shapes, U is the number of users, I the number of items, and n the number of users of a split.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.linalg
import scipy.sparse as sp

from tasks.recommendation.data import RecommendationData
from tasks.recommendation.metrics import list_metrics, ndcg, ranked, ranking_metrics
from tasks.recommendation.sequences import HeldOut

Settings = Mapping[str, Any]
Scores = Callable[[np.ndarray], np.ndarray]
"""Function from indices of users in a split to their scores, [users, I]."""

# Number of users that are scored at a time, and number of validation users on which settings are
# selected.
_BLOCK, _CHOOSERS = 512, 2048
# EASE uses this many of the most popular items, since its time is cubic in their number. If there
# are more than `_FEW_ITEMS` items, only one ridge strength is tried.
_EASE_ITEMS, _FEW_ITEMS = 10_000, 4_000
# Weight of popularity, which breaks ties of transition counts.
_BACKOFF = 0.01
_NEIGHBOURS = (20, 200)
_DECAYS = (0.95, 0.9, 0.8, 0.6)
_RIDGES = (100.0, 300.0, 1000.0)
_SHRINKS = (0.0, 10.0)
_WINDOWS = (2, 3, 5, 10)
_SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)
# Number of events above which only popularity and the Markov chains are fitted.
_LARGE = 2_000_000


class Baselines:
    """Baselines of one data set, with shared intermediate results.

    Attributes:
      names: baselines that take at most a few minutes for a data set of this size.
    """

    def __init__(
        self,
        data: RecommendationData,
        validation: HeldOut,
        test: HeldOut,
        *,
        with_validation: bool,
    ):
        """Initializes the baselines.

        Args:
          data: events of all users.
          validation, test: examples of these splits.
          with_validation: whether baselines are fitted on the validation events too before they
            are tested. Their hyperparameters are always chosen on validation, after a fit on the
            training events.
        """
        self._data, self._splits = data, {"validation": validation, "test": test}
        of_train = _Fitted(data, False)
        of_both = _Fitted(data, True) if with_validation else of_train
        self._fitted = {"validation": of_train, "test": of_both}
        light = ("popularity", "markov", "markov_windowed")
        self.names = tuple(_GRIDS) if len(data.items) <= _LARGE else light

    def metrics(self, name: str) -> dict[str, Any]:
        """Returns test metrics of a baseline, and NDCG@10 of each user as "example_scores"."""
        ranks, top = self.ranks(name)
        diversity = list_metrics(top, self._fitted["test"].events)
        return {**ranking_metrics(ranks), **diversity, "example_scores": ndcg(ranks)}

    def ranks(self, name: str, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
        """Returns the ranks [n] of the targets of a split, and the ten best items [n, 10]."""
        held, fitted = self._splits[split], self._fitted[split]
        scores = _SCORES.get(name, _item_scores)(fitted, held, self._chosen(name))
        return _ranks(held, scores, np.arange(len(held)))

    @functools.cache  # noqa: B019 - lives as long as the object
    def _chosen(self, name: str) -> Settings:
        """Returns the settings of a baseline with the best NDCG@10 on validation."""
        grid = dict(_GRIDS[name])
        if "ridge" in grid and self._data.num_items > _FEW_ITEMS:
            grid["ridge"] = grid["ridge"][1:2]
        given = {part: self._chosen(part) for part in _PARTS.get(name, ())}
        settings = [
            {**given, **dict(zip(grid, values, strict=True))}
            for values in itertools.product(*grid.values())
        ]
        if len(settings) == 1:
            return settings[0]
        held, fitted = self._splits["validation"], self._fitted["validation"]
        # Spread over the split, since adjacent users are similar.
        choosers = np.linspace(0, len(held) - 1, min(len(held), _CHOOSERS)).astype(int)
        gains = []
        for each in settings:
            scores = _SCORES.get(name, _item_scores)(fitted, held, each)
            gains.append(ndcg(_ranks(held, scores, choosers)[0]).mean())
        return settings[int(np.argmax(gains))]


def _ranks(held: HeldOut, scores: Scores, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks the items for the users of a split with the given indices.

    Returns:
      Ranks of the targets, and the best items of each user.
    """
    ranks, top = [], []
    for begin in range(0, len(indices), _BLOCK):
        chosen = indices[begin : begin + _BLOCK]
        found = _ranked(scores(chosen), held.seen(chosen), held.target[chosen])
        ranks.append(np.asarray(found["rank"]))
        top.append(np.asarray(found["top"]))
    return np.concatenate(ranks), np.concatenate(top)


_ranked = jax.jit(ranked)


class _Fitted:
    """Statistics of the training events, optionally with the validation events.

    Attributes:
      events: sparse float32 [U, I], 1 for each event.
    """

    def __init__(self, data: RecommendationData, with_validation: bool):
        self._data, self._ends = data, data.train_ends(with_validation)
        self._with_validation = with_validation

    @functools.cached_property
    def events(self) -> sp.csr_matrix:
        matrix = self._data.train_matrix(self._with_validation)
        matrix.data = np.ones_like(matrix.data)
        return matrix

    @functools.cached_property
    def popularity(self) -> np.ndarray:
        """Fraction of all events that belong to each item, float32 [I]."""
        counts = np.asarray(self.events.sum(axis=0), np.float32).ravel()
        return counts / counts.sum()

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def item_cosine(self, neighbours: int, shrink: float) -> sp.csr_matrix:
        """Computes c_ij / (√(c_ii c_jj) + shrink) of items i and j with c_ij common users.

        Each scored item j keeps its largest `neighbours` entries."""
        return _cosine(self.events.T.tocsr(), neighbours, shrink).T.tocsr()

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def user_cosine(self, neighbours: int) -> sp.csr_matrix:
        """Computes the cosines of users. Each row keeps its largest `neighbours` entries."""
        return _cosine(self.events, neighbours, 0.0)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def ease(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Fits EASE (Steck 2019) on the k most popular items.

            B = I - P / diag(P),   P = (XᵀX + λI)⁻¹

        X is the matrix of events, and λ is `ridge`.

        Returns:
          Indices of the k most popular items, [k], and B float32 [k, k].
        """
        return _ease(self.events, ridge)

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def transitions(self, window: int, decay: float) -> sp.csr_matrix:
        """Computes transition probabilities between items, sparse float32 [I, I].

        Two events at a distance of d <= `window` positions count `decay`^(d - 1).
        """
        data, total = self._data, sp.csr_matrix((self._data.num_items,) * 2, dtype=np.float32)
        position = np.arange(len(data.items))
        end = np.repeat(self._ends, np.diff(data.starts))
        for distance in range(1, window + 1):
            source = position[position + distance < end]
            pair = data.items[source], data.items[source + distance]
            weights = np.full(len(source), decay ** (distance - 1), np.float32)
            total = total + sp.csr_matrix((weights, pair), total.shape)
        sums = np.asarray(total.sum(axis=1)).ravel()
        return sp.diags((1 / np.maximum(sums, 1e-9)).astype(np.float32)) @ total


def _cosine(rows: sp.csr_matrix, neighbours: int, shrink: float) -> sp.csr_matrix:
    """Computes the cosines of binary rows [n, m], as a sparse matrix [n, n] without diagonal.

    The inner product of rows i and j is divided by √(c_i c_j) + `shrink`, where c_i is the number
    of ones in row i. Each row of the result keeps only its largest `neighbours` entries.
    """
    norms = np.sqrt(np.maximum(np.diff(rows.indptr), 1)).astype(np.float32)
    columns = rows.T.tocsr()
    blocks = []
    for begin in range(0, rows.shape[0], _BLOCK):
        both = (rows[begin : begin + _BLOCK] @ columns).tocoo()
        own, other = both.row + begin, both.col
        values = both.data / (norms[own] * norms[other] + shrink)
        values[own == other] = 0
        block = sp.csr_matrix((values, (both.row, other)), both.shape)
        blocks.append(_largest(block, neighbours))
    return sp.vstack(blocks, format="csr")


def _largest(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """Keeps the `count` largest entries of each row."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((-matrix.data, row))
    kept = order[np.arange(len(order)) - matrix.indptr[row] < count]
    return sp.csr_matrix((matrix.data[kept], (row[kept], matrix.indices[kept])), matrix.shape)


def _ease(events: sp.csr_matrix, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    counts = np.asarray(events.sum(axis=0)).ravel()
    popular = np.sort(np.argsort(-counts, kind="stable")[:_EASE_ITEMS])
    some = events[:, popular]
    gram = (some.T @ some).toarray()
    gram[np.diag_indices_from(gram)] += ridge
    # Cholesky factors take half the time of a general inverse.
    factor = scipy.linalg.lapack.spotrf(gram, overwrite_a=True)[0]
    inverse = scipy.linalg.lapack.spotri(factor, overwrite_c=True)[0]
    inverse = np.triu(inverse) + np.triu(inverse, 1).T
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return popular, weights


# ---------------------------------------------------------------------- scores of users


def _popularity_scores(fitted: _Fitted, held: HeldOut, settings: Settings) -> Scores:
    return lambda chosen: np.tile(fitted.popularity, (len(chosen), 1))


def _user_scores(fitted: _Fitted, held: HeldOut, settings: Settings) -> Scores:
    """Returns a function that sums the events of the most similar users, weighted by similarity."""
    cosine = fitted.user_cosine(settings["neighbours"])[held.users]
    return lambda chosen: (cosine[chosen] @ fitted.events).toarray()


def _item_scores(fitted: _Fitted, held: HeldOut, settings: Settings) -> Scores:
    """Returns a function that computes H B, with H and B given by the settings."""
    history = held.matrix(settings.get("decay", 1.0), settings.get("window"))
    if "ridge" in settings:
        popular, weights = fitted.ease(settings["ridge"])

        def ease(chosen: np.ndarray) -> np.ndarray:
            scores = np.zeros((len(chosen), history.shape[1]), np.float32)
            scores[:, popular] = history[chosen][:, popular] @ weights
            return scores

        return ease
    if "window" in settings:
        after = fitted.transitions(settings["window"], settings.get("decay", 1.0))
        backoff = _BACKOFF * fitted.popularity
        return lambda chosen: (history[chosen] @ after).toarray() + backoff
    cosine = fitted.item_cosine(settings["neighbours"], settings["shrink"])
    return lambda chosen: (history[chosen] @ cosine).toarray()


def _mixed_scores(fitted: _Fitted, held: HeldOut, settings: Settings) -> Scores:
    """Returns a function for the weighted mean of the scores "ease_recency" and "markov_windowed".

    Both scores of each user are scaled to a maximum of 1 before they are averaged."""
    share = settings["share"]
    ease = _item_scores(fitted, held, settings["ease_recency"])
    markov = _item_scores(fitted, held, settings["markov_windowed"])

    def scaled(scores: np.ndarray) -> np.ndarray:
        return scores / np.maximum(scores.max(axis=1, keepdims=True), 1e-9)

    return lambda chosen: share * scaled(ease(chosen)) + (1 - share) * scaled(markov(chosen))


_SCORES: dict[str, Callable[[_Fitted, HeldOut, Settings], Scores]] = {
    "popularity": _popularity_scores,
    "user_knn": _user_scores,
    "ease_markov": _mixed_scores,
}
_GRIDS: dict[str, Mapping[str, Sequence[Any]]] = {
    "popularity": {},
    "user_knn": {"neighbours": (50, 200)},
    "item_knn": {"neighbours": _NEIGHBOURS, "shrink": _SHRINKS},
    "item_knn_recency": {"neighbours": _NEIGHBOURS, "shrink": _SHRINKS, "decay": _DECAYS},
    "ease": {"ridge": _RIDGES},
    "ease_recency": {"ridge": _RIDGES, "decay": _DECAYS},
    "markov": {"window": (1,)},
    "markov_windowed": {"window": _WINDOWS, "decay": _DECAYS},
    "ease_markov": {"share": _SHARES},
}
# Baselines that are components of others.
_PARTS = {"ease_markov": ("ease_recency", "markov_windowed")}
