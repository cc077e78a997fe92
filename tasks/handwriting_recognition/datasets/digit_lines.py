"""Handwritten digits joined into lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

HEIGHT = 32


@dataclasses.dataclass(frozen=True)
class Lines:
    """How single digits are written into a line of 32 pixels' height.

    Attributes:
      least, most: digits of a line.
      slant: largest shear, as columns by row, the same for a line.
      scale: largest change of size, as a share.
      thickness: largest change of the pen's width, as a share of a pixel on either side.
      spacing: least and most columns between two digits' ink; below 0 they touch.
      shift: most rows up or down.
      noise: largest deviation of the noise, of 255.
      wobble: largest change of a digit's own shape: of each entry of the 2 x 2 matrix that turns,
        stretches and shears it.
    """

    least: int = 3
    most: int = 8
    slant: float = 0.4
    scale: float = 0.2
    thickness: float = 0.5
    spacing: tuple[int, ...] = (-2, 8)
    shift: int = 3
    noise: float = 30.0
    wobble: float = 0.0

    def __post_init__(self):
        if not 1 <= self.least <= self.most:
            raise ValueError(f"least must be in [1, most], got {self.least} and {self.most}")
        if len(self.spacing) != 2 or self.spacing[0] > self.spacing[1]:
            raise ValueError(f"spacing must be the least and the most, got {self.spacing}")
        if self.spacing[0] < -6:
            raise ValueError(f"spacing must be at least -6, got {self.spacing}")
        if not 0 <= self.scale < 0.5:
            raise ValueError(f"scale must be in [0, 0.5), got {self.scale}")
        if not 0 <= self.wobble < 0.5:
            raise ValueError(f"wobble must be in [0, 0.5), got {self.wobble}")
        for name in ("slant", "thickness", "shift", "noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class WrittenLines:
    """Lines of random digits, each a pure function of the seed and its number.

    Args:
      pictures: of each digit, uint8 [n, 28, 28].
      count: lines.
      config: see `Lines`.
      seed: of all choices.

    Attributes:
      texts: of each line.
    """

    def __init__(
        self, pictures: Sequence[np.ndarray], count: int, config: Lines, seed: Sequence[int]
    ):
        self._pictures, self._config, self._seed = pictures, config, tuple(seed)
        self.texts = ["".join(map(str, self._digits(index)[1])) for index in range(count)]

    def __len__(self) -> int:
        return len(self.texts)

    def _digits(self, index: int) -> tuple[np.random.Generator, np.ndarray]:
        rng = np.random.default_rng((*self._seed, index))
        return rng, rng.integers(0, 10, rng.integers(self._config.least, self._config.most + 1))

    def __getitem__(self, index: int) -> np.ndarray:
        """Columns of the picture, uint8 [X, 32], 255 where there is ink."""
        config, (rng, digits) = self._config, self._digits(index)
        slant = rng.uniform(-config.slant, config.slant)
        pen = rng.uniform(-config.thickness, config.thickness)
        line = np.zeros((HEIGHT, 8 + 40 * len(digits)), np.float32)
        place = int(rng.integers(1, 5))
        for digit in digits:
            chosen = self._pictures[digit][rng.integers(len(self._pictures[digit]))]
            size = 1 + rng.uniform(-config.scale, config.scale)
            shape = np.array([[1 / size, 0.0], [slant / size, 1 / size]])
            if config.wobble:
                shape = shape @ (np.eye(2) + rng.uniform(-config.wobble, config.wobble, (2, 2)))
            glyph = _inked(_bent(chosen.astype(np.float32), shape, pen))
            top = (HEIGHT - len(glyph)) // 2 + int(rng.integers(-config.shift, config.shift + 1))
            top = min(max(top, 0), HEIGHT - len(glyph))
            place = max(place, 0)
            under = line[top : top + len(glyph), place : place + glyph.shape[1]]
            np.maximum(under, glyph, out=under)
            place += glyph.shape[1] + int(rng.integers(config.spacing[0], config.spacing[1] + 1))
        ink = np.flatnonzero(line.max(axis=0) > 0)[-1]
        line = line[:, : ink + 1 + int(rng.integers(1, 5))]
        line = line + rng.uniform(0, config.noise) * rng.normal(size=line.shape)
        return np.round(line).clip(0, 255).astype(np.uint8).T


def _bent(picture: np.ndarray, matrix: np.ndarray, pen: float) -> np.ndarray:
    """A digit on a larger canvas, whose places are sent to its own by the matrix about its middle,
    with another pen.
    """
    room = 44
    middle = np.array([(room - 1) / 2] * 2)
    offset = np.array([(picture.shape[0] - 1) / 2] * 2) - matrix @ middle
    bent = ndimage.affine_transform(picture, matrix, offset, (room, room), order=1)
    other = ndimage.grey_dilation(bent, (3, 3)) if pen > 0 else ndimage.grey_erosion(bent, (3, 3))
    return (1 - abs(pen)) * bent + abs(pen) * other


def _inked(picture: np.ndarray) -> np.ndarray:
    """The part with ink, at most HEIGHT rows."""
    inked = picture > 32
    rows, columns = (np.flatnonzero(inked.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return picture[:1, :1]
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][:HEIGHT]
