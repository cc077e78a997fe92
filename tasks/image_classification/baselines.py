"""Classical baselines, whose regularization is selected on the validation split.

Y X height and width, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tasks.image_classification.datasets import Images

# Inverse strengths of regularization to select from. The loss is a sum over images, so large data
# sets need smaller values.
STRENGTHS = (0.1, 1.0, 10.0, 100.0)
MANY, MANY_STRENGTHS = 10_000, (0.001, 0.01, 0.1)
GRADIENT_STRENGTHS = (0.01, 0.1)
KERNEL_STRENGTHS = (3.0, 10.0)
# The time of an SVM with a kernel grows with the square of the number of training images, so it is
# fitted to at most this many.
MOST_FOR_KERNEL = 60_000
# Largest side of an image, in pixels, for features of pixels and for features of gradients. Larger
# images are downsampled.
LARGEST, LARGEST_GRADIENTS = 32, 64
# Number of principal components of gradients for an SVM with a kernel.
_COMPONENTS = 200
_ORIENTATIONS, _CELL, _BLOCK = 9, 4, 2
_CHUNK = 2000


def logistic_regression(splits: Mapping[str, Images]) -> np.ndarray:
    """Predicts test classes by softmax regression on pixels.

    Images are downsampled to at most 32 pixels a side.
    """
    from sklearn.linear_model import LogisticRegression

    def make(strength: float) -> Any:
        return LogisticRegression(C=strength, max_iter=2000, tol=1e-3 if many else 1e-4)

    many = len(splits["train"]) >= MANY
    return _predictions_of_best(make, MANY_STRENGTHS if many else STRENGTHS, _pixels, splits)


def rbf_svm(splits: Mapping[str, Images]) -> np.ndarray:
    """Predicts test classes by an SVM on pixels.

    Images are downsampled to at most 32 pixels a side. The kernel is exp(-γ |x - y|²) with
    γ = 1 / (pixels · variance).
    """
    from sklearn.svm import SVC

    return _predictions_of_best(
        lambda strength: SVC(C=strength, gamma="scale"), STRENGTHS, _pixels, splits
    )


def hog_linear_svc(splits: Mapping[str, Images]) -> np.ndarray:
    """Predicts test classes by a one-versus-rest linear SVM on `oriented_gradients`.

    Images are converted to gray, and downsampled to at most 64 pixels a side.
    """
    from sklearn.svm import LinearSVC

    def make(strength: float) -> Any:
        return LinearSVC(C=strength, dual=False, tol=1e-2)

    return _predictions_of_best(make, GRADIENT_STRENGTHS, _gradients, splits)


def hog_rbf_svm(splits: Mapping[str, Images]) -> np.ndarray:
    """Predicts test classes by an SVM with an RBF kernel on `oriented_gradients`.

    The features are the first 200 principal components of the gradients, or all if there are fewer.
    Images are converted to gray and downsampled to at most 64 pixels a side. The kernel is
    exp(-γ |x - y|²) with γ = 1 / (components · variance).
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    def make(strength: float) -> Any:
        components = PCA(count, svd_solver="randomized", random_state=0)
        return make_pipeline(components, SVC(C=strength, gamma="scale", cache_size=1000))

    images = splits["train"].images
    count = min(_COMPONENTS, len(images), _gradients(images[:1]).shape[1])
    return _predictions_of_best(make, KERNEL_STRENGTHS, _gradients, splits)


def oriented_gradients(gray: np.ndarray) -> np.ndarray:
    """Computes histograms of oriented gradients (Dalal & Triggs 2005).

    Each cell of 4 x 4 pixels has a histogram of gradient magnitudes over 9 directions from 0 to π;
    a magnitude is divided between the two nearest bins. Gradients are central differences, 0 at the
    border. The histograms of each block of 2 x 2 cells are divided by their joint Euclidean norm,
    clipped at 0.2, and normalized again.

    Args:
      gray: [n, Y, X] from 0 to 1; incomplete cells at the lower and right border are ignored.

    Returns:
      float32 [n, blocks · 36], with the overlapping blocks row by row.
    """
    n, Y, X = gray.shape
    down, right = np.zeros_like(gray), np.zeros_like(gray)
    down[:, 1:-1] = gray[:, 2:] - gray[:, :-2]
    right[:, :, 1:-1] = gray[:, :, 2:] - gray[:, :, :-2]
    length = np.hypot(down, right)
    direction = np.arctan2(down, right) % np.pi / np.pi * _ORIENTATIONS - 0.5
    rows, columns = Y // _CELL, X // _CELL
    cells = np.empty((n, rows, columns, _ORIENTATIONS), np.float32)
    for bin_ in range(_ORIENTATIONS):
        distance = np.abs(
            (direction - bin_ + _ORIENTATIONS / 2) % _ORIENTATIONS - _ORIENTATIONS / 2
        )
        weight = length * np.maximum(1 - distance, 0)
        inside = weight[:, : rows * _CELL, : columns * _CELL]
        cells[..., bin_] = inside.reshape(n, rows, _CELL, columns, _CELL).sum(axis=(2, 4))
    windows = np.lib.stride_tricks.sliding_window_view(cells, (_BLOCK, _BLOCK), axis=(1, 2))
    blocks = windows.reshape(n, rows - _BLOCK + 1, columns - _BLOCK + 1, -1)
    return _normalize(np.minimum(_normalize(blocks), 0.2)).reshape(n, -1)


def _normalize(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-5)


def _pixels(images: np.ndarray) -> np.ndarray:
    return _downsample(images, LARGEST).reshape(len(images), -1)


def _gradients(images: np.ndarray) -> np.ndarray:
    gray = _downsample(images, LARGEST_GRADIENTS).mean(axis=-1)
    # Images smaller than a block are padded.
    least = _BLOCK * _CELL
    missing = [max(least - side, 0) for side in gray.shape[1:]]
    return oriented_gradients(np.pad(gray, [(0, 0), *((0, m) for m in missing)], mode="edge"))


def _downsample(images: np.ndarray, largest: int) -> np.ndarray:
    """Averages square blocks of pixels so that no side of an image exceeds `largest`.

    Returns:
      float32 [n, height, width, C] from 0 to 1.
    """
    factor = -(-max(images.shape[1:3]) // largest)
    floats = images / np.float32(255) if images.dtype == np.uint8 else images
    n, Y, X, C = images.shape
    y, x = Y // factor, X // factor
    inside = floats[:, : y * factor, : x * factor]
    return inside.reshape(n, y, factor, x, factor, C).mean(axis=(2, 4), dtype=np.float32)


def _predictions_of_best(
    make: Callable[[float], Any],
    strengths: Sequence[float],
    features: Callable[[np.ndarray], np.ndarray],
    splits: Mapping[str, Images],
) -> np.ndarray:
    """Returns the predictions on test of the classifier with the best validation accuracy."""

    def in_chunks(images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), _CHUNK)
        return np.concatenate([features(images[start : start + _CHUNK]) for start in starts])

    inputs = {split: in_chunks(examples.images) for split, examples in splits.items()}
    labels = {split: examples.labels for split, examples in splits.items()}
    fitted = [make(strength).fit(inputs["train"], labels["train"]) for strength in strengths]
    scores = [model.score(inputs["validation"], labels["validation"]) for model in fitted]
    return fitted[int(np.argmax(scores))].predict(inputs["test"])
