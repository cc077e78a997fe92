"""A person's own pictures with masks: images/NAME and masks/NAME.png, a class for each pixel."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.common.errors import UserError
from tasks.common.image_files import image_paths, read_image
from tasks.common.own_files import read_text
from tasks.segmentation.metrics import VOID

IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"
# How the folders of the splits may be called.
FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
# Formats that keep a number as it is.
_EXACT = ("PNG", "TIFF", "BMP", "GIF", "PPM")
MOST_CLASSES = 255

Pair = tuple[Path, Path]


def find(path: str) -> dict[str, list[Pair]]:
    """Pictures and their masks by split.

    Args:
      path: a folder with images/ and masks/, which are the train split; or one with such folders
        in train/ and, where they are, in validation/ (or valid, val) and test/.

    Raises:
      UserError: there is no train split, a picture has no mask or a mask no picture, or two have
        one name.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"path: {path} is not a folder; give one with {IMAGES}/ and {MASKS}/")
    if (root / IMAGES).is_dir() or (root / MASKS).is_dir():
        return {"train": _pairs(root)}
    found = {}
    for split, names in FOLDERS.items():
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is not None:
            found[split] = _pairs(folder)
    if "train" not in found:
        raise UserError(f"path: {path} has no {IMAGES}/ and {MASKS}/, nor has it train/")
    return found


def _pairs(folder: Path) -> list[Pair]:
    for name in (IMAGES, MASKS):
        if not (folder / name).is_dir():
            raise UserError(f"{folder}: has no folder {name}/")
    images, masks = (_by_stem(folder / name) for name in (IMAGES, MASKS))
    for stem, image in images.items():
        if stem not in masks:
            raise UserError(f"{image}: has no mask; expected {folder / MASKS / stem}.png")
    for stem, mask in masks.items():
        if stem not in images:
            raise UserError(f"{mask}: has no picture of that name in {folder / IMAGES}")
    if not images:
        raise UserError(f"{folder / IMAGES}: has no picture")
    return [(images[stem], masks[stem]) for stem in images]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in image_paths(folder):
        stem = str(path.relative_to(folder).with_suffix(""))
        if stem in found:
            raise UserError(f"{path}: {found[stem].name} has that name too; one is enough")
        found[stem] = path
    return found


def class_names(path: str) -> list[str] | None:
    """The lines of classes.txt in the folder, the name of class 0 first; None where it is missing.

    Raises:
      UserError: it cannot be read, names a class twice, or too few or too many.
    """
    file = Path(path).expanduser() / CLASSES
    if not file.is_file():
        return None
    names = [line.strip() for line in read_text(file).strip().splitlines()]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file}: names {twice[0]!r} twice")
    if not 2 <= len(names) <= MOST_CLASSES:
        raise UserError(f"{file}: names {len(names)} classes, expected 2 to {MOST_CLASSES}")
    return names


def read_pair(pair: Pair, void: int, names: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """A picture uint8 [Y, X, 3] and its labels uint8 [Y, X], VOID where there is none.

    Args:
      pair: the two files.
      void: number in the mask that means no class.
      names: of the classes, if they are known.

    Raises:
      UserError: a file cannot be read, the mask is of another size or holds no class numbers, or a
        number is out of range.
    """
    image, mask = read_image(pair[0]), read_mask(pair[1])
    if image.shape[:2] != mask.shape:
        sizes = [f"{x} x {y}" for y, x in (mask.shape, image.shape[:2])]
        raise UserError(f"{pair[1]}: is {sizes[0]} pixels, but its picture is {sizes[1]}")
    most = MOST_CLASSES if names is None else len(names)
    wrong = np.unique(mask[(mask != void) & ((mask < 0) | (mask >= most))])
    if len(wrong):
        raise UserError(
            f"{pair[1]}: has class {wrong[0]}; classes are 0 to {most - 1}, and {void} is void "
            f"(config.data.void)"
        )
    return image, np.where(mask == void, VOID, mask).astype(np.uint8)


def read_mask(path: Path) -> np.ndarray:
    """The numbers of a mask, int64 [Y, X]: grey values, or the indices of a palette.

    Raises:
      UserError: it cannot be read, is coloured, or of a format that changes numbers.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            if picture.format not in _EXACT:
                raise UserError(
                    f"{path}: is {picture.format}, which does not keep class numbers; save masks "
                    "as PNG"
                )
            if picture.mode not in ("1", "L", "P") and not picture.mode.startswith("I"):
                raise UserError(
                    f"{path}: has colours ({picture.mode}); save class numbers as a grey PNG, or "
                    "one with a palette"
                )
            return np.asarray(picture).astype(np.int64)
    except UserError:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: not a picture that can be read ({reason[:80]})") from None
