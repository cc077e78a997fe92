"""The detector without learning, on shapes that are easy to tell apart."""

import numpy as np
import pytest

from tasks.detection.baselines import otsu, otsu_discs, prediction, split_touching
from tasks.detection.metrics import Truth
from tasks.detection.ops.masks import masks_to_boxes
from tasks.detection.ops.pasting import to_rle

SIDE = 64
Y, X = np.mgrid[:SIDE, :SIDE]


def disc(y, x, radius):
    return (Y - y) ** 2 + (X - x) ** 2 <= radius**2


# Two that touch, and one alone.
DISCS = np.stack([disc(20, 18, 9), disc(20, 34, 9) & ~disc(20, 18, 9), disc(48, 40, 7)])


class Examples:
    """One image: discs on dark ground."""

    def __init__(self):
        noise = np.random.default_rng(0).normal(30, 3, (SIDE, SIDE))
        grey = np.where(DISCS.any(axis=0), 180, noise)
        self.image = np.repeat(grey[..., None].astype(np.uint8), 3, axis=-1)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"image": self.image, "size": np.array([SIDE, SIDE])}

    def truth(self, index):
        return Truth((SIDE, SIDE), masks_to_boxes(DISCS), np.array([1, 1, 1]), to_rle(DISCS))


def test_otsu_leaves_the_least_variance_within():
    random = np.random.default_rng(1)
    values = np.concatenate([random.normal(20, 4, 700), random.normal(70, 9, 300)])

    def within(threshold):
        parts = values[values <= threshold], values[values > threshold]
        return sum(len(part) * part.var() for part in parts)

    best = min(np.linspace(10, 90, 801), key=within)
    assert otsu(values) == pytest.approx(best, abs=0.5)


def test_discs_part_what_touches():
    parts = split_touching(DISCS.any(axis=0), 5)
    assert len(np.unique(parts)) == 4
    for mask in DISCS:
        numbers, counts = np.unique(parts[mask], return_counts=True)
        assert counts.max() > 0.9 * mask.sum()
        assert numbers[counts.argmax()] > 0
    assert not split_touching(np.zeros((5, 5), bool), 3).any()


def test_bright_and_dark_objects_are_found_alike():
    grey = Examples().image[..., 0].astype(np.float32)
    for picture in (grey, 255 - grey):
        found = prediction(picture, (1.0, 5, 30), 0, has_masks=False)
        assert found.masks is None
        order = np.argsort(found.boxes[:, 0])
        np.testing.assert_allclose(found.boxes[order], masks_to_boxes(DISCS), atol=2)
    flat = prediction(np.full((8, 8), 7, np.float32), (1.0, 5, 30), 0, has_masks=True)
    assert len(flat.scores) == len(flat.masks) == 0


def test_the_baseline_takes_the_most_frequent_class():
    splits = dict.fromkeys(("train", "validation", "test"), Examples())
    found = otsu_discs(splits, ["cat", "disc"], True)
    assert found["mask_ap50"] == pytest.approx(1, abs=1e-6)
    assert found["box_ap"] > 0.5
    assert "dsb2018_score" not in found
    assert "dsb2018_score" in otsu_discs(
        splits | {"train": OneClass(), "test": OneClass(), "validation": OneClass()},
        ["disc"],
        True,
    )


class OneClass(Examples):
    """The same, of class 0."""

    def truth(self, index):
        given = super().truth(index)
        return Truth(given.size, given.boxes, given.labels * 0, given.masks)
