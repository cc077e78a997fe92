"""Labeled images in memory, from built-in data sets or user folders."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from tasks.common.configs import NonNegativeFloat, PositiveInt, known_names
from tasks.common.data import digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SplitSummary, check_splits, count_classes
from tasks.common.data.user_files import results_name
from tasks.common.images.augmentation import AugmentationConfig
from tasks.common.images.tables import ImageTableConfig
from tasks.image_classification import user_files
from tasks.image_classification.datasets import DATA_SETS, Images

USER_SIDE = 64


@dataclasses.dataclass(frozen=True)
class DataConfig(ImageTableConfig):
    """Config of the data set.

    Attributes:
      name: name of a built-in data set. If `path` is set, the name under which results are
        stored; by default own_<folder>.
      path: user files. A folder contains either one folder of images for each class, or the folders
        train/ and optionally validation/ (or valid, val, dev) and test/, which contain one folder
        for each class. Other forms of `path` are a table of image paths and classes, a glob pattern
        of images in class folders, and three paths for train, validation and test, separated by
        commas. A missing split is a tenth of the training split (see `stratify`). Its images are
        selected by the hash of the image file, so that splits do not depend on image_size and equal
        files are in the same split. Images are kept in memory.
      image_size: side in pixels to which user images are scaled after a central square crop; None
        for 64.
      skip_broken: whether to skip user images that cannot be read, with a message.
      shift: largest random translation in training, in pixels along each axis.
      augmentation: config of the other random augmentation in training.
      mixup: α of mixup in training: two images are mixed with a weight from Beta(α, α); 0 for no
        mixup.
      For the other attributes see `ImageTableConfig`.
    """

    name: known_names(*DATA_SETS) = "digits"
    path: str | None = None
    image_size: PositiveInt | None = None
    skip_broken: bool = False
    shift: float = 0.5
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    mixup: NonNegativeFloat = 0.0

    def __post_init__(self):
        super().__post_init__()
        name = results_name(self.name, DATA_SETS, self.path, "; path takes your own folder")
        object.__setattr__(self, "name", name)
        if self.path is None and (self.image_size is not None or self.skip_broken):
            field = "skip_broken" if self.image_size is None else "image_size"
            raise ValueError(
                f"{field}: got a value, but built-in data sets have a fixed size and no broken "
                "images; set it only with path"
            )
        self.expect("shift", 0 <= self.shift <= self.side, f"a number in [0, {self.side}]")
        if self.augmentation.needs_color and self.path is None:
            raise ValueError(
                f"augmentation: got a saturation or hue above 0, expected 0 because the images "
                f"of {self.name} are gray"
            )

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        if self.path is None:
            return DATA_SETS[self.name].side
        return USER_SIDE if self.image_size is None else self.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image; user images are RGB."""
        return (self.side, self.side, 1 if self.path is None else 3)


@dataclasses.dataclass(frozen=True)
class ImageData(digests.Fingerprinted):
    """A data set of labeled images, with its splits and class names.

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
                count_classes(images.labels, self.labels),
                unit="images",
                least_classes=2,
            )
            for split, images in self.splits.items()
        }

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        columns = digests.of_splits(self.splits, lambda x: {"images": x.images, "labels": x.labels})
        return {"class names": digests.of_rows(self.labels), **columns}


def load(config: DataConfig, paths: Paths | None) -> ImageData:
    """Reads the data set; a built-in data set is prepared first if necessary.

    Args:
      config: config of the data set.
      paths: folders of data and caches; None for digits, which come with scikit-learn.

    Raises:
      UserError: a file, a folder or a source cannot be used.
    """
    if config.path is None:
        data_set = DATA_SETS[config.name]
        return ImageData(data_set.labels, data_set.load(paths))
    data = ImageData(*user_files.read_images(config.path, config.side, config.skip_broken, config))
    check_splits(config.path, data.summary())
    return data
