"""Labeled images in memory, from built-in data sets or user folders."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary, check_splits
from tasks.common.data.user_files import results_name
from tasks.common.images.augmentation import AugmentationConfig
from tasks.image_classification import user_files
from tasks.image_classification.datasets import DATA_SETS, SPLITS, Images

USER_SIDE = 64


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Config of the data set.

    Attributes:
      name: a built-in data set. With `path` the name of the results, own_<folder> by default.
      path: user folder with a folder of images for each class; or with train/ and optionally
        validation/ (or valid, val, dev) and test/, each with such folders. A missing split is a
        tenth of train, by the hash of the file, so that splits do not depend on image_size and
        equal files stay together. Images are kept in memory.
      image_size: side in pixels to which user images are scaled, after a central square crop; 64 by
        default.
      skip_broken: skip user images that cannot be read, with a message.
      shift: largest random translation in training, in pixels along each axis.
      augmentation: other random changes in training.
      mixup: α of mixup in training: images are mixed with a weight from Beta(α, α); 0 for none.
    """

    name: str = "digits"
    path: str | None = None
    image_size: int | None = None
    skip_broken: bool = False
    shift: float = 0.5
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    mixup: float = 0.0

    def __post_init__(self):
        name = results_name(self.name, DATA_SETS, self.path, "; path takes your own folder")
        object.__setattr__(self, "name", name)
        if self.path is None and (self.image_size is not None or self.skip_broken):
            field = "skip_broken" if self.image_size is None else "image_size"
            raise ValueError(f"{field}: is for user images; set path too")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size: got {self.image_size}, expected at least 1")
        if not 0 <= self.shift <= self.side:
            raise ValueError(f"shift: got {self.shift}, expected a number in [0, {self.side}]")
        if not self.mixup >= 0:
            raise ValueError(f"mixup: got {self.mixup}, expected at least 0")
        if self.augmentation.needs_color and self.path is None:
            raise ValueError(f"augmentation: saturation and hue: {self.name} has gray images")

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        if self.path is None:
            return DATA_SETS[self.name].side
        return USER_SIDE if self.image_size is None else self.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(Y, X, C); user images are RGB."""
        return (self.side, self.side, 1 if self.path is None else 3)


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Splits, and names of the classes.

    Attributes:
      labels: names of the classes.
      splits: train, validation and test.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, Images]

    def summary(self) -> dict[str, SplitSummary]:
        """Counts the images of each split by class."""
        return {
            split: SplitSummary(
                len(images),
                dict(
                    zip(
                        self.labels,
                        np.bincount(images.labels, minlength=len(self.labels)).tolist(),
                        strict=True,
                    )
                ),
                unit="images",
                least_classes=2,
            )
            for split, images in self.splits.items()
        }

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        found = {"class names": digests.of_rows(self.labels)}
        for split in SPLITS:
            examples = self.splits[split]
            found[f"{split} images"] = digests.of_rows(examples.images)
            found[f"{split} labels"] = digests.of_rows(examples.labels)
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all parts."""
        return digests.joined(self.parts)


def load(config: DataConfig, paths: Paths | None) -> ImageData:
    """Reads the data set; a built-in one is built first.

    Args:
      config: config of the data set.
      paths: folders of data and caches; None for digits, which come with scikit-learn.

    Raises:
      UserError: a file, a folder or a source cannot be used.
    """
    if config.path is None:
        data_set = DATA_SETS[config.name]
        return ImageData(data_set.labels, data_set.load(paths))
    data = ImageData(*user_files.read_folder(config.path, config.side, config.skip_broken))
    check_splits(config.path, data.summary())
    return data
