"""Pictures with boxes, classes and masks, in three splits: the project's data sets, or a person's
own COCO files.

An example is a square of one size for all pictures: what is larger is scaled down to fit, what is
smaller stays as it is, and the rest, to the right and below, is 0. Its fields:

* image: uint8 [Y, X, 3];
* size: int32 [2], height and width of the part that is picture;
* boxes: float32 [M, 4], (x1, y1, x2, y2) in pixels of the square;
* labels: int32 [M], classes from 0; -1 where there is no object, behind all that are;
* instances: uint16 [Y, X], k + 1 where object k is, 0 where none is; only where there are masks.
  Where objects overlap, the smaller is on top; figures are computed from the whole masks, which
  `DetectionExamples.truth` gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.common.data import builders, digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS, SplitSummary, check_splits
from tasks.common.data.user_files import results_name
from tasks.common.errors import warn_once
from tasks.common.images.files import resize
from tasks.detection import user_files
from tasks.detection.augmentation import AugmentationConfig
from tasks.detection.datasets import DATA_SETS
from tasks.detection.metrics import Truth
from tasks.detection.ops.pasting import to_rle

_OWN_SIDE = 256
# Examples of a split that stay in memory once they are made; what is beyond is made each time.
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class DataConfig:
    """Which pictures, and how they become examples.

    Attributes:
      name: one of the project's data sets. With path it only names the results, and is
        own_<its name> unless something else is given.
      path: own annotations in COCO's format: a file, of which a tenth each is held out for
        validation and test by the content of the pictures; or a folder with train.json and, where
        they are, validation.json (or valid, val, dev) and test.json.
        Each split must have an object that is no crowd region (iscrowd 1). The boxes and masks of
        an image with an EXIF orientation are in pixels of the image as stored, unless sizes tell
        otherwise: see `tasks.common.images.orientation`.
      images: folder to which the file names in the annotations are relative; None: the annotations'
        own.
      image_size: side of the examples in pixels; None: that of the data set, 256 for own files.
      max_objects: objects of an example; None: as many as any picture of the data has. Where a
        picture has more, the largest are kept.
      skip_broken: leave out own pictures that are missing or cannot be read, and name them, where
        otherwise the first of them is an error.
      augmentation: what is changed at random in training.
    """

    name: str = "nuclei"
    path: str | None = None
    images: str | None = None
    image_size: int | None = None
    max_objects: int | None = None
    skip_broken: bool = False
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self):
        for name in ("image_size", "max_objects"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: got {value}, expected at least 1")
        name = results_name(self.name, DATA_SETS, self.path, "; path takes your own files")
        object.__setattr__(self, "name", name)
        if self.path is None and self.images is not None:
            raise ValueError(f"images: got {self.images!r}, expected none without path")


@dataclass(frozen=True)
class Picture:
    """A picture and its objects, in its own pixels.

    Attributes:
      image: uint8 [Y, X, 3].
      boxes: float32 [n, 4].
      labels: int32 [n].
      instances: int [Y, X], k + 1 where object k is; None without masks.
    """

    image: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    instances: np.ndarray | None = None


class DetectionExamples:
    """Random access to the examples of a split; see the module for their fields.

    Attributes:
      ids: where each comes from: an id of the data set, or a file's name.
      labels: classes of the objects of a number, and the number of its crowd regions.
    """

    lengths = None
    padded: Mapping[str, Any] = {}

    def __init__(
        self,
        ids: Sequence[str],
        picture: Callable[[int], Picture],
        truth: Callable[[int], Truth],
        side: int,
        max_objects: int,
        labels: Callable[[int], tuple[np.ndarray, int]] | None = None,
    ):
        """Makes the examples.

        Args:
          ids: of the pictures.
          picture: the picture of a number.
          truth: what it shows.
          side: of an example.
          max_objects: of an example.
          labels: classes of the objects of a picture and the number of its crowd regions, where
            they are known without reading it.
        """
        self.ids, self.truth = list(ids), truth
        self.labels = self._labels if labels is None else labels
        self._picture, self._side, self._max_objects = picture, side, max_objects
        self._kept: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index in self._kept:
            return dict(self._kept[index])
        example = fit(self._picture(index), self._side, self._max_objects)
        if (len(self._kept) + 1) * sum(array.nbytes for array in example.values()) <= _KEPT_BYTES:
            self._kept[index] = example
        return dict(example)

    def _labels(self, index: int) -> tuple[np.ndarray, int]:
        labels = self[index]["labels"]
        return labels[labels >= 0], 0


@dataclass(frozen=True)
class DetectionData:
    """A data set.

    Attributes:
      name: of the data set.
      splits: examples by split.
      names: of the classes.
      has_masks: whether objects have masks.
      image_size: side of the examples.
      max_objects: objects of an example, M.
      parts: hash of each part of the data; see `tasks.task.Task.fingerprints`.
    """

    name: str
    splits: Mapping[str, DetectionExamples]
    names: tuple[str, ...]
    has_masks: bool
    image_size: int
    max_objects: int
    parts: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of all parts."""
        return digests.joined(self.parts)

    def summary(self) -> dict[str, SplitSummary]:
        """Counts of each split: objects by class, and crowd regions as ignored."""
        found = {}
        for split, examples in self.splits.items():
            counts, crowds = np.zeros(len(self.names), np.int64), 0
            for index in range(len(examples)):
                labels, crowd = examples.labels(index)
                counts += np.bincount(labels, minlength=len(self.names))
                crowds += crowd
            found[split] = SplitSummary(
                len(examples),
                dict(zip(self.names, counts.tolist(), strict=True)),
                unit="objects",
                ignored=crowds,
                ignored_as="crowd regions",
            )
        return found


def fitted_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Height and width that a picture of `size` has in an example."""
    scale = min(1.0, side / max(size))
    height, width = (max(1, math.floor(length * scale + 0.5)) for length in size)
    return height, width


def fit(picture: Picture, side: int, max_objects: int) -> dict[str, np.ndarray]:
    """The example of a picture; of objects and masks too, where it has them."""
    size = picture.image.shape[:2]
    height, width = fitted_size(size, side)
    image = np.zeros((side, side, 3), np.uint8)
    image[:height, :width] = resize(picture.image, (height, width))
    boxes = np.asarray(picture.boxes, np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.sort(np.argsort(-areas, kind="stable")[:max_objects])
    factors = np.array([width / size[1], height / size[0]] * 2, np.float32)
    example = {
        "image": image,
        "size": np.array([height, width], np.int32),
        "boxes": np.zeros((max_objects, 4), np.float32),
        "labels": np.full(max_objects, -1, np.int32),
    }
    example["boxes"][: len(kept)] = boxes[kept] * factors
    example["labels"][: len(kept)] = picture.labels[kept]
    if picture.instances is not None:
        number = np.zeros(len(boxes) + 1, np.uint16)
        number[kept + 1] = np.arange(1, len(kept) + 1)
        y, x = (
            ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
            for new, old in zip((height, width), size, strict=True)
        )
        example["instances"] = np.zeros((side, side), np.uint16)
        example["instances"][:height, :width] = number[picture.instances[y[:, None], x]]
    return example


def in_own_pixels(boxes: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Boxes [n, 4] of an example in pixels of the picture of `size`, cut at its border."""
    height, width = fitted_size(size, side)
    factors = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    return np.clip(np.asarray(boxes, np.float32) * factors, 0, np.array([*size[::-1]] * 2))


def load(config: DataConfig, paths: Paths | None) -> DetectionData:
    """Reads a data set, preparing one of the project's own first when it is not.

    Raises:
      UserError: what is wrong with a file or a source.
    """
    return _load_public(config, paths) if config.path is None else _load_own(config)


def _load_public(config: DataConfig, paths: Paths) -> DetectionData:
    chosen = DATA_SETS[config.name]
    definition = chosen.definition
    side = config.image_size or chosen.side
    most = config.max_objects or chosen.max_objects
    builders.prepare(definition, paths)

    def examples(split: str) -> DetectionExamples:
        source = builders.load(definition, split, paths)
        ids = [f"{split}-{index}" for index in range(len(source))]
        return DetectionExamples(
            ids,
            lambda index: _prepared(source[index]),
            lambda index: _truth(_prepared(source[index])),
            side,
            most,
        )

    return DetectionData(
        config.name,
        {split: examples(split) for split in SPLITS},
        chosen.names,
        chosen.has_masks,
        side,
        most,
        {"data set": digests.of_rows([definition.name, definition.version, side, most])},
    )


def _prepared(row: Mapping[str, np.ndarray]) -> Picture:
    height, width = (int(length) for length in row["size"])
    instances = row["instances"][:height, :width] if "instances" in row else None
    return Picture(row["image"][:height, :width], row["boxes"], row["labels"], instances)


def _truth(picture: Picture) -> Truth:
    masks = None
    if picture.instances is not None:
        numbers = np.arange(1, len(picture.labels) + 1)[:, None, None]
        masks = to_rle(picture.instances == numbers)
    return Truth(picture.image.shape[:2], picture.boxes, picture.labels, masks)


def _load_own(config: DataConfig) -> DetectionData:
    side = config.image_size or _OWN_SIDE
    own = user_files.load(config.path, config.images, skip_broken=config.skip_broken)
    most = config.max_objects or max(1, own.max_objects)

    def examples(split: str) -> DetectionExamples:
        pictures = own.splits[split]
        return DetectionExamples(
            [annotated.name for annotated in pictures],
            lambda index: Picture(*own.picture(pictures[index])),
            lambda index: pictures[index].truth,
            side,
            most,
            lambda index: pictures[index].labels(),
        )

    parts = {"class names": digests.of_rows(own.names)}
    for split, pictures in own.splits.items():
        rows = ((annotated.name, annotated.truth) for annotated in pictures)
        parts[f"{split} objects"] = digests.of_rows(rows)
    parts["annotation files and images"] = own.digest
    parts["size of an example"] = digests.of_rows([side, most])
    data = DetectionData(
        config.name,
        {split: examples(split) for split in SPLITS},
        own.names,
        own.has_masks,
        side,
        most,
        parts,
    )
    check_splits(config.path, data.summary())
    _name_lost(config.path, own, side, most)
    return data


def _name_lost(path: str, own: user_files.OwnFiles, side: int, most: int) -> None:
    """Names objects that an example cannot show."""
    tiny, beyond = [], []
    for pictures in own.splits.values():
        for picture in pictures:
            truth = picture.truth
            boxes = truth.boxes[~truth.crowd]
            height, width = fitted_size(truth.size, side)
            sides = (boxes[:, 2:] - boxes[:, :2]) * [width / truth.size[1], height / truth.size[0]]
            tiny += [picture.name] * int((sides < 1).any(axis=1).sum())
            beyond += [picture.name] * max(len(boxes) - most, 0)
    if tiny:
        warn_once(
            f"{path}: {len(tiny)} objects are narrower than one pixel at config.data.image_size="
            f"{side}, the first is in {tiny[0]}"
        )
    if beyond:
        warn_once(
            f"{path}: {len(beyond)} objects are beyond config.data.max_objects={most} and are left "
            f"out of training, the first is in {beyond[0]}"
        )
