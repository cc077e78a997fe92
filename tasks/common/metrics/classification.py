"""Classification metrics of scikit-learn, with the names of results files and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Computes accuracy, macro and per-class precision, recall and F1, and MCC.

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
