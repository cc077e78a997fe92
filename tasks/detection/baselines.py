"""Baseline without learning: Otsu's threshold, with touching objects split by inscribed discs.

In shapes, Y and X are height and width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage

from tasks.detection.metrics import (
    Prediction,
    Truth,
    ap50_contributions,
    detection_metrics,
    dsb2018_scores,
)
from tasks.detection.ops.masks import masks_to_boxes
from tasks.detection.ops.pasting import to_rle

# Settings that are tried on validation: factors of Otsu's threshold, minimum distance of two seeds
# in pixels, and minimum number of pixels of an object.
FACTORS = (0.7, 0.85, 1.0)
DISTANCES = (3, 5, 8)
SIZES = (12, 30)
# Number of validation images for the selection of settings.
_SELECTION = 60


def otsu_discs(splits: Mapping[str, Any], names: Sequence[str], has_masks: bool) -> dict[str, Any]:
    """Evaluates segmentation by Otsu's threshold, with touching objects split by `split_touching`.

    Objects are brighter than the threshold, or darker if the border of the image is bright. All
    objects get the most frequent class of the training split. The score of an object is its
    contrast with the background. The settings of `prediction` are selected by AP50 on validation.

    Args:
      splits: `tasks.detection.data.DetectionExamples` by name of the split.
      names: names of the classes.
      has_masks: whether masks are predicted.

    Returns:
      Metrics on test, and the contribution of each image to AP50 of boxes.
    """
    label = _most_frequent(splits["train"], len(names))
    chosen = range(min(_SELECTION, len(splits["validation"])))

    def metrics(split: str, numbers: Sequence[int], setting: tuple) -> dict[str, Any]:
        examples = splits[split]
        truths = [examples.truth(index) for index in numbers]
        predictions = [
            prediction(_gray_image(examples[index], truth), setting, label, has_masks)
            for index, truth in zip(numbers, truths, strict=True)
        ]
        found = detection_metrics(truths, predictions, names)
        if has_masks and len(names) == 1:
            found["dsb2018_score"] = float(dsb2018_scores(truths, predictions, 0.0).mean())
        if split == "test":
            found["example_scores"] = ap50_contributions(truths, predictions, names, "box")
        return found

    key = "mask_ap50" if has_masks else "box_ap50"
    settings = list(itertools.product(FACTORS, DISTANCES, SIZES))
    best = max(settings, key=lambda setting: metrics("validation", chosen, setting)[key])
    return metrics("test", range(len(splits["test"])), best)


def _most_frequent(examples: Any, classes: int) -> int:
    counts = np.zeros(classes, int)
    for index in range(len(examples)):
        counts += np.bincount(examples.truth(index).labels, minlength=classes)
    return int(counts.argmax())


def _gray_image(example: Mapping[str, np.ndarray], truth: Truth) -> np.ndarray:
    """Returns the image of an example in gray, at its original size."""
    from PIL import Image

    height, width = example["size"]
    image = Image.fromarray(example["image"][:height, :width]).convert("L")
    return np.asarray(image.resize(tuple(truth.size[::-1])), np.float32)


def prediction(
    gray: np.ndarray, setting: tuple[float, int, int], label: int, has_masks: bool
) -> Prediction:
    """Finds objects in one image by a threshold and inscribed discs.

    Args:
      gray: gray image, [Y, X].
      setting: factor of the threshold, minimum distance of seeds, minimum pixels of an object.
      label: label of all objects.
      has_masks: whether masks are predicted.
    """
    factor, distance, least = setting
    smooth = scipy.ndimage.gaussian_filter(gray, 1)
    border = np.concatenate([smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1]])
    if np.median(border) > (smooth.min() + smooth.max()) / 2:
        smooth = smooth.max() - smooth
    # With the second condition, a uniform image has no objects.
    inside = (smooth > factor * otsu(smooth)) & (smooth > smooth.min())
    objects = split_touching(scipy.ndimage.binary_fill_holes(inside), distance)
    numbers, counts = np.unique(objects[objects > 0], return_counts=True)
    numbers = numbers[counts >= least]
    background = float(smooth[~inside].mean()) if (~inside).any() else 0.0
    masks = objects == numbers[:, None, None]
    contrast = np.array([smooth[mask].mean() - background for mask in masks])
    scores = contrast / max(float(contrast.max(initial=0)), 1e-6)
    labels = np.full(len(masks), label)
    return Prediction(masks_to_boxes(masks), labels, scores, to_rle(masks) if has_masks else None)


def otsu(values: np.ndarray) -> float:
    """Returns the threshold that minimizes the within-class variance (Otsu 1979, equation 12).

    The threshold has a resolution of 1 / 256 of the range of values.
    """
    counts, edges = np.histogram(values, 256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    lower = sums / np.maximum(below, 1)
    upper = (sums[-1] - sums) / np.maximum(above, 1)
    between = below * above * (lower - upper) ** 2
    return float(edges[1 + np.argmax(between)])


def split_touching(inside: np.ndarray, distance: int) -> np.ndarray:
    """Splits regions at narrow parts, by the power diagram of inscribed discs (Aurenhammer 1987).

        part(p) = argmin_s |p - s|² - r_s²

    Pixel p goes to the part of one seed s in the same connected region. Seeds are the local maxima
    of the smoothed distance from the background, which is r_s at s. The border between two
    overlapping discs is the line through their intersections.

    Args:
      inside: bool [Y, X], True for pixels of the regions.
      distance: minimum distance of two seeds in pixels.

    Returns:
      int [Y, X], indices of the parts from 1; 0 where `inside` is False.
    """
    depth = scipy.ndimage.gaussian_filter(scipy.ndimage.distance_transform_edt(inside), 1.0)
    highest = scipy.ndimage.maximum_filter(depth, size=2 * distance + 1)
    marked, count = scipy.ndimage.label((depth == highest) & inside, np.ones((3, 3)))
    result = np.zeros(inside.shape, np.int32)
    if not count:
        return result
    numbers = np.arange(1, count + 1)
    seeds = np.array(scipy.ndimage.center_of_mass(marked > 0, marked, numbers))
    radii = scipy.ndimage.maximum(depth, marked, numbers)
    regions, _ = scipy.ndimage.label(inside)
    own = scipy.ndimage.maximum(regions, marked, numbers)
    points = np.argwhere(inside)
    power = ((points[:, None] - seeds) ** 2).sum(axis=-1) - radii**2
    power[regions[inside][:, None] != own] = np.inf
    result[inside] = power.argmin(axis=1) + 1
    return result
