"""Composed images: items of Fashion-MNIST on crops of the Blue Marble, with exact masks.

In shapes, Y and X are height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tasks.common.datasets import blue_marble, fashion_mnist
from tasks.detection.ops.masks import masks_to_boxes, to_instance_map
from tasks.detection.ops.pasting import stretch

SIDE = 128
MOST = 6
COUNTS = {"train": 3000, "validation": 300, "test": 600}
# Number of columns of the map in a band of longitude, and indices of the bands of each split within
# every group of six bands.
_BAND = blue_marble.IMAGE_SIZE[1] // 18
_BANDS = {"train": (2, 3, 4, 5), "validation": (1,), "test": (0,)}
# Rows of the map between 70 degrees north and 56 degrees south.
_ROWS = (300, 2190)
_LEAST_LAND = 0.5
_SCALES = (0.8, 2.0)
# Minimum number of pixels of an item before it is scaled, out of 28 x 28 pixels. Smaller items have
# no recognizable shape.
_LEAST_PIXELS = 60
_TRIES = 20


def generate(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, np.ndarray]]]:
    """Returns the splits, which share no clothing items and no bands of longitude."""
    image = blue_marble.read_image(files[blue_marble.IMAGE_SOURCE.name])
    kinds = blue_marble.read_land(files[blue_marble.LAND_SOURCE.name], image.shape[:2])
    land = kinds == blue_marble.LAND
    items = fashion_mnist.read(files)
    return {
        split: (
            compose(image, land, *items[split], _BANDS[split], seed)
            for seed in range(1_000_000 * number, 1_000_000 * number + count)
        )
        for number, (split, count) in enumerate(COUNTS.items())
    }


def compose(
    ground: np.ndarray,
    land: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    bands: tuple[int, ...],
    seed: int,
) -> dict[str, np.ndarray]:
    """Composes an image; equal arguments give equal images.

    Args:
      ground: map of the Earth, uint8 [Y, X, 3].
      land: bool [Y, X], True for land.
      images, labels: clothing items to sample from, uint8 [n, 28, 28], and their classes [n].
      bands: bands of longitude that may be background, as indices from 0 to 5 within each group of
        six bands.
      seed: seed of all random choices.
    """
    random = np.random.RandomState(seed)  # NumPy keeps its stream fixed
    image = _ground(ground, land, bands, random).astype(np.float32)
    taken = np.zeros((SIDE, SIDE), bool)
    masks, kinds = [], []
    for _ in range(random.randint(1, MOST + 1)):
        index = random.randint(len(images))
        tint = random.uniform(0.6, 1.0, 3).astype(np.float32)
        item, mask = _scaled(images[index], random.uniform(*_SCALES))
        height, width = mask.shape
        for _ in range(_TRIES):
            y, x = random.randint(SIDE - height + 1), random.randint(SIDE - width + 1)
            where = slice(y, y + height), slice(x, x + width)
            if mask.any() and not (taken[where] & mask).any():
                whole = np.zeros((SIDE, SIDE), bool)
                whole[where] = mask
                taken |= whole
                image[where][mask] = item[mask][:, None] * tint
                masks.append(whole)
                kinds.append(labels[index])
                break
    masks = np.array(masks, bool).reshape(-1, SIDE, SIDE)
    return {
        "image": np.round(image).astype(np.uint8),
        "size": np.array([SIDE, SIDE], np.int32),
        "boxes": masks_to_boxes(masks),
        "labels": np.array(kinds, np.int32),
        "instances": to_instance_map(masks),
    }


def _ground(
    ground: np.ndarray, land: np.ndarray, bands: tuple[int, ...], random: np.random.RandomState
) -> np.ndarray:
    """Returns a random crop within one band of longitude; at least half of the crop is land."""
    while True:
        band = 6 * random.randint(3) + bands[random.randint(len(bands))]
        x = band * _BAND + random.randint(_BAND - SIDE + 1)
        y = random.randint(_ROWS[0], _ROWS[1] - SIDE)
        where = slice(y, y + SIDE), slice(x, x + SIDE)
        if land[where].mean() >= _LEAST_LAND:
            return ground[where]


def _scaled(item: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an item, and returns it, float32 [Y, X], with its mask, bool [Y, X].

    The mask is the largest connected part of the foreground, with its holes filled. A mask of fewer
    than _LEAST_PIXELS pixels is returned empty.
    """
    from scipy import ndimage

    parts, count = ndimage.label(item > 0)
    if not count:
        return np.zeros((1, 1), np.float32), np.zeros((1, 1), bool)
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    mask = ndimage.binary_fill_holes(parts == largest)
    if mask.sum() < _LEAST_PIXELS:
        return np.zeros((1, 1), np.float32), np.zeros((1, 1), bool)
    side = round(len(item) * scale)
    _, weights = stretch(0, side - 1, len(item), side)
    grown = weights @ mask.astype(np.float32) @ weights.T >= 0.5
    rows, columns = np.flatnonzero(grown.any(axis=1)), np.flatnonzero(grown.any(axis=0))
    where = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return (weights @ item.astype(np.float32) @ weights.T)[where], grown[where]
