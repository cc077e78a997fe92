"""Reading of user data: annotations in COCO's format (JSON) and a folder of images."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.common.data.held_out import HeldOutConfig, expect_groups_apart
from tasks.common.data.own import OwnData, one_file, split_files
from tasks.common.data.splits import class_indices
from tasks.common.data.user_files import expect_some_files, read_each, split_names, warn_shared
from tasks.common.errors import UserError, warn_once
from tasks.common.images.files import read_image, read_oriented
from tasks.common.images.orientation import AnnotationTurns, turned, turned_boxes, turned_size
from tasks.detection.coco import Annotated, read_annotations, run_lengths
from tasks.detection.ops.masks import rle_to_instance_map
from tasks.detection.ops.pasting import RunLength, to_rle

__all__ = ["OWN_DATA", "Annotated", "UserDataset", "load", "run_lengths"]

OWN_DATA = OwnData(
    "a JSON file of annotations in COCO's format, or a folder with train.json; images are in the "
    "folder of the JSON file, or in a folder images/ in or next to that folder",
    {"group": "group_column"},
)


@dataclass(frozen=True)
class UserDataset:
    """User images in three splits.

    Attributes:
      splits: annotated images by split.
      names: names of the classes, in the order of their ids.
      has_masks: whether every object has a mask.
      digest: hash of annotations and images.
    """

    splits: Mapping[str, Sequence[Annotated]]
    names: tuple[str, ...]
    has_masks: bool
    digest: str

    @property
    def max_objects(self) -> int:
        """Greatest number of objects in an image, without crowd regions."""
        images = (image for split in self.splits.values() for image in split)
        return max(int((~image.truth.crowd).sum()) for image in images)

    def image(
        self, annotated: Annotated
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Reads an image and its n objects, without crowd regions.

        Returns:
          Image [Y, X, 3], boxes [n, 4], labels [n], and instance map [Y, X]. In the map, the
          smaller of two overlapping objects is on top. The map is None without masks.
        """
        truth = annotated.truth
        kept = np.flatnonzero(~truth.crowd)
        instances = None
        if self.has_masks:
            instances = rle_to_instance_map([truth.masks[i] for i in kept], *truth.size)
        return read_image(annotated.path), truth.boxes[kept], truth.labels[kept], instances


def load(
    path: str,
    images: str | None,
    *,
    skip_broken: bool,
    held_out: HeldOutConfig | None = None,
) -> UserDataset:
    """Reads annotations, and checks all images.

    Args:
      path: annotation file, or a folder with train.json and optionally validation.json and
        test.json. In a folder, these files may also be in its folder annotations/. Three files,
        separated by commas, are train, validation and test.
      images: folder of the images; None to find them in the folder of the annotations, or in a
        folder images/ in or next to that folder.
      skip_broken: whether to skip images that are missing or cannot be read, with a message.
      held_out: config of the held-out splits; its `group_column` is a key of the entries in the
        list "images" of the annotations. None for a split by hash.

    Returns:
      The data set. A split without a file is about a tenth of the training images. By default, its
      images are chosen by the hash of their pixels. Equal images are in the same split.

    Raises:
      UserError: annotations or images cannot be used; the message names file and entry.
    """
    files, held_out = _find(path), held_out or HeldOutConfig()
    key = held_out.group_column
    read = {split: read_annotations(file, images, key) for split, file in files.items()}
    names = read["train"][0]
    for split, (others, _, _) in read.items():
        if others != names:
            raise UserError(
                f"{files[split]}: its categories are {list(others)}, expected {list(names)} as "
                f"in {files['train']}; use the same categories"
            )
    found, hashes, turns = {}, {}, AnnotationTurns()
    for split, (_, given, _) in read.items():
        expect_some_files(
            [image.path for image in given],
            str(files[split]),
            "set --config.data.images to the folder of the images",
        )
        hashes[split], kept = read_each(
            given, lambda image: _pixel_hash(image, turns), skip_broken=skip_broken
        )
        found[split] = [given[number] for number in kept]
        if not kept:
            raise UserError(
                f"{files[split]}: has no images that can be read; add images to the split"
            )
    by_file = turns.decide(path)
    for split, given in found.items():
        found[split] = [
            _turned(image, by_file[image.path]) if image.path in by_file else image
            for image in given
        ]
    codes = {split: [array.tobytes().hex() for array in hashes[split]] for split in hashes}
    warn_shared(
        path,
        {
            split: dict(zip(codes[split], (image.name for image in given), strict=True))
            for split, given in found.items()
        },
        "images",
    )
    groups = {split: [image.group for image in given] for split, given in found.items()}
    if key:
        expect_groups_apart(path, groups)
    train = found["train"]
    parts = held_out.hold_out(
        codes["train"],
        list(files),
        str(files["train"]),
        "give --data=TRAIN,VALIDATION,TEST",
        "images",
        groups=groups["train"] if key else None,
    )
    found |= {split: [train[i] for i in chosen] for split, chosen in parts.items()}
    masks = {has_masks for _, _, has_masks in read.values() if has_masks is not None}
    if len(masks) > 1:
        raise UserError(
            f"{path}: some files have segmentations, others have none; give segmentations in all "
            "files or in none"
        )
    digest = hashlib.sha256()
    for split, file in files.items():
        digest.update(split.encode() + file.read_bytes())
        for array in hashes[split]:
            digest.update(array.tobytes())
    return UserDataset(found, names, masks == {True}, digest.hexdigest())


def load_labeled(
    path: str, images: str | None, names: Sequence[str], has_masks: bool
) -> UserDataset:
    """Reads an annotation file for an evaluation, as the split "test".

    Args:
      path: annotation file in COCO's format.
      images: folder of the images; None to find them in the folder of the annotations, or in a
        folder images/ in or next to that folder.
      names: class names of the run. Categories are matched by name, not by id.
      has_masks: whether the run was trained on masks.

    Raises:
      UserError: annotations or images cannot be used, an object has a category that is not a class
        of the run, or the objects have no masks although the run predicts masks.
    """
    if Path(path).expanduser().is_dir():
        raise UserError(f"{path}: is a folder, expected an annotation file in COCO's format")
    own, given, masks = read_annotations(Path(path).expanduser(), images)
    remedy = "set --images to the folder of the images"
    expect_some_files([image.path for image in given], path, remedy)
    if has_masks and masks is False:
        raise UserError(f"{path}: its objects have no segmentation, but the run predicts masks")
    places = [(own[label], image.name) for image in given for label in image.truth.labels]
    class_indices(path, [label for label, _ in places], [where for _, where in places], names)
    number = np.array([names.index(name) if name in names else -1 for name in own], np.int32)
    turns, broken = AnnotationTurns(), []
    for image in given:
        try:
            _pixel_hash(image, turns)
        except UserError as error:
            broken.append(str(error))
    if broken:
        raise UserError(
            f"{path}: {len(broken)} of {len(given)} images cannot be used, such as {broken[0]}"
        )
    if not any(len(image.truth.labels) for image in given):
        raise UserError(f"{path}: has no objects; there is nothing to measure")
    by_file, rows = turns.decide(path), []
    for image in given:
        truth = dataclasses.replace(
            image.truth,
            labels=number[image.truth.labels],
            masks=image.truth.masks if has_masks else None,
        )
        image = dataclasses.replace(image, truth=truth)
        turn = by_file.get(image.path)
        rows.append(image if turn is None else _turned(image, turn))
    return UserDataset({"test": rows}, tuple(names), has_masks, "")


def _find(path: str) -> dict[str, Path]:
    root = Path(path).expanduser()
    if not root.is_dir():
        reason = "because the annotations of a split are in one file"
        given = {split: one_file(name, reason) for split, name in split_files(path).items()}
        return {split: Path(name).expanduser() for split, name in given.items()}
    if not any(root.glob("*.json")) and (root / "annotations").is_dir():
        root /= "annotations"
    stems = {
        file.stem: file
        for file in sorted(root.iterdir())
        if file.suffix.lower() == ".json" and not file.name.startswith(".")
    }
    found = {split: stems.pop(stem) for split, stem in split_names(list(stems), path).items()}
    if "train" not in found:
        raise UserError(
            f"{path}: has no train.json; add the file, or set --data to an annotation file"
        )
    if stems:
        first = next(iter(stems.values())).name
        warn_once(
            f"{path}: {len(stems)} files belong to no split and are left out, such as {first}"
        )
    return found


def _pixel_hash(annotated: Annotated, turns: AnnotationTurns) -> np.ndarray:
    """Checks that an image fits its annotations, and returns SHA-256 of its pixels as bytes.

    Raises:
      UserError: the image cannot be read, or has another size than in its annotations.
    """
    image, orientation = read_oriented(annotated.path)
    size = image.shape[:2]
    if not turns.fits(annotated.path, orientation, annotated.truth.size, size):
        (height, width), (Y, X) = annotated.truth.size, size
        raise UserError(
            f"{annotated.path}: is {X} x {Y} pixels, but its annotations are for {width} x "
            f"{height}; correct width and height in the annotation file"
        )
    content = str(image.shape).encode() + image.tobytes()
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _turned(annotated: Annotated, orientation: int) -> Annotated:
    """Converts annotations from pixels of the stored image to pixels of the displayed image."""
    truth = annotated.truth
    masks = truth.masks
    if masks is not None:
        masks = [_turned_mask(mask, orientation) for mask in masks]
    boxes = turned_boxes(truth.boxes, truth.size, orientation)
    size = turned_size(truth.size, orientation)
    truth = dataclasses.replace(truth, size=size, boxes=boxes, masks=masks)
    return dataclasses.replace(annotated, truth=truth)


def _turned_mask(mask: RunLength, orientation: int) -> RunLength:
    from pycocotools import mask as coco

    return to_rle(turned(coco.decode(mask).view(bool), orientation)[None])[0]
