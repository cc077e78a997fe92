"""Pictures with labelled pixels in three splits: the project's data sets, or a person's own files.

All examples are of one size, for which pictures are resized or cut into windows. They are held in
memory, four bytes a pixel. n pictures, Y X height and width.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.common import builders, digests
from tasks.common.augmentation import AugmentationConfig
from tasks.common.errors import UserError
from tasks.common.image_files import read_each, read_image, resized
from tasks.common.own_files import filed_as, hold_out
from tasks.common.paths import Paths
from tasks.segmentation import files, tiles
from tasks.segmentation.datasets import DATA_SETS
from tasks.segmentation.metrics import VOID

SPLITS = ("train", "validation", "test")
FITS = ("resize", "tiles")
# Share of a window that its neighbour has too, when a picture is predicted.
OVERLAP = 0.25


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which pictures, and how they come to one size.

    Attributes:
      name: one of the project's data sets. With path it only names the results, and is
        own_<its name> unless something else is given.
      path: own files: a folder with images/ and masks/, whose files have equal names; or with such
        folders in train/ and, where they are, in validation/ and test/. A split that is missing is
        a tenth of train, by the pixels' hash. A mask holds the number of each pixel's class, as a
        grey picture or as one with a palette; a file classes.txt in the folder names the classes,
        one a line, from 0 on.
      image_size: height and width of what the model sees.
      fit: how a picture of another size comes to it, in training and when predicting: "resize", as
        a whole; or "tiles", cut into windows at its own scale, whose predictions are blended.
      void: number in own masks that means no class.
      skip_broken: leave out own pictures that cannot be read, and name them.
      augmentation: changes at random in training.
    """

    name: str = "camvid"
    path: str | None = None
    image_size: tuple[int, ...] = (180, 240)
    fit: str = "resize"
    void: int = VOID
    skip_broken: bool = False
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)

    def __post_init__(self):
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            got = list(self.image_size)
            raise ValueError(f"image_size: got {got}, expected a height and a width, at least 1")
        if self.fit not in FITS:
            raise ValueError(f"fit: got {self.fit!r}, expected one of {', '.join(FITS)}")
        if not 0 <= self.void <= 65535:
            raise ValueError(f"void: got {self.void}, expected a number from 0 to 65535")
        name = filed_as(self.name, DATA_SETS, self.path, "; path takes your own files")
        object.__setattr__(self, "name", name)


class Pictures:
    """Random access to pictures of one size.

    Attributes:
      images: uint8 [n, Y, X, 3].
      labels: uint8 [n, Y, X], VOID where there is no class.
      apart: name -> bool [n], the pictures whose figures are told apart too.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        apart: Mapping[str, np.ndarray] | None = None,
        ids: np.ndarray | None = None,
    ):
        self.images, self.labels, self.apart = images, labels, dict(apart or {})
        self.ids = digests.ids(images, labels) if ids is None else ids

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": self.images[index], "labels": self.labels[index]}


@dataclasses.dataclass(frozen=True)
class SegmentationData:
    """A data set: its splits by name, and the names of the classes."""

    splits: Mapping[str, Pictures]
    names: tuple[str, ...]

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Hash of each part of the data; see `tasks.task.Task.fingerprints`."""
        found = {"class names": digests.of_rows(self.names)}
        for split in SPLITS:
            pictures = self.splits[split]
            found[f"{split} images"] = digests.of_rows(pictures.images)
            found[f"{split} masks"] = digests.of_rows(pictures.labels)
            found[f"{split} conditions"] = digests.of_rows([pictures.apart])
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all parts."""
        return digests.joined(self.parts)


def load(config: DataConfig, paths: Paths) -> SegmentationData:
    """Reads a data set, preparing one of the project's own first when it is not.

    Raises:
      UserError: what is wrong with a file or a source.
    """
    data = _own(config) if config.path is not None else _named(config, paths)
    for split, pictures in data.splits.items():
        if np.all(pictures.labels == VOID):
            raise UserError(f"config.data: no pixel of the {split} split has a class")
    return data


def _named(config: DataConfig, paths: Paths) -> SegmentationData:
    labelled = DATA_SETS[config.name]
    builders.prepare(labelled.definition, paths)
    splits = {}
    for split in SPLITS:
        source = builders.load(labelled.definition, split, paths)
        rows = source.__getitems__(range(len(source)))
        pairs = [
            (row["image"], np.where(row["labels"] < len(labelled.names), row["labels"], VOID))
            for row in rows
        ]
        ids = [row["id"].decode() for row in rows]
        splits[split] = _fitted(pairs, config, ids, labelled.apart if split == "test" else {})
    return SegmentationData(splits, labelled.names)


def _own(config: DataConfig) -> SegmentationData:
    names = files.class_names(config.path)
    read: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    found = files.find(config.path)
    most = 0
    for split, pairs in found.items():
        read[split], numbers = read_each(
            pairs,
            lambda pair: files.read_pair(pair, config.void, names),
            skip_broken=config.skip_broken,
        )
        if not read[split]:
            raise UserError(f"path: no picture of the {split} split of {config.path} can be read")
        for number, (_, labels) in zip(numbers, read[split], strict=True):
            largest = int(labels[labels != VOID].max(initial=0))
            if split == "train":
                most = max(most, largest)
            elif names is None and largest > most:
                raise UserError(
                    f"{pairs[number][1]}: has class {largest}; the train split has 0 to {most} "
                    f"alone; name the classes in {Path(config.path) / files.CLASSES}"
                )
    if names is None:
        names = [f"class_{number}" for number in range(max(most, 1) + 1)]
    train = read["train"]
    hashes = [hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image, _ in train]
    remedy = "give more pictures, or folders for validation and test"
    parts = hold_out(hashes, list(read), config.path, remedy)
    read |= {split: [train[i] for i in chosen] for split, chosen in parts.items()}
    splits = {split: _fitted(read[split], config) for split in SPLITS}
    return SegmentationData(splits, tuple(names))


def _fitted(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    config: DataConfig,
    ids: Sequence[str] = (),
    apart: Mapping[str, str] | None = None,
) -> Pictures:
    """Pictures of the size that the config asks for; `apart` goes by the beginning of the ids."""
    size, tiled = tuple(config.image_size), config.fit == "tiles"
    images, labels, source, codes = [], [], [], []
    for number, (image, mask) in enumerate(pairs):
        whole = digests.code((image, mask))
        if tiled:
            cut = tiles.once(image, mask, size, VOID)
        else:
            cut = [(resized(image, size), nearest(mask, size))]
        for place, (window, window_labels) in enumerate(cut):
            images.append(window)
            labels.append(window_labels)
            source.append(number)
            codes.append((whole, place, size if tiled else None))
    told = {
        name: np.array([ids[number].startswith(start) for number in source])
        for name, start in (apart or {}).items()
    }
    return Pictures(np.stack(images), np.stack(labels), told, digests.ids(codes))


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels [Y, X] at another size: of each new pixel the one at its centre counts."""
    if labels.shape == tuple(size):
        return labels
    y, x = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[y[:, None], x]


class Scenes:
    """What the model sees of a person's pictures, without labels.

    Attributes:
      place: int32 [n, 5]: of each example the number of its picture, top and left of the window in
        it, height and width of the picture.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(self, raw: Sequence[str], config: DataConfig):
        """Reads the pictures once, so that what is wrong is said before anything is computed.

        Raises:
          UserError: a picture cannot be read.
        """
        self._raw, self._size, self._fit = raw, tuple(config.image_size), config.fit
        self._read = functools.lru_cache(maxsize=1)(self._picture)
        self._whole, rows = [], []
        for number in range(len(raw)):
            image = self._read(number)
            Y, X = image.shape[:2]
            places = [(0, 0)]
            if self._fit == "tiles":
                places = tiles.corners(Y, X, self._size, OVERLAP)
            else:
                self._whole.append(resized(image, self._size))
            rows += [(number, *place, Y, X) for place in places]
        self.place = np.array(rows, np.int32).reshape(-1, 5)

    def _picture(self, number: int) -> np.ndarray:
        return read_image(self._raw[number], called=f"input {self._raw[number]!r}")

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number, top, left, _, _ = self.place[index].tolist()
        if self._fit == "tiles":
            image = tiles.cut(self._read(number), top, left, self._size)
        else:
            image = self._whole[number]
        return {"image": image, "place": self.place[index]}


def assembled(config: DataConfig, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The predicted classes of each picture in its own size, uint8 [Y, X].

    Args:
      config: that `Scenes` had.
      outputs: of its examples: `place` [n, 5], and `labels` uint8 [n, Y, X] where pictures were
        resized, or `probabilities` [n, Y, X, K] where they were cut.
    """
    place, found = outputs["place"], []
    for number in np.unique(place[:, 0]):
        mine = np.flatnonzero(place[:, 0] == number)
        Y, X = place[mine[0], 3:]
        if config.fit == "tiles":
            corners = [tuple(corner) for corner in place[mine, 1:3].tolist()]
            found.append(tiles.blend(outputs["probabilities"][mine], corners, int(Y), int(X)))
        else:
            found.append(nearest(outputs["labels"][mine[0]], (int(Y), int(X))))
    return found
