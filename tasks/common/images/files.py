"""Reading of image files of any format that Pillow supports, and of folders of images.

Y X height and width. Error messages are one line and name the file.
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
    from PIL import Image as PillowImage

MODES = ("RGB", "L")
# Extensions of image files; case is ignored.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Largest value of a grayscale image with 16 bits per pixel.
_BRIGHTEST = 65535


def read_image(
    path: str | Path,
    *,
    mode: str = "RGB",
    size: tuple[int, int] | None = None,
    called: str | None = None,
) -> np.ndarray:
    """Reads an image.

    Transparent pixels are blended with white. 16-bit grayscale is scaled by its full range, so that
    65535 becomes 255. The EXIF orientation is applied. Only the first of several frames is read.

    Args:
      path: path of the file.
      mode: "RGB", or "L" for grayscale with the weights of ITU-R 601.
      size: (Y, X) of the result, see `resize`; unchanged if None.
      called: name in messages; the path if None.

    Returns:
      uint8 [Y, X, 3], or [Y, X] for "L".

    Raises:
      UserError: the file is missing, not an image, truncated or damaged, has more pixels than
        Pillow considers safe, or has values of an unknown range.
      ValueError: the mode is unknown.
    """
    image, _ = read_oriented(path, mode=mode, called=called)
    return image if size is None else resize(image, size)


def read_oriented(
    path: str | Path, *, mode: str = "RGB", called: str | None = None
) -> tuple[np.ndarray, int]:
    """Reads an image like `read_image`, and its EXIF orientation.

    Args:
      path: path of the file.
      mode: "RGB" or "L".
      called: name in messages; the path if None.

    Returns:
      The image as displayed, uint8, and the orientation of the stored image, 1 to 8.

    Raises:
      UserError: the file cannot be read, see `read_image`.
      ValueError: the mode is unknown.
    """
    from PIL import ImageOps

    if mode not in MODES:
        raise ValueError(f"mode: got {mode!r}, expected one of {', '.join(MODES)}")
    name = str(path) if called is None else called
    with open_image(path, name) as image:
        orientation = orientation_of(image)
        displayed = ImageOps.exif_transpose(image)
        return np.asarray(_to_8_bits(displayed, name).convert(mode)), orientation


def orientation_of(image: PillowImage.Image) -> int:
    """Returns the EXIF orientation of an image that is opened and not yet loaded, 1 if unknown.

    Later the orientation of TIFF files is lost, because Pillow rotates them when it loads them.
    """
    value = image.getexif().get(0x0112, UPRIGHT)
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT


@contextlib.contextmanager
def open_image(path: str | Path, name: str) -> Iterator[PillowImage.Image]:
    """Opens an image file; errors within the context become `UserError`s.

    Args:
      path: path of the file.
      name: name of the file, for messages.

    Raises:
      UserError: the file cannot be read, see `read_image`.
    """
    from PIL import Image

    expect_regular(path, name)
    try:
        # Pillow's warnings are about metadata and the number of pixels, which is checked below. An
        # open file is passed instead of a path, because Pillow memory-maps files that are given as
        # paths, which scrambles rotated TIFF files.
        with (
            warnings.catch_warnings(action="ignore"),
            open(path, "rb") as file,
            Image.open(file) as image,
        ):
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                raise UserError(
                    f"{name}: has {image.width} x {image.height} pixels, more than "
                    f"{most:,}; make it smaller first"
                )
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: has too many pixels; make it smaller first") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{name}: not an image") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder, expected an image") from None
    except Exception as error:  # decoders may raise any exception on damaged bytes
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(reason.split())[:80]
        raise UserError(f"{name}: not an image that can be read ({reason})") from None


def _to_8_bits(image: PillowImage.Image, name: str) -> PillowImage.Image:
    """Converts an image to 8 bits per channel without transparency."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > _BRIGHTEST:
            raise UserError(
                f"{name}: has values from {values.min():g} to {values.max():g}, expected values "
                f"of 8 or 16 bits; convert the image"
            )
        gray = (values.astype(np.uint32) * 255 + _BRIGHTEST // 2) // _BRIGHTEST
        if (clear := image.info.get("transparency")) is not None:
            gray[values == clear] = 255
        return Image.fromarray(gray.astype(np.uint8))
    if not image.has_transparency_data:
        return image
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image.convert("RGBA"))
    return background.convert("RGB")


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image, without keeping its aspect ratio.

    The interpolation is bilinear, with antialiasing for smaller sizes (Pillow's `BILINEAR`).

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
    """Crops the central square: [Y, X, ...] -> [S, S, ...] with S = min(Y, X)."""
    Y, X = image.shape[:2]
    side = min(Y, X)
    top, left = (Y - side) // 2, (X - side) // 2
    return image[top : top + side, left : left + side]


def image_paths(folder: str | Path) -> list[Path]:
    """Returns the sorted paths below a folder that end in one of SUFFIXES and are not hidden.

    Raises:
      UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    found = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(name)]
        paths = [Path(parent, name) for name in files if not is_hidden(name)]
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    return sorted(found)


def warn_left_out(folder: str | Path, used: Collection[Path]) -> None:
    """Warns about unused files below a folder, and about links to folders.

    Args:
      folder: folder that is searched recursively.
      used: paths of the used files, and of folders that are not searched.
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
            f"{others[0].relative_to(root)}; files are used if they are in class folders, end in "
            f"one of {', '.join(SUFFIXES)} and are not hidden"
        )


def image_folder(folder: str | Path) -> dict[str, list[Path]]:
    """Returns image paths by class, where each folder in `folder` is a class.

    Warns about files that are left out and about images in subfolders of a class.

    Returns:
      Dict from sorted class names to sorted paths. Class names are in composed Unicode form (NFC).

    Raises:
      UserError: the folder does not exist or contains no folders, a class folder has no images, or
        two class folders have the same name in different Unicode forms.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder")
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    found: dict[str, list[Path]] = {}
    for path in classes:
        name = unicodedata.normalize("NFC", path.name)
        if name in found:
            raise UserError(
                f"{root}: two folders are called {name!r}, in different Unicode "
                f"forms; rename one of them"
            )
        found[name] = image_paths(path)
        if not found[name]:
            raise UserError(
                f"{path}: has no image; a class needs files that end in {', '.join(SUFFIXES)}"
            )
        deeper = [file for file in found[name] if file.parent != path]
        if deeper:
            warn_once(
                f"{path}: {len(deeper)} images are in subfolders, such as "
                f"{deeper[0].relative_to(path)}; they also belong to the class {name!r}"
            )
    if not found:
        raise UserError(
            f"{folder}: has no folders; put the images of each class into a folder with the name "
            "of the class"
        )
    warn_left_out(root, [file for files in found.values() for file in files])
    return found


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes labels [Y, X]; a new pixel has the label at its center."""
    if labels.shape == tuple(size):
        return labels
    y, x = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[y[:, None], x]
