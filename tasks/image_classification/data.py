"""Small pictures in memory: scikit-learn's handwritten digits, and pictures that a person gives.

The digits are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998,
UCI): 1,797 pictures of 8 x 8, each pixel the count 0..16 of inked pixels in a 4 x 4 block of the
scanned digit. Their writers are not recorded, so the same hands are in all splits: the figures are
for known hands.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from tasks.common.errors import UserError

DATA_SETS = ("digits",)
LABELS = tuple("0123456789")
# Pixels a side, and the value of a pixel that is ink all over.
SIDE = 8
INK = 16


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which pictures.

    Attributes:
      name: one of DATA_SETS.
      shift: in training each picture is moved at random, up to this many pixels each way.
    """

    name: str = "digits"
    shift: float = 0.5

    def __post_init__(self):
        if self.name not in DATA_SETS:
            raise ValueError(f"name must be one of {', '.join(DATA_SETS)}, got {self.name!r}")
        if not 0 <= self.shift <= SIDE:
            raise ValueError(f"shift must be in [0, {SIDE}], got {self.shift}")


class Images:
    """Random access to pictures of one size; `labels` is None where nobody knows them.

    Attributes:
      images: float32 [n, Y, X, C], ink from 0 to 1.
      labels: int32 [n] or None.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = {"image": self.images[index]}
        if self.labels is not None:
            example["label"] = self.labels[index]
        return example


def split_of(pixels: np.ndarray) -> str:
    """The split of a picture, by its content alone.

    SHA-256 of the pixels as bytes, modulo 10: 0 and 1 are test, 2 is validation, the rest train.
    Pictures that are equal in every pixel therefore never stand in two splits.

    Args:
      pixels: integers 0..16, [Y, X].
    """
    digest = hashlib.sha256(np.ascontiguousarray(pixels, np.uint8).tobytes()).hexdigest()
    part = int(digest, 16) % 10
    return "test" if part < 2 else "validation" if part == 2 else "train"


def load(config: DataConfig) -> dict[str, Images]:
    """The three splits, in the order of the source."""
    from sklearn.datasets import load_digits

    source = load_digits()
    pixels = source.images.astype(np.uint8)
    splits = np.array([split_of(image) for image in pixels])
    images = _scaled(pixels)
    labels = source.target.astype(np.int32)
    return {
        split: Images(images[splits == split], labels[splits == split])
        for split in ("train", "validation", "test")
    }


def fingerprint(splits: Mapping[str, Images]) -> str:
    """Hash of all pictures and labels and of where they stand."""
    digest = hashlib.sha256()
    for split, examples in splits.items():
        digest.update(f"{split} {len(examples)}".encode())
        digest.update(examples.images.tobytes())
        digest.update(examples.labels.tobytes())
    return digest.hexdigest()[:16]


def read_images(raw: Sequence[str]) -> Images:
    """Pictures from what a person typed; see `read_image`."""
    return Images(np.stack([read_image(text) for text in raw]) if raw else _scaled(np.empty(0)))


def read_image(text: str) -> np.ndarray:
    """One picture from 64 numbers or a file.

    Args:
      text: 64 numbers from 0 (paper) to 16 (ink) with commas between, row by row; or the path of a
        picture in any format that Pillow reads. That is turned to grey and shrunk to 8 x 8 by the
        mean of blocks, which is how the data set was made; where its border is light, it is taken
        for dark ink on light paper and inverted.

    Returns:
      float32 [8, 8, 1], ink from 0 to 1.

    Raises:
      UserError: neither, or numbers that do not fit.
    """
    numbers = _numbers(text)
    if numbers is None:
        return _read_file(text)
    shown = f"input {_shortened(text)}"
    if len(numbers) != SIDE**2:
        raise UserError(f"{shown}: has {len(numbers)} numbers; give {SIDE**2}, row by row")
    if not all(0 <= number <= INK for number in numbers):
        raise UserError(f"{shown}: each number must be from 0 (paper) to {INK} (ink)")
    return _scaled(np.reshape(numbers, (1, SIDE, SIDE)))[0]


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """[n, 8, 8] of 0..16 -> float32 [n, 8, 8, 1] of 0..1."""
    return (pixels.reshape(-1, SIDE, SIDE, 1) / INK).astype(np.float32)


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _read_file(path: str) -> np.ndarray:
    from PIL import Image

    remedy = f"give the path of a picture, or {SIDE**2} numbers 0..{INK} with commas between"
    try:
        with Image.open(path) as picture:
            # What is transparent is paper.
            paper = Image.new("RGBA", picture.size, "white")
            paper.alpha_composite(picture.convert("RGBA"))
            grey = paper.convert("L")
    except FileNotFoundError:
        raise UserError(f"input {_shortened(path)}: no such file; {remedy}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError(f"input {_shortened(path)}: not a picture; {remedy}") from None
    light = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    border = np.concatenate([light[0], light[-1], light[1:-1, 0], light[1:-1, -1]])
    ink = 1 - light if border.mean() > 0.5 else light
    return ink[..., None]


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
