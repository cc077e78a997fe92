"""Reading of user images: class folders for training, and single images for prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.common.data.cells import label_value, text_value
from tasks.common.data.tables import expect_columns, open_table
from tasks.common.data.user_files import (
    SPLIT_NAMES,
    expect_some_files,
    find_file,
    read_each,
    split_by_hash,
    split_names,
    warn_shared,
)
from tasks.common.errors import UserError, warn_once
from tasks.common.images.files import (
    center_crop_square,
    image_folder,
    read_image,
    resize,
    warn_left_out,
)
from tasks.image_classification.datasets import SPLITS, DataSet, Images

# Columns of a table of labeled images.
PATH, LABEL = "path", "label"

# ---------------------------------------------------------------------- folders


def read_folder(
    path: str, side: int, skip_broken: bool
) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Reads all images of a folder.

    Args:
      path: see `DataConfig.path`.
      side: side length in pixels to which images are scaled.
      skip_broken: whether to skip images that cannot be read, with a message.

    Returns:
      Names of the classes, sorted, and the three splits, uint8 [n, side, side, 3].

    Raises:
      UserError: a folder is missing or empty, an image cannot be read, there is only one class, a
        split has a class that the training split lacks, or there are too few images to hold out
        validation and test splits.
    """
    folders = split_folders(path)
    found = {split: image_folder(folder) for split, folder in folders.items()}
    labels = tuple(found["train"])
    if len(labels) < 2:
        raise UserError(
            f"{folders['train']}: got the single class {labels[0]!r}, expected at least two "
            f"class folders"
        )
    splits, hashes = {}, {}
    for split, classes in found.items():
        for name in classes:
            if name not in labels:
                raise UserError(
                    f"{folders[split] / name}: the train split has no class {name!r}, expected "
                    f"one of its classes {', '.join(labels[:20])}"
                )
        splits[split], hashes[split] = _read_classes(classes, labels, side, skip_broken)
        if not len(splits[split]):
            raise UserError(f"{folders[split]}: has no image that can be read; add images")
        _warn_conflicts(folders[split], hashes[split], splits[split].labels)
    warn_shared(path, {split: dict(given) for split, given in hashes.items()}, "images")
    train = splits["train"]
    remedy = "give folders train, validation and test"
    digests = [digest for digest, _ in hashes["train"]]
    parts = split_by_hash(digests, list(splits), path, remedy, "images")
    held_out = {
        split: Images(train.images[rows], train.labels[rows], [train.ids[row] for row in rows])
        for split, rows in parts.items()
    }
    splits |= held_out
    return labels, {split: splits[split] for split in SPLITS}


def split_folders(path: str) -> dict[str, Path]:
    """Returns the folder of each split; without train/CLASS/ folders, `path` is the training split.

    Raises:
      UserError: the folder does not exist, or two folders denote the same split.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{path}: no such folder; set config.data.path to a folder of images")
    folders = [each for each in root.iterdir() if each.is_dir()]
    divided = [
        folder.name
        for folder in folders
        if folder.name.lower() in SPLIT_NAMES["train"]
        and any(each.is_dir() for each in folder.iterdir())
    ]
    if not divided:
        return {"train": root}
    names = split_names([folder.name for folder in folders], path)
    found = {split: root / name for split, name in names.items()}
    warn_left_out(root, found.values())
    return found


def _read_classes(
    classes: Mapping[str, Sequence[Path]], labels: Sequence[str], side: int, skip_broken: bool
) -> tuple[Images, list[tuple[str, str]]]:
    """Reads the images of a split, and returns them with the hash and path of each file."""
    files = [path for paths in classes.values() for path in paths]
    numbers = [labels.index(name) for name, paths in classes.items() for _ in paths]

    def read(path: Path) -> np.ndarray:
        return resize(center_crop_square(read_image(path)), (side, side))

    images, kept = read_each(files, read, skip_broken=skip_broken)
    shape = (-1, side, side, 3)
    stacked = np.stack(images).reshape(shape) if images else np.empty((0, *shape[1:]), np.uint8)
    # The hash is that of the file, because the scaled image depends on `side`.
    hashes = [
        (hashlib.sha256(files[number].read_bytes()).hexdigest(), str(files[number]))
        for number in kept
    ]
    ids = [digest for digest, _ in hashes]
    return Images(stacked, np.array(numbers, np.int32)[kept], ids), hashes


def _warn_conflicts(folder: Path, files: Sequence[tuple[str, str]], labels: Sequence[int]) -> None:
    """Warns about equal image files in the folders of two classes."""
    before: dict[str, tuple[str, int]] = {}
    conflicts = []
    for (digest, file), label in zip(files, labels, strict=True):
        other, first = before.setdefault(digest, (file, label))
        if first != label:
            conflicts.append((file, other))
    if conflicts:
        file, other = conflicts[0]
        warn_once(
            f"{folder}: {len(conflicts)} images are in two classes, such as {file}, which "
            f"equals {other}"
        )


# ---------------------------------------------------------------------- evaluate


def labeled_paths(path: str) -> tuple[list[str], list[str], list[str]]:
    """Returns path, label and place of each image of a labeled folder or table.

    Args:
      path: folder with a folder of images for each class; or a table with the columns path, which
        is relative to the table, and label.

    Raises:
      UserError: the folder or table cannot be read, or a file is missing.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        return _listed(path)
    folders = [each.name for each in root.iterdir() if each.is_dir()]
    if names := split_names(folders, path):
        shown = root / names.get("test", next(iter(names.values())))
        raise UserError(f"{path}: has folders of splits; name the folder of one, such as {shown}")
    files = [(str(file), name) for name, found in image_folder(root).items() for file in found]
    paths, labels = (list(column) for column in zip(*files, strict=True))
    return paths, labels, [str(Path(file).relative_to(root)) for file in paths]


def _listed(path: str) -> tuple[list[str], list[str], list[str]]:
    table = open_table(path, (PATH, LABEL))
    expect_columns(table, (PATH, LABEL))
    folder, paths, labels, places = Path(path).expanduser().parent, [], [], []
    for line, (file, label) in table.select((PATH, LABEL)):
        where = f"{path}: line {line}"
        paths.append(str(find_file(folder, text_value(file, where, PATH).strip())))
        labels.append(label_value(label, where, LABEL))
        places.append(f"line {line}")
    expect_some_files([Path(file) for file in paths], path, "paths are relative to the table")
    return paths, labels, places


def read_labeled(where: str, paths: Sequence[str], data_set: DataSet | None, side: int) -> Images:
    """Reads labeled images as for predictions; their ids are hashes of the files.

    Args:
      where: folder or table of the images, for the message.
      paths: paths of the images.
      data_set, side: as for `read_inputs`.

    Raises:
      UserError: an image cannot be read; the message names the first of them and their number.
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
        image in any format that Pillow reads. The image is converted to gray, padded to a square
        with the mean of its border, and downsampled by the mean of blocks, as the digits were. An
        image with a light border is inverted.
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
    """Downsamples uint8 [Y, X] to float32 [side, side, 1], light on dark."""
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
