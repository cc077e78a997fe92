"""Reading of user images: class folders and tables for training, single images for prediction.

Y X height and width, n images.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.common.data.cells import label_value
from tasks.common.data.held_out import expect_groups_apart
from tasks.common.data.tables import expect_columns, open_table
from tasks.common.data.user_files import (
    expect_some_files,
    read_each,
    split_names,
    warn_shared,
)
from tasks.common.errors import UserError, warn_once
from tasks.common.images.files import center_crop_square, image_folder, read_image, resize
from tasks.common.images.tables import ImageTableConfig, image_rows
from tasks.image_classification.datasets import SPLITS, DataSet, Images
from tasks.image_classification.labeled_files import Files, find

# ---------------------------------------------------------------------- folders and tables


def read_images(
    path: str, side: int, skip_broken: bool, config: ImageTableConfig
) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Reads all user images.

    Args:
      path: see `DataConfig.path`.
      side: side length in pixels to which images are scaled.
      skip_broken: whether to skip images that cannot be read, with a message.
      config: names of the columns of tables, and settings of the held-out splits.

    Returns:
      Names of the classes, sorted, and the three splits, uint8 [n, side, side, 3].

    Raises:
      UserError: a folder or table is missing or empty, an image cannot be read, there is only one
        class, a split has a class that the training split lacks, or there are too few images to
        hold out validation and test splits.
    """
    found = find(path, config, skip_broken)
    names = dict.fromkeys(found["train"].labels)
    labels = tuple(names if Path(found["train"].where).expanduser().is_dir() else sorted(names))
    if len(labels) < 2:
        raise UserError(
            f"{found['train'].where}: got the single class {labels[0]!r}, expected at least two "
            f"class folders"
        )
    splits: dict[str, Images] = {}
    for split, files in found.items():
        for label, origin in zip(files.labels, files.origins, strict=True):
            if label not in labels:
                raise UserError(
                    f"{origin}: got the class {label!r}, expected a class of the train split: "
                    f"{', '.join(labels[:20])}"
                )
        splits[split], kept = _read_files(files, labels, side, skip_broken)
        if not kept:
            raise UserError(f"{files.where}: has no image that can be read; add images")
        found[split] = files.only(kept)
        _warn_conflicts(found[split], splits[split])
    named = {
        split: dict(zip(splits[split].ids or (), map(str, files.paths), strict=True))
        for split, files in found.items()
    }
    warn_shared(path, named, "images")
    if config.group_column:
        expect_groups_apart(path, {split: files.groups for split, files in found.items()})
    train, files = splits["train"], found["train"]
    parts = config.hold_out(
        train.ids or (),
        list(splits),
        path,
        "add images, or give --data=TRAIN,VALIDATION,TEST",
        "images",
        labels=files.labels,
        groups=files.groups or None,
    )
    held_out = {
        split: Images(train.images[rows], train.labels[rows], [train.ids[row] for row in rows])
        for split, rows in parts.items()
    }
    splits |= held_out
    return labels, {split: splits[split] for split in SPLITS}


def _read_files(
    files: Files, labels: Sequence[str], side: int, skip_broken: bool
) -> tuple[Images, list[int]]:
    """Reads the images of a split, and returns the readable images with their indices.

    The ids of the images are the hashes of their files.
    """
    number = {label: index for index, label in enumerate(labels)}

    def read(path: Path) -> np.ndarray:
        return resize(center_crop_square(read_image(path)), (side, side))

    images, kept = read_each(files.paths, read, skip_broken=skip_broken)
    shape = (-1, side, side, 3)
    stacked = np.stack(images).reshape(shape) if images else np.empty((0, *shape[1:]), np.uint8)
    # Hashes of the files, because those of the scaled images would depend on `side`.
    ids = [hashlib.sha256(files.paths[index].read_bytes()).hexdigest() for index in kept]
    classes = np.array([number[files.labels[index]] for index in kept], np.int32)
    return Images(stacked, classes, ids), kept


def _warn_conflicts(files: Files, images: Images) -> None:
    """Warns about equal image files that have two classes."""
    before: dict[str, tuple[Path, str]] = {}
    conflicts = []
    for digest, file, label in zip(images.ids or (), files.paths, files.labels, strict=True):
        other, first = before.setdefault(digest, (file, label))
        if first != label:
            conflicts.append((file, other))
    if conflicts:
        file, other = conflicts[0]
        warn_once(
            f"{files.where}: {len(conflicts)} images are in two classes, such as {file}, which "
            f"equals {other}"
        )


# ---------------------------------------------------------------------- evaluate


def labeled_paths(path: str, config: ImageTableConfig) -> tuple[list[str], list[str], list[str]]:
    """Returns path, label and origin of each image of a labeled folder or table.

    The origin names the image in messages: its path in the folder, or its line in the table.

    Args:
      path: folder with a folder of images for each class, or a table with the columns of `config`.
        Paths in the table are relative to it.
      config: names of the columns of tables, as in the run.

    Raises:
      UserError: the folder or table cannot be read, or a file is missing.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        return _listed(path, config)
    folders = [each.name for each in root.iterdir() if each.is_dir()]
    if names := split_names(folders, path):
        shown = root / names.get("test", next(iter(names.values())))
        raise UserError(
            f"{path}: has a folder for each split; give the folder of one split, such as {shown}"
        )
    files = [(str(file), name) for name, found in image_folder(root).items() for file in found]
    paths, labels = (list(column) for column in zip(*files, strict=True))
    return paths, labels, [str(Path(file).relative_to(root)) for file in paths]


def _listed(path: str, config: ImageTableConfig) -> tuple[list[str], list[str], list[str]]:
    columns = config.image_column, config.label_column
    expect_columns(open_table(path, columns), columns)
    paths, labels, places = [], [], []
    for row in image_rows(path, dataclasses.replace(config, group_column="")):
        paths.append(str(row.image))
        labels.append(label_value(row.label, row.where, config.label_column))
        places.append(row.where.removeprefix(f"{path}: "))
    expect_some_files([Path(file) for file in paths], path, "paths are relative to the table")
    return paths, labels, places


def read_labeled(where: str, paths: Sequence[str], data_set: DataSet | None, side: int) -> Images:
    """Reads labeled images as `read_inputs` does; their ids are hashes of the files.

    Args:
      where: folder or table of the images, for the message.
      paths: paths of the images.
      data_set, side: as for `read_inputs`.

    Raises:
      UserError: images cannot be read; the message names the first one and their number.
    """
    read, broken = [], []
    for path in paths:
        try:
            read.append(read_inputs([path], data_set, side).images)
        except UserError as error:
            broken.append(str(error))
    if broken:
        raise UserError(
            f"{where}: {len(broken)} of {len(paths)} images cannot be read, such as {broken[0]}"
        )
    ids = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    return Images(np.concatenate(read), ids=ids)


# ---------------------------------------------------------------------- predict


def read_inputs(raw: Sequence[str], data_set: DataSet | None, side: int) -> Images:
    """Reads images for prediction.

    Args:
      raw: paths of images; for built-in data sets see `read_gray`.
      data_set: built-in data set of the model; None for user images, which are RGB.
      side: side of the images in pixels.

    Raises:
      UserError: an input cannot be read.
    """

    def read(text: str) -> np.ndarray:
        if data_set is not None:
            return read_gray(text, data_set)
        image = _read(text, "RGB", "give the path of an image")
        return resize(center_crop_square(image), (side, side))

    channels, kind = (3, np.uint8) if data_set is None else (1, np.float32)
    images = [read(text) for text in raw]
    return Images(np.stack(images) if images else np.empty((0, side, side, channels), kind))


def read_gray(text: str, data_set: DataSet) -> np.ndarray:
    """Reads a gray image, light on a dark background, from numbers or a file.

    Args:
      text: comma-separated numbers from 0 (paper) to `data_set.ink`, row by row; or the path of an
        image in any format that Pillow reads. The image is converted to gray, and padded to a
        square with the mean of its border. Then each block of pixels is averaged to one pixel, as
        in the data set of digits. An image with a light border is inverted.
      data_set: built-in data set of the model.

    Returns:
      float32 [side, side, 1], from 0 to 1.

    Raises:
      UserError: the input is neither numbers nor an image, or the count or range of numbers is
        wrong.
    """
    side, ink = data_set.side, data_set.ink
    numbers = _numbers(text)
    if numbers is None:
        remedy = f"give the path of an image, or {side**2} comma-separated numbers 0..{ink}"
        return _light_on_dark(_read(text, "L", remedy), side)
    shown = f"input {_shortened(text)}"
    if len(numbers) != side**2:
        raise UserError(
            f"{shown}: has {len(numbers)} numbers, expected {side**2}, one per pixel, row by row"
        )
    if not all(0 <= number <= ink for number in numbers):
        wrong = next(number for number in numbers if not 0 <= number <= ink)
        raise UserError(f"{shown}: got the number {wrong:g}, expected 0 (paper) to {ink} (ink)")
    return (np.reshape(numbers, (side, side, 1)) / ink).astype(np.float32)


def _light_on_dark(gray: np.ndarray, side: int) -> np.ndarray:
    """Downsamples an image, and inverts it if it is dark on light.

    Args:
      gray: pixels, uint8 [Y, X].
      side: side of the result in pixels.

    Returns:
      float32 [side, side, 1] from 0 to 1.
    """
    from PIL import Image

    square = Image.fromarray(_padded_to_square(gray))
    light = np.asarray(square.resize((side, side), Image.Resampling.BOX), np.float32) / 255
    return (1 - light if _border(light) > 0.5 else light)[..., None]


def _padded_to_square(gray: np.ndarray) -> np.ndarray:
    """Pads an image to a square with the mean of its border."""
    Y, X = gray.shape
    full = max(Y, X)
    square = np.full((full, full), round(_border(gray)), np.uint8)
    top, left = (full - Y) // 2, (full - X) // 2
    square[top : top + Y, left : left + X] = gray
    return square


def _border(gray: np.ndarray) -> float:
    """Returns the mean of the outermost pixels."""
    ring = np.ones(gray.shape, bool)
    ring[1:-1, 1:-1] = False
    return float(gray[ring].mean())


def _read(text: str, mode: str, remedy: str) -> np.ndarray:
    try:
        return read_image(text, mode=mode, called=f"input {_shortened(text)}")
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
