"""User files for segmentation: images/NAME and masks/NAME.png.

Y X height and width, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.common.data.cells import join_names
from tasks.common.data.own import OwnData, files_of, is_pattern, split_files
from tasks.common.data.tables import expect_columns, open_table
from tasks.common.data.text_files import read_text, split_lines
from tasks.common.data.user_files import is_hidden, split_names, split_paths
from tasks.common.errors import UserError, warn_once
from tasks.common.images.files import (
    image_paths,
    open_image,
    orientation_of,
    read_oriented,
    warn_left_out,
)
from tasks.common.images.orientation import UPRIGHT, AnnotationTurns
from tasks.common.images.tables import (
    ImageTableConfig,
    expect_no_group,
    image_file,
    image_rows,
    is_table,
)
from tasks.segmentation.metrics import VOID

IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"
# Lossless formats, which keep the class numbers.
_EXACT = ("PNG", "TIFF", "BMP", "GIF", "PPM")
MOST_CLASSES = 255

Pair = tuple[Path, Path]

OWN_DATA = OwnData(
    f"a folder with {IMAGES}/ and {MASKS}/, or a table with the paths of images and masks",
    {"image": "image_column", "label": "label_column", "group": "group_column"},
)


def find_all(path: str, config: ImageTableConfig) -> tuple[dict[str, list[Pair]], dict[Path, str]]:
    """Finds images and their masks by split, and the group of each image.

    Args:
      path: a folder as for `find`, a table, a pattern of tables, or three of them for train,
        validation and test.
      config: config with the names of the columns of tables; `label_column` is the column with the
        paths of masks.

    Raises:
      UserError: as for `find`, or a table cannot be read, lacks a column or names missing files.
    """
    found: dict[str, list[Pair]] = {}
    groups: dict[Path, str] = {}
    given = split_files(path)
    for split, name in given.items():
        if is_pattern(name) or is_table(name):
            found[split] = [
                pair for file in files_of(name) for pair in _table(file, config, groups)
            ]
            if twice := len(found[split]) - len({image for image, _ in found[split]}):
                warn_once(f"{name}: {twice} images are listed twice")
            continue
        expect_no_group(config, name)
        found |= find(name) if len(given) == 1 else {split: _pairs(Path(name).expanduser())}
    return found, groups


def _table(name: str, config: ImageTableConfig, groups: dict[Path, str]) -> Iterator[Pair]:
    """Yields image and mask of each row of a table, and adds the image's group to `groups`."""
    column = config.label_column
    for row in image_rows(name, config):
        pair = row.image, image_file(name, row.label, row.where, column)
        for file in pair:
            if not file.is_file():
                raise UserError(f"{row.where}: no such file: {file}")
        groups[row.image] = row.group
        yield pair


def find(path: str) -> dict[str, list[Pair]]:
    """Finds images and their masks by split.

    Args:
      path: a folder that contains either images/ and masks/, which are the training split; or
        train/ and optionally validation/ (or valid, val) and test/, each with images/ and masks/.

    Raises:
      UserError: there is no training split, an image has no mask, a mask has no image, or two
        images or two masks differ only in the suffix.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(
            f"--data: {path} is not a folder; give a folder with {IMAGES}/ and {MASKS}/, or a table"
        )
    folders = [folder.name for folder in root.iterdir() if folder.is_dir()]
    splits = split_names(folders, path)
    used = {IMAGES, MASKS, CLASSES} if {IMAGES, MASKS} & set(folders) else {CLASSES}
    _say_unused(root, used | set(splits.values()))
    if IMAGES in folders or MASKS in folders:
        if splits:
            both = f"{IMAGES if IMAGES in folders else MASKS}/ and {next(iter(splits.values()))}/"
            raise UserError(f"--data: {path} has both {both}; remove one of them")
        return {"train": _pairs(root)}
    if "train" not in splits:
        raise UserError(
            f"--data: {path} has neither {IMAGES}/ and {MASKS}/ nor train/; give a "
            f"folder that contains {IMAGES}/ and {MASKS}/, or train/"
        )
    for name in splits.values():
        _say_unused(root / name, {IMAGES, MASKS})
    return {split: _pairs(root / name) for split, name in splits.items()}


def find_labeled(path: str, names: Sequence[str], config: ImageTableConfig) -> list[Pair]:
    """Finds the images and masks of a folder or table for an evaluation.

    Args:
      path: a table, a folder with images/ and masks/, or a folder with test/, which contains these
        two folders.
      names: class names of the run, with which a file classes.txt in the folder must agree.
      config: columns of tables of the run.

    Raises:
      UserError: as for `find`, or classes.txt lists other classes than `names`.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        if is_table(path):
            columns = config.image_column, config.label_column
            expect_columns(open_table(path, columns), columns)
            return [*_table(path, dataclasses.replace(config, group_column=""), {})]
        raise UserError(f"{path}: no such folder; give a folder with {IMAGES}/ and {MASKS}/")
    found = class_names(path)
    if found is not None and list(found) != list(names):
        raise UserError(
            f"{root / CLASSES}: got the classes {join_names(found)}, expected those of the run: "
            f"{join_names(names)}"
        )
    if not (root / IMAGES).is_dir():
        splits = split_names([each.name for each in root.iterdir() if each.is_dir()], path)
        root = root / splits["test"] if "test" in splits else root
    return _pairs(root)


def _say_unused(folder: Path, used: set[str]) -> None:
    others = sorted(entry.name for entry in folder.iterdir() if entry.name not in used)
    others = [name for name in others if not is_hidden(name)]
    if others:
        warn_once(
            f"{folder}: {len(others)} entries are left out, such as {others[0]}; expected only "
            f"{', '.join(sorted(used))}"
        )


def _pairs(folder: Path) -> list[Pair]:
    for name in (IMAGES, MASKS):
        if not (folder / name).is_dir():
            raise UserError(f"{folder}: has no folder {name}/; give {IMAGES}/ and {MASKS}/")
    images, masks = (_by_stem(folder / name) for name in (IMAGES, MASKS))
    for stem, image in images.items():
        if stem not in masks:
            raise UserError(f"{image}: has no mask; add {folder / MASKS / stem}.png")
    for stem, mask in masks.items():
        if stem not in images:
            raise UserError(f"{mask}: has no image; add an image named {stem} to {folder / IMAGES}")
    if not images:
        raise UserError(f"{folder / IMAGES}: has no image; add images to the folder")
    return [(images[stem], masks[stem]) for stem in images]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_paths(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in found:
            raise UserError(
                f"{path}: differs from {found[stem].name} only in the suffix; remove one of them"
            )
        found[stem] = path
    warn_left_out(folder, found.values())
    return found


def class_names(path: str) -> list[str] | None:
    """Reads classes.txt in the folder, or next to the first file; None if it is missing.

    Raises:
      UserError: the file cannot be read, a name occurs twice, or there are too few or too many
        names.
    """
    first = Path(split_paths(path)[0]).expanduser()
    several = len(split_paths(path)) > 1
    folder = first if first.is_dir() and not several else first.parent
    file = folder / CLASSES
    if file.is_dir():
        raise UserError(f"{file}: is a folder, expected a file with one class name per line")
    if not file.is_file():
        return None
    names = [line.strip() for line in split_lines(read_text(file).rstrip())]
    if "" in names:
        raise UserError(
            f"{file}: line {names.index('') + 1} is empty, expected the name of a class"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file}: names the class {twice[0]!r} twice; give each class its own name")
    if not 2 <= len(names) <= MOST_CLASSES:
        raise UserError(f"{file}: names {len(names)} classes, expected 2 to {MOST_CLASSES}")
    return names


def read_pair(
    pair: Pair,
    void: int,
    names: Sequence[str] | None,
    values: Sequence[int] = (),
    turns: AnnotationTurns | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image and its mask, and converts the mask to labels.

    Args:
      pair: paths of image and mask.
      void: number in the mask that means no class.
      names: names of the classes; None if they are unknown.
      values: see `DataConfig.mask_values`.
      turns: collects images whose labels may have to be rotated to their EXIF orientation.

    Returns:
      Image uint8 [Y, X, 3], and labels uint8 [Y, X], VOID where there is no class.

    Raises:
      UserError: a file cannot be read, image and mask differ in size, or the mask contains
        something other than class numbers, or a class number out of range.
    """
    image, orientation = read_oriented(pair[0])
    mask, own = read_oriented_mask(pair[1])
    fits = image.shape[:2] == mask.shape
    if turns is not None and own == UPRIGHT:
        fits = turns.fits(pair[0], orientation, mask.shape, image.shape[:2])
    if not fits:
        sizes = [f"{x} x {y}" for y, x in (mask.shape, image.shape[:2])]
        raise UserError(
            f"{pair[1]}: is {sizes[0]} pixels, but its image is {sizes[1]}; give mask and image "
            "the same size"
        )
    if values:
        return image, _by_values(pair[1], mask, void, values)
    most = MOST_CLASSES if names is None else len(names)
    wrong = np.unique(mask[(mask != void) & ((mask < 0) | (mask >= most))])
    if len(wrong):
        raise UserError(
            f"{pair[1]}: has class {wrong[0]}, expected 0 to {most - 1}, or {void} for void "
            f"(config.data.void); set config.data.mask_values if classes have other numbers"
        )
    return image, np.where(mask == void, VOID, mask).astype(np.uint8)


def _by_values(file: Path, mask: np.ndarray, void: int, values: Sequence[int]) -> np.ndarray:
    labels = np.full(mask.shape, VOID, np.uint8)
    known = mask == void
    for number, value in enumerate(values):
        here = mask == value
        labels[here] = number
        known |= here
    if not known.all():
        raise UserError(
            f"{file}: has the number {mask[~known][0]}, expected one of config.data.mask_values, "
            f"{', '.join(map(str, values))}, or {void}, which is void (config.data.void)"
        )
    return labels


def read_mask(path: Path) -> np.ndarray:
    """Reads the numbers of a mask, int64 [Y, X]: gray values, or indices of a palette.

    RGB masks with three equal channels are read as gray. The EXIF orientation is applied.

    Raises:
      UserError: the mask cannot be read, has colors, or is in a lossy format.
    """
    return read_oriented_mask(path)[0]


def read_oriented_mask(path: Path) -> tuple[np.ndarray, int]:
    """Reads a mask like `read_mask`, and returns it with its EXIF orientation."""
    from PIL import ImageOps

    with open_image(path, str(path)) as image:
        if image.format not in _EXACT:
            raise UserError(
                f"{path}: is {image.format}, which does not keep class numbers; save masks as PNG"
            )
        orientation = orientation_of(image)
        turned = ImageOps.exif_transpose(image)
        numbers = np.asarray(turned)
        if turned.mode in ("LA", "RGB", "RGBA"):
            numbers = _gray(path, turned.mode, numbers)
        elif turned.mode not in ("1", "L", "P") and not turned.mode.startswith("I"):
            raise _has_colors(path, turned.mode)
        return numbers.astype(np.int64), orientation


def _gray(path: Path, mode: str, channels: np.ndarray) -> np.ndarray:
    """Returns the gray values [Y, X] of an image [Y, X, C], whose last channel may be alpha."""
    if mode.endswith("A"):
        if (channels[..., -1] != 255).any():
            raise UserError(
                f"{path}: is transparent in parts; save class numbers without transparency"
            )
        channels = channels[..., :-1]
    if (channels != channels[..., :1]).any():
        raise _has_colors(path, mode)
    return channels[..., 0]


def _has_colors(path: Path, mode: str) -> UserError:
    return UserError(
        f"{path}: has colors ({mode}); save class numbers as a gray PNG, or one with a palette"
    )


def label_counts(labels: Iterable[np.ndarray]) -> np.ndarray:
    """Counts the pixels of each label, int64 [256]."""
    counts = np.zeros(VOID + 1, np.int64)
    for each in labels:
        counts += np.bincount(each.ravel(), minlength=VOID + 1)
    return counts


def count_classes(
    path: str,
    read: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]],
    kept: Mapping[str, Sequence[Pair]],
) -> int:
    """Returns the number of classes in the training masks, for data without class names.

    Args:
      path: path of the data, for messages.
      read: image and labels of each pair of files, by split.
      kept: paths of image and mask of each pair, by split.

    Raises:
      UserError: another split has classes that the training split lacks, or the training masks lack
        most class numbers below the largest.
    """
    counts = label_counts(labels for _, labels in read["train"])[:VOID]
    present = np.flatnonzero(counts).tolist()
    most = max(present, default=0)
    for split, pairs in read.items():
        for pair, (_, labels) in zip(kept[split], pairs, strict=True):
            largest = int(labels[labels != VOID].max(initial=0))
            if largest > most:
                raise UserError(
                    f"{pair[1]}: has class {largest}, but the train split has only classes 0 to "
                    f"{most}; name the classes in {Path(path) / CLASSES}"
                )
    missing = most + 1 - len(present)
    if missing > len(present) > 1:
        listed = ", ".join(map(str, present[:20])) + ", ..." * (len(present) > 20)
        raise UserError(
            f"{path}: masks of the train split hold only the numbers {listed}, expected "
            f"class numbers 0, 1, 2, ...; set config.data.mask_values to ({listed}), or name "
            f"{most + 1} classes in {CLASSES}"
        )
    if missing and present:
        first = next(number for number in range(most) if not counts[number])
        warn_once(
            f"{path}: masks of the train split have no pixel of {missing} of {most + 1} "
            f"classes; the first missing class is {first}"
        )
    return max(most, 1) + 1
