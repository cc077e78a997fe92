"""Tree crowns in aerial images: the annotated images of the package deepforest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tasks.common.data.sources import wheel_source

SIDE = 256
# First column of the validation part of the first image.
_EAST = 1792
_WEST = "2019_YELL_2_528000_4978000_image_crop2"
_TEST = "2019_YELL_2_541000_4977000_image_crop"
_FILES = {
    f"{_WEST}.png": "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
    f"{_WEST}.xml": "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
    f"{_TEST}.png": "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
    f"{_TEST}.xml": "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
    "OSBS_029.png": "d9477c6a00e4902c7bee487d4c5582c3b8b9a2f77f3908a29628b816b291e6ee",
    "OSBS_029.xml": "1f68c4011d7b351c29ca755072e77f3d16e6fd1f995bd05a9dd4eb952b55373c",
    "SOAP_061.png": "256508f1a62149bec4a80879077a865caf50e8cace095e6564c76befa480d424",
    "SOAP_061.xml": "4833280af75fd9c47965a93e38945282835e9e725cac412bdb9469d63480947c",
}
SOURCES = tuple(
    wheel_source(f"trees/{file}", digest, ("deepforest", "2.1.0"), f"deepforest/data/{file}")
    for file, digest in _FILES.items()
)

ImageWithBoxes = tuple[np.ndarray, np.ndarray]
"""An image uint8 [Y, X, 3] and the boxes float32 [n, 4] in it."""


def generate(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, np.ndarray]]]:
    """Returns tiles of the images by split; training tiles overlap by half."""

    def read(stem: str) -> ImageWithBoxes:
        from PIL import Image

        with Image.open(files[f"trees/{stem}.png"]) as opened:
            image = np.asarray(opened.convert("RGB"))
        return image, read_boxes(files[f"trees/{stem}.xml"].read_text(encoding="utf-8"))

    first = read(_WEST)
    height, width = first[0].shape[:2]
    west, east = crop(first, 0, 0, height, _EAST), crop(first, 0, _EAST, height, width)
    train = [west, read("OSBS_029"), read("SOAP_061")]
    return {
        "train": (tile for annotated in train for tile in tiles(annotated, SIDE // 2)),
        "validation": tiles(east, SIDE),
        "test": tiles(read(_TEST), SIDE),
    }


def read_boxes(text: str) -> np.ndarray:
    """Reads the boxes of all classes from an annotation in Pascal VOC's XML, float32 [n, 4]."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        [float(box.findtext(side)) for side in sides]
        for box in ElementTree.fromstring(text).iter("bndbox")
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)


def crop(annotated: ImageWithBoxes, top: int, left: int, bottom: int, right: int) -> ImageWithBoxes:
    """Crops an image; boxes with at least half of their area inside are kept and clipped."""
    image, boxes = annotated
    corner = np.array([left, top, left, top], np.float32)
    limit = np.array([right - left, bottom - top] * 2, np.float32)
    inside = np.clip(boxes - corner, 0, limit)
    kept = _areas(inside) >= 0.5 * _areas(boxes)
    return image[top:bottom, left:right], inside[kept & (_areas(boxes) > 0)]


def tiles(annotated: ImageWithBoxes, step: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields tiles of at most SIDE x SIDE pixels, about `step` pixels apart, row by row."""
    image, _ = annotated
    rows, columns = (_spans(length, step) for length in image.shape[:2])
    for top, bottom in rows:
        for left, right in columns:
            part, boxes = crop(annotated, top, left, bottom, right)
            square = np.zeros((SIDE, SIDE, 3), np.uint8)
            square[: bottom - top, : right - left] = part
            yield {
                "image": square,
                "size": np.array(part.shape[:2], np.int32),
                "boxes": boxes,
                "labels": np.zeros(len(boxes), np.int32),
            }


def _spans(length: int, step: int) -> list[tuple[int, int]]:
    """Returns the start and the end of each tile along an axis.

    The tiles are evenly spaced, and their number is the smallest that covers the axis.
    """
    if step == SIDE:  # tiles do not overlap
        count = -(-length // SIDE)
        borders = [length * i // count for i in range(count + 1)]
        return list(itertools.pairwise(borders))
    side = min(SIDE, length)
    count = -(-(length - side) // step) + 1
    starts = [(length - side) * i // max(count - 1, 1) for i in range(count)]
    return [(start, start + side) for start in starts]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
