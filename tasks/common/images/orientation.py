"""EXIF orientation: images as stored and as displayed, and their annotations.

Images are read as displayed, which means rotated and mirrored according to the camera orientation
(EXIF tag 0x0112, TIFF 6.0 section 8). Annotations (boxes and masks) may refer to the stored or to
the displayed image. This is decided for each image of a data set:

* If the two images differ in size, as after a rotation by 90°, annotations refer to the image whose
  size they declare.
* Otherwise (180°, mirror images, squares), annotations refer to the stored image, which is COCO's
  convention. The exception is a data set in which the first rule decides some images, and chooses
  the displayed image for all of them. Then annotations refer to the displayed image here, too.

Annotations of stored images are transformed with the image. A warning states once which case
applies. A mask with its own EXIF orientation is transformed by that orientation.

In shapes, Y and X are height and width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.common.errors import warn_once

UPRIGHT = 1
# For each orientation: whether to exchange rows and columns; and then whether to reverse the order
# of the rows, and of the columns.
_STEPS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors an image from its stored to its displayed orientation.

    Args:
      array: image or mask, [Y, X, ...].
      orientation: EXIF orientation, 1 to 8.
    """
    exchanged, rows, columns = _STEPS[orientation]
    array = array.swapaxes(0, 1) if exchanged else array
    array = array[::-1] if rows else array
    return array[:, ::-1] if columns else array


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Returns height and width of the displayed image.

    Args:
      size: height and width of the stored image.
      orientation: EXIF orientation, 1 to 8.
    """
    return (size[1], size[0]) if _STEPS[orientation][0] else (size[0], size[1])


def turned_boxes(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Transforms boxes from pixels of the stored image to pixels of the displayed image.

    Args:
      boxes: corners x1, y1, x2, y2 of each box, [n, 4].
      size: height and width of the stored image.
      orientation: EXIF orientation, 1 to 8.
    """
    exchanged, rows, columns = _STEPS[orientation]
    x1, y1, x2, y2 = (boxes[:, side] for side in range(4))
    height, width = turned_size(size, orientation)
    if exchanged:
        x1, y1, x2, y2 = y1, x1, y2, x2
    if rows:
        y1, y2 = height - y2, height - y1
    if columns:
        x1, x2 = width - x2, width - x1
    return np.stack([x1, y1, x2, y2], axis=1).astype(boxes.dtype)


class AnnotationTurns:
    """Decides which annotations of a data set are transformed, by the rules of this module."""

    def __init__(self):
        self._files: list[tuple[Path, int, bool | None]] = []

    def fits(
        self, file: Path, orientation: int, annotated: tuple[int, int], displayed: tuple[int, int]
    ) -> bool:
        """Records an image, and checks the size that its annotations declare.

        Args:
          file: file of the image.
          orientation: its EXIF orientation.
          annotated: height and width that the annotations declare.
          displayed: height and width of the image as displayed.

        Returns:
          True if the annotations have the size of the displayed or the stored image.
        """
        # For sizes, a rotation by 90° is its own inverse.
        stored = turned_size(displayed, orientation)
        if annotated not in (displayed, stored):
            return False
        if orientation != UPRIGHT:
            decides = displayed != stored
            self._files.append((file, orientation, annotated == stored if decides else None))
        return True

    def decide(self, where: str) -> dict[Path, int]:
        """Decides which annotations of the recorded images are transformed, and prints a warning.

        Args:
          where: file or folder of the data, for messages.

        Returns:
          For each image whose annotations refer to the stored image, the orientation by which they
          are to be transformed.
        """
        decided = {stored for _, _, stored in self._files if stored is not None}
        usual = decided != {False}
        groups: dict[bool, list[tuple[Path, int]]] = {True: [], False: []}
        for file, orientation, stored in self._files:
            groups[usual if stored is None else stored].append((file, orientation))
        for stored, files in groups.items():
            if not files:
                continue
            file, orientation = files[0]
            more = f" (and in {len(files) - 1} more)" * (len(files) > 1)
            how = "stored, and are transformed with it" if stored else "displayed"
            warn_once(
                f"{where}: EXIF orientation {orientation} in {file.name}{more}: annotations are "
                f"assumed to be in pixels of the image as {how}; if this is wrong, save the "
                f"images as displayed, without an EXIF orientation"
            )
        return dict(groups[True])


def warn_displayed(name: str, orientation: int) -> None:
    """Warns once that predictions for a rotated image are in pixels of the displayed image."""
    if orientation != UPRIGHT:
        warn_once(
            f"EXIF orientation {orientation} in {name}: predictions are in pixels of the image as "
            "displayed; further images are not reported",
            key="EXIF orientation",
        )
