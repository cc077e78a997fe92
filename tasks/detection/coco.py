"""Reading of annotations in COCO's format (JSON).

An annotation has the keys image_id, category_id and bbox, and optionally iscrowd and segmentation.
A segmentation is a list of polygons, or a run-length encoding, compressed or not. Integers may be
written as floats, as some tools do.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.data.cells import label_value
from tasks.common.data.tables import no_column, unique_keys
from tasks.common.data.text_files import read_text
from tasks.common.data.user_files import find_file
from tasks.common.errors import UserError, warn_once
from tasks.detection.metrics import Truth
from tasks.detection.ops.pasting import RunLength

# Pixels by which a box may exceed the image, because tools round differently.
_SLACK = 1.0
# Maximum distance between a side of the box and the same side of the mask's bounding box, as a
# fraction of the width or height of the mask; a tolerance of 2 * _SLACK pixels is added.
_FAR = 0.25
# Pillow's limit on the number of pixels of an image.
_MOST_PIXELS = 178_956_970
_KIND_NAMES = {str: "a text", int: "an integer", list: "a list"}
_CROWD = {0: False, 1: True, "0": False, "1": True, None: False}


@dataclass(frozen=True)
class Annotated:
    """An image file and its annotations.

    Attributes:
      name: file name in the annotations.
      path: path of the image.
      truth: true objects and crowd regions.
      group: value of the key that groups the images, such as a patient; "" without a key.
    """

    name: str
    path: Path
    truth: Truth
    group: str = ""

    def labels(self) -> tuple[np.ndarray, int]:
        """Returns the classes of the objects, and the number of crowd regions."""
        return self.truth.labels[~self.truth.crowd], int(self.truth.crowd.sum())


def read_annotations(
    file: Path, images: str | None, group_key: str = ""
) -> tuple[tuple[str, ...], list[Annotated], bool | None]:
    """Reads a file of annotations.

    Args:
      file: file of the annotations.
      images: folder of the images; None to find them in the folder of `file`, or in a folder
        images/ in or next to that folder.
      group_key: key of the entries in "images" by which the images are grouped; "" for no groups.

    Returns:
      Names of the classes in the order of their ids; the images in the order of the file; and
      whether objects have masks, or None if there are no objects.

    Raises:
      UserError: an entry is malformed; the message names file and entry.
    """
    try:
        content = json.loads(read_text(file), object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {error.lineno} is not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({str(error) or type(error).__name__})") from None
    sections = ("images", "annotations", "categories")
    for section in sections:
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise UserError(
                f"{file}: has no list {section!r}; files in COCO's format have "
                f"{', '.join(sections)}"
            )
    reader = _Reader(file, content["images"], content["categories"], group_key)
    for number, annotation in enumerate(content["annotations"]):
        reader.take(annotation, number)
    folder = reader.folder() if images is None else Path(images).expanduser()
    return reader.names, reader.annotated(folder), reader.has_masks


class _Reader:
    """Checks annotations one by one, and collects them by image."""

    def __init__(self, file: Path, images: list[Any], categories: list[Any], group_key: str):
        self._file = file
        self._groups: dict[Any, str] = {}
        self._images: dict[Any, tuple[str, tuple[int, int]]] = {}
        self._rows: dict[Any, list[tuple]] = {}
        self.has_masks: bool | None = None
        self._without_pixels: list[str] = []
        self._elsewhere: list[str] = []
        names = set()
        for number, image in enumerate(images):
            name, height, width = (
                _field(file, f"image {number}", image, key, kind)
                for key, kind in (("file_name", str), ("height", int), ("width", int))
            )
            if height < 1 or width < 1:
                raise UserError(
                    f"{file}: image {name!r} has the size {width} x {height}, expected at least "
                    "1 x 1 pixels"
                )
            if height * width > _MOST_PIXELS:
                raise UserError(
                    f"{file}: image {name!r} has the size {width} x {height}, expected at most "
                    f"{_MOST_PIXELS:,} pixels"
                )
            identity = _identity(file, f"image {number}", image, "id")
            if identity in self._images:
                raise UserError(
                    f"{file}: two images have the id {identity!r}; give each image its own id"
                )
            if name in names:
                raise UserError(
                    f"{file}: two images have the file_name {name!r}; put the annotations of both "
                    "under one id"
                )
            names.add(name)
            self._images[identity] = name, (height, width)
            self._rows[identity] = []
            if group_key:
                where = f"{file}: image {name!r}"
                if group_key not in image:
                    raise no_column(where, group_key, list(image), "group")
                self._groups[identity] = label_value(image[group_key], where, group_key)
        if not categories:
            raise UserError(f"{file}: has no categories; add at least one entry to categories")
        ids: dict[int | str, str] = {}
        for number, category in enumerate(categories):
            identity = _identity(file, f"category {number}", category, "id")
            if identity in ids:
                raise UserError(
                    f"{file}: two categories have the id {identity}; give each category its own id"
                )
            name = category.get("name", identity)
            if isinstance(name, bool) or not isinstance(name, int | str) or not str(name).strip():
                raise UserError(
                    f"{file}: category {number} has the name {_shown(name)}, expected a text"
                )
            if str(name) in ids.values():
                raise UserError(
                    f"{file}: two categories have the name {name!r}; give each category its own "
                    "name"
                )
            ids[identity] = str(name)
        # Ids that are numbers come first, in numeric order, and then texts in alphabetical order.
        order = sorted(ids, key=lambda identity: (isinstance(identity, str), identity))
        self._label = {identity: label for label, identity in enumerate(order)}
        self.names = tuple(ids[identity] for identity in order)

    def take(self, annotation: Any, number: int) -> None:
        identity = annotation.get("id", number) if isinstance(annotation, dict) else number
        where = f"annotation {identity if isinstance(identity, int) else _shown(identity)}"
        image = _identity(self._file, where, annotation, "image_id")
        if image not in self._images:
            raise UserError(
                f"{self._file}: {where} has image_id {image!r}, but no entry of images has this "
                "id; add the image or remove the annotation"
            )
        name, size = self._images[image]
        where += f" of {name!r}"
        category = _identity(self._file, where, annotation, "category_id")
        if category not in self._label:
            known = list(self._label)
            raise UserError(
                f"{self._file}: {where} has category_id {category!r}, expected one of the "
                f"{len(known)} ids from {known[0]} to {known[-1]}"
            )
        box = self._box(where, _field(self._file, where, annotation, "bbox", list), size)
        segmentation = annotation.get("segmentation")
        # Some tools write an empty list, or an empty polygon, for a box without a mask.
        segmentation = None if segmentation in ([[]], [], {}, None) else segmentation
        if self.has_masks is None:
            self.has_masks = segmentation is not None
        elif self.has_masks != (segmentation is not None):
            has, others = ("no", "one") if segmentation is None else ("a", "none")
            raise UserError(
                f"{self._file}: {where} has {has} segmentation, but earlier annotations have "
                f"{others}; give a segmentation for all annotations or for none"
            )
        mask = None if segmentation is None else self._mask(where, segmentation, size)
        if mask is not None and not _is_around(box, mask):
            self._elsewhere.append(where)
        crowd = annotation.get("iscrowd")
        if isinstance(crowd, list | dict) or crowd not in _CROWD:
            raise UserError(f"{self._file}: {where} has iscrowd {_shown(crowd)}, expected 0 or 1")
        self._rows[image].append((box, self._label[category], mask, _CROWD[crowd]))

    def folder(self) -> Path:
        """Returns the folder of the images: that of the annotations, or images/ in or next to it.

        The result is the first of these folders that has one of the images. If none of them has an
        image, the result is the folder of the annotations.
        """
        near = self._file.parent
        names = [name for name, _ in self._images.values()]
        for folder in (near, near / "images", near.parent / "images"):
            if any(os.path.isfile(find_file(folder, name)) for name in names):
                return folder
        return near

    def annotated(self, folder: Path) -> list[Annotated]:
        if self._without_pixels:
            warn_once(
                f"{self._file}: masks of {len(self._without_pixels)} objects have no pixel, the "
                f"first is {self._without_pixels[0]}; the objects are kept with their boxes"
            )
        if self._elsewhere:
            warn_once(
                f"{self._file}: boxes of {len(self._elsewhere)} objects do not match their "
                f"masks, the first is {self._elsewhere[0]}; give bbox as x, y, width and height"
            )
        result = []
        for identity, (name, size) in self._images.items():
            rows = self._rows[identity]
            boxes, labels, masks, crowd = zip(*rows, strict=True) if rows else ((),) * 4
            result.append(
                Annotated(
                    name,
                    find_file(folder, name),
                    Truth(
                        size,
                        np.array(boxes, np.float32).reshape(-1, 4),
                        np.array(labels, np.int32),
                        list(masks) if self.has_masks else None,
                        np.array(crowd, bool),
                    ),
                    self._groups.get(identity, ""),
                )
            )
        return result

    def _box(self, where: str, box: list, size: tuple[int, int]) -> list[float]:
        if len(box) != 4 or not all(_is_number(value) for value in box):
            raise UserError(
                f"{self._file}: {where} has the bbox {_shown(box)}; give x, y, width and height"
            )
        x, y, width, height = map(float, box)
        Y, X = size
        corners = [max(x, 0.0), max(y, 0.0), min(x + width, float(X)), min(y + height, float(Y))]
        if width <= 0 or height <= 0:
            raise UserError(
                f"{self._file}: {where} has the bbox {box}, which has no area; give x, y and a "
                "width and height above 0"
            )
        left, top, right, bottom = np.float32(corners)
        inside = left < right and top < bottom
        if not inside or min(x, y) < -_SLACK or x + width > X + _SLACK or y + height > Y + _SLACK:
            raise UserError(
                f"{self._file}: {where} has the bbox {box}, which exceeds the image of {X} x {Y} "
                "pixels; give x, y, width and height of a box within the image"
            )
        return corners

    def _mask(self, where: str, segmentation: Any, size: tuple[int, int]) -> RunLength:
        from pycocotools import mask as coco

        Y, X = size
        if isinstance(segmentation, dict):
            given = segmentation.get("size")
            if given != [Y, X]:
                raise UserError(
                    f"{self._file}: {where} has a mask of size {given}, expected {[Y, X]}, the "
                    "image's height and width"
                )
            counts = segmentation.get("counts")
            counts = run_lengths(counts) if isinstance(counts, str) else counts
            if (
                not isinstance(counts, list)
                or not all(isinstance(count, int) and count >= 0 for count in counts)
                or sum(counts) != Y * X
            ):
                raise UserError(
                    f"{self._file}: {where} has a mask with an invalid run-length encoding; give "
                    f"counts with the sum {Y * X:,}, the number of pixels of the image"
                )
            segmentation = {"size": [Y, X], "counts": counts}
        elif not isinstance(segmentation, list) or not all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(_is_number(value) for value in polygon)
            for polygon in segmentation
        ):
            raise UserError(
                f"{self._file}: {where} has a malformed segmentation; give a run-length encoding, "
                "or a list of polygons, each a list x, y, x, y ... of at least three points"
            )
        else:
            corners = np.concatenate([np.asarray(p, float).reshape(-1, 2) for p in segmentation])
            if corners.min() < -_SLACK or (corners.max(axis=0) > np.array([X, Y]) + _SLACK).any():
                raise UserError(
                    f"{self._file}: {where} has a polygon that exceeds the image of {X} x {Y} "
                    "pixels; give points within the image"
                )
        encoded = coco.frPyObjects(segmentation, Y, X)
        encoded = coco.merge(encoded) if isinstance(encoded, list) else encoded
        if not coco.area(encoded):
            self._without_pixels.append(where)
        return encoded | {"counts": encoded["counts"].decode("ascii")}


def _is_around(box: list[float], mask: RunLength) -> bool:
    """Returns True if a box (x1, y1, x2, y2) is close to the bounding box of its mask.

    The result is also True for a mask without pixels.
    """
    from pycocotools import mask as coco

    x, y, width, height = coco.toBbox(mask).tolist()
    if not width * height:
        return True
    sides = zip(box, (x, y, x + width, y + height), (width, height) * 2, strict=True)
    return all(abs(side - own) <= 2 * _SLACK + _FAR * size for side, own, size in sides)


def run_lengths(code: str) -> list[int] | None:
    """Decodes COCO's compressed run-length encoding; returns None if it is malformed.

    Each number is stored with five bits per character, lowest bits first. The fourth and later
    numbers are stored as differences from the number two positions before.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in code:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    return None if shift else lengths


def _field(file: Path, where: str, row: Any, key: str, kind: type) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, bool) or not isinstance(value, kind):
        got = f"no {key}" if value is None else f"{key} {_shown(value)}"
        raise UserError(f"{file}: {where} has {got}, expected {_KIND_NAMES[kind]}")
    return value


def _identity(file: Path, where: str, row: Any, key: str) -> int | str:
    value = row.get(key) if isinstance(row, dict) else None
    return _field(file, where, row, key, str if isinstance(value, str) else int)


def _is_number(value: Any) -> bool:
    # Bounded, because an integer may be too large for a float.
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST_PIXELS
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
