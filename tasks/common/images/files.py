"""Reading of image files of any format that Pillow supports, and of folders of images.

Error messages are one line and name the file. In shapes, Y and X are height and width.
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

    Transparent pixels are blended with white. The full range of 16-bit grayscale is scaled to 8
    bits, so that 65535 becomes 255. The EXIF orientation is applied. Of several frames, only the
    first is read.

    Args:
      path: path of the file.
      mode: "RGB", or "L" for grayscale with the weights of ITU-R 601.
      size: (Y, X) of the result, see `resize`; None for the size of the file.
      called: name of the file in messages; None for its path.

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
    """Reads an image, as `read_image` does, and its EXIF orientation.

    Args:
      path: path of the file.
      mode: "RGB" or "L".
      called: name of the file in messages; None for its path.

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
    """Returns the EXIF orientation of an opened image; 1 if it is unknown.

    The image must not be loaded yet. When Pillow loads a TIFF file, it rotates the image, and the
    orientation is lost.
    """
    value = image.getexif().get(0x0112, UPRIGHT)
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT


@contextlib.contextmanager
def open_image(path: str | Path, name: str) -> Iterator[PillowImage.Image]:
    """Opens an image file, and converts errors within the context to `UserError`s.

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
    """Crops the central square of an image.

    Args:
      image: [Y, X, ...].

    Returns:
      [S, S, ...] with S = min(Y, X).
    """
    Y, X = image.shape[:2]
    side = min(Y, X)
    top, left = (Y - side) // 2, (X - side) // 2
    return image[top : top + side, left : left + side]


def image_paths(folder: str | Path) -> list[Path]:
    """Returns the sorted paths of the images in a folder and its subfolders.

    Images are the files that end in one of SUFFIXES. Hidden files and folders are left out.

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
    """Warns about files below a folder that are not used.

    Links to folders count as files, because they are not followed.

    Args:
      folder: the folder.
      used: paths of the files that are used, and of subfolders that are not searched.
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
    """Returns the paths of images by class.

    Each folder in `folder` is a class. Warns about files that are left out, and about images that
    are in subfolders of a class.

    Returns:
      Sorted paths for each class; the class names are sorted, too, and in composed Unicode form
      (NFC).

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
                f"{deeper[0].relative_to(path)}; they count as examples of {name!r}"
            )
    if not found:
        raise UserError(
            f"{folder}: has no folders; put the images of each class into a folder with the name "
            "of the class"
        )
    warn_left_out(root, [file for files in found.values() for file in files])
    return found


def nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label map.

    A pixel of the result has the label that the map has at the center of the pixel.

    Args:
      labels: int [Y, X].
      size: (Y, X) of the result.
    """
    if labels.shape == tuple(size):
        return labels
    y, x = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[y[:, None], x]
