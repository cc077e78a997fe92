"""Pictures in files of any format that Pillow reads, as arrays of bytes, and folders of them.

Y X height and width. What is wrong with a file is said in one line that names it.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tasks.common.data.regular_files import expect_regular
from tasks.common.data.user_files import is_hidden
from tasks.common.errors import UserError, warn_once
from tasks.common.images.orientation import UPRIGHT

if TYPE_CHECKING:
    from PIL import Image as Pictures

MODES = ("RGB", "L")
# What a file must end in to be taken for a picture, in any case of letters.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Of grey pictures with 16 bits a pixel.
_BRIGHTEST = 65535


def read_image(
    path: str | Path,
    *,
    mode: str = "RGB",
    size: tuple[int, int] | None = None,
    called: str | None = None,
) -> np.ndarray:
    """One picture.

    What is transparent shows white paper behind it. Grey of 16 bits is scaled by its full range:
    65535 becomes 255. The orientation that a camera noted (EXIF) is honoured; of several frames the
    first counts.

    Args:
      path: of the file.
      mode: "RGB", or "L": grey, by the weights of ITU-R 601.
      size: (Y, X) to which the picture is resized, see `resize`; as it is if None.
      called: what messages call it; its path if None.

    Returns:
      uint8 [Y, X, 3], or [Y, X] for "L".

    Raises:
      UserError: the file is missing, is no picture, is truncated or damaged, is of more pixels than
        Pillow deems safe, or its values have no known range.
      ValueError: an unknown mode.
    """
    image, _ = read_oriented(path, mode=mode, called=called)
    return image if size is None else resize(image, size)


def read_oriented(
    path: str | Path, *, mode: str = "RGB", called: str | None = None
) -> tuple[np.ndarray, int]:
    """Reads an image as it is displayed, as `read_image` does, and its EXIF orientation.

    Args:
      path: of the file.
      mode: "RGB" or "L".
      called: name in messages; the path if None.

    Returns:
      The image uint8, and the orientation by which the stored image was turned, 1 to 8.

    Raises:
      UserError: see `read_image`.
      ValueError: an unknown mode.
    """
    from PIL import ImageOps

    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, expected one of {', '.join(MODES)}")
    name = str(path) if called is None else called
    with open_image(path, name) as picture:
        orientation = orientation_of(picture)
        turned = ImageOps.exif_transpose(picture)
        return np.asarray(_flat(turned, name).convert(mode)), orientation


def orientation_of(picture: Pictures.Image) -> int:
    """Returns the EXIF orientation of an image that is opened and not yet loaded, 1 if unknown.

    Pillow turns TIFF files when it loads them, and forgets their orientation.
    """
    value = picture.getexif().get(0x0112, UPRIGHT)
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT


@contextlib.contextmanager
def open_image(path: str | Path, name: str) -> Iterator[Pictures.Image]:
    """Opens an image file; errors within the context, of damaged content, are named.

    Args:
      path: of the file.
      name: of the file, for messages.

    Raises:
      UserError: see `read_image`.
    """
    from PIL import Image

    expect_regular(path, name)
    try:
        # Warnings are of metadata and of too many pixels, which are counted here. A file
        # that is open already is not mapped into memory: that scrambles TIFF files that are turned
        # by a quarter.
        with (
            warnings.catch_warnings(action="ignore"),
            open(path, "rb") as file,
            Image.open(file) as picture,
        ):
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and picture.width * picture.height > most:
                raise UserError(
                    f"{name}: has {picture.width} x {picture.height} pixels, more than "
                    f"{most:,}; make it smaller first"
                )
            yield picture
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: has too many pixels; make it smaller first") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{name}: not a picture") from None
    except IsADirectoryError:
        raise UserError(f"{name}: a folder, not a picture") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(reason.split())[:80]
        raise UserError(f"{name}: not a picture that can be read ({reason})") from None


def _flat(picture: Pictures.Image, name: str) -> Pictures.Image:
    """The picture in 8 bits a channel and without transparency."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > _BRIGHTEST:
            raise UserError(
                f"{name}: its values from {values.min():g} to {values.max():g} are not those of 8 "
                "or 16 bits; save it as one of these"
            )
        grey = (values.astype(np.uint32) * 255 + _BRIGHTEST // 2) // _BRIGHTEST
        if (clear := picture.info.get("transparency")) is not None:
            grey[values == clear] = 255
        return Image.fromarray(grey.astype(np.uint8))
    if not picture.has_transparency_data:
        return picture
    paper = Image.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture.convert("RGBA"))
    return paper.convert("RGB")


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture of another size, height and width each scaled by a factor of its own.

    Bilinear; where it shrinks, the triangle is as much wider, so that every pixel counts (Pillow's
    `BILINEAR`).

    Args:
      image: uint8 [Y, X] or [Y, X, 3].
      size: (Y, X) of the result.
    """
    from PIL import Image

    if image.shape[:2] == tuple(size):
        return image
    Y, X = size
    return np.asarray(Image.fromarray(image).resize((X, Y), Image.Resampling.BILINEAR))


def center_crop_square(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle: [Y, X, ...] -> [S, S, ...] with S = min(Y, X)."""
    Y, X = image.shape[:2]
    side = min(Y, X)
    top, left = (Y - side) // 2, (X - side) // 2
    return image[top : top + side, left : left + side]


def image_paths(folder: str | Path) -> list[Path]:
    """All files in a folder and the folders in it whose names end in one of SUFFIXES, in order of
    their paths; but none that is hidden, see `is_hidden`.

    Raises:
      UserError: one of the folders cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(name)]
        paths = [Path(place, name) for name in files if not is_hidden(name)]
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    return sorted(found)


def warn_left_out(folder: str | Path, used: Collection[Path]) -> None:
    """Names the files below a folder that are not used, and links to folders, which nobody follows.

    Args:
      folder: searched with the folders in it.
      used: paths below it: files, and folders that are not searched.
    """
    root, kept = Path(folder), set(used)
    others = sorted(
        path
        for path in root.rglob("*")
        if path not in kept
        and not kept.intersection(path.parents)
        and (path.is_symlink() or not path.is_dir())
    )
    if others:
        warn_once(
            f"{folder}: {len(others)} files are left out, the first is "
            f"{others[0].relative_to(root)}; used are files in their places that end in one of "
            f"{', '.join(SUFFIXES)} and are not hidden"
        )


def image_folder(folder: str | Path) -> dict[str, list[Path]]:
    """Pictures by class: each folder in `folder` is a class and has its pictures (`image_paths`).

    Files that are left out, and pictures in folders of a class folder, are named on standard error.

    Returns:
      class -> paths, both in order. Names of classes are in Unicode's composed form (NFC).

    Raises:
      UserError: there is no such folder, it has no folders, one of them has no picture, or two have
        the same name in different Unicode forms.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder")
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    found: dict[str, list[Path]] = {}
    for path in classes:
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise UserError(f"{root}: two folders are called {name!r}, in two forms of Unicode")
        found[name] = image_paths(path)
        if not found[name]:
            raise UserError(
                f"{path}: has no picture; a class needs files that end in {', '.join(SUFFIXES)}"
            )
        deeper = [file for file in found[name] if file.parent != path]
        if deeper:
            warn_once(
                f"{path}: {len(deeper)} pictures are in folders within, such as "
                f"{deeper[0].relative_to(path)}; they are of the class {name!r} too"
            )
    if not found:
        raise UserError(
            f"{folder}: has no folders; put the pictures of each class into a folder that has the "
            "name of the class"
        )
    warn_left_out(root, [file for files in found.values() for file in files])
    return found
