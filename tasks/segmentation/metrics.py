"""Metrics of segmentation: from a confusion matrix of all pixels, and from class boundaries.

n images, Y X height and width, K classes. Labels not in [0, K) are void; void pixels are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

VOID = 255
TOLERANCE = 2


def confusion_matrices(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts the pixels of each image by true and predicted class, int64 [n, K, K].

    Args:
      truth: true classes, integers [n, Y, X], void allowed.
      predicted: predicted classes, integers [n, Y, X] in [0, K).
      classes: K, number of classes.
    """
    counts = np.zeros((len(truth), classes, classes), np.int64)
    for image, (true, found) in enumerate(zip(truth, predicted, strict=True)):
        real = (true >= 0) & (true < classes)
        pairs = true[real].astype(np.int64) * classes + found[real]
        counts[image] = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return counts


def segmentation_metrics(
    confusion: np.ndarray, names: Sequence[str], suffix: str = ""
) -> dict[str, float]:
    """Computes pixel accuracy and intersection over union.

        IoU_k = TP_k / (TP_k + FP_k + FN_k)

    Args:
      confusion: [K, K] counts by true and predicted class.
      names: names of the classes.
      suffix: suffix of the names of the metrics.

    Returns:
      `pixel_accuracy`, `iou_<name>` for each class that is true or predicted for some pixel, and
      `mean_iou`, the mean of these IoU. All are 0 without labeled pixels.
    """
    confusion = np.asarray(confusion, np.float64)
    right = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    there = union > 0
    iou = right[there] / union[there]
    result = {
        "pixel_accuracy": right.sum() / max(confusion.sum(), 1),
        "mean_iou": iou.mean() if len(iou) else 0.0,
    }
    found = zip(np.flatnonzero(there), iou, strict=True)
    result |= {f"iou_{_key(names[number])}": value for number, value in found}
    return {f"{name}{suffix}": float(value) for name, value in result.items()}


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def iou_contributions(confusions: np.ndarray) -> np.ndarray:
    """Computes the contribution of each image to the mean IoU, for paired comparisons.

    IoU_k = TP_k / U_k is a function of the means over images of the intersection TP_k and the union
    U_k. The contribution of image i is the mean over classes of

        IoU_k + (TP_k,i - TP_k) / U_k - TP_k (U_k,i - U_k) / U_k²

    where TP_k,i and U_k,i are counts in image i. The contribution is a first-order approximation of
    the change if image i gets more weight (the infinitesimal jackknife, Efron 1982). The mean of
    the contributions is the mean IoU.

    Args:
      confusions: [n, K, K], see `confusion_matrices`.

    Returns:
      float64 [n].
    """
    confusions = np.asarray(confusions, np.float64)
    right = np.diagonal(confusions, axis1=1, axis2=2)
    union = confusions.sum(axis=1) + confusions.sum(axis=2) - right
    TP, U = right.mean(axis=0), union.mean(axis=0)
    there = U > 0
    if not there.any():
        return np.zeros(len(confusions))
    TP, U, right, union = TP[there], U[there], right[:, there], union[:, there]
    return np.mean(TP / U + (right - TP) / U - TP * (union - U) / U**2, axis=1)


def boundary_f1(
    truth: Iterable[np.ndarray],
    predicted: Iterable[np.ndarray],
    classes: int,
    tolerance: int = TOLERANCE,
) -> float:
    """Computes the boundary F1 measure (Csurka et al. 2013).

        F1 = 2 P R / (P + R)

    for each image and each class that is true or predicted in it; F1 is averaged over images, then
    over classes. P is the fraction of the predicted boundary within `tolerance` of the true
    boundary. R is the fraction of the true boundary within `tolerance` of the predicted boundary. A
    pixel of a class is a boundary pixel if one of its four neighbors has another class. Void
    neighbors are ignored, and predictions at void pixels count as void. A class that covers all
    pixels has no boundary: its F1 is 1 if truth and prediction both have no boundary of the class,
    and 0 if only one of them has none.

    Args:
      truth: integers [Y, X] of each image, void allowed.
      predicted: integers [Y, X] in [0, K) of each image.
      classes: K, number of classes.
      tolerance: maximum distance of matching boundaries in pixels.

    Returns:
      The mean F1; 0 without labeled pixels.
    """
    sums, images = np.zeros(classes), np.zeros(classes)
    for true, found in zip(truth, predicted, strict=True):
        real = (true >= 0) & (true < classes)
        both = [np.where(real, labels, VOID) for labels in (true, found)]
        present = [k for k in np.unique(np.stack(both)) if k != VOID]
        edges = [boundaries(labels, present) for labels in both]
        near = [dilate(edge, tolerance) for edge in edges]
        hits = [np.sum(edges[i] & near[1 - i], axis=(1, 2)) for i in range(2)]
        sizes = [np.sum(edge, axis=(1, 2)) for edge in edges]
        recall, precision = np.stack(hits) / np.maximum(np.stack(sizes), 1)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        sums[present] += np.where(sizes[0] + sizes[1] == 0, 1.0, f1)
        images[present] += 1
    there = images > 0
    return float(np.mean(sums[there] / images[there])) if there.any() else 0.0


def boundaries(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Finds the boundary pixels of each class; see `boundary_f1`.

    Returns:
      bool [classes, Y, X].
    """
    other = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        a, b = (labels[1:], labels[:-1]) if axis == 0 else (labels[:, 1:], labels[:, :-1])
        differ = (a != b) & (a != VOID) & (b != VOID)
        after, before = (other[1:], other[:-1]) if axis == 0 else (other[:, 1:], other[:, :-1])
        after |= differ
        before |= differ
    return np.stack([(labels == k) & other for k in classes]) if len(classes) else other[None][:0]


def dilate(masks: np.ndarray, distance: int) -> np.ndarray:
    """Dilates masks bool [n, Y, X] by a disc of radius `distance`."""
    _, Y, X = masks.shape
    padded = np.pad(masks, ((0, 0), (distance, distance), (distance, distance)))
    result = np.zeros_like(masks)
    for down in range(-distance, distance + 1):
        for right in range(-distance, distance + 1):
            if down**2 + right**2 <= distance**2:
                y, x = distance + down, distance + right
                result |= padded[:, y : y + Y, x : x + X]
    return result
