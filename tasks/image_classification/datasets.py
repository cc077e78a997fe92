"""Built-in data sets of gray images.

Digits are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998,
UCI) in scikit-learn: 1,797 images of 8 x 8 pixels. Each pixel is the number 0..16 of ink pixels in
a 4 x 4 block of the scanned digit. Writers are not recorded, so splits share writers, and metrics
do not measure the generalization to new writers.

Fashion-MNIST: see `tasks.common.datasets.fashion_mnist`.

Y X height and width, C channels, n images.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common.data import builders
from tasks.common.data.paths import Paths
from tasks.common.data.splits import SPLITS
from tasks.common.datasets import fashion_mnist


class Images:
    """Random access to images of one size.

    Attributes:
      images: [n, Y, X, C], float32 from 0 to 1 or uint8 from 0 to 255.
      labels: int32 [n]; None for unlabeled images.
      ids: hashes of the image files of user data; None for built-in data sets.
    """

    lengths = None
    padded: Mapping[str, int] = {}

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None = None, ids: Sequence[str] | None = None
    ):
        self.images, self.labels, self.ids = images, labels, ids

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        example = {"image": self.images[index]}
        if self.labels is not None:
            example["label"] = self.labels[index]
        return example


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of gray images, light on a dark background.

    Attributes:
      labels: names of the classes.
      side: side of the images in pixels.
      ink: largest value of a pixel, which is full ink.
      load: function from the data paths to the splits by name.
    """

    labels: tuple[str, ...]
    side: int
    ink: int
    load: Callable[[Paths], dict[str, Images]]


# ---------------------------------------------------------------------- digits

INK = 16


def split_of(pixels: np.ndarray) -> str:
    """Returns the split of a digit, by SHA-256 of its pixels modulo 10.

    Remainders 0 and 1 are test, 2 is validation, and 3 to 9 are train. Equal images are in the same
    split.

    Args:
      pixels: ink of the pixels, integers 0..16, [Y, X].
    """
    digest = hashlib.sha256(np.ascontiguousarray(pixels, np.uint8).tobytes()).hexdigest()
    part = int(digest, 16) % 10
    return "test" if part < 2 else "validation" if part == 2 else "train"


def _digits(paths: Paths) -> dict[str, Images]:
    """Returns the splits of the digits; examples keep the order of scikit-learn."""
    from sklearn.datasets import load_digits

    source = load_digits()
    pixels = source.images.astype(np.uint8)
    splits = np.array([split_of(image) for image in pixels])
    images = (pixels[..., None] / INK).astype(np.float32)
    labels = source.target.astype(np.int32)
    return {split: Images(images[splits == split], labels[splits == split]) for split in SPLITS}


# ---------------------------------------------------------------------- Fashion-MNIST


def _generate(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, Any]]]:
    def examples(images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
        for image, label in zip(images, labels, strict=True):
            yield {"image": image, "label": int(label)}

    return {split: examples(*pair) for split, pair in fashion_mnist.read(files).items()}


FASHION_MNIST = builders.DatasetDefinition(
    name="fashion_mnist",
    version="1.0.0",
    features=builders.features_of(
        image=((fashion_mnist.SIDE, fashion_mnist.SIDE), np.uint8), label=list(fashion_mnist.NAMES)
    ),
    sources=fashion_mnist.SOURCES,
    generate=_generate,
    counts={"train": 50_000, "validation": 10_000, "test": 10_000},
    description="Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): gray images of clothes, 28 x 28; "
    "validation is the last 10,000 of the 60,000 training images.",
    license=fashion_mnist.LICENSE,
)


def _fashion_mnist(paths: Paths) -> dict[str, Images]:
    splits = {}
    for split, rows in builders.read_splits(FASHION_MNIST, paths):
        images = np.stack([row["image"] for row in rows])[..., None]
        splits[split] = Images(images, np.array([row["label"] for row in rows], np.int32))
    return splits


DATA_SETS = {
    "digits": DataSet(tuple("0123456789"), side=8, ink=INK, load=_digits),
    "fashion_mnist": DataSet(
        fashion_mnist.NAMES, side=fashion_mnist.SIDE, ink=255, load=_fashion_mnist
    ),
}
