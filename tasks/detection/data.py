"""Images with boxes, classes and masks of objects, from built-in data sets or COCO files.

All examples are squares of the same size. Larger images are scaled down to fit, smaller images keep
their size, and both are zero-padded on the right and at the bottom. Y and X are the height and
width of the square, M is the number of objects including padding. Fields of an example:

* image: uint8 [Y, X, 3];
* size: int32 [2], height and width without padding;
* original: int32 [2], height and width of the original image;
* boxes: float32 [M, 4], (x1, y1, x2, y2) in pixels of the square;
* labels: int32 [M], classes from 0 for objects, then -1 for padding;
* instances: uint16 [Y, X], k + 1 at pixels of object k, 0 for background; only in data with masks.
  The smaller of two overlapping objects is on top. Metrics use the complete masks of
  `DetectionExamples.truth`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.common.configs import PositiveInt, known_names
from tasks.common.data import builders, digests
from tasks.common.data.held_out import HeldOutConfig
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS, SplitSummary, check_splits
from tasks.common.data.user_files import results_name
from tasks.common.errors import warn_once
from tasks.common.images.files import nearest, resize
from tasks.detection import user_files
from tasks.detection.augmentation import AugmentationConfig
from tasks.detection.datasets import DATA_SETS
from tasks.detection.metrics import Truth
from tasks.detection.ops.pasting import to_rle

_USER_SIDE = 256
# Maximum size in bytes of the cached examples of a split; others are computed on each access.
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class DataConfig(HeldOutConfig):
    """Config of the data set.

    Attributes:
      name: name of a built-in data set. With `path`, name under which results are stored,
        own_<file> by default.
      path: user annotations in COCO's format. A single file is split by the hash of the image
        pixels, with a tenth each for validation and test. Or it is a folder with train.json and
        optionally validation.json (or valid, val, dev) and test.json, or three files for train,
        validation and test, separated by commas. Each split must have an object that is not a crowd
        region (iscrowd 1). For images with an EXIF orientation see
        `tasks.common.images.orientation`.
      images: folder of the images; None to find them in the folder of the annotations, or in a
        folder images/ in or next to that folder.
      image_size: side of the examples in pixels; None for the default of the data set, which is 256
        for user files.
      max_objects: maximum number of objects of an example; None for the maximum over the data. If
        an image has more objects, the largest are kept.
      skip_broken: whether to skip user images that are missing or cannot be read, with a message.
      augmentation: config of the random augmentation in training.
      For the other attributes see `HeldOutConfig`; `group_column` is a key of the entries in the
      list "images" of the annotations, and `stratify` has no effect.
    """

    name: known_names(*DATA_SETS) = "nuclei"
    path: str | None = None
    images: str | None = None
    image_size: PositiveInt | None = None
    max_objects: PositiveInt | None = None
    skip_broken: bool = False
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self):
        super().__post_init__()
        name = results_name(self.name, DATA_SETS, self.path, "; set path to read user files")
        object.__setattr__(self, "name", name)
        needed = self.path is not None or self.images is None
        self.expect("images", needed, "None unless path is set")


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its objects, in pixels of the original image.

    Attributes:
      image: pixels, uint8 [Y, X, 3].
      boxes: boxes of the n objects, float32 [n, 4].
      labels: classes of the objects, int32 [n].
      instances: int [Y, X], k + 1 at pixels of object k, 0 for background; None without masks.
    """

    image: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    instances: np.ndarray | None = None


class DetectionExamples:
    """Random access to the examples of a split; see the module for their fields.

    Attributes:
      ids: ids of the images: split and index in a built-in data set, else the file name.
      truth: function from an index to the true objects.
      labels: function from an index to the classes of the objects and the number of crowd regions.
    """

    lengths = None
    padded: Mapping[str, Any] = {}

    def __init__(
        self,
        ids: Sequence[str],
        image: Callable[[int], AnnotatedImage],
        truth: Callable[[int], Truth],
        side: int,
        max_objects: int,
        labels: Callable[[int], tuple[np.ndarray, int]] | None = None,
    ):
        """Initializes the examples from functions that read them.

        Args:
          ids: ids of the images.
          image: function from an index to the image.
          truth: function from an index to the true objects.
          side: side of an example.
          max_objects: maximum number of objects of an example.
          labels: see the attribute; None to take the labels from the examples.
        """
        self.ids, self.truth = list(ids), truth
        self.labels = self._labels if labels is None else labels
        self._image, self._side, self._max_objects = image, side, max_objects
        self._kept: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index in self._kept:
            return dict(self._kept[index])
        example = fit(self._image(index), self._side, self._max_objects)
        if (len(self._kept) + 1) * sum(array.nbytes for array in example.values()) <= _KEPT_BYTES:
            self._kept[index] = example
        return dict(example)

    def _labels(self, index: int) -> tuple[np.ndarray, int]:
        labels = self[index]["labels"]
        return labels[labels >= 0], 0


@dataclass(frozen=True)
class DetectionDataset(digests.Fingerprinted):
    """A data set for detection, with its splits and class names.

    Attributes:
      name: name of the data set.
      splits: examples by split.
      names: names of the classes.
      has_masks: whether objects have masks.
      image_size: side of the examples.
      max_objects: M, maximum number of objects of an example.
      parts: hash of each part of the data; see `tasks.task.Task.fingerprints`.
    """

    name: str
    splits: Mapping[str, DetectionExamples]
    names: tuple[str, ...]
    has_masks: bool
    image_size: int
    max_objects: int
    parts: Mapping[str, str]

    def summary(self) -> dict[str, SplitSummary]:
        """Counts the objects of each split by class; crowd regions are counted as ignored."""
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
    """Returns height and width of an image after it is scaled down to fit into a square.

    Args:
      size: height and width of the original image.
      side: side of the square in pixels. Smaller images keep their size.
    """
    scale = min(1.0, side / max(size))
    height, width = (max(1, math.floor(length * scale + 0.5)) for length in size)
    return height, width


def fit(annotated: AnnotatedImage, side: int, max_objects: int) -> dict[str, np.ndarray]:
    """Converts an image to a square example of `side` pixels.

    If there are more than `max_objects` objects, the largest are kept."""
    size = annotated.image.shape[:2]
    height, width = fitted_size(size, side)
    image = np.zeros((side, side, 3), np.uint8)
    image[:height, :width] = resize(annotated.image, (height, width))
    boxes = np.asarray(annotated.boxes, np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.sort(np.argsort(-areas, kind="stable")[:max_objects])
    factors = np.array([width / size[1], height / size[0]] * 2, np.float32)
    example = {
        "image": image,
        "size": np.array([height, width], np.int32),
        "original": np.array(size, np.int32),
        "boxes": np.zeros((max_objects, 4), np.float32),
        "labels": np.full(max_objects, -1, np.int32),
    }
    example["boxes"][: len(kept)] = boxes[kept] * factors
    example["labels"][: len(kept)] = annotated.labels[kept]
    if annotated.instances is not None:
        number = np.zeros(len(boxes) + 1, np.uint16)
        number[kept + 1] = np.arange(1, len(kept) + 1)
        example["instances"] = np.zeros((side, side), np.uint16)
        instances = nearest(annotated.instances, (height, width))
        example["instances"][:height, :width] = number[instances]
    return example


def to_image_pixels(boxes: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Maps boxes from pixels of an example to pixels of its original image, and clips them.

    Args:
      boxes: [n, 4] in pixels of the example.
      size: height and width of the original image.
      side: side of the example in pixels.

    Returns:
      float32 [n, 4].
    """
    height, width = fitted_size(size, side)
    factors = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    return np.clip(np.asarray(boxes, np.float32) * factors, 0, np.array([*size[::-1]] * 2))


def load(config: DataConfig, paths: Paths | None) -> DetectionDataset:
    """Reads the data set; a built-in data set is prepared first if necessary.

    Raises:
      UserError: a file or a source cannot be used.
    """
    return _load_built_in(config, paths) if config.path is None else _load_user_files(config)


def _load_built_in(config: DataConfig, paths: Paths) -> DetectionDataset:
    chosen = DATA_SETS[config.name]
    definition = chosen.definition
    side = config.image_size or chosen.side
    most = config.max_objects or chosen.max_objects

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

    return DetectionDataset(
        config.name,
        {split: examples(split) for split in SPLITS},
        chosen.names,
        chosen.has_masks,
        side,
        most,
        {"data set": digests.of_rows([definition.name, definition.version, side, most])},
    )


def _prepared(row: Mapping[str, np.ndarray]) -> AnnotatedImage:
    height, width = (int(length) for length in row["size"])
    instances = row["instances"][:height, :width] if "instances" in row else None
    return AnnotatedImage(row["image"][:height, :width], row["boxes"], row["labels"], instances)


def _truth(annotated: AnnotatedImage) -> Truth:
    masks = None
    if annotated.instances is not None:
        numbers = np.arange(1, len(annotated.labels) + 1)[:, None, None]
        masks = to_rle(annotated.instances == numbers)
    return Truth(annotated.image.shape[:2], annotated.boxes, annotated.labels, masks)


def read_labeled(
    path: str, images: str | None, names: Sequence[str], has_masks: bool, side: int, most: int
) -> DetectionDataset:
    """Reads an annotation file as the test split; see `user_files.load_labeled`.

    Args:
      path, images, names, has_masks: as for `user_files.load_labeled`.
      side: side of the examples in pixels.
      most: maximum number of objects of an example that count in the loss. Metrics use all objects.

    Raises:
      UserError: a file cannot be used.
    """
    user = user_files.load_labeled(path, images, names, has_masks)
    most = max(min(user.max_objects, most), 1)
    splits = {"test": _user_examples(user, "test", side, most)}
    return DetectionDataset(path, splits, user.names, has_masks, side, most, {})


def _user_examples(
    user: user_files.UserDataset, split: str, side: int, most: int
) -> DetectionExamples:
    rows = user.splits[split]
    return DetectionExamples(
        [annotated.name for annotated in rows],
        lambda index: AnnotatedImage(*user.image(rows[index])),
        lambda index: rows[index].truth,
        side,
        most,
        lambda index: rows[index].labels(),
    )


def _load_user_files(config: DataConfig) -> DetectionDataset:
    side = config.image_size or _USER_SIDE
    user = user_files.load(
        config.path, config.images, skip_broken=config.skip_broken, held_out=config
    )
    most = config.max_objects or max(1, user.max_objects)
    parts = {"class names": digests.of_rows(user.names)}
    for split, examples_of_split in user.splits.items():
        rows = ((annotated.name, annotated.truth) for annotated in examples_of_split)
        parts[f"{split} objects"] = digests.of_rows(rows)
    parts["annotation files and images"] = user.digest
    parts["size of an example"] = digests.of_rows([side, most])
    data = DetectionDataset(
        config.name,
        {split: _user_examples(user, split, side, most) for split in SPLITS},
        user.names,
        user.has_masks,
        side,
        most,
        parts,
    )
    check_splits(config.path, data.summary())
    _warn_lost(config.path, user, side, most)
    return data


def _warn_lost(path: str, user: user_files.UserDataset, side: int, most: int) -> None:
    """Warns about lost objects: less than one pixel wide or high, or beyond `max_objects`."""
    tiny, beyond = [], []
    for rows in user.splits.values():
        for annotated in rows:
            truth = annotated.truth
            boxes = truth.boxes[~truth.crowd]
            height, width = fitted_size(truth.size, side)
            sides = (boxes[:, 2:] - boxes[:, :2]) * [width / truth.size[1], height / truth.size[0]]
            tiny += [annotated.name] * int((sides < 1).any(axis=1).sum())
            beyond += [annotated.name] * max(len(boxes) - most, 0)
    if tiny:
        warn_once(
            f"{path}: {len(tiny)} objects are less than one pixel wide or high at "
            f"config.data.image_size={side}, the first is in {tiny[0]}"
        )
    if beyond:
        warn_once(
            f"{path}: {len(beyond)} objects exceed config.data.max_objects={most} and are left "
            f"out of training, the first is in {beyond[0]}"
        )
