"""Baselines of text classification: TF-IDF with a linear model, and NB-SVM.

Each baseline is a function fit(train_texts, train_labels) -> predict(texts). The models are linear
in sparse word counts, deterministic, and fitted in seconds. Settings are scikit-learn's defaults
unless stated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tasks.common.text.tokenizer import PAD

Predict = Callable[[Sequence[str]], np.ndarray]

# Keeps words of one letter ("I", "a", "s"), which scikit-learn's default pattern drops.
_WORD = r"(?u)\b\w+\b"
_SEED = 0


def tfidf_linear_svc(train_texts: Sequence[str], train_labels: np.ndarray) -> Predict:
    """Fits a linear SVM (C = 1) on sublinear TF-IDF of uni- and bigrams.

    N-grams that occur in only one text are ignored.

    Args:
      train_texts: texts of the training split.
      train_labels: classes of these texts, int [n].

    Returns:
      A function from texts to their predicted labels.
    """
    from sklearn.svm import LinearSVC

    return _tfidf(train_texts, train_labels, LinearSVC(C=1.0, random_state=_SEED))


def tfidf_logistic_regression(train_texts: Sequence[str], train_labels: np.ndarray) -> Predict:
    """Fits logistic regression (C = 10) on the features of `tfidf_linear_svc`."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=10.0, max_iter=1000, random_state=_SEED)
    return _tfidf(train_texts, train_labels, model)


def nb_svm(
    train_texts: Sequence[str],
    train_labels: np.ndarray,
    alpha: float = 1.0,
    beta: float = 0.25,
    cost: float = 1.0,
) -> Predict:
    """Fits NB-SVM (Wang & Manning 2012, "Baselines and Bigrams").

    Binary uni- and bigram features f are scaled by the naive Bayes log-count ratio r of a class
    against the other classes, see `log_count_ratio`. A linear SVM with squared hinge loss is fitted
    to f * r. Its weights w are interpolated, w' = (1 - beta) |w|_1 / V + beta w, for V features.
    With more than two classes, there is one SVM for each class against the others.

    Args:
      train_texts: texts of the training split.
      train_labels: classes of these texts, int [n].
      alpha: smoothing of the counts.
      beta: interpolation of the weights; 1 gives the SVM on f * r, 0 gives naive Bayes.
      cost: C of the SVM.

    Returns:
      A function from texts to their predicted labels.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.svm import LinearSVC

    vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=_WORD, dtype=float)
    features = vectorizer.fit_transform(train_texts)
    labels = np.asarray(train_labels)
    classes = np.unique(labels)
    # Two classes need one model, of the second class against the first.
    columns = []
    for target in classes[1:] if len(classes) == 2 else classes:
        inside = labels == target
        ratio = log_count_ratio(features, inside, alpha)
        model = LinearSVC(C=cost, random_state=_SEED, max_iter=10_000)
        model.fit(features.multiply(ratio).tocsr(), inside)
        weights = model.coef_[0]
        mean = np.abs(weights).mean()
        columns.append((ratio * ((1 - beta) * mean + beta * weights), beta * model.intercept_[0]))
    matrix = np.stack([weights for weights, _ in columns], axis=1)
    offsets = np.array([offset for _, offset in columns])

    def predict(texts: Sequence[str]) -> np.ndarray:
        scores = vectorizer.transform(texts) @ matrix + offsets
        if len(classes) == 2:
            return classes[(scores[:, 0] > 0).astype(int)]
        return classes[np.argmax(scores, axis=1)]

    return predict


def log_count_ratio(features, inside: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """Computes the log-count ratio of a class.

        r = log((p / |p|_1) / (q / |q|_1))

    where p = alpha + the sum of f over the texts of the class, and q = alpha + the sum of f
    over the other texts.

    Args:
      features: f, sparse 0/1 matrix [n, V].
      inside: bool [n], True for texts of the class.
      alpha: smoothing, a number that is added to each count.

    Returns:
      r, [V].
    """
    p = alpha + np.asarray(features[inside].sum(axis=0)).ravel()
    q = alpha + np.asarray(features[~inside].sum(axis=0)).ravel()
    return np.log(p / p.sum()) - np.log(q / q.sum())


def naive_bayes_prior(
    tokens: Sequence[np.ndarray], labels: np.ndarray, vocabulary: int, classes: int
) -> np.ndarray:
    """Computes the log-count ratio of each token id for each class against the other classes.

    Args:
      tokens: token ids of each text; repeated ids count once.
      labels: class of each text, int [n].
      vocabulary: number of token ids.
      classes: number of classes.

    Returns:
      float32 [vocabulary, classes], 0 for the padding id. With two classes [vocabulary, 1], the
      ratios of class 1.
    """
    present = _presence(tokens, vocabulary)
    targets = [1] if classes == 2 else range(classes)
    ratios = [log_count_ratio(present, labels == target) for target in targets]
    prior = np.stack(ratios, axis=1).astype(np.float32)
    prior[PAD] = 0
    return prior


def tfidf_prior(
    tokens: Sequence[np.ndarray], labels: np.ndarray, vocabulary: int, classes: int
) -> np.ndarray:
    """Computes the contribution of each token id to the class scores of two linear models.

    The models are a linear SVM (C = 1, one class against the others) and complement naive Bayes
    (Rennie et al. 2003; smoothing 0.1). Both are fitted to TF-IDF vectors of the tokens that a text
    contains: x[t] = idf[t], divided by the Euclidean norm of these values. The scores of each model
    are scaled to standard deviation 1 over the training texts, and added: s_c = x · w_c. Column c
    of the result is idf * w_c, divided by the root mean square of idf in the training texts. The
    sum of column c over the n tokens of a text, divided by sqrt(n), approximates s_c.

    Args:
      tokens: token ids of each text; repeated ids count once.
      labels: class of each text, int [n]; every class occurs.
      vocabulary: number of token ids.
      classes: number of classes.

    Returns:
      float32 [vocabulary, classes], 0 for the padding id. With two classes [vocabulary, 1], the
      score of class 1 minus the score of class 0.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.naive_bayes import ComplementNB
    from sklearn.svm import LinearSVC

    present = _presence(tokens, vocabulary)
    weighting = TfidfTransformer().fit(present)
    features = weighting.transform(present)
    svm = LinearSVC(C=1.0, random_state=_SEED, max_iter=10_000).fit(features, labels)
    bayes = ComplementNB(alpha=0.1).fit(features, labels)
    of_svm = np.stack([-svm.coef_[0], svm.coef_[0]]) if classes == 2 else svm.coef_
    of_bayes = bayes.feature_log_prob_ - bayes.feature_log_prob_.mean(axis=0)
    weights = sum(each / np.std(features @ each.T) for each in (of_svm, of_bayes))
    frequency = np.asarray(present.sum(axis=0)).ravel()
    scale = np.sqrt(np.sum(frequency * weighting.idf_**2) / np.sum(frequency))
    prior = (weights * weighting.idf_ / scale).T.astype(np.float32)
    if classes == 2:
        prior = prior[:, 1:] - prior[:, :1]
    prior[PAD] = 0
    return prior


# Functions for `EmbeddingConfig.prior`, with the same arguments: token ids of the texts, labels,
# number of token ids, number of classes.
PRIORS = {"naive_bayes": naive_bayes_prior, "tfidf": tfidf_prior}


def _presence(tokens: Sequence[np.ndarray], vocabulary: int):
    """Returns the sparse 0/1 matrix [n, vocabulary] of the token ids in each text."""
    from scipy.sparse import csr_matrix

    unique = [np.unique(ids) for ids in tokens]
    starts = np.cumsum([0, *(len(ids) for ids in unique)])
    columns = np.concatenate(unique)
    return csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(unique), vocabulary))


def _tfidf(train_texts: Sequence[str], train_labels: np.ndarray, model) -> Predict:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=_WORD
    )
    try:
        features = vectorizer.fit_transform(train_texts)
    except ValueError:  # no n-gram occurs in two texts
        vectorizer.set_params(min_df=1)
        features = vectorizer.fit_transform(train_texts)
    model.fit(features, train_labels)
    return lambda texts: model.predict(vectorizer.transform(texts))
