"""Cheap classifiers of pixels, fitted on train, their strength chosen on validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.metrics import classification_metrics
from tasks.image_classification.data import Images

# Inverse strengths of regularization to choose from.
STRENGTHS = (0.1, 1.0, 10.0, 100.0)


def logistic_regression(splits: Mapping[str, Images], names: Sequence[str]) -> dict[str, float]:
    """Softmax regression on the pixels."""
    from sklearn.linear_model import LogisticRegression

    return _best(lambda strength: LogisticRegression(C=strength, max_iter=2000), splits, names)


def rbf_svm(splits: Mapping[str, Images], names: Sequence[str]) -> dict[str, float]:
    """Support vectors with the kernel exp(-γ |x - y|²), γ = 1 / (pixels · variance)."""
    from sklearn.svm import SVC

    return _best(lambda strength: SVC(C=strength, gamma="scale"), splits, names)


def _best(
    make: Callable[[float], Any], splits: Mapping[str, Images], names: Sequence[str]
) -> dict[str, float]:
    began = time.monotonic()
    pixels = {
        split: examples.images.reshape(len(examples), -1) for split, examples in splits.items()
    }
    labels = {split: examples.labels for split, examples in splits.items()}
    fitted = [make(strength).fit(pixels["train"], labels["train"]) for strength in STRENGTHS]
    scores = [model.score(pixels["validation"], labels["validation"]) for model in fitted]
    predictions = fitted[int(np.argmax(scores))].predict(pixels["test"])
    metrics = classification_metrics(labels["test"], predictions, names)
    return {**metrics, "seconds": round(time.monotonic() - began, 2)}
