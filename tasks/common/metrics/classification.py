"""Classification metrics of scikit-learn, under the names that results files and tables use."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tasks.common.metrics.descriptions import Metric, fraction, lower

# Number of bootstrap samples, and number of samples that are drawn at a time.
_SAMPLES, _PORTION = 1000, 50

CLASSIFICATION = {
    "accuracy": fraction("correctly classified examples"),
    "macro_f1": fraction("mean of the F1 of all classes, each with the same weight"),
    "macro_precision": fraction("mean of the precision of all classes"),
    "macro_recall": fraction("mean of the recall of all classes"),
    "mcc": Metric("Matthews correlation of true and predicted classes", "from -1 to 1", True),
    "loss": lower("cross-entropy of the true class", "nats per example"),
    r"top_(\d+)_accuracy": fraction("examples whose true class is among the first {0}"),
    "coverage": fraction("examples with a probability of at least the threshold", None),
    "covered_accuracy": fraction("covered examples that are classified correctly"),
    "decided_accuracy": fraction("correct decisions at the threshold of the positive class"),
    "decided_precision": fraction("decisions for the positive class that are correct"),
    "decided_recall": fraction("examples of the positive class that are decided to be positive"),
    "decided_f1": fraction("F1 of the decisions for the positive class"),
    "precision_(.+)": fraction("precision of the class {0}: predictions of it that are correct"),
    "recall_(.+)": fraction("recall of the class {0}: examples of it that are found"),
    "f1_(.+)": fraction("F1 of the class {0}"),
}
"""Descriptions of the metrics of `classification_metrics`, and of the loss."""


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Computes accuracy, MCC, and precision, recall and F1 of each class and as macro averages.

        precision = TP / (TP + FP),   recall = TP / (TP + FN),   F1 = 2·TP / (2·TP + FP + FN)

    with 0 / 0 = 0. Macro values are means over the classes that occur in labels or predictions, as
    in `sklearn.metrics.f1_score(average="macro")`. MCC is the multi-class version of Gorodkin
    (2004); it is 0 if labels or predictions have only one class.

    Args:
      labels: int [n], true classes.
      predictions: int [n], predicted classes.
      names: names of the classes, in the order of their indices.

    Returns:
      `accuracy`, `macro_f1`, `macro_precision`, `macro_recall`, `mcc`, and for each name
      `precision_<name>`, `recall_<name>`, `f1_<name>`.

    Raises:
      ValueError: there are no examples, shapes differ, or a class index has no name.
    """
    from sklearn import metrics

    labels, predictions = np.asarray(labels), np.asarray(predictions)
    _check(labels, predictions, names)
    classes = np.arange(len(names))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=0
    )
    occurring = np.union1d(labels, predictions)
    result = {
        "accuracy": metrics.accuracy_score(labels, predictions),
        "macro_f1": f1[occurring].mean(),
        "macro_precision": precision[occurring].mean(),
        "macro_recall": recall[occurring].mean(),
        "mcc": metrics.matthews_corrcoef(labels, predictions),
    }
    for number, name in enumerate(names):
        result[f"precision_{name}"] = precision[number]
        result[f"recall_{name}"] = recall[number]
        result[f"f1_{name}"] = f1[number]
    return {name: float(value) for name, value in result.items()}


def classification_intervals(
    labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Computes 95 % confidence intervals of the metrics of `classification_metrics`.

    The interval of the accuracy is a Wilson interval. The others are percentiles of 1000 bootstrap
    samples (Efron 1979). A sample is not drawn as n examples with replacement, but directly as the
    cells of its confusion matrix, whose counts have a multinomial distribution.

    Args:
      labels, predictions, names: see `classification_metrics`.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    _check(labels, predictions, names)
    K, n = len(names), len(labels)
    counts = np.bincount(labels * K + predictions, minlength=K * K)
    cells = np.flatnonzero(counts)
    rng = np.random.default_rng(0)
    drawn: dict[str, list[np.ndarray]] = {}
    for _ in range(_SAMPLES // _PORTION):
        confusion = np.zeros((_PORTION, K * K))
        confusion[:, cells] = rng.multinomial(n, counts[cells] / n, _PORTION)
        for name, values in _from_confusion(confusion.reshape(-1, K, K), names).items():
            drawn.setdefault(name, []).append(values)
    found = {}
    for name, parts in drawn.items():
        low, high = np.percentile(np.concatenate(parts), (2.5, 97.5)).tolist()
        # If all samples have the same value, such as when nothing is misclassified, they do not
        # measure the spread, and the metric gets no interval.
        if low < high:
            found[name] = low, high
    hits = int((labels == predictions).sum())
    return {"accuracy": wilson_interval(hits, n), **found}


def _from_confusion(confusion: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Computes the metrics of R confusion matrices, apart from the accuracy.

    Args:
      confusion: counts, [R, C, C], with true classes in rows and predicted classes in columns.
      names: names of the C classes.

    Returns:
      The values of each metric, [R], by its name.
    """
    hits = np.einsum("rkk->rk", confusion)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    occurring = (true + predicted) > 0
    per_class = {
        "f1": _ratio(2 * hits, true + predicted),
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, true),
    }
    found = {
        f"macro_{name}": np.sum(values * occurring, axis=1) / occurring.sum(axis=1)
        for name, values in per_class.items()
    }
    n = confusion.sum(axis=(1, 2))
    covariance = n * hits.sum(axis=1) - np.sum(true * predicted, axis=1)
    spread = (n**2 - np.sum(true**2, axis=1)) * (n**2 - np.sum(predicted**2, axis=1))
    found["mcc"] = _ratio(covariance, np.sqrt(spread))
    for number, label in enumerate(names):
        found |= {f"{name}_{label}": values[:, number] for name, values in per_class.items()}
    return found


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, np.zeros_like(numerator), where=denominator > 0)


def wilson_interval(hits: int, total: int) -> tuple[float, float]:
    """Computes the 95 % confidence interval of a fraction (Wilson 1927).

    Args:
      hits: number of hits.
      total: number of trials, at least 1.
    """
    z, p = 1.96, hits / total
    center = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return max(center - half, 0.0), min(center + half, 1.0)


def _check(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> None:
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(
            f"predictions: got shape {predictions.shape} with labels {labels.shape}, expected "
            "equal shapes of one dimension"
        )
    if labels.size == 0:
        raise ValueError("labels: got no examples, expected at least one")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name}: got dtype {values.dtype}, expected integers")
        if values.min() < 0 or values.max() >= len(names):
            raise ValueError(
                f"{name}: got classes {values.min()} to {values.max()}, "
                f"expected 0 to {len(names) - 1}"
            )
