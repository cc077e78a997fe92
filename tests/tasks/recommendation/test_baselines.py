"""The baselines compared with their closed forms, scikit-learn and plain loops."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from tasks.recommendation import baselines
from tasks.recommendation.baselines import Baselines, _Fitted, _item_scores, _mixed_scores
from tasks.recommendation.data import DataConfig, in_order
from tasks.recommendation.sequences import RecommendationDataset
from tasks.recommendation.user_files import Events

USERS, ITEMS = 30, 12


@pytest.fixture(scope="module")
def data():
    """Returns events in which each user moves by one or two items, with an occasional leap."""
    rng = np.random.default_rng(0)
    user, item = [], []
    for number in range(USERS):
        places = rng.integers(ITEMS) + np.cumsum(rng.integers(1, 3, 9))
        history = list(dict.fromkeys((places % ITEMS).tolist()))
        item += history
        user += [number] * len(history)
    names = tuple(map(str, range(USERS)))
    events = Events(np.array(user, np.int32), np.array(item, np.int32), None, names, names[:ITEMS])
    return in_order(events)[0]


@pytest.fixture(scope="module")
def splits(data):
    return RecommendationDataset(data, DataConfig()).splits


def everyone(scores):
    return scores(np.arange(USERS))


def histories(data, split):
    return [split.history(index).tolist() for index in range(len(split))]


def test_ease_is_its_closed_form(data, splits):
    for with_validation, split in ((False, "validation"), (True, "test")):
        fitted = _Fitted(data, with_validation)
        x = fitted.events.toarray().astype(np.float64)
        inverse = np.linalg.inv(x.T @ x + 5 * np.eye(ITEMS))
        weights = np.eye(ITEMS) - inverse / np.diag(inverse)
        held = splits[split]
        rows = np.zeros((USERS, ITEMS))
        for row, history in enumerate(histories(data, held)):
            for place, item in enumerate(reversed(history)):
                rows[row, item] = 0.5**place
        found = everyone(_item_scores(fitted, held, {"ridge": 5.0, "decay": 0.5}))
        np.testing.assert_allclose(found, rows @ weights, atol=1e-5)


def test_item_knn_is_cosine_to_the_nearest(data, splits):
    fitted, held = _Fitted(data, True), splits["test"]
    cosine = cosine_similarity(fitted.events.T.toarray())
    np.fill_diagonal(cosine, 0)
    found = fitted.item_cosine(ITEMS, 0.0).toarray()
    np.testing.assert_allclose(found, cosine, atol=1e-6)
    nearest = fitted.item_cosine(3, 0.0).toarray()
    # Of each item to be scored, a column.
    assert (np.count_nonzero(nearest, axis=0) <= 3).all()
    np.testing.assert_allclose(nearest.sum(0), np.sort(cosine, axis=0)[-3:].sum(0), rtol=1e-5)
    scores = everyone(_item_scores(fitted, held, {"neighbours": 3, "shrink": 0.0}))
    np.testing.assert_allclose(scores, held.matrix() @ nearest, rtol=1e-5)


def test_transitions_are_shares_of_what_came_after(data):
    fitted, window, decay = _Fitted(data, False), 3, 0.5
    counts = np.zeros((ITEMS, ITEMS))
    for user in range(USERS):
        history = data.items[data.starts[user] : data.train_ends()[user]]
        for place, item in enumerate(history):
            for distance, after in enumerate(history[place + 1 : place + 1 + window]):
                counts[item, after] += decay**distance
    expected = counts / np.maximum(counts.sum(1, keepdims=True), 1e-9)
    np.testing.assert_allclose(fitted.transitions(window, decay).toarray(), expected, rtol=1e-5)


def test_mix_is_of_both_at_their_greatest(data, splits):
    fitted, held = _Fitted(data, True), splits["test"]
    parts = {
        "ease_recency": {"ridge": 5.0, "decay": 0.5},
        "markov_windowed": {"window": 2, "decay": 0.5},
    }
    one, other = (everyone(_item_scores(fitted, held, part)) for part in parts.values())
    expected = 0.3 * one / one.max(1, keepdims=True) + 0.7 * other / other.max(1, keepdims=True)
    found = everyone(_mixed_scores(fitted, held, {**parts, "share": 0.3}))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_all_of_them_have_figures_on_test(data, splits, monkeypatch):
    few = {name: {key: values[:2] for key, values in grid.items()}
           for name, grid in baselines._GRIDS.items()}  # fmt: skip
    monkeypatch.setattr(baselines, "_GRIDS", few)
    fitted = Baselines(data, splits["validation"], splits["test"], with_validation=True)
    assert len(fitted.names) == 9
    found = {name: fitted.metrics(name) for name in fitted.names}
    for metrics in found.values():
        assert 0 < metrics["ndcg_at_10"] <= metrics["hr_at_10"] <= 1
        assert 0 < metrics["coverage"] <= 1
        assert metrics["example_scores"].mean() == pytest.approx(metrics["ndcg_at_10"], rel=1e-5)
    # The next item depends on the last one.
    assert found["markov"]["mrr"] > found["popularity"]["mrr"] + 0.1
    of_train = Baselines(data, splits["validation"], splits["test"], with_validation=False)
    for tested, with_validation in ((fitted, True), (of_train, False)):
        popularity = data.popularity(with_validation=with_validation)
        ranks, top = tested.ranks("popularity")
        for row, history in enumerate(histories(data, splits["test"])):
            rest = [popularity[item] for item in range(ITEMS) if item not in history]
            own = popularity[splits["test"].target[row]]
            equal = sum(count == own for count in rest) - 1
            assert ranks[row] == 1 + sum(count > own for count in rest) + equal / 2
            assert not set(top[row]) & set(history)
    monkeypatch.setattr(baselines, "_LARGE", 10)
    light = Baselines(data, splits["validation"], splits["test"], with_validation=True).names
    assert light == ("popularity", "markov", "markov_windowed")
