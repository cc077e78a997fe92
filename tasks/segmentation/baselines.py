"""Baselines that classify pixels by position, or by color and position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.segmentation.data import SegmentationExamples
from tasks.segmentation.metrics import (
    VOID,
    confusion_matrices,
    iou_contributions,
    segmentation_metrics,
)

# Number of training pixels, number of trees and minimum leaf size of the forest. With these values
# it is fitted in a few seconds.
_PIXELS, _TREES, _LEAF = 200_000, 20, 20
# Number of images that are classified at a time.
_PORTION = 16


def location_prior(
    splits: Mapping[str, SegmentationExamples], names: Sequence[str]
) -> dict[str, Any]:
    """Predicts, at each position, the class that is most frequent there in the training split."""
    labels = splits["train"].labels
    counts = np.stack([np.sum(labels == k, axis=0) for k in range(len(names))], axis=-1)
    # Positions that are void in all training images get the most frequent class.
    prior = np.where(counts.any(axis=-1), counts.argmax(axis=-1), counts.sum(axis=(0, 1)).argmax())
    test = splits["test"].labels
    return _metrics(test, np.broadcast_to(prior, test.shape), names)


def random_forest(
    splits: Mapping[str, SegmentationExamples], names: Sequence[str]
) -> dict[str, Any]:
    """Fits a random forest (Breiman 2001) on color and position of single pixels."""
    from sklearn.ensemble import RandomForestClassifier

    train, rng = splits["train"], np.random.default_rng(0)
    labeled = np.flatnonzero(train.labels != VOID)
    chosen = np.sort(rng.choice(labeled, min(_PIXELS, len(labeled)), replace=False))
    forest = RandomForestClassifier(
        _TREES, min_samples_leaf=min(_LEAF, 1 + len(chosen) // 100), random_state=0
    )
    forest.fit(_features(train.images, chosen), train.labels.ravel()[chosen])
    test, predicted = splits["test"], []
    for first in range(0, len(test), _PORTION):
        images = test.images[first : first + _PORTION]
        pixels = np.arange(images[..., 0].size)
        found = forest.predict(_features(images, pixels))
        predicted.append(found.reshape(images.shape[:3]))
    return _metrics(test.labels, np.concatenate(predicted), names)


def _features(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Returns the features of pixels, [pixels, 5]: three colors, row / height, column / width."""
    _, Y, X, _ = images.shape
    row, column = chosen // X % Y, chosen % X
    colors = images.reshape(-1, 3)[chosen] / np.float32(255)
    return np.column_stack([colors, row / np.float32(Y), column / np.float32(X)])


def _metrics(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Returns the metrics, and the contribution of each image to the mean IoU."""
    confusions = confusion_matrices(truth, predicted, len(names))
    metrics = segmentation_metrics(confusions.sum(axis=0), names)
    return {**metrics, "example_scores": iou_contributions(confusions).astype(np.float32)}
