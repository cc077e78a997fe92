"""Average precision of boxes and masks by pycocotools, and the score of the nuclei contest."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from tasks.detection.ops.pasting import RunLength

# IoU thresholds of both metrics.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Maximum number of predictions of an image that are evaluated, best first, as in COCO.
MOST = 100


@dataclasses.dataclass(frozen=True)
class Truth:
    """True objects of an image, in pixels of the original image.

    Attributes:
      size: height and width.
      boxes: boxes of the n objects, float32 [n, 4].
      labels: classes of the objects, int [n].
      masks: run-length encoded mask of each object; None if there are only boxes.
      crowd: bool [n], True for crowd regions, which contain any number of objects of a class;
        predictions inside them are ignored. None if there are no crowd regions.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    masks: Sequence[RunLength] | None = None
    crowd: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted objects of an image, in pixels of the original image.

    Attributes:
      boxes: boxes of the n objects, float [n, 4].
      labels: classes of the objects, int [n].
      scores: scores of the objects, float [n].
      masks: run-length encoded mask of each object; None if there are only boxes.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: Sequence[RunLength] | None = None


def detection_metrics(
    truths: Sequence[Truth], predictions: Sequence[Prediction], names: Sequence[str]
) -> dict[str, float]:
    """Computes COCO's average precision, a mean over classes and IoUs (Lin et al. 2014).

    The 100 predictions of an image with the highest scores are evaluated. Classes without objects
    are excluded; the result is 0 for data without objects.

    Args:
      truths: truths of n images.
      predictions: predictions of the same images.
      names: names of the classes.

    Returns:
      `box_ap`, `box_ap50` and `box_ap75`; with more than one class also `box_ap_<name>` for each
      class with objects. If truths and predictions have masks, the same metrics of masks begin with
      `mask_`.

    Raises:
      ValueError: the numbers of truths and predictions differ, or a label has no name.
    """
    _check(truths, predictions, names)
    result = {}
    for kind in _kinds(truths, predictions):
        precision = _precision(_evaluation(truths, predictions, len(names), kind))
        result |= {
            f"{kind}_ap": _mean(precision),
            f"{kind}_ap50": _mean(precision[0]),
            f"{kind}_ap75": _mean(precision[5]),
        }
        if len(names) > 1:
            present = {
                int(label) for truth in truths for label in np.asarray(truth.labels)[~_crowd(truth)]
            }
            for number in sorted(present):
                row = precision[..., number] if precision.shape[-1] > 1 else precision
                result[f"{kind}_ap_{names[number]}"] = _mean(row)
    return result


def ap50_contributions(
    truths: Sequence[Truth], predictions: Sequence[Prediction], names: Sequence[str], kind: str
) -> np.ndarray:
    """Computes the contribution of each image to AP50, for paired comparisons.

    The contributions are the jackknife pseudo-values n·f - (n - 1)·f_i, shifted so that their mean
    is f. f is AP50 of the n images, and f_i is AP50 without image i.

    Args:
      truths, predictions, names: as for `detection_metrics`.
      kind: "box" or "mask".

    Returns:
      Contributions, float64 [n].

    Raises:
      ValueError: as for `detection_metrics`; or kind is "mask", and an image has no masks.
    """
    _check(truths, predictions, names)
    if kind not in _kinds(truths, predictions):
        raise ValueError(f"kind: got {kind!r}, expected one of {_kinds(truths, predictions)}")
    evaluation = _evaluation(truths, predictions, len(names), kind, thresholds=THRESHOLDS[:1])
    n, whole = len(truths), _mean(_precision(evaluation))
    if evaluation is None or n == 1:
        return np.full(n, whole)
    every = evaluation.evalImgs
    without = np.empty(n)
    for index in range(n):
        # Entries are ordered by class, then image, so every n-th entry belongs to the same image.
        evaluation.evalImgs = [None if i % n == index else e for i, e in enumerate(every)]
        without[index] = _mean(_precision(evaluation))
    values = n * whole - (n - 1) * without
    return values - values.mean() + whole


def dsb2018_scores(
    truths: Sequence[Truth], predictions: Sequence[Prediction], score: float = 0.5
) -> np.ndarray:
    """Computes the score of each image in the 2018 Data Science Bowl (nuclei).

    The score is the mean over t = 0.50, 0.55 ... 0.95 of TP / (TP + FP + FN), where TP counts pairs
    of a true and a predicted mask of IoU greater than t. Classes are ignored. A pixel of several
    predicted masks is assigned to the mask of highest score, and masks without remaining pixels are
    dropped. Crowd regions are treated as in COCO's average precision: they are not objects, and an
    unmatched mask is ignored if more than a fraction t of its area lies within one. An image
    without true and without predicted masks has the score 1.

    Args:
      truths: true objects with masks.
      predictions: predicted objects with masks.
      score: minimum score of the predictions that are evaluated.

    Returns:
      Scores of the images, float64 [n]; the score of the contest is their mean.

    Raises:
      ValueError: as for `detection_metrics`; or an image has no masks.
    """
    _check(truths, predictions, None)
    if "mask" not in _kinds(truths, predictions):
        raise ValueError(
            "truths, predictions: got an image without masks, expected masks for each image"
        )
    return np.array([_contest(*pair, score) for pair in zip(truths, predictions, strict=True)])


def _contest(truth: Truth, prediction: Prediction, score: float) -> float:
    from pycocotools import mask as coco

    # Predictions are in ascending order of score, so that better masks overwrite worse ones. The
    # array is column-major, like COCO's encoding.
    order = np.argsort(-np.asarray(prediction.scores), kind="stable")[::-1]
    order = [i for i in order if prediction.scores[i] >= score]
    found = np.zeros(truth.size, np.int64, order="F")
    for number, i in enumerate(order, 1):
        found[coco.decode(prediction.masks[i]).view(bool)] = number
    sizes = np.bincount(found.ravel("K"), minlength=len(order) + 1)[1:]
    # IoUs are compared in integers, without division. With an IoU above 0.5, a mask matches at most
    # one other mask.
    percents = np.round(100 * THRESHOLDS).astype(np.int64)[:, None]
    matched = np.zeros((len(THRESHOLDS), len(order)), bool)
    ignored = np.zeros_like(matched)
    hits = np.zeros(len(THRESHOLDS), np.int64)
    crowd = _crowd(truth)
    for code, is_crowd in zip(truth.masks, crowd, strict=True):
        within = found[coco.decode(code).view(bool)]
        intersection = np.bincount(within, minlength=len(order) + 1)[1:]
        if is_crowd:
            ignored |= 100 * intersection > percents * sizes
            continue
        pairs = 100 * intersection > percents * (len(within) + sizes - intersection)
        matched |= pairs
        hits += pairs.any(axis=1)
    wrong = np.sum((sizes > 0) & ~matched & ~ignored, axis=1)
    counted = int((~crowd).sum()) + wrong
    return float(np.where(counted > 0, hits / np.maximum(counted, 1), 1.0).mean())


def _crowd(truth: Truth) -> np.ndarray:
    return np.zeros(len(truth.labels), bool) if truth.crowd is None else np.asarray(truth.crowd)


def _kinds(truths: Sequence[Truth], predictions: Sequence[Prediction]) -> tuple[str, ...]:
    masks = all(item.masks is not None for item in (*truths, *predictions))
    return ("box", "mask") if masks else ("box",)


def _evaluation(
    truths: Sequence[Truth],
    predictions: Sequence[Prediction],
    classes: int,
    kind: str,
    thresholds: np.ndarray = THRESHOLDS,
):
    """Runs pycocotools on all images; returns None if there are no true or no predicted objects."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    objects, found = [], []
    for image, (truth, prediction) in enumerate(zip(truths, predictions, strict=True), 1):
        crowd = _crowd(truth)
        for number, (box, label) in enumerate(_rows(truth)):
            objects.append(
                _annotation(image, box, label, truth.masks, number, kind)
                | {"id": len(objects) + 1, "iscrowd": int(crowd[number]), "ignore": 0}
            )
        for number, (box, label) in enumerate(_rows(prediction)):
            found.append(
                _annotation(image, box, label, prediction.masks, number, kind)
                | {"score": float(prediction.scores[number])}
            )
    if not objects or not found:
        return None
    dataset = {
        "info": {},
        "images": [
            {"id": image, "height": truth.size[0], "width": truth.size[1]}
            for image, truth in enumerate(truths, 1)
        ],
        "categories": [{"id": label} for label in range(1, classes + 1)],
        "annotations": objects,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress
        known = COCO()
        known.dataset = dataset
        known.createIndex()
        evaluation = COCOeval(known, known.loadRes(found), {"box": "bbox", "mask": "segm"}[kind])
        evaluation.params.iouThrs = thresholds
        evaluation.params.maxDets = [MOST]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return evaluation


def _rows(item: Truth | Prediction):
    return zip(np.asarray(item.boxes, np.float64), np.asarray(item.labels), strict=True)


def _annotation(image: int, box, label: int, masks, number: int, kind: str) -> dict:
    x1, y1, x2, y2 = box.tolist()
    row = {"image_id": image, "category_id": int(label) + 1}
    if kind == "mask":
        from pycocotools import mask

        encoded = masks[number]
        return row | {"segmentation": encoded, "area": float(mask.area(encoded))}
    return row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}


def _precision(evaluation) -> np.ndarray:
    """Returns the precision, [IoU thresholds, recalls, classes]; -1 for classes without objects."""
    if evaluation is None:
        return np.zeros((len(THRESHOLDS), 1, 1))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, 0]


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def _check(
    truths: Sequence[Truth], predictions: Sequence[Prediction], names: Sequence[str] | None
) -> None:
    if len(truths) != len(predictions):
        raise ValueError(
            f"predictions: got {len(predictions)}, expected {len(truths)}, one for each of truths"
        )
    if not len(truths):
        raise ValueError("truths: got none, expected at least one")
    if names is None:
        return
    for item in (*truths, *predictions):
        labels = np.asarray(item.labels)
        if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
            raise ValueError(
                f"labels: got {labels.min()} to {labels.max()}, expected 0 to {len(names) - 1}"
            )
