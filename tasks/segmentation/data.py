"""Images with a class for each pixel, from built-in data sets or user files.

All images are resized to one size, or cut into windows of one size. They are kept in memory with
four bytes per pixel (RGB and class). n images, Y X height and width, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.common.configs import LATER, known_names, one_of, within
from tasks.common.data import builders, digests
from tasks.common.data.held_out import expect_groups_apart
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS, SplitSummary, check_splits
from tasks.common.data.user_files import read_each, results_name, warn_shared
from tasks.common.errors import UserError, warn_once
from tasks.common.images.augmentation import AugmentationConfig
from tasks.common.images.files import nearest, read_oriented, resize
from tasks.common.images.orientation import AnnotationTurns, turned, warn_displayed
from tasks.common.images.tables import ImageTableConfig
from tasks.segmentation import tiles, user_files
from tasks.segmentation.datasets import DATA_SETS
from tasks.segmentation.metrics import VOID

# Overlap of adjacent windows in predictions, as a fraction of a window.
OVERLAP = 0.25


@dataclasses.dataclass(frozen=True)
class DataConfig(ImageTableConfig):
    """Config of the data set.

    Attributes:
      name: name of a built-in data set. If `path` is set, the name under which results are
        stored; by default own_<folder>.
      path: user files. A folder contains either images/ and masks/, in which an image and its mask
        have the same name, or the folders train/ and optionally validation/ and test/, which each
        contain images/ and masks/. Other forms of `path` are a table with paths of images and
        masks, and three paths for train, validation and test, separated by commas. A missing split
        is a tenth of the training split, selected by the hash of the pixels. A mask contains the
        class index of each pixel, in grayscale or with a palette. An optional file classes.txt
        lists the class names, one per line, from class 0. The training split must have pixels of at
        least two classes. For images with an EXIF orientation see
        `tasks.common.images.orientation`.
      image_size: height and width of the model's input.
      fit: method for images of other sizes: "resize" scales the complete image; "tiles" cuts it
        into windows at its original scale and blends the predictions for the windows.
      void: value in user masks for pixels without a class.
      mask_values: values of class 0, class 1, ... in user masks, such as (0, 255) for black and
        white masks. A listed value is a class even if it equals `void`. Empty if the masks contain
        class indices.
      skip_broken: whether to skip user images that cannot be read, with a message.
      augmentation: config of the random augmentation in training.
      crop_size: height and width of random crops of the training images, which need less time and
        memory than complete images. Evaluation and prediction use complete images. Empty for no
        crops.
      label_column: column of user tables with the path of each mask.
      For the other attributes see `ImageTableConfig`; `stratify` has no effect, because images have
      no single class.
    """

    name: known_names(*DATA_SETS) = "camvid"
    path: str | None = None
    image_size: tuple[int, ...] = (180, 240)
    fit: one_of("resize", "tiles") = "resize"
    void: within("[0, 65535]", "a number from 0 to 65535", int) = VOID
    mask_values: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
    skip_broken: bool = False
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    crop_size: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
    label_column: str = dataclasses.field(default="mask", metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        is_size = len(self.image_size) == 2 and min(self.image_size) >= 1
        self.expect("image_size", is_size, "a height and a width, at least 1")
        is_crop = len(self.crop_size) == 2 and all(
            1 <= part <= whole for part, whole in zip(self.crop_size, self.image_size, strict=True)
        )
        expected = f"a height and a width of at most image_size={list(self.image_size)}, or []"
        self.expect("crop_size", not self.crop_size or is_crop, expected)
        values, most = self.mask_values, user_files.MOST_CLASSES
        valid = not values or (
            2 <= len(values) <= most
            and len(set(values)) == len(values)
            and 0 <= min(values) <= max(values) <= 65535
        )
        self.expect("mask_values", valid, f"2 to {most} different numbers from 0 to 65535")
        self.expect(
            "mask_values", not values or self.path is not None, "no values, because path is not set"
        )
        name = results_name(self.name, DATA_SETS, self.path, "; path takes your own files")
        object.__setattr__(self, "name", name)


class SegmentationExamples:
    """Random access to images of one size.

    Attributes:
      images: pixels, uint8 [n, Y, X, 3].
      labels: classes of the pixels, uint8 [n, Y, X], VOID for pixels without a class.
      subsets: mapping from names of subsets to bool [n], True for the images of the subset; each
        subset has separate metrics.
      void: number of pixels without a class in the masks of the data set.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        subsets: Mapping[str, np.ndarray] | None = None,
        void: int | None = None,
        ids: np.ndarray | None = None,
    ):
        """Initializes the examples from arrays.

        Args:
          images, labels, subsets: see the attributes.
          void: see the attributes; None to count the void pixels of `labels`.
          ids: ids of the examples, uint64 [n]; None for hashes of images and labels.
        """
        self.images, self.labels, self.subsets = images, labels, dict(subsets or {})
        self.void = int(np.sum(labels == VOID)) if void is None else void
        self.ids = digests.ids(images, labels) if ids is None else ids

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        place = np.array([index, 0, 0, *self.labels.shape[1:]], np.int32)
        return {"image": self.images[index], "labels": self.labels[index], "place": place}


@dataclasses.dataclass(frozen=True)
class SegmentationData(digests.Fingerprinted):
    """Splits by name, and the names of the classes."""

    splits: Mapping[str, SegmentationExamples]
    names: tuple[str, ...]

    def summary(self) -> dict[str, SplitSummary]:
        """Counts the pixels of each split by class; void pixels are counted as ignored."""
        return {
            split: SplitSummary(
                len(images),
                dict(
                    zip(self.names, user_files.label_counts(images.labels).tolist(), strict=False)
                ),
                unit="pixels",
                ignored=images.void,
                ignored_as="void",
                least_classes=2,
            )
            for split, images in self.splits.items()
        }

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        columns = digests.of_splits(
            self.splits,
            lambda x: {"images": x.images, "masks": x.labels, "conditions": [x.subsets]},
        )
        return {"class names": digests.of_rows(self.names), **columns}


def load(config: DataConfig, paths: Paths) -> SegmentationData:
    """Reads the data set; a built-in data set is prepared first if necessary.

    Raises:
      UserError: a file or a source cannot be used.
    """
    if config.path is None:
        return _named(config, paths)
    data = _user_data(config)
    for split, examples in data.splits.items():
        if np.all(examples.labels == VOID):
            raise UserError(
                f"--data: no pixel of the {split} split has a class; check its masks, "
                "config.data.void and config.data.mask_values"
            )
    summary = data.summary()
    train = summary["train"]
    present = [number for number, count in enumerate(train.classes.values()) if count]
    if len(present) == 1 and train.ignored and config.void not in config.mask_values:
        alone = config.mask_values[present[0]] if config.mask_values else present[0]
        share = train.ignored / (train.ignored + sum(train.classes.values()))
        raise UserError(
            f"{config.path}: got one class, expected at least two: masks of the train split hold "
            f"{alone} and {config.void}, but {config.void} is void (config.data.void), which is "
            f"no class ({share:.1%} of the pixels); to make {config.void} a class, set "
            f"config.data.mask_values to ({alone}, {config.void})"
        )
    check_splits(config.path, summary)
    return data


def _named(config: DataConfig, paths: Paths) -> SegmentationData:
    built_in = DATA_SETS[config.name]
    splits = {}
    for split, rows in builders.read_splits(built_in.definition, paths):
        pairs = [
            (row["image"], np.where(row["labels"] < len(built_in.names), row["labels"], VOID))
            for row in rows
        ]
        ids = [row["id"].decode() for row in rows]
        splits[split] = _fitted(pairs, config, ids, built_in.subsets if split == "test" else {})
    return SegmentationData(splits, built_in.names)


def _user_data(config: DataConfig) -> SegmentationData:
    names = user_files.class_names(config.path)
    values = config.mask_values
    if names is not None and values and len(names) != len(values):
        raise UserError(
            f"config.data.mask_values: got {len(values)} numbers, expected one for each of the "
            f"{len(names)} classes in {Path(config.path) / user_files.CLASSES}"
        )
    read: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    kept: dict[str, list[user_files.Pair]] = {}
    turns = AnnotationTurns()
    found, group_of = user_files.find_all(config.path, config)
    for split, pairs in found.items():
        read[split], numbers = read_each(
            pairs,
            lambda pair: user_files.read_pair(pair, config.void, names, values, turns),
            skip_broken=config.skip_broken,
        )
        kept[split] = [pairs[number] for number in numbers]
        if not read[split]:
            raise UserError(
                f"--data: no image of the {split} split of {config.path} can be read; "
                "add images to the split"
            )
    by_file = turns.decide(config.path)
    for split, pairs in read.items():
        read[split] = [
            (image, turned(labels, by_file.get(pair[0], 1)))
            for pair, (image, labels) in zip(kept[split], pairs, strict=True)
        ]
    if names is None:
        names = [
            f"class_{n}"
            for n in range(len(values) or user_files.count_classes(config.path, read, kept))
        ]
    hashes = {
        split: [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image, _ in pairs]
        for split, pairs in read.items()
    }
    shown = {
        split: dict(zip(hashes[split], (str(pair[0]) for pair in kept[split]), strict=True))
        for split in read
    }
    warn_shared(config.path, shown, "images")
    groups = None
    if config.group_column:
        of_split = {split: [group_of[pair[0]] for pair in kept[split]] for split in read}
        expect_groups_apart(config.path, of_split)
        groups = of_split["train"]
    train = read["train"]
    remedy = "give more images, or --data=TRAIN,VALIDATION,TEST"
    parts = config.hold_out(
        hashes["train"], list(read), config.path, remedy, "images", groups=groups
    )
    read |= {split: [train[i] for i in chosen] for split, chosen in parts.items()}
    splits = {split: _fitted(read[split], config) for split in SPLITS}
    before, after = (
        user_files.label_counts(x) for x in ([y for _, y in read["train"]], splits["train"].labels)
    )
    lost = [names[k] for k in np.flatnonzero(before[:VOID]) if not after[k]]
    if lost:
        warn_once(
            f"{config.path}: no pixel of {', '.join(lost[:20])} is left in the train split at "
            f"config.data.image_size={tuple(config.image_size)}; set a larger image_size, or "
            "config.data.fit to tiles"
        )
    return SegmentationData(splits, tuple(names))


def read_labeled(
    path: str, config: DataConfig, names: Sequence[str]
) -> tuple[SegmentationData, list[str]]:
    """Reads images and masks as the test split; see `user_files.find_labeled`.

    Args:
      path: folder or table.
      config: config of the run.
      names: class names of the run.

    Returns:
      The split "test", and the names of the images.

    Raises:
      UserError: a file cannot be used, or no pixel has a class.
    """
    turns, read = AnnotationTurns(), []
    pairs = user_files.find_labeled(path, names, config)
    for pair in pairs:
        read.append(user_files.read_pair(pair, config.void, names, config.mask_values, turns))
    by_file = turns.decide(path)
    read = [
        (image, turned(labels, by_file.get(pair[0], 1)))
        for pair, (image, labels) in zip(pairs, read, strict=True)
    ]
    examples = _fitted(read, config)
    if np.all(examples.labels == VOID):
        raise UserError(f"{path}: no pixel has a class; check the masks")
    return SegmentationData({"test": examples}, tuple(names)), [str(pair[0]) for pair in pairs]


def _fitted(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    config: DataConfig,
    ids: Sequence[str] = (),
    subsets: Mapping[str, str] | None = None,
) -> SegmentationExamples:
    """Makes examples of one size: resizes images, or cuts them into windows.

    Args:
      pairs: image and mask of each pair.
      config: config with the size of the examples and the method.
      ids: id of each pair, which the prefixes of `subsets` refer to.
      subsets: mapping from names of subsets to prefixes of ids; None for no subsets.
    """
    size, tiled = tuple(config.image_size), config.fit == "tiles"
    images, labels, source, codes, void = [], [], [], [], 0
    for number, (image, mask) in enumerate(pairs):
        whole = digests.code((image, mask))
        if tiled:
            windows = tiles.training_windows(image, mask, size, VOID)
            # Counts void pixels in the complete mask, because a window also marks pixels of earlier
            # windows as void.
            void += int(np.sum(mask == VOID))
        else:
            windows = [(resize(image, size), nearest(mask, size))]
            void += int(np.sum(windows[0][1] == VOID))
        for place, (window, window_labels) in enumerate(windows):
            images.append(window)
            labels.append(window_labels)
            source.append(number)
            codes.append((whole, place, size if tiled else None))
    masks = {
        name: np.array([ids[number].startswith(start) for number in source])
        for name, start in (subsets or {}).items()
    }
    return SegmentationExamples(np.stack(images), np.stack(labels), masks, void, digests.ids(codes))


class InferenceWindows:
    """Unlabeled images for prediction, resized or cut into windows, by index.

    Attributes:
      place: int32 [n, 5]. A row has the index of the image, the top and the left of the window in
        this image, and the height and the width of the image.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(self, raw: Sequence[str], config: DataConfig):
        """Reads each image once, so that unreadable images raise before any computation.

        Raises:
          UserError: an image cannot be read.
        """
        self._raw, self._size, self._fit = raw, tuple(config.image_size), config.fit
        self._read = functools.lru_cache(maxsize=1)(self._image)
        self._whole, rows = [], []
        for number in range(len(raw)):
            image = self._read(number)
            Y, X = image.shape[:2]
            corners = [(0, 0)]
            if self._fit == "tiles":
                corners = tiles.window_corners(Y, X, self._size, OVERLAP)
            else:
                self._whole.append(resize(image, self._size))
            rows += [(number, *corner, Y, X) for corner in corners]
        self.place = np.array(rows, np.int32).reshape(-1, 5)

    def _image(self, number: int) -> np.ndarray:
        name = self._raw[number]
        image, orientation = read_oriented(name, called=f"input {name!r}")
        warn_displayed(name, orientation)
        return image

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number, top, left, _, _ = self.place[index].tolist()
        if self._fit == "tiles":
            image = tiles.crop_window(self._read(number), top, left, self._size)
        else:
            image = self._whole[number]
        return {"image": image, "place": self.place[index]}


def merge_windows(config: DataConfig, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the predicted classes of each image in its original size, uint8 [Y, X].

    Args:
      config: config of the `InferenceWindows`.
      outputs: outputs of the model for the examples: `place` [n, 5], and `labels` uint8 [n, Y, X]
        of resized images, or `probabilities` [n, Y, X, K] of windows.
    """
    place, found = outputs["place"], []
    for number in np.unique(place[:, 0]):
        mine = np.flatnonzero(place[:, 0] == number)
        Y, X = place[mine[0], 3:]
        if config.fit == "tiles":
            corners = [tuple(corner) for corner in place[mine, 1:3].tolist()]
            found.append(
                tiles.blend_windows(outputs["probabilities"][mine], corners, int(Y), int(X))
            )
        else:
            found.append(nearest(outputs["labels"][mine[0]], (int(Y), int(X))))
    return found
