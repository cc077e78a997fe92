"""Pictures in three splits: the project's data sets, or a person's own folders, in memory."""

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

OWN_SIDE = 64


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which pictures, and what is done to them in training.

    Attributes:
      name: one of the project's data sets. With path it only names the results, and is
        own_<folder> unless something else is given.
      path: a folder of one's own with a folder of pictures for each class; or with train/ and, if
        they are there, validation/ (or valid, val, dev) and test/, each with such folders. A split
        that is missing is a tenth of train, by the hash of the file, so that splits do not depend
        on image_size and equal files stay together. All are kept in memory.
      image_size: pixels a side to which one's own pictures are scaled, after the largest square in
        the middle is cut out; 64 if not given.
      skip_broken: leave out what cannot be read of one's own files, and name it, instead of
        stopping.
      shift: in training each picture is moved at random, up to this many pixels each way, in parts
        of a pixel too.
      augmentation: further changes in training.
      mixup: in training each picture is mixed with another, by a share from Beta(mixup, mixup);
        0: not.
    """

    name: str = "digits"
    path: str | None = None
    image_size: int | None = None
    skip_broken: bool = False
    shift: float = 0.5
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    mixup: float = 0.0

    def __post_init__(self):
        name = results_name(self.name, DATA_SETS, self.path, "; path takes a folder of your own")
        object.__setattr__(self, "name", name)
        if self.path is None and (self.image_size is not None or self.skip_broken):
            field = "skip_broken" if self.image_size is None else "image_size"
            raise ValueError(f"{field}: is for pictures of your own, give path with it")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size: got {self.image_size}, expected at least 1")
        if not 0 <= self.shift <= self.side:
            raise ValueError(f"shift must be in [0, {self.side}], got {self.shift}")
        if not self.mixup >= 0:
            raise ValueError(f"mixup: got {self.mixup}, expected at least 0")
        if self.augmentation.needs_color and self.path is None:
            raise ValueError(f"augmentation: saturation and hue: {self.name} has grey pictures")

    @property
    def side(self) -> int:
        """Pixels a side."""
        if self.path is None:
            return DATA_SETS[self.name].side
        return OWN_SIDE if self.image_size is None else self.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(Y, X, C); one's own have colours."""
        return (self.side, self.side, 1 if self.path is None else 3)


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set.

    Attributes:
      labels: names of the classes.
      splits: train, validation and test.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, Images]

    def summary(self) -> dict[str, SplitSummary]:
        """Counts of each split by class."""
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
    """Reads a data set, preparing one of the project's own first when it is not.

    Args:
      config: which.
      paths: where things are kept; digits come with scikit-learn and need none.

    Raises:
      UserError: what is wrong with a file, a folder or a source.
    """
    if config.path is None:
        data_set = DATA_SETS[config.name]
        return ImageData(data_set.labels, data_set.load(paths))
    data = ImageData(*user_files.read_folder(config.path, config.side, config.skip_broken))
    check_splits(config.path, data.summary())
    return data
