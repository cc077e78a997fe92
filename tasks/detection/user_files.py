"""Images with objects in user files: annotations in COCO's format (JSON) and a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.common.data.user_files import read_each, split_by_hash, split_names, warn_shared
from tasks.common.errors import UserError, warn_once
from tasks.common.images.files import read_image, read_oriented
from tasks.common.images.orientation import AnnotationTurns, turned, turned_boxes, turned_size
from tasks.detection.coco import Annotated, read_annotations, run_lengths
from tasks.detection.ops.masks import stacked_codes
from tasks.detection.ops.pasting import RunLength, to_rle

__all__ = ["Annotated", "OwnFiles", "load", "run_lengths"]


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
    read = {split: read_annotations(file, images) for split, file in files.items()}
    names = read["train"][0]
    for split, (others, _, _) in read.items():
        if others != names:
            raise UserError(
                f"{files[split]}: its categories are {list(others)}, but those of "
                f"{files['train']} are {list(names)}; give both the same"
            )
    pictures, hashes, turns = {}, {}, AnnotationTurns()
    for split, (_, given, _) in read.items():
        hashes[split], kept = read_each(
            given, lambda picture: _pixel_hash(picture, turns), skip_broken=skip_broken
        )
        pictures[split] = [given[number] for number in kept]
        if not kept:
            raise UserError(f"{files[split]}: has no pictures")
    by_file = turns.decide(path)
    for split, given in pictures.items():
        pictures[split] = [
            _turned(picture, by_file[picture.path]) if picture.path in by_file else picture
            for picture in given
        ]
    codes = {split: [array.tobytes().hex() for array in hashes[split]] for split in hashes}
    warn_shared(
        path,
        {
            split: dict(zip(codes[split], (picture.name for picture in given), strict=True))
            for split, given in pictures.items()
        },
        "images",
    )
    remedy = "give files for all splits"
    held_out = split_by_hash(codes["train"], list(files), str(files["train"]), remedy, "images")
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
    stems = {
        file.stem: file
        for file in sorted(place.iterdir())
        if file.suffix.lower() == ".json" and not file.name.startswith(".")
    }
    found = {split: stems.pop(stem) for split, stem in split_names(list(stems), path).items()}
    if "train" not in found:
        raise UserError(f"{path}: has no train.json; give one, or name a file of annotations")
    if stems:
        first = next(iter(stems.values())).name
        warn_once(f"{path}: {len(stems)} files are of no split and are left out, such as {first}")
    return found


def _pixel_hash(picture: Annotated, turns: AnnotationTurns) -> np.ndarray:
    """SHA-256 of the pixels, as bytes; raises UserError for a picture that cannot be used."""
    image, orientation = read_oriented(picture.path)
    size = image.shape[:2]
    if not turns.fits(picture.path, orientation, picture.truth.size, size):
        (height, width), (Y, X) = picture.truth.size, size
        raise UserError(
            f"{picture.path}: is {X} x {Y} pixels, but its annotations are for {width} x {height}"
        )
    content = str(image.shape).encode() + image.tobytes()
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _turned(picture: Annotated, orientation: int) -> Annotated:
    """The annotations of a stored image in pixels of the displayed one."""
    truth = picture.truth
    masks = truth.masks
    if masks is not None:
        masks = [_turned_mask(mask, orientation) for mask in masks]
    boxes = turned_boxes(truth.boxes, truth.size, orientation)
    size = turned_size(truth.size, orientation)
    truth = dataclasses.replace(truth, size=size, boxes=boxes, masks=masks)
    return dataclasses.replace(picture, truth=truth)


def _turned_mask(mask: RunLength, orientation: int) -> RunLength:
    from pycocotools import mask as coco

    return to_rle(turned(coco.decode(mask).view(bool), orientation)[None])[0]
