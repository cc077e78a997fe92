"""Baselines: hand-computed ratios, the limits of NB-SVM, determinism."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from tasks.text_classification import baselines

TEXTS = ["good film", "good plot", "fine film", "bad film", "bad plot", "awful bad cast"] * 3
LABELS = np.array([1, 1, 1, 0, 0, 0] * 3)
ALL = [baselines.tfidf_linear_svc, baselines.tfidf_logistic_regression, baselines.nb_svm]


def test_log_count_ratio_by_hand():
    features = csr_matrix([[1, 0, 1], [1, 0, 0], [0, 1, 1]])
    inside = np.array([True, True, False])
    # p = 1 + (2, 0, 1) = (3, 1, 2), |p| = 6; q = 1 + (0, 1, 1) = (1, 2, 2), |q| = 5.
    expected = np.log([3 / 6 / (1 / 5), 1 / 6 / (2 / 5), 2 / 6 / (2 / 5)])
    np.testing.assert_allclose(baselines.log_count_ratio(features, inside), expected)


def test_nb_svm_with_beta_zero_is_naive_bayes_with_equal_priors():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(30)])
    labels = np.arange(200) % 2
    texts = [" ".join(rng.choice(words[5 * y :], 6, replace=False)) for y in labels]
    vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"\w+")
    oracle = MultinomialNB(fit_prior=False)
    oracle.fit(vectorizer.fit_transform(texts[:150]), labels[:150])
    expected = oracle.predict(vectorizer.transform(texts[150:]))
    got = baselines.nb_svm(texts[:150], labels[:150], beta=0.0)(texts[150:])
    np.testing.assert_array_equal(got, expected)
    assert 0 < expected.mean() < 1


def test_nb_svm_with_beta_one_is_a_svm_on_scaled_features():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.svm import LinearSVC

    vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True)
    features = vectorizer.fit_transform(TEXTS)
    ratio = baselines.log_count_ratio(features, LABELS == 1)
    oracle = LinearSVC(random_state=0).fit(features.multiply(ratio).tocsr(), LABELS)
    texts = ["good cast", "awful plot", "fine plot", "bad good film", "unseen"]
    expected = oracle.predict(vectorizer.transform(texts).multiply(ratio).tocsr())
    got = baselines.nb_svm(TEXTS, LABELS, beta=1.0)(texts)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("fit", ALL, ids=lambda fit: fit.__name__)
def test_two_and_more_classes_and_repeatability(fit):
    assert fit(TEXTS, LABELS)(["good", "awful bad"]).tolist() == [1, 0]
    texts = [*TEXTS, *["rain wind", "wind sun", "rain sun"] * 3]
    labels = np.concatenate([LABELS, np.full(9, 7)])
    first, second = (fit(texts, labels)([*texts, "sun film"]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert fit(texts, labels)(["wind", "good", "bad"]).tolist() == [7, 1, 0]


@pytest.mark.parametrize("fit", ALL, ids=lambda fit: fit.__name__)
def test_a_handful_of_short_texts_is_enough(fit):
    assert fit(["yes", "no"], np.array([0, 1]))(["yes", "no"]).tolist() == [0, 1]
