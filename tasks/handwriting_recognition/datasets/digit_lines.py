"""Handwritten digits joined into lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from tasks.common.configs import (
    LATER,
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    within,
)

HEIGHT = 32
# Standard deviation in pixels of the Gaussian that smooths the displacements of an elastic
# distortion; Simard et al. 2003 use 4 for MNIST.
_SMOOTHNESS = 4.0
# Side of the canvas of a transformed digit.
_SIDE = 44


@dataclasses.dataclass(frozen=True)
class Lines(Config):
    """Composition of lines of 32 pixel rows from single digits.

    Attributes:
      least, most: smallest and largest number of digits.
      slant: maximum shear in columns per row, constant within a line.
      scale: largest relative change of the size of a digit.
      thickness: largest change of the stroke width, in pixels on each side.
      spacing: minimum and maximum number of columns between two digits; digits overlap if negative.
      shift: largest vertical shift of a digit, in rows.
      noise: largest standard deviation of the pixel noise, where 255 is full ink.
      wobble: maximum change of each entry of a digit's 2 x 2 transformation matrix.
      elastic: standard deviation of the displacements of a digit's pixels in each direction, in
        pixels (Simard, Steinkraus & Platt 2003, "Best Practices for Convolutional Neural Networks
        Applied to Visual Document Analysis", section 2, where it is about 1.4); 0 for none.
    """

    least: PositiveInt = 3
    most: int = 8
    slant: NonNegativeFloat = 0.4
    scale: within("[0, 0.5)") = 0.2
    thickness: NonNegativeFloat = 0.5
    spacing: tuple[int, ...] = (-2, 8)
    shift: NonNegativeInt = 3
    noise: NonNegativeFloat = 30.0
    wobble: within("[0, 0.5)") = 0.0
    elastic: NonNegativeFloat = dataclasses.field(default=0.0, metadata=LATER)

    def __post_init__(self):
        super().__post_init__()
        self.expect("most", self.most >= self.least, f"at least least={self.least}")
        ordered = len(self.spacing) == 2 and -6 <= self.spacing[0] <= self.spacing[1]
        self.expect("spacing", ordered, "two numbers in ascending order, at least -6")


class WrittenLines:
    """Random access to lines of random digits.

    For the given images and config, a line depends only on the seed and its index.

    Args:
      images: images uint8 [n, 28, 28] of each of the ten digits.
      count: number of lines.
      config: composition of the lines.
      seed: seed of all random choices.

    Attributes:
      texts: text of each line.
    """

    def __init__(
        self, images: Sequence[np.ndarray], count: int, config: Lines, seed: Sequence[int]
    ):
        self._images, self._config, self._seed = images, config, tuple(seed)
        self.texts = ["".join(map(str, self._digits(index)[1])) for index in range(count)]

    def __len__(self) -> int:
        return len(self.texts)

    def _digits(self, index: int) -> tuple[np.random.Generator, np.ndarray]:
        rng = np.random.default_rng((*self._seed, index))
        return rng, rng.integers(0, 10, rng.integers(self._config.least, self._config.most + 1))

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns the columns of a line, uint8 [X, 32], 255 for ink."""
        config, (rng, digits) = self._config, self._digits(index)
        slant = rng.uniform(-config.slant, config.slant)
        pen = rng.uniform(-config.thickness, config.thickness)
        widest = _SIDE + max(config.spacing[1], 0)
        line = np.zeros((HEIGHT, 8 + widest * len(digits)), np.float32)
        left = int(rng.integers(1, 5))
        for digit in digits:
            chosen = self._images[digit][rng.integers(len(self._images[digit]))]
            size = 1 + rng.uniform(-config.scale, config.scale)
            shape = np.array([[1 / size, 0.0], [slant / size, 1 / size]])
            if config.wobble:
                shape = shape @ (np.eye(2) + rng.uniform(-config.wobble, config.wobble, (2, 2)))
            moved = _displacements(rng, config.elastic) if config.elastic else None
            glyph = _crop_ink(_transform(chosen.astype(np.float32), shape, pen, moved))
            top = (HEIGHT - len(glyph)) // 2 + int(rng.integers(-config.shift, config.shift + 1))
            top = min(max(top, 0), HEIGHT - len(glyph))
            left = max(left, 0)
            under = line[top : top + len(glyph), left : left + glyph.shape[1]]
            np.maximum(under, glyph, out=under)
            left += glyph.shape[1] + int(rng.integers(config.spacing[0], config.spacing[1] + 1))
        # `ink` is empty if strong distortion moved all ink of the line out of the canvas.
        ink = np.flatnonzero(line.max(axis=0) > 0)
        line = line[:, : (ink[-1] if len(ink) else left) + 1 + int(rng.integers(1, 5))]
        line = line + rng.uniform(0, config.noise) * rng.normal(size=line.shape)
        return np.round(line).clip(0, 255).astype(np.uint8).T


def _displacements(rng: np.random.Generator, size: float) -> np.ndarray:
    """Returns smooth random displacements [2, _SIDE, _SIDE] with standard deviation `size`."""
    noise = rng.normal(size=(2, _SIDE, _SIDE))
    smooth = ndimage.gaussian_filter(noise, (0, _SMOOTHNESS, _SMOOTHNESS), mode="wrap")
    # The Gaussian filter divides the standard deviation of white noise by 2 sqrt(π) _SMOOTHNESS.
    return size * 2 * np.sqrt(np.pi) * _SMOOTHNESS * smooth


def _transform(
    image: np.ndarray, matrix: np.ndarray, pen: float, displacements: np.ndarray | None = None
) -> np.ndarray:
    """Transforms a digit about its center, on a larger canvas, and changes its stroke width.

    Args:
      image: image of the digit.
      matrix: 2 x 2 matrix that maps positions on the canvas to positions in the image.
      pen: pixels by which each side of a stroke is thickened, or thinned if negative; -1 to 1.
      displacements: [2, _SIDE, _SIDE], added to the positions in the image.
    """
    center = np.array([(_SIDE - 1) / 2] * 2)
    offset = np.array([(image.shape[0] - 1) / 2] * 2) - matrix @ center
    if displacements is None:
        changed = ndimage.affine_transform(image, matrix, offset, (_SIDE, _SIDE), order=1)
    else:
        positions = np.tensordot(matrix, np.indices((_SIDE, _SIDE)), 1) + offset[:, None, None]
        changed = ndimage.map_coordinates(image, positions + displacements, order=1)
    morphology = ndimage.grey_dilation if pen > 0 else ndimage.grey_erosion
    return (1 - abs(pen)) * changed + abs(pen) * morphology(changed, (3, 3))


def _crop_ink(image: np.ndarray) -> np.ndarray:
    """Crops an image to the bounding box of its ink, and to at most HEIGHT rows."""
    ink = image > 32
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return image[:1, :1]
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][:HEIGHT]
