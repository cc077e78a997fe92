"""Ranks, hit rates and lists compared with brute-force counts."""

import itertools

import jax
import numpy as np
import pytest
import scipy.sparse as sp

from tasks.recommendation.metrics import list_metrics, ndcg, ranked, ranking_metrics

USERS, ITEMS = 40, 25


@pytest.fixture(scope="module")
def case():
    """Scores with many ties, what was seen, and targets that were not."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 12, (USERS, ITEMS)).astype(np.float32)
    seen = np.full((USERS, 6), -1, np.int32)
    target = np.zeros(USERS, np.int32)
    for row in range(USERS):
        chosen = rng.permutation(ITEMS)
        count = rng.integers(0, 7)
        seen[row, :count], target[row] = chosen[:count], chosen[-1]
    found = jax.device_get(jax.jit(ranked)(scores, seen, target))
    return scores, seen, target, found


def test_ranks_are_means_over_all_orders_of_ties(case):
    scores, seen, target, found = case
    for row in range(USERS):
        own = scores[row, target[row]]
        others = [scores[row, i] for i in range(ITEMS) if i not in seen[row] and i != target[row]]
        best = 1 + sum(score > own for score in others)
        worst = best + sum(score == own for score in others)
        assert found["rank"][row] == (best + worst) / 2


def test_best_unseen_items_are_listed(case):
    scores, seen, _, found = case
    for row in range(USERS):
        assert not set(found["top"][row]) & set(seen[row])
        rest = sorted((scores[row, i] for i in range(ITEMS) if i not in seen[row]), reverse=True)
        np.testing.assert_array_equal(found["top_scores"][row], rest[:10])
        np.testing.assert_array_equal(scores[row, found["top"][row]], rest[:10])


def test_figures_are_counts(case):
    ranks = case[3]["rank"]
    hits = discounted = reciprocal = 0.0
    for rank in ranks:
        reciprocal += 1 / rank
        if rank <= 10:
            hits += 1
            discounted += 1 / np.log2(1 + rank)
    found = ranking_metrics(ranks)
    np.testing.assert_allclose(found["hr_at_10"], hits / USERS)
    np.testing.assert_allclose(found["ndcg_at_10"], discounted / USERS)
    np.testing.assert_allclose(found["mrr"], reciprocal / USERS)
    np.testing.assert_allclose(ndcg([1, 3, 10.5]), [1, 0.5, 0])


def test_no_number_is_the_worst_score_and_few_items_make_short_lists():
    scores = np.array([[np.nan, 1, 2], [0, 0, 0]], np.float32)
    seen = np.array([[-1, -1], [1, 2]], np.int32)
    found = jax.device_get(jax.jit(ranked)(scores, seen, np.array([0, 0])))
    np.testing.assert_array_equal(found["rank"], [3, 1])
    np.testing.assert_array_equal(found["top"], [[2, 1, 0], [0, -1, -1]])


def test_coverage_and_diversity_are_counts():
    rng = np.random.default_rng(1)
    events = (rng.random((30, ITEMS)) < 0.3).astype(np.float32)
    events[:, 3] = 0
    top = np.stack([rng.permutation(20)[:4] for _ in range(12)])
    top[0, 2:] = -1
    different = []
    for row in top:
        for i, j in itertools.combinations(row[row >= 0], 2):
            norms = np.linalg.norm(events[:, i]) * np.linalg.norm(events[:, j])
            different.append(1 - (events[:, i] @ events[:, j] / norms if norms else 0))
    places = events * rng.integers(1, 9, events.shape)
    found = list_metrics(top, sp.csr_matrix(places))
    np.testing.assert_allclose(found["diversity"], np.mean(different), rtol=1e-6)
    assert found["coverage"] == len(set(top.ravel()) - {-1}) / ITEMS
    assert list_metrics(top[:, :1], sp.csr_matrix(places))["diversity"] == 0
