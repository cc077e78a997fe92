"""A person's own pictures with objects: annotations in COCO's format (JSON) and a folder of
pictures.

Of each annotation bbox, category_id, iscrowd and, where there are masks, segmentation count:
polygons, or a run-length code, compressed or not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.errors import UserError
from tasks.common.image_files import read_each, read_image
from tasks.common.own_files import hold_out, read_text
from tasks.detection.masks import stacked_codes
from tasks.detection.metrics import Truth
from tasks.detection.pasting import RunLength

# How the files of a split may be called, in a folder.
STEMS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
# Pixels by which a box may reach over the border: tools round differently.
_SLACK = 1.0


@dataclass(frozen=True)
class Annotated:
    """A picture's file and what is annotated in it.

    Attributes:
      name: as the annotations call it.
      path: of the picture.
      truth: everything, crowds included.
    """

    name: str
    path: Path
    truth: Truth


@dataclass(frozen=True)
class OwnFiles:
    """Own pictures in three splits.

    Attributes:
      splits: by name.
      names: of the classes, in the order of their ids.
      has_masks: whether every object has a mask.
      digest: hash of annotations and pictures.
    """

    splits: Mapping[str, Sequence[Annotated]]
    names: tuple[str, ...]
    has_masks: bool
    digest: str

    @property
    def max_objects(self) -> int:
        """Greatest number of objects in a picture, crowds apart."""
        pictures = (picture for split in self.splits.values() for picture in split)
        return max(int((~picture.truth.crowd).sum()) for picture in pictures)

    def picture(
        self, annotated: Annotated
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Image, boxes, labels and instances, of which the smaller are on top; without crowds."""
        truth = annotated.truth
        kept = np.flatnonzero(~truth.crowd)
        instances = None
        if self.has_masks:
            instances = stacked_codes([truth.masks[i] for i in kept], *truth.size)
        return read_image(annotated.path), truth.boxes[kept], truth.labels[kept], instances


def load(path: str, images: str | None, *, skip_broken: bool) -> OwnFiles:
    """Reads annotations and looks through all pictures.

    Args:
      path: a file of annotations; or a folder with train.json and, where they are, validation.json
        and test.json.
      images: folder of the pictures; None: that of the annotations.
      skip_broken: leave out pictures that are missing or cannot be read, and name them.

    Returns:
      Splits for which there is no file are a tenth of train each, by the hash of the pixels, so
      that equal pictures stay together.

    Raises:
      UserError: what is wrong, in one line that names file and entry.
    """
    files = _find(path)
    read = {split: _read(file, images) for split, file in files.items()}
    names = read["train"][0]
    for split, (others, _, _) in read.items():
        if others != names:
            raise UserError(
                f"{files[split]}: its categories are {list(others)}, but those of "
                f"{files['train']} are {list(names)}; give both the same"
            )
    pictures, hashes = {}, {}
    for split, (_, given, _) in read.items():
        hashes[split], kept = read_each(given, _pixel_hash, skip_broken=skip_broken)
        pictures[split] = [given[number] for number in kept]
        if not kept:
            raise UserError(f"{files[split]}: has no pictures")
    codes = [array.tobytes().hex() for array in hashes["train"]]
    remedy = "give files for all splits"
    held_out = hold_out(codes, list(files), str(files["train"]), remedy, "images")
    train = pictures["train"]
    pictures |= {split: [train[i] for i in chosen] for split, chosen in held_out.items()}
    masks = {has_masks for _, _, has_masks in read.values() if has_masks is not None}
    if len(masks) > 1:
        raise UserError(f"{path}: some files have segmentations, others none; give all or none")
    digest = hashlib.sha256()
    for split, file in files.items():
        digest.update(split.encode() + file.read_bytes())
        for array in hashes[split]:
            digest.update(array.tobytes())
    return OwnFiles(pictures, names, masks == {True}, digest.hexdigest())


def _find(path: str) -> dict[str, Path]:
    place = Path(path).expanduser()
    if not place.is_dir():
        return {"train": place}
    found = {}
    for split, stems in STEMS.items():
        for stem in stems:
            if (place / f"{stem}.json").is_file():
                found.setdefault(split, place / f"{stem}.json")
    if "train" not in found:
        raise UserError(f"{path}: has no train.json; give one, or name a file of annotations")
    return found


def _pixel_hash(picture: Annotated) -> np.ndarray:
    """SHA-256 of the pixels, as bytes; raises UserError for a picture that cannot be used."""
    image = read_image(picture.path)
    if image.shape[:2] != picture.truth.size:
        (height, width), (Y, X) = picture.truth.size, image.shape[:2]
        raise UserError(
            f"{picture.path}: is {X} x {Y} pixels, but its annotations are for {width} x {height}"
        )
    content = str(image.shape).encode() + image.tobytes()
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _read(file: Path, images: str | None) -> tuple[tuple[str, ...], list[Annotated], bool | None]:
    """Classes, pictures, and whether objects have masks (None: there is not one object)."""
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {error.lineno} is not JSON ({error.msg})") from None
    sections = ("images", "annotations", "categories")
    for section in sections:
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise UserError(
                f"{file}: has no list {section!r}; COCO's format has {', '.join(sections)}"
            )
    reader = _Reader(file, content["images"], content["categories"])
    for number, annotation in enumerate(content["annotations"]):
        reader.take(annotation, number)
    folder = file.parent if images is None else Path(images).expanduser()
    return reader.names, reader.pictures(folder), reader.has_masks


class _Reader:
    """Checks annotations one by one, and gathers them by picture."""

    def __init__(self, file: Path, images: list[Any], categories: list[Any]):
        self._file = file
        self._images: dict[Any, tuple[str, tuple[int, int]]] = {}
        self._rows: dict[Any, list[tuple]] = {}
        self.has_masks: bool | None = None
        for number, image in enumerate(images):
            name, height, width = (
                _field(file, f"image {number}", image, key, kinds)
                for key, kinds in (("file_name", str), ("height", int), ("width", int))
            )
            if height < 1 or width < 1:
                raise UserError(f"{file}: picture {name!r} has the size {width} x {height}")
            identity = _field(file, f"image {number}", image, "id", (int, str))
            if identity in self._images:
                raise UserError(f"{file}: two images have the id {identity!r}")
            self._images[identity] = name, (height, width)
            self._rows[identity] = []
        if not categories:
            raise UserError(f"{file}: has no categories")
        ids = {}
        for number, category in enumerate(categories):
            identity = _field(file, f"category {number}", category, "id", int)
            if identity in ids:
                raise UserError(f"{file}: two categories have the id {identity}")
            ids[identity] = str(category.get("name", identity))
        self._label = {identity: label for label, identity in enumerate(sorted(ids))}
        self.names = tuple(ids[identity] for identity in self._label)

    def take(self, annotation: Any, number: int) -> None:
        identity = annotation.get("id", number) if isinstance(annotation, dict) else number
        where = f"annotation {identity}"
        image = _field(self._file, where, annotation, "image_id", (int, str))
        if image not in self._images:
            raise UserError(f"{self._file}: {where} is of image {image!r}, which is not listed")
        name, size = self._images[image]
        where += f" of {name!r}"
        category = _field(self._file, where, annotation, "category_id", int)
        if category not in self._label:
            known = sorted(self._label)
            raise UserError(
                f"{self._file}: {where} has category_id {category}; there are {len(known)}, from "
                f"{known[0]} to {known[-1]}"
            )
        box = self._box(where, _field(self._file, where, annotation, "bbox", list), size)
        segmentation = annotation.get("segmentation")
        if self.has_masks is None:
            self.has_masks = bool(segmentation)
        elif self.has_masks != bool(segmentation):
            raise UserError(
                f"{self._file}: {where} has {'a' if segmentation else 'no'} segmentation, others "
                f"have {'none' if segmentation else 'one'}; give all or none"
            )
        mask = self._mask(where, segmentation, size) if segmentation else None
        crowd = bool(annotation.get("iscrowd", 0))
        self._rows[image].append((box, self._label[category], mask, crowd))

    def pictures(self, folder: Path) -> list[Annotated]:
        result = []
        for identity, (name, size) in self._images.items():
            rows = self._rows[identity]
            boxes, labels, masks, crowd = zip(*rows, strict=True) if rows else ((),) * 4
            result.append(
                Annotated(
                    name,
                    folder / name,
                    Truth(
                        size,
                        np.array(boxes, np.float32).reshape(-1, 4),
                        np.array(labels, np.int32),
                        list(masks) if self.has_masks else None,
                        np.array(crowd, bool),
                    ),
                )
            )
        return result

    def _box(self, where: str, box: list, size: tuple[int, int]) -> list[float]:
        if len(box) != 4 or not all(_is_number(value) for value in box):
            raise UserError(
                f"{self._file}: {where} has the bbox {box}; give x, y, width and height"
            )
        x, y, width, height = map(float, box)
        if width <= 0 or height <= 0:
            raise UserError(f"{self._file}: {where} has the bbox {box}, which has no area")
        Y, X = size
        if min(x, y) < -_SLACK or x + width > X + _SLACK or y + height > Y + _SLACK:
            raise UserError(
                f"{self._file}: {where} has the bbox {box}, which reaches out of the picture of "
                f"{X} x {Y}"
            )
        return [max(x, 0.0), max(y, 0.0), min(x + width, float(X)), min(y + height, float(Y))]

    def _mask(self, where: str, segmentation: Any, size: tuple[int, int]) -> RunLength:
        from pycocotools import mask as coco

        Y, X = size
        if isinstance(segmentation, dict):
            given = segmentation.get("size")
            if given != [Y, X]:
                raise UserError(
                    f"{self._file}: {where} has a mask of size {given}, expected {[Y, X]}, the "
                    "picture's height and width"
                )
            counts = segmentation.get("counts")
            counts = run_lengths(counts) if isinstance(counts, str) else counts
            if (
                not isinstance(counts, list)
                or not all(isinstance(count, int) and count >= 0 for count in counts)
                or sum(counts) != Y * X
            ):
                raise UserError(
                    f"{self._file}: {where} has a mask whose run-length code does not cover "
                    f"{Y} x {X} pixels"
                )
            segmentation = {"size": [Y, X], "counts": counts}
        elif not all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(_is_number(value) for value in polygon)
            for polygon in segmentation
        ):
            raise UserError(
                f"{self._file}: {where} has a segmentation that is neither polygons (lists x, y, "
                "x, y ... of three points at least) nor a run-length code"
            )
        else:
            corners = np.concatenate([np.asarray(p, float).reshape(-1, 2) for p in segmentation])
            if corners.min() < -_SLACK or (corners.max(axis=0) > np.array([X, Y]) + _SLACK).any():
                raise UserError(
                    f"{self._file}: {where} has a polygon that reaches out of the picture of "
                    f"{X} x {Y}"
                )
        encoded = coco.frPyObjects(segmentation, Y, X)
        encoded = coco.merge(encoded) if isinstance(encoded, list) else encoded
        return encoded | {"counts": encoded["counts"].decode("ascii")}


def run_lengths(code: str) -> list[int] | None:
    """The lengths that COCO's compressed code stands for; None where it breaks off or is none.

    Each is a number of bits by fives, the lowest first, a character each; from the fourth on it is
    the difference to the last but one.
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


def _field(file: Path, where: str, row: Any, key: str, kinds: type | tuple[type, ...]) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    if value is None or isinstance(value, bool) or not isinstance(value, kinds):
        raise UserError(f"{file}: {where} has no {key}, or one of the wrong type")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)
