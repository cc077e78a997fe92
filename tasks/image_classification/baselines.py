"""Cheap classifiers of pictures, fitted on train, their strength chosen on validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.metrics.classification import classification_metrics
from tasks.image_classification.datasets import Images

# Inverse strengths of regularization to choose from; the sum over pictures that they are weighed
# against grows with their number.
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
MANY, MANY_STRENGTHS = 10_000, (0.001, 0.01, 0.1)
GRADIENT_STRENGTHS = (0.01, 0.1)
# Pixels a side above which pictures are shrunk for logistic regression and for gradients.
LARGEST, LARGEST_GRADIENTS = 32, 64
_ORIENTATIONS, _CELL, _BLOCK = 9, 4, 2
_PICTURES = 2000


def logistic_regression(splits: Mapping[str, Images], names: Sequence[str]) -> dict[str, float]:
    """Softmax regression on the pixels; of more than 32 a side the mean of blocks."""
    from sklearn.linear_model import LogisticRegression

    def make(strength: float) -> Any:
        return LogisticRegression(C=strength, max_iter=2000, tol=1e-3 if many else 1e-4)

    many = len(splits["train"]) >= MANY
    return _best(make, MANY_STRENGTHS if many else STRENGTHS, _pixels, splits, names)


def rbf_svm(splits: Mapping[str, Images], names: Sequence[str]) -> dict[str, float]:
    """Support vectors with the kernel exp(-γ |x - y|²), γ = 1 / (pixels · variance)."""
    from sklearn.svm import SVC

    return _best(lambda strength: SVC(C=strength, gamma="scale"), STRENGTHS, _pixels, splits, names)


def hog_linear_svc(splits: Mapping[str, Images], names: Sequence[str]) -> dict[str, float]:
    """A linear SVM, one against the rest, on `oriented_gradients` of the pictures in grey; of more
    than 64 pixels a side of the mean of blocks.
    """
    from sklearn.svm import LinearSVC

    def make(strength: float) -> Any:
        return LinearSVC(C=strength, dual=False, tol=1e-2)

    return _best(make, GRADIENT_STRENGTHS, _gradients, splits, names)


def oriented_gradients(grey: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal & Triggs 2005).

    In each cell of 4 x 4 pixels the lengths of the gradients (central differences, 0 at the border)
    by direction from 0 to π, 9 of them, each length shared between the two nearest; each block of
    2 x 2 cells divided by its Euclidean norm, cut at 0.2, and divided by it again.

    Args:
      grey: [n, Y, X] from 0 to 1; what is left over of cells at the lower and right side is not
        looked at.

    Returns:
      float32 [n, blocks · 36], blocks row by row.
    """
    n, Y, X = grey.shape
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    right[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    length = np.hypot(down, right)
    place = np.arctan2(down, right) % np.pi / np.pi * _ORIENTATIONS - 0.5
    rows, columns = Y // _CELL, X // _CELL
    cells = np.empty((n, rows, columns, _ORIENTATIONS), np.float32)
    for number in range(_ORIENTATIONS):
        apart = np.abs((place - number + _ORIENTATIONS / 2) % _ORIENTATIONS - _ORIENTATIONS / 2)
        share = length * np.maximum(1 - apart, 0)
        inside = share[:, : rows * _CELL, : columns * _CELL]
        cells[..., number] = inside.reshape(n, rows, _CELL, columns, _CELL).sum(axis=(2, 4))
    windows = np.lib.stride_tricks.sliding_window_view(cells, (_BLOCK, _BLOCK), axis=(1, 2))
    blocks = windows.reshape(n, rows - _BLOCK + 1, columns - _BLOCK + 1, -1)
    return _unit(np.minimum(_unit(blocks), 0.2)).reshape(n, -1)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-5)


def _pixels(images: np.ndarray) -> np.ndarray:
    return _shrunk(images, LARGEST).reshape(len(images), -1)


def _gradients(images: np.ndarray) -> np.ndarray:
    grey = _shrunk(images, LARGEST_GRADIENTS).mean(axis=-1)
    # A picture smaller than a block is surrounded by its border.
    least = _BLOCK * _CELL
    missing = [max(least - side, 0) for side in grey.shape[1:]]
    return oriented_gradients(np.pad(grey, [(0, 0), *((0, m) for m in missing)], mode="edge"))


def _shrunk(images: np.ndarray, largest: int) -> np.ndarray:
    """[n, Y, X, C] -> float32 from 0 to 1, means of whole blocks so that no side is larger."""
    factor = -(-max(images.shape[1:3]) // largest)
    floats = images / np.float32(255) if images.dtype == np.uint8 else images
    n, Y, X, C = images.shape
    y, x = Y // factor, X // factor
    inside = floats[:, : y * factor, : x * factor]
    return inside.reshape(n, y, factor, x, factor, C).mean(axis=(2, 4), dtype=np.float32)


def _best(
    make: Callable[[float], Any],
    strengths: Sequence[float],
    features: Callable[[np.ndarray], np.ndarray],
    splits: Mapping[str, Images],
    names: Sequence[str],
) -> dict[str, float]:
    began = time.monotonic()

    def in_portions(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), _PICTURES)
        return np.concatenate([features(images[start : start + _PICTURES]) for start in starts])

    inputs = {split: in_portions(examples.images) for split, examples in splits.items()}
    labels = {split: examples.labels for split, examples in splits.items()}
    fitted = [make(strength).fit(inputs["train"], labels["train"]) for strength in strengths]
    scores = [model.score(inputs["validation"], labels["validation"]) for model in fitted]
    predictions = fitted[int(np.argmax(scores))].predict(inputs["test"])
    metrics = classification_metrics(labels["test"], predictions, names)
    return {**metrics, "seconds": round(time.monotonic() - began, 2)}
