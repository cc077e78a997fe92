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

from tasks.common.data import builders, digests
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS, SplitSummary, check_splits
from tasks.common.data.user_files import LATER, read_each, results_name, split_by_hash, warn_shared
from tasks.common.errors import UserError, warn_once
from tasks.common.images.augmentation import AugmentationConfig
from tasks.common.images.files import read_oriented, resize
from tasks.common.images.orientation import AnnotationTurns, turned, warn_displayed
from tasks.segmentation import tiles, user_files
from tasks.segmentation.datasets import DATA_SETS
from tasks.segmentation.metrics import VOID

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
        one a line, from 0 on. The train split must have pixels of two classes at least. The mask of
        a picture with an EXIF orientation is of the picture as stored, unless it has an orientation
        of its own or sizes tell otherwise: see `tasks.common.images.orientation`.
      image_size: height and width of what the model sees.
      fit: how a picture of another size comes to it, in training and when predicting: "resize", as
        a whole; or "tiles", cut into windows at its own scale, whose predictions are blended.
      void: number in own masks that means no class.
      mask_values: numbers in own masks of class 0, class 1 and so on, where they are not 0, 1 and
        so on: (0, 255) for masks that are black and white. A number that is listed is a class, even
        if it is `void`. Empty: the numbers are those of the classes.
      skip_broken: leave out own pictures that cannot be read, and name them.
      augmentation: changes at random in training.
    """

    name: str = "camvid"
    path: str | None = None
    image_size: tuple[int, ...] = (180, 240)
    fit: str = "resize"
    void: int = VOID
    mask_values: tuple[int, ...] = dataclasses.field(default=(), metadata=LATER)
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
        values = list(self.mask_values)
        if values and (
            not 2 <= len(values) <= user_files.MOST_CLASSES
            or len(set(values)) < len(values)
            or not 0 <= min(values) <= max(values) <= 65535
        ):
            raise ValueError(
                f"mask_values: got {values}, expected 2 to {user_files.MOST_CLASSES} different "
                "numbers from 0 to 65535"
            )
        if values and self.path is None:
            raise ValueError(f"mask_values: got {values}, expected none without path")
        name = results_name(self.name, DATA_SETS, self.path, "; path takes your own files")
        object.__setattr__(self, "name", name)


class Pictures:
    """Random access to pictures of one size.

    Attributes:
      images: uint8 [n, Y, X, 3].
      labels: uint8 [n, Y, X], VOID where there is no class.
      apart: name -> bool [n], the pictures whose figures are told apart too.
      void: pixels of the masks that have no class.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        apart: Mapping[str, np.ndarray] | None = None,
        void: int | None = None,
        ids: np.ndarray | None = None,
    ):
        """Keeps the arrays.

        Args:
          images, labels, apart: see the attributes.
          void: see the attributes; counted in the labels if None.
          ids: uint64 [n], of the examples; hashes of images and labels if None.
        """
        self.images, self.labels, self.apart = images, labels, dict(apart or {})
        self.void = int(np.sum(labels == VOID)) if void is None else void
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

    def summary(self) -> dict[str, SplitSummary]:
        """Counts of each split: pixels by class, and void ones as ignored."""
        return {
            split: SplitSummary(
                len(pictures),
                dict(
                    zip(self.names, user_files.label_counts(pictures.labels).tolist(), strict=False)
                ),
                unit="pixels",
                ignored=pictures.void,
                ignored_as="void",
                least_classes=2,
            )
            for split, pictures in self.splits.items()
        }

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
    if config.path is None:
        return _named(config, paths)
    data = _user_data(config)
    for split, pictures in data.splits.items():
        if np.all(pictures.labels == VOID):
            raise UserError(f"config.data: no pixel of the {split} split has a class")
    summary = data.summary()
    train = summary["train"]
    present = [number for number, count in enumerate(train.classes.values()) if count]
    if len(present) == 1 and train.ignored and config.void not in config.mask_values:
        alone = config.mask_values[present[0]] if config.mask_values else present[0]
        share = train.ignored / (train.ignored + sum(train.classes.values()))
        raise UserError(
            f"{config.path}: masks of the train split hold {alone} and {config.void}, and "
            f"{config.void} is void (config.data.void; {share:.1%} of pixels), so that one class "
            f"is left; if {config.void} is a class, set config.data.mask_values to "
            f"({alone}, {config.void})"
        )
    check_splits(config.path, summary)
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
    for split, pairs in user_files.find(config.path).items():
        read[split], numbers = read_each(
            pairs,
            lambda pair: user_files.read_pair(pair, config.void, names, values, turns),
            skip_broken=config.skip_broken,
        )
        kept[split] = [pairs[number] for number in numbers]
        if not read[split]:
            raise UserError(f"path: no picture of the {split} split of {config.path} can be read")
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
    train = read["train"]
    remedy = "give more pictures, or folders for validation and test"
    parts = split_by_hash(hashes["train"], list(read), config.path, remedy, "images")
    read |= {split: [train[i] for i in chosen] for split, chosen in parts.items()}
    splits = {split: _fitted(read[split], config) for split in SPLITS}
    before, after = (
        user_files.label_counts(x) for x in ([y for _, y in read["train"]], splits["train"].labels)
    )
    lost = [names[k] for k in np.flatnonzero(before[:VOID]) if not after[k]]
    if lost:
        warn_once(
            f"{config.path}: {', '.join(lost[:20])} has no pixel in train at "
            f"config.data.image_size={tuple(config.image_size)}; set a larger one, or "
            "config.data.fit to tiles"
        )
    return SegmentationData(splits, tuple(names))


def _fitted(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    config: DataConfig,
    ids: Sequence[str] = (),
    apart: Mapping[str, str] | None = None,
) -> Pictures:
    """Pictures of the size that the config asks for; `apart` goes by the beginning of the ids."""
    size, tiled = tuple(config.image_size), config.fit == "tiles"
    images, labels, source, codes, void = [], [], [], [], 0
    for number, (image, mask) in enumerate(pairs):
        whole = digests.code((image, mask))
        if tiled:
            cut = tiles.once(image, mask, size, VOID)
            # Pixels that another window has too are void, but not in the mask.
            void += int(np.sum(mask == VOID))
        else:
            cut = [(resize(image, size), nearest(mask, size))]
            void += int(np.sum(cut[0][1] == VOID))
        for place, (window, window_labels) in enumerate(cut):
            images.append(window)
            labels.append(window_labels)
            source.append(number)
            codes.append((whole, place, size if tiled else None))
    told = {
        name: np.array([ids[number].startswith(start) for number in source])
        for name, start in (apart or {}).items()
    }
    return Pictures(np.stack(images), np.stack(labels), told, void, digests.ids(codes))


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
                self._whole.append(resize(image, self._size))
            rows += [(number, *place, Y, X) for place in places]
        self.place = np.array(rows, np.int32).reshape(-1, 5)

    def _picture(self, number: int) -> np.ndarray:
        name = self._raw[number]
        image, orientation = read_oriented(name, called=f"input {name!r}")
        warn_displayed(name, orientation)
        return image

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
