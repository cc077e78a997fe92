"""Counting, by hand and by the sum over all ids."""

import numpy as np
import pytest

from tasks.language_modeling.baselines import KneserNey, highest_order, unigram


def test_unigram_by_hand():
    np.testing.assert_allclose(
        unigram([np.array([0, 0, 2]), np.array([0])], 3), np.array([4, 1, 2]) / 7
    )


def test_bigrams_by_hand():
    """The text a b a c over a, b, c and the beginning ^: bigrams ^a, ab, ba, ac, once each.

    Discounts are 1 / (1 + 0) = 1 at order 2. Below, a follows two different ids, b and c one each:
    n_1 = 2, n_2 = 1, so d = 2 / 4 = 1/2 and p_1(a) = 1.5/4 + (1/2)(3/4)(1/3) = 1/2.
    """
    model = KneserNey([np.array([0, 1, 0, 2])], 3, 2)
    one = {0: 1.5 / 4 + 0.125, 1: 0.5 / 4 + 0.125, 2: 0.5 / 4 + 0.125}
    found = model.probabilities([np.array([0, 1, 1])])
    # After ^: c(^) = 1, one kind: 0 + 1 · p_1. After a: c = 2, two kinds. After b: as after ^.
    np.testing.assert_allclose(found, [one[0], one[1], one[1]])
    # With counts of two, the discount is below 1: bigrams ^a twice, ab twice, ba once: d = 1 / 5.
    model = KneserNey([np.array([0, 1, 0]), np.array([0, 1])], 2, 2)
    # One kind before b (a), two before a (^ and b): n_1 = n_2 = 1, d = 1/3.
    lower = (1 - 1 / 3) / 3 + (1 / 3) * (2 / 3) * (1 / 2)
    (found,) = model.probabilities([np.array([0, 1])])[1:]
    np.testing.assert_allclose(found, (2 - 0.2) / 2 + 0.2 * (1 / 2) * lower)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_after_any_context(order):
    rng = np.random.default_rng(0)
    V = 6
    model = KneserNey([rng.zipf(1.5, 30) % V for _ in range(8)], V, order)
    for _ in range(10):
        before = rng.integers(0, V, rng.integers(0, 7))
        total = sum(
            model.probabilities([np.append(before, word).astype(np.int64)])[-1] for word in range(V)
        )
        assert total == pytest.approx(1)


def test_texts_are_told_apart():
    model = KneserNey([np.array([0, 1, 2, 0, 1])], 3, 3)
    one, two = np.array([0, 1, 2]), np.array([2, 0])
    together = model.probabilities([one, two])
    np.testing.assert_array_equal(together[:3], model.probabilities([one]))
    np.testing.assert_array_equal(together[3:], model.probabilities([two]))


def test_longer_contexts_tell_more():
    text = np.tile([0, 1, 2, 0, 3], 40)
    losses = [
        -np.log(KneserNey([text], 4, order).probabilities([text])).mean() for order in (1, 2, 3)
    ]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.05


def test_orders_whose_codes_do_not_fit_are_refused():
    assert highest_order(69) == 10
    with pytest.raises(ValueError, match="order: got 11, expected 1 to 10 with 69 tokens"):
        KneserNey([np.array([0])], 69, 11)
    with pytest.raises(ValueError, match="order: got 0"):
        KneserNey([np.array([0])], 69, 0)
